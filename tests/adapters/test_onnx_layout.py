from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper

from gateway.adapters.onnx.forming import write_form
from gateway.adapters.onnx.layout import ALIGNMENT, align
from gateway.adapters.onnx.sharing import MODEL, WEIGHTS
from tests import onnx_models as models

pytestmark = pytest.mark.filterwarnings("ignore:Ignoring unknown external data")


def tensors_of(graph: onnx.GraphProto) -> list[TensorProto]:
    """Every initializer of a graph and of the graphs within."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                found += tensors_of(inner)
    return found


def outside(tensor: TensorProto) -> dict[str, str]:
    """What a tensor says of where it lies; empty if it lies in the model."""
    return {entry.key: entry.value for entry in tensor.external_data}


def parts_of(tensor: TensorProto) -> list[tuple[int, int]]:
    """Offset and length of a tensor's data and of what was packed from them."""
    said = outside(tensor)
    parts = [(int(said["offset"]), int(said["length"]))] if said else []
    for key, value in said.items():
        if key.startswith("prepacked"):
            packed = (part.split(";") for part in value.split("|")[1:])
            parts += [(int(offset), int(length)) for offset, length, _ in packed]
    return parts


def contents(folder: Path) -> list[list[bytes]]:
    """The bytes of every part of every tensor outside, in order."""
    weights = (folder / WEIGHTS).read_bytes()
    model = onnx.load(folder / MODEL, load_external_data=False)
    return [
        [weights[offset : offset + length] for offset, length in parts_of(tensor)]
        for tensor in tensors_of(model.graph)
    ]


def with_weights(folder: Path, model: ModelProto, *sizes: int) -> None:
    """Write a model whose tensors lie, one behind the other, in a file beside it."""
    content, offset = b"", 0
    rng = np.random.default_rng(1)
    for tensor, size in zip(tensors_of(model.graph), sizes, strict=False):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        packed = rng.bytes(size + 3)
        content += rng.bytes(size) + packed
        said = {
            "location": WEIGHTS,
            "offset": str(offset),
            "length": str(size),
            "prepacked_0": f"Gemm+17|{offset + size};{size + 3};0",
        }
        for key, value in said.items():
            tensor.external_data.add(key=key, value=value)
        offset = len(content)
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS).write_bytes(content)
    (folder / MODEL).write_bytes(model.SerializeToString())


@given(sizes=st.lists(st.integers(1, 9_000), min_size=1, max_size=6))
def test_every_part_is_kept_and_aligned(
    sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the sizes, each tensor reads what it read before, from a page of its own."""
    folder = tmp_path_factory.mktemp("form")
    with_weights(folder, models.wide(8, 3), *sizes)
    before = contents(folder)
    align(folder / MODEL, folder / WEIGHTS)
    assert contents(folder) == before
    model = onnx.load(folder / MODEL, load_external_data=False)
    places = [offset for tensor in tensors_of(model.graph) for offset, _ in parts_of(tensor)]
    assert all(place % ALIGNMENT == 0 for place in places)
    assert len(places) == 2 * len(sizes)


def test_nothing_else_of_a_model_is_changed(tmp_path: Path) -> None:
    """Nodes, names and what lies in the model come out as they went in."""
    with_weights(tmp_path, models.slow(3), 64, 64)
    before = onnx.load(tmp_path / MODEL, load_external_data=False)
    align(tmp_path / MODEL, tmp_path / WEIGHTS)
    after = onnx.load(tmp_path / MODEL, load_external_data=False)
    for model in (before, after):
        for tensor in tensors_of(model.graph):
            tensor.ClearField("external_data")
    assert after == before


def test_weights_of_graphs_within_are_moved_too(tmp_path: Path) -> None:
    """The body of a loop has tensors of its own."""
    model = models.slow(3)
    body = next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g
    body.initializer.append(numpy_helper.from_array(np.ones(100, np.float32), "inner"))
    with_weights(tmp_path, model, *[100] * 4)
    before = contents(tmp_path)
    align(tmp_path / MODEL, tmp_path / WEIGHTS)
    assert contents(tmp_path) == before
    moved = onnx.load(tmp_path / MODEL, load_external_data=False)
    inner = next(tensor for tensor in tensors_of(moved.graph) if tensor.name == "inner")
    assert int(outside(inner)["offset"]) % ALIGNMENT == 0


def test_what_onnxruntime_writes_is_aligned(tmp_path: Path) -> None:
    """Packed weights follow others at odd places there, which its kernels then crash on."""
    path = models.save(models.wide(333, 3), tmp_path, "source.onnx")
    folder = tmp_path / "form"
    folder.mkdir()
    write_form(path, folder, threads=1)
    model = onnx.load(folder / MODEL, load_external_data=False)
    parts = [part for tensor in tensors_of(model.graph) for part in parts_of(tensor)]
    assert any("prepacked_0" in outside(tensor) for tensor in tensors_of(model.graph))
    assert all(offset % ALIGNMENT == 0 for offset, _ in parts)


def broken(model: ModelProto, how: str) -> None:
    """Make the first tensor outside say something odd."""
    tensor = model.graph.initializer[0]
    said: dict[str, Any] = outside(tensor)
    if how == "no length":
        del said["length"]
    elif how == "no number":
        said["offset"] = "here"
    elif how == "beyond the end":
        said["length"] = "1000000"
    elif how == "packed otherwise":
        said["prepacked_0"] = "Gemm+17|12"
    elif how == "named elsewhere":
        model.graph.doc_string = WEIGHTS
    tensor.ClearField("external_data")
    for key, value in said.items():
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    "how",
    ["no length", "no number", "beyond the end", "packed otherwise", "named elsewhere", "cut"],
)
def test_a_form_of_another_kind_is_refused(how: str, tmp_path: Path) -> None:
    """A later onnxruntime may write forms in another way; then nothing is shared."""
    with_weights(tmp_path, models.wide(8, 3), 64, 64)
    path = tmp_path / MODEL
    model = onnx.load(path, load_external_data=False)
    broken(model, how)
    content = model.SerializeToString()
    path.write_bytes(content[:-9] if how == "cut" else content)
    with pytest.raises(ValueError, match=r"\S"):
        align(path, tmp_path / WEIGHTS)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Reading ends, and nothing but a ValueError is raised."""
    folder = tmp_path_factory.mktemp("form")
    (folder / MODEL).write_bytes(b"\x3a" + bytes([len(content) & 0x7F]) + content)
    (folder / WEIGHTS).write_bytes(b"")
    try:
        align(folder / MODEL, folder / WEIGHTS)
    except ValueError:
        assert not (folder / WEIGHTS).read_bytes()
    else:
        assert (folder / MODEL).exists()
