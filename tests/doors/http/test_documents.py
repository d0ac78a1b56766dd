from collections.abc import Sequence

import numpy as np

import gateway
from gateway.core.tensors import Array, Signature, Tensors, TensorSpec
from gateway.doors.http.documents import model_config, model_metadata, server_metadata
from tests.fakes import FakeEngine
from tests.planes import Plane, model_of, snapshot_of

ONE, TWO = ("m", 1), ("m", 2)
TEXT = Signature(
    inputs=(TensorSpec(name="x", datatype="BYTES", shape=(2, 4)),),
    outputs=(TensorSpec(name="y", datatype="FP16", shape=(2, 1)),),
    batched=False,
)


class Texts(FakeEngine):
    """Has another signature."""

    def __init__(self) -> None:
        super().__init__(signature=TEXT)

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        return [np.zeros((2, 1), np.float16)]


def test_the_server_names_what_it_offers() -> None:
    """Load generators look for `statistics` among the extensions."""
    document = server_metadata()
    assert (document["name"], document["version"]) == ("tiltyard", gateway.__version__)
    assert "statistics" in document["extensions"]
    assert "system_shared_memory" not in document["extensions"]


async def test_metadata_describes_the_endpoint() -> None:
    """Versions are text, shapes keep their batch dimension."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(snapshot_of(models={"m": model_of(1, 2, loaded=(2,))}))
        assert model_metadata("m", plane.pipeline.find("m"), None) == {
            "name": "m",
            "versions": ["1", "2"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
        }


async def test_metadata_of_a_version_is_its_own() -> None:
    """A version with another signature is described by that."""
    with Plane({ONE: FakeEngine(), TWO: Texts()}) as plane:
        await plane.serve(snapshot_of(models={"m": model_of(1, 2, loaded=(2,))}))
        document = model_metadata("m", plane.pipeline.find("m", 2), 2)
        assert document["versions"] == ["2"]
        assert document["inputs"] == [{"name": "x", "datatype": "BYTES", "shape": [2, 4]}]


async def test_configuration_leaves_out_the_batch_dimension() -> None:
    """In Triton's form `dims` begin after the batch, if there is one."""
    with Plane({ONE: FakeEngine(), TWO: Texts()}) as plane:
        await plane.serve(snapshot_of(models={"m": model_of(1, 2, loaded=(2,))}))
        batched = model_config("m", plane.pipeline.find("m"), None, 64)
        assert batched["max_batch_size"] == 64
        assert batched["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
        assert batched["version_policy"] == {"specific": {"versions": [1, 2]}}
        single = model_config("m", plane.pipeline.find("m", 2), 2, 64)
        assert single["max_batch_size"] == 0
        assert single["input"] == [{"name": "x", "data_type": "TYPE_STRING", "dims": [2, 4]}]
        assert single["output"] == [{"name": "y", "data_type": "TYPE_FP16", "dims": [2, 1]}]
