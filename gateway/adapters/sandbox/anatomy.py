"""Anatomy: what a model's file says, read without onnxruntime. The only page that imports onnx.

Only its protobuf classes are used, and its tables of operator sets: nothing of it opens a file or
follows what the model says of other files.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from gateway.adapters.sandbox.wire import Anatomy
from gateway.core.errors import excerpt

DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
BARRED: Final = frozenset({"EPContext"})
"""Operators of these domains that hand the host a file, or code for a device."""
MAX_NODES: Final = 1_000_000
"""Functions and their calls written out."""
MAX_DEPTH: Final = 32
"""Of graphs in attributes."""
MAX_BYTES: Final = 2**31 - 1
"""Of the file: more is no protobuf."""
MIN_IR_VERSION: Final = 3
MAX_KINDS: Final = 2_000
"""Different operators in one model."""
_ITEM_BITS: Final[Mapping[int, int]] = {
    number: onnx.helper.tensor_dtype_to_np_dtype(number).itemsize * 8
    for number in onnx.TensorProto.DataType.values()
    if number not in (TensorProto.UNDEFINED, TensorProto.STRING)
}
_HALF_BYTES: Final = frozenset({"INT4", "UINT4", "FLOAT4E2M1"})
_QUARTER_BYTES: Final = frozenset({"INT2", "UINT2"})
_EXTERNAL_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})

Function = tuple[str, str]


class Fault(Exception):
    """What speaks against a version, in one sentence without its paths."""


class Model:
    """A parsed model: its nodes, tensors and functions, counted within bounds."""

    __slots__ = ("_functions", "_proto", "nodes", "tensors")

    def __init__(self, content: bytes) -> None:
        """Parse.

        Raises:
            Fault: it is no model, or one of another time or size.
        """
        self._proto = _parse(content)
        self._functions: dict[Function, FunctionProto] = {
            (function.domain, function.name): function for function in self._proto.functions
        }
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self._walk_graph(self._proto.graph, 0)
        for function in self._proto.functions:
            self._walk_nodes(function.node, 0)
        self._check_functions()

    def anatomy(self) -> Anatomy:
        """What it says of itself. Names are cut and cleaned, numbers stay within 63 bits."""
        counts = Counter(f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in self.nodes)
        if len(counts) > MAX_KINDS:
            raise Fault(f"It uses {len(counts)} kinds of operators; at most {MAX_KINDS} may be.")
        weights = [*self._proto.graph.initializer]
        producer = f"{self._proto.producer_name} {self._proto.producer_version}".strip()
        return Anatomy(
            producer=excerpt(producer, 80),
            ir_version=self._proto.ir_version,
            opsets={
                excerpt(one.domain or "ai.onnx"): one.version for one in self._proto.opset_import
            },
            operators={excerpt(name): count for name, count in sorted(counts.items())},
            parameters=min(sum(max(0, _elements(one)) for one in weights), 2**63 - 1),
        )

    def check_domains(self) -> str:
        """Refuse operators that this gateway does not run.

        Raises:
            Fault: one of another domain, or one that is barred.
        """
        for node in self.nodes:
            name = excerpt(node.op_type)
            if (node.domain, node.op_type) in self._functions and node.domain not in DOMAINS:
                continue
            if node.domain not in DOMAINS:
                raise Fault(f"Operator '{name}' is of the domain '{excerpt(node.domain)}'.")
            if node.op_type in BARRED:
                raise Fault(f"Operator '{name}' points to something outside the model.")
        return "Its operators are of known domains."

    def check_external(self, files: Mapping[str, int]) -> str:
        """Refuse weights that lie anywhere but in the version's own files.

        Args:
            files: their names and sizes in bytes.

        Raises:
            Fault: a tensor whose data lie elsewhere, or beyond a file's end.
        """
        count = 0
        for tensor in self.tensors:
            if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
                _check_external(tensor, files)
                count += 1
        return f"{count} tensors lie in the version's own files." if count else "It has none."

    def names(self) -> tuple[list[str], list[str]]:
        """Of its inputs and of its outputs, as they stand in the file."""
        graph = self._proto.graph
        return [one.name for one in graph.input], [one.name for one in graph.output]

    def _walk_graph(self, graph: GraphProto, depth: int) -> None:
        self.tensors += graph.initializer
        for sparse in graph.sparse_initializer:
            self.tensors += (sparse.values, sparse.indices)
        self._walk_nodes(graph.node, depth)

    def _walk_nodes(self, nodes: Iterator[NodeProto], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Fault(f"Its graphs are nested deeper than {MAX_DEPTH}.")
        for node in nodes:
            self.nodes.append(node)
            if len(self.nodes) > MAX_NODES:
                raise Fault(f"It has more than {MAX_NODES} nodes.")
            for attribute in node.attribute:
                self._walk_attribute(attribute, depth)

    def _walk_attribute(self, attribute: AttributeProto, depth: int) -> None:
        if attribute.HasField("t"):
            self.tensors.append(attribute.t)
        self.tensors += attribute.tensors
        if attribute.HasField("sparse_tensor"):
            self.tensors += (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for sparse in attribute.sparse_tensors:
            self.tensors += (sparse.values, sparse.indices)
        if attribute.HasField("g"):
            self._walk_graph(attribute.g, depth + 1)
        for graph in attribute.graphs:
            self._walk_graph(graph, depth + 1)

    def _check_functions(self) -> None:
        """Refuse functions that call themselves, or that written out are too many nodes."""
        sizes: dict[Function, int] = {}
        for name in self._functions:
            self._size(name, sizes, ())
        total = sum(sizes.get((node.domain, node.op_type), 1) for node in self.nodes)
        if total > MAX_NODES:
            raise Fault(f"With its functions written out it has more than {MAX_NODES} nodes.")

    def _size(
        self, name: Function, sizes: dict[Function, int], callers: tuple[Function, ...]
    ) -> int:
        if name not in self._functions:
            return 1
        if name in callers or len(callers) > MAX_DEPTH:
            raise Fault("Its functions call themselves, or each other too deep.")
        if name not in sizes:
            inner = Model.__new__(Model)
            inner.nodes, inner.tensors = [], []
            inner._walk_nodes(self._functions[name].node, 0)  # noqa: SLF001 - one of us
            calls = ((node.domain, node.op_type) for node in inner.nodes)
            sizes[name] = 1 + sum(self._size(call, sizes, (*callers, name)) for call in calls)
        return sizes[name]


def smallest() -> bytes:
    """A model that adds up four numbers: what any model needs of onnxruntime, and no more."""
    make = onnx.helper
    rows, sums = (
        make.make_tensor_value_info(name, TensorProto.FLOAT, ["n", columns])
        for name, columns in (("x", 4), ("y", 1))
    )
    weights = make.make_tensor("w", TensorProto.FLOAT, [4, 1], [1.0] * 4)
    nodes = [make.make_node("MatMul", ["x", "w"], ["y"])]
    graph = make.make_graph(nodes, "smallest", [rows], [sums], [weights])
    opsets = [make.make_opsetid("", 17)]
    content: bytes = make.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return content


def _parse(content: bytes) -> ModelProto:
    if not content:
        raise Fault("The file is empty.")
    try:
        proto: ModelProto = ModelProto.FromString(content)
    except (DecodeError, RecursionError, ValueError):
        raise Fault("The file cannot be read as an ONNX model.") from None
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise Fault("The file holds no graph of ONNX.")
    known = onnx.IR_VERSION
    if not MIN_IR_VERSION <= proto.ir_version <= known:
        raise Fault(f"Its IR version is {proto.ir_version}; {MIN_IR_VERSION} to {known} are known.")
    newest = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx.helper.VERSION_TABLE[-1][3]}
    for one in proto.opset_import:
        domain = "" if one.domain == "ai.onnx" else one.domain
        most = newest.get(domain, 1_000)
        if not 1 <= one.version <= most:
            name = excerpt(one.domain or "ai.onnx")
            raise Fault(f"It needs '{name}' of version {one.version}; 1 to {most} are known.")
    return proto


def _check_external(tensor: TensorProto, files: Mapping[str, int]) -> None:
    name = excerpt(tensor.name)
    told = {one.key: one.value for one in tensor.external_data}
    if len(told) < len(tensor.external_data) or not told.keys() <= _EXTERNAL_KEYS:
        raise Fault(f"Tensor '{name}' describes its file in a way that is not known.")
    size = files.get(told.get("location", ""))
    if size is None:
        raise Fault(f"Tensor '{name}' lies in a file that is none of the version's.")
    offset, length = _natural(told.get("offset", "0")), _natural(told.get("length", "0"))
    elements = _elements(tensor)
    if tensor.data_type not in _ITEM_BITS or elements < 0 or offset is None or length is None:
        raise Fault(f"Tensor '{name}' in another file has no proper place, type or shape.")
    wanted = (elements * _bits(tensor.data_type) + 7) // 8
    if offset + max(length, wanted) > size or (length and length != wanted):
        raise Fault(f"Tensor '{name}' does not fit the place in its file.")


def _bits(kind: int) -> int:
    name = TensorProto.DataType.Name(kind)
    return 4 if name in _HALF_BYTES else 2 if name in _QUARTER_BYTES else _ITEM_BITS[kind]


def _natural(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # noqa: PLR2004 - 63 bits


def _elements(tensor: TensorProto) -> int:
    """How many, -1 for a shape that is none."""
    count = 1
    for extent in tensor.dims:
        if extent < 0:
            return -1
        count = min(count * extent, 2**63)
    return count
