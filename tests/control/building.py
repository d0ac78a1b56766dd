"""What tests of the control plane build."""

from pathlib import Path

from gateway.control.registry import Registry, Request
from gateway.core.errors import InvalidRequest
from gateway.core.snapshot import ModelRecord
from gateway.core.tensors import Signature
from tests.fakes import MemoryStore, manifest_of, signature_of

ASKED = Request(actor="ana", reason="because")


def describe(path: str) -> Signature:
    """Reads a pretended model: `onnx` and its number of columns."""
    content = Path(path).read_bytes()
    if not content.startswith(b"onnx"):
        message = "The file is no ONNX model."
        raise InvalidRequest(message)
    return signature_of(int(content[4:].split(b" ")[0] or 4))


def put(root: Path, number: int, content: str = "onnx4", model: str = "m") -> Path:
    """Put a version into the model store."""
    folder = root / model / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content.encode())
    return folder


async def register(registry: Registry, store: MemoryStore, *numbers: int, model: str = "m") -> None:
    """Register versions, the first as champion."""
    for number in numbers:
        manifest = manifest_of(model, number)
        store.manifests.setdefault((model, number), manifest)
        seed = ModelRecord(versions={}, aliases={"champion": numbers[0]})
        await registry.register(store.manifests[model, number], ASKED, seed=seed)
