"""The model files that every contestant serves, made here: nothing is committed but the recipe.

    python loadtests/models.py FOLDER [NAME ...]

Each lands as `FOLDER/<name>/<version>/model.onnx`, versions 1 and 2 with the same weights: a split
between them costs what a split costs, and every answer is known. `swap` is logistic regression with
other weights in version 2, so that the version that gave an answer can be told from its numbers.
"""

import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

HERE: Final = Path(__file__).resolve().parent
DIGITS: Final = HERE.parent / "models" / "digits" / "1" / "model.onnx"
WHEEL: Final = "rapidocr-onnxruntime==1.4.4"
"""A package whose wheel ships a convolutional network: a MobileNet that tells upright text lines
from those upside down, with free height and width."""
WHEEL_MEMBER: Final = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
FEATURES: Final = 30
TREES: Final = 200
DEPTH: Final = 6
OPSETS: Final = (helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3))


@dataclass(frozen=True)
class Model:
    """One model: what goes in for one row, and how its file is made.

    `small` ones are those whose peak is a question of the server; the two versions of one that
    `differs` have other weights.
    """

    name: str
    input: str
    row: tuple[int, ...]
    make: Callable[[int], ModelProto]
    small: bool = True
    differs: bool = False


def logistic(seed: int) -> ModelProto:
    """Logistic regression as converters write it: a label and two probabilities."""
    weights = np.random.default_rng(seed).normal(0, 0.5, FEATURES)
    node = helper.make_node(
        "LinearClassifier",
        ["features"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        coefficients=[*(-weights).tolist(), *weights.tolist()],
        intercepts=[-0.1, 0.1],
        classlabels_ints=[0, 1],
        post_transform="SOFTMAX",
    )
    return _classifier(node)


def boosted(seed: int) -> ModelProto:
    """Gradient boosting: 200 full trees of depth 6, thresholds where the inputs are."""
    random = np.random.default_rng(seed)
    inner, leaves = 2**DEPTH - 1, 2**DEPTH
    size = inner + leaves
    tree = np.repeat(np.arange(TREES), size)
    node = np.tile(np.arange(size), TREES)
    is_leaf = node >= inner
    attributes: dict[str, Any] = {
        "nodes_treeids": tree,
        "nodes_nodeids": node,
        "nodes_featureids": np.where(is_leaf, 0, random.integers(0, FEATURES, len(node))),
        "nodes_values": np.where(is_leaf, 0.0, random.normal(0, 1, len(node))),
        "nodes_modes": ["LEAF" if leaf else "BRANCH_LEQ" for leaf in is_leaf],
        "nodes_truenodeids": np.where(is_leaf, 0, 2 * node + 1),
        "nodes_falsenodeids": np.where(is_leaf, 0, 2 * node + 2),
        "class_treeids": tree[is_leaf],
        "class_nodeids": node[is_leaf],
        "class_ids": np.zeros(TREES * leaves, np.int64),
        "class_weights": random.normal(0, 0.1, TREES * leaves),
        "classlabels_int64s": [0, 1],
        "base_values": [0.0],
        "post_transform": "LOGISTIC",
    }
    plain = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in attributes.items()
    }
    ensemble = helper.make_node(
        "TreeEnsembleClassifier",
        ["features"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        **plain,
    )
    return _classifier(ensemble)


def perceptron(seed: int) -> ModelProto:
    """Two dense layers, 256 to 256 to 128."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.normal(0, 1 / 16, (256, 256)),
        "b1": random.normal(0, 0.1, 256),
        "w2": random.normal(0, 1 / 16, (256, 128)),
        "b2": random.normal(0, 0.1, 128),
    }
    nodes = [
        helper.make_node("Gemm", ["features", "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["embedding"]),
    ]
    return _model(
        nodes, [_value("features", ["batch", 256])], [_value("embedding", ["batch", 128])], weights
    )


def image(seed: int) -> ModelProto:
    """Patches of 16 by 16 pixels, averaged and classified: a large tensor, and little work."""
    random = np.random.default_rng(seed)
    weights = {
        "patches": random.normal(0, 1 / 16, (16, 3, 16, 16)),
        "w": random.normal(0, 0.25, (16, 10)),
        "b": np.zeros(10),
    }
    nodes = [
        helper.make_node("Conv", ["image", "patches"], ["maps"], strides=[16, 16]),
        helper.make_node("Relu", ["maps"], ["lit"]),
        helper.make_node("GlobalAveragePool", ["lit"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"]),
    ]
    return _model(
        nodes, [_value("image", ["batch", 3, 224, 224])], [_value("scores", ["batch", 10])], weights
    )


def heavy(seed: int) -> ModelProto:
    """Many dense layers that share one matrix: small requests, and work that no batch hides."""
    random = np.random.default_rng(seed)
    size, layers = 512, 64
    weights = {
        "in": random.normal(0, 0.2, (FEATURES, size)),
        "w": random.normal(0, 1 / np.sqrt(size), (size, size)),
        "b": random.normal(0, 0.1, size),
        "out": random.normal(0, 1 / np.sqrt(size), (size, 2)),
    }
    nodes = [helper.make_node("MatMul", ["features", "in"], ["x0"])]
    for i in range(layers):
        nodes.append(helper.make_node("Gemm", [f"x{i}", "w", "b"], [f"h{i}"]))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"x{layers}", "out"], ["sums"]))
    nodes.append(helper.make_node("Tanh", ["sums"], ["scores"]))
    return _model(
        nodes, [_value("features", ["batch", FEATURES])], [_value("scores", ["batch", 2])], weights
    )


def digits(seed: int) -> ModelProto:
    """The sample model of this repository, as it is."""
    del seed
    return onnx.load(str(DIGITS))


def convnet(seed: int) -> ModelProto:
    """The packaged network at 3 x 224 x 224, with names that a reader understands."""
    del seed
    model = onnx.load_from_string(_shipped())
    graph = model.graph
    names = {graph.input[0].name: "image", graph.output[0].name: "probabilities"}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    graph.input[0].CopyFrom(_value("image", ["batch", 3, 224, 224]))
    graph.output[0].CopyFrom(_value("probabilities", ["batch", 2]))
    del graph.value_info[:]
    onnx.checker.check_model(model)
    return model


MODELS: Final = {
    model.name: model
    for model in (
        Model("logistic", "features", (FEATURES,), logistic),
        Model("boosted", "features", (FEATURES,), boosted),
        Model("perceptron", "features", (256,), perceptron),
        Model("digits", "image", (8, 8), digits),
        Model("image", "image", (3, 224, 224), image, small=False),
        Model("convnet", "image", (3, 224, 224), convnet, small=False),
        Model("heavy", "features", (FEATURES,), heavy, small=False),
        Model("swap", "features", (FEATURES,), logistic, differs=True),
    )
}


def make(folder: Path, names: list[str]) -> None:
    """Write the named models' files, where they are not there yet.

    Raises:
        RuntimeError: the package with the convolutional network cannot be had.
    """
    for name in names:
        for version in (1, 2):
            path = folder / name / str(version) / "model.onnx"
            if path.exists():
                continue
            seed = version if MODELS[name].differs else 1
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(MODELS[name].make(seed).SerializeToString())


def _classifier(node: NodeProto) -> ModelProto:
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        _value("probabilities", ["batch", 2]),
    ]
    return _model([node], [_value("features", ["batch", FEATURES])], outputs, {})


def _model(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    weights: dict[str, Any],
) -> ModelProto:
    initial = [
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    ]
    graph = helper.make_graph(nodes, "loadtest", inputs, outputs, initial)
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
    onnx.checker.check_model(model)
    return model


def _value(name: str, shape: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _shipped() -> bytes:
    """The network out of the package's wheel, fetched once and never installed."""
    import subprocess  # noqa: PLC0415 - only this model needs it

    folder = HERE / ".envs" / "wheels"
    wheels = list(folder.glob("rapidocr_onnxruntime*.whl"))
    if not wheels:
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run([*words, "--dest", str(folder), WHEEL], check=False)
        wheels = list(folder.glob("rapidocr_onnxruntime*.whl"))
        if done.returncode or not wheels:
            raise RuntimeError(f"{WHEEL} cannot be downloaded, so there is no 'convnet'.")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return wheel.read(WHEEL_MEMBER)


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2:] or list(MODELS))
