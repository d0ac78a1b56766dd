"""Small ONNX models, each built to show one way of behaving."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSET: Final = 17
IR_VERSION: Final = 8
ELEMENTS: Final = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
Shape: TypeAlias = Sequence[str | int | None]
ROWS: Final[Shape] = ("N", 4)


def save(model: ModelProto, folder: Path, name: str = "model.onnx") -> str:
    """Write a model; its path."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return str(path)


def identity(datatype: str = "FP32", shape: Shape = ROWS) -> ModelProto:
    """Answers what it is given."""
    element = ELEMENTS[datatype]
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [_value("x", shape, element)],
        [_value("y", shape, element)],
    )


def linear(bias: float = 0.0) -> ModelProto:
    """Answers the sum of each row, and a bias."""
    return _model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        [_value("x", ROWS)],
        [_value("y", ("N", 1))],
        [_constant("w", np.ones((4, 1))), _constant("b", np.array([bias]))],
    )


def batch_mean() -> ModelProto:
    """Answers each row less the mean of all rows: what stands together matters."""
    return _model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [_value("x", ROWS)],
        [_value("y", ROWS)],
    )


def scalar() -> ModelProto:
    """Answers the sum of all it is given, without any dimension."""
    return _model(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [_value("x", ROWS)],
        [_value("y", ())],
    )


def failing() -> ModelProto:
    """Looks up a row of three; any index beyond fails the run."""
    return _model(
        [helper.make_node("Gather", ["table", "x"], ["y"], axis=0)],
        [_value("x", ("N",), TensorProto.INT64)],
        [_value("y", ("N", 2))],
        [_constant("table", np.arange(6).reshape(3, 2))],
    )


def two_inputs(other: Shape = ROWS) -> ModelProto:
    """Adds two inputs."""
    return _model(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        [_value("x", ROWS), _value("z", other)],
        [_value("y", ROWS)],
    )


def two_outputs() -> ModelProto:
    """Answers its input as `same` and turned as `negative`."""
    return _model(
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Neg", ["x"], ["negative"]),
        ],
        [_value("x", ROWS)],
        [_value("same", ROWS), _value("negative", ROWS)],
    )


def slow(turns: int = 2_000) -> ModelProto:
    """Multiplies a matrix again and again, then answers the input."""
    size = 64
    matrix = _constant("step", np.eye(size))
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("MatMul", ["before", "step"], ["after"]),
        ],
        "body",
        [
            _value("i", (), TensorProto.INT64),
            _value("go", (), TensorProto.BOOL),
            _value("before", (size, size)),
        ],
        [_value("on", (), TensorProto.BOOL), _value("after", (size, size))],
    )
    return _model(
        [
            helper.make_node("Loop", ["turns", "", "step"], ["end"], body=body),
            helper.make_node("ReduceMean", ["end"], ["small"], keepdims=0),
            helper.make_node("Mul", ["small", "none"], ["zero"]),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        [_value("x", ROWS)],
        [_value("y", ROWS)],
        [
            matrix,
            _constant("turns", np.array(turns), np.int64),
            _constant("none", np.array(0.0)),
        ],
    )


def forever() -> ModelProto:
    """Answers its input, but comes to no end where its sum is negative."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["before", "none"], ["after"]),
        ],
        "body",
        [
            _value("i", (), TensorProto.INT64),
            _value("go", (), TensorProto.BOOL),
            _value("before", ROWS),
        ],
        [_value("on", (), TensorProto.BOOL), _value("after", ROWS)],
    )
    return _model(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Less", ["sum", "none"], ["begin"]),
            helper.make_node("Loop", ["", "begin", "x"], ["y"], body=body),
        ],
        [_value("x", ROWS)],
        [_value("y", ROWS)],
        [_constant("none", np.array(0.0))],
    )


def dice() -> ModelProto:
    """Answers its input with noise: no run is like another."""
    return _model(
        [
            helper.make_node("RandomNormalLike", ["x"], ["noise"]),
            helper.make_node("Add", ["x", "noise"], ["y"]),
        ],
        [_value("x", ROWS)],
        [_value("y", ROWS)],
    )


def wide(width: int, layers: int = 1) -> ModelProto:
    """A perceptron from four numbers over layers of `width` to four."""
    sizes = [4, *[width] * layers, 4]
    rng = np.random.default_rng(0)
    nodes, constants, last = [], [], "x"
    for index, (before, after) in enumerate(pairwise(sizes)):
        constants.append(_constant(f"w{index}", rng.standard_normal((before, after)) / before))
        constants.append(_constant(f"b{index}", rng.standard_normal(after)))
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [f"h{index}"]))
        last = f"h{index}"
    nodes.append(helper.make_node("Tanh", [last], ["y"]))
    return _model(nodes, [_value("x", ROWS)], [_value("y", ROWS)], constants)


def swelling() -> ModelProto:
    """Answers as many zeros as the product of what it is given."""
    return _model(
        [helper.make_node("ConstantOfShape", ["x"], ["y"])],
        [_value("x", (2,), TensorProto.INT64)],
        [_value("y", (None, None))],
    )


def root() -> ModelProto:
    """Answers square roots; of a negative number that is no number."""
    return _model(
        [helper.make_node("Sqrt", ["x"], ["y"])], [_value("x", ROWS)], [_value("y", ROWS)]
    )


def heavy() -> ModelProto:
    """Multiplies square matrices of whole numbers, as large as it is asked for: a slow kernel."""
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    return _model(
        [
            helper.make_node("Concat", ["x", "x"], ["shape"], axis=0),
            helper.make_node("ConstantOfShape", ["shape"], ["matrix"], value=one),
            helper.make_node("MatMul", ["matrix", "matrix"], ["product"]),
            helper.make_node("ReduceSum", ["product"], ["y"], keepdims=0),
        ],
        [_value("x", (1,), TensorProto.INT64)],
        [_value("y", (), TensorProto.INT64)],
    )


def folding_bomb(elements: int) -> ModelProto:
    """A file of a few bytes whose constants unfold to so many floats when it is loaded."""
    return _model(
        [
            helper.make_node("ConstantOfShape", ["size"], ["large"]),
            helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        [_value("x", ROWS)],
        [_value("y", ROWS)],
        [_constant("size", np.array([elements]), np.int64)],
    )


def external(location: str) -> ModelProto:
    """A linear model whose weights are to be read from another file."""
    model = linear()
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    return model


def sequence() -> ModelProto:
    """Answers a sequence of tensors, which the protocol has no word for."""
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ROWS)
    return _model(
        [helper.make_node("SequenceConstruct", ["x", "x"], ["y"])],
        [_value("x", ROWS)],
        [helper.make_value_info("y", helper.make_sequence_type_proto(kind))],
    )


def custom_operator() -> ModelProto:
    """Uses an operator that nobody registered."""
    model = _model(
        [helper.make_node("Magic", ["x"], ["y"], domain="example.custom")],
        [_value("x", ROWS)],
        [_value("y", ROWS)],
    )
    model.opset_import.append(helper.make_opsetid("example.custom", 1))
    return model


def _value(name: str, shape: Shape, element: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, element, list(shape))


def _constant(name: str, values: Any, dtype: type[np.generic] = np.float32) -> TensorProto:
    return numpy_helper.from_array(values.astype(dtype), name)


def _model(
    nodes: list[NodeProto],
    inputs: list[Any],
    outputs: list[Any],
    constants: Sequence[TensorProto] = (),
) -> ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    opset = helper.make_opsetid("", OPSET)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
