"""Unmodified clients, every datatype, JSON and binary: what goes in comes back."""

import asyncio
import subprocess
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.e2e.gateways import Gateway
from tests.onnx_models import ELEMENTS, identity, save

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kserve
    import tritonclient.http as triton
    import tritonclient.http.aio as triton_aio
    from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SAMPLES: dict[str, NDArray[Any]] = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 255], [1, 2]], np.uint8),
    "UINT16": np.array([[0, 65_535], [1, 2]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1], [1, 2]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1], [2**63, 2]], np.uint64),
    "INT8": np.array([[-128, 127], [1, 2]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1], [1, 2]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1], [1, 2]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1], [1, 2]], np.int64),
    "FP16": np.array([[0.1, -65_504], [1, 2]], np.float16),
    "FP32": np.array([[0.1, -3.4e38], [1, 2]], np.float32),
    "FP64": np.array([[0.1, -1.7e308], [1, 2]], np.float64),
    "BYTES": np.array([[b"", "größer".encode()], [b"a\0b", b"2"]], object),
}
NO_JSON_FORM = {"FP16"}
"""tritonclient and kserve refuse to write these in JSON themselves."""


def name_of(datatype: str) -> str:
    """The model that answers what it is given, for a datatype."""
    return f"same-{datatype.lower()}"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with an identity model for every datatype."""
    folder = tmp_path_factory.mktemp("clients")
    for datatype in ELEMENTS:
        version = folder / "models" / name_of(datatype) / "1"
        version.mkdir(parents=True)
        save(identity(datatype, ("N", "M")), version)
    running = Gateway(folder / "state", folder / "models")
    yield running.start()
    running.close()


def test_a_sample_for_every_datatype() -> None:
    """Each datatype that a model can have here is tried below."""
    assert SAMPLES.keys() == ELEMENTS.keys()


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", SAMPLES)
def test_tritonclient_gets_back_what_it_sent(
    gateway: Gateway, datatype: str, *, binary: bool
) -> None:
    """tritonclient.http round-trips every datatype, and its other calls work."""
    if not binary and datatype in NO_JSON_FORM:
        pytest.skip("tritonclient itself refuses to send FP16 in JSON")
    sample = SAMPLES[datatype]
    name = name_of(datatype)
    with triton.InferenceServerClient(gateway.url.removeprefix("http://")) as client:
        asked = triton.InferInput("x", list(sample.shape), datatype)
        asked.set_data_from_numpy(sample, binary_data=binary)
        wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
        answer = client.infer(name, [asked], outputs=wanted, request_id="r1")
        again = client.infer(name, [asked], request_compression_algorithm="gzip")
        third = client.infer(name, [asked], response_compression_algorithm="deflate")

        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(name)
        assert client.get_server_metadata()["name"] == "tiltyard"
        assert client.get_model_metadata(name)["inputs"][0]["datatype"] == datatype
        assert client.get_model_config(name)["max_batch_size"] > 0
        stats = client.get_inference_statistics(name)["model_stats"][0]
        assert stats["inference_stats"]["success"]["count"] >= 3
        index = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}

    assert index[name] == "READY"
    assert answer.get_response()["id"] == "r1"
    assert answer.get_response()["model_version"] == "1"
    for result in (answer, again, third):
        np.testing.assert_array_equal(decoded(result.as_numpy("y"), datatype), sample)


@pytest.mark.parametrize("datatype", SAMPLES)
def test_tritonclient_aio_gets_back_what_it_sent(gateway: Gateway, datatype: str) -> None:
    """tritonclient.http.aio, which asks for compressed answers each time, round-trips too."""
    sample = SAMPLES[datatype]

    async def ask() -> NDArray[Any]:
        url = gateway.url.removeprefix("http://")
        async with triton_aio.InferenceServerClient(url) as client:
            asked = triton_aio.InferInput("x", list(sample.shape), datatype)
            asked.set_data_from_numpy(sample)
            assert await client.is_model_ready(name_of(datatype))
            assert (await client.get_server_metadata())["name"] == "tiltyard"
            answer = await client.infer(name_of(datatype), [asked])
            found: NDArray[Any] = answer.as_numpy("y")
            return found

    np.testing.assert_array_equal(decoded(asyncio.run(ask()), datatype), sample)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", SAMPLES)
def test_kserve_gets_back_what_it_sent(gateway: Gateway, datatype: str, *, binary: bool) -> None:
    """KServe's REST client round-trips every datatype, and believes in our health."""
    if not binary and datatype in NO_JSON_FORM:
        pytest.skip("kserve itself refuses to send FP16 in JSON")
    sample = SAMPLES[datatype]
    name = name_of(datatype)

    async def ask() -> NDArray[Any]:
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", retries=0))
        asked = InferInput("x", list(sample.shape), datatype)
        asked.set_data_from_numpy(sample, binary_data=binary)
        outputs = [RequestedOutput("y", {"binary_data": binary})]
        request = InferRequest(name, [asked], request_outputs=outputs)
        assert await client.is_server_live(gateway.url)
        assert await client.is_server_ready(gateway.url)
        assert await client.is_model_ready(gateway.url, name)
        answer = await client.infer(gateway.url, request, model_name=name)
        await client.close()
        found: NDArray[Any] = answer.outputs[0].as_numpy()
        return found

    np.testing.assert_array_equal(decoded(asyncio.run(ask()), datatype), sample)


def test_kserve_v1_predicts(gateway: Gateway) -> None:
    """KServe's REST client with its V1 protocol gets predictions row by row."""

    async def ask() -> Any:
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1", retries=0))
        data = {"instances": [[0.5, 1.5], [2.5, 3.5]]}
        predicted = await client.infer(gateway.url, data, model_name=name_of("FP32"))
        await client.close()
        return predicted

    assert asyncio.run(ask()) == {"predictions": [[0.5, 1.5], [2.5, 3.5]]}


def test_curl_gets_json_and_sentences(gateway: Gateway) -> None:
    """Curl gets JSON for JSON, and an error as a sentence."""
    url = f"{gateway.url}/v2/models/{name_of('INT64')}/infer"
    good = '{"inputs":[{"name":"x","datatype":"INT64","shape":[1,2],"data":[1,9007199254740993]}]}'
    bad = good.replace("INT64", "FP99")

    def curl(body: str) -> str:
        ran = subprocess.run(
            ["curl", "-s", url, "-d", body], capture_output=True, text=True, check=True
        )
        return ran.stdout

    assert '"data":[1,9007199254740993]' in curl(good)
    assert curl(bad).startswith('{"error":"')


def decoded(found: NDArray[Any], datatype: str) -> NDArray[Any]:
    """BYTES that a client hands out as text, as bytes again."""
    if datatype != "BYTES":
        return found
    flat = [item.encode() if isinstance(item, str) else item for item in found.reshape(-1)]
    return np.array(flat, object).reshape(found.shape)
