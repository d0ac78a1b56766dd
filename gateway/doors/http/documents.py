"""Documents of the Open Inference Protocol that describe: metadata, configuration, readiness."""

from typing import Any, Final

from gateway import __version__
from gateway.core.tensors import BYTES, TensorSpec
from gateway.serving.live import Served

PLATFORM: Final = "onnxruntime_onnx"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
"""Only what is offered. `perf_analyzer` needs `statistics` among them."""


def server_metadata() -> dict[str, Any]:
    """What this server is and speaks."""
    return {"name": "tiltyard", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(name: str, served: Served, version: int | None) -> dict[str, Any]:
    """Name, warm versions and tensors of an endpoint, or of one version."""
    signature = served.signature_of(version)
    numbers = sorted(served.pinnable) if version is None else [version]
    return {
        "name": name,
        "versions": [str(number) for number in numbers],
        "platform": PLATFORM,
        "inputs": [_described(spec) for spec in signature.inputs],
        "outputs": [_described(spec) for spec in signature.outputs],
    }


def model_config(name: str, served: Served, version: int | None, max_rows: int) -> dict[str, Any]:
    """The configuration in Triton's form; `dims` leave out the batch dimension."""
    signature = served.signature_of(version)
    batched = signature.batched
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": sorted(served.pinnable)}},
        "max_batch_size": max_rows if batched else 0,
        "input": [_configured(spec, batched=batched) for spec in signature.inputs],
        "output": [_configured(spec, batched=batched) for spec in signature.outputs],
        "instance_group": [{"name": name, "kind": "KIND_CPU", "count": 1}],
        "dynamic_batching": {"preferred_batch_size": [], "max_queue_delay_microseconds": 0},
    }


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _configured(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == BYTES else spec.datatype
    dims = list(spec.shape[1:] if batched else spec.shape)
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": dims}
