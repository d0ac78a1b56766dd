from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.adapters.mlflow import MAX_ANSWER_BYTES, MlflowRegistry
from gateway.core.errors import GatewayError, InvalidRequest, TooLarge, UpstreamFailed
from gateway.core.following import FollowedVersion
from gateway.mlflow_settings import MlflowSettings
from tests.fake_mlflow import API, LOGGED, ROOT, RUN, FakeMlflow, sha256


async def fetched(mlflow: FakeMlflow, folder: Path, **settings: object) -> dict[str, str]:
    """The files of the only version of `m`."""
    registry = mlflow.registry(**settings)
    version = (await registry.versions("m"))[0]
    run = await registry.run(version.run_id)
    return dict(await registry.fetch(version, run, folder))


def is_empty(folder: Path) -> bool:
    """Whether nothing was written there."""
    return list(folder.iterdir()) == []


async def test_models_come_with_their_aliases() -> None:
    """All in one answer, page by page."""
    mlflow = FakeMlflow()
    mlflow.register("m", 1)
    mlflow.alias("m", "champion", 1)
    model = (await mlflow.registry().models())[0]
    assert (model.name, dict(model.aliases)) == ("m", {"champion": 1})


async def test_a_run_tells_its_lineage() -> None:
    """Parameters, last metrics, data, commit and user, as MLflow names them."""
    run = await FakeMlflow().registry().run(RUN)
    assert run is not None
    assert (run.user, run.commit, run.name) == ("tina", "abc123", "r1")
    assert dict(run.parameters) == {"depth": "3"}
    assert dict(run.metrics) == {"auc": 0.71, "loss": "NaN"}
    assert (run.data[0].digest, run.data[0].context) == ("2981c147", "training")


async def test_a_run_that_is_gone_is_none() -> None:
    """A version outlives its run."""
    assert await FakeMlflow().registry().run("0" * 32) is None


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(f"runs:/{RUN}/model1", id="run"),
        pytest.param(f"{ROOT}/model1", id="place-of-a-run"),
        pytest.param(f"models:/{LOGGED}", id="logged-model"),
    ],
)
async def test_files_are_fetched_from_where_the_source_is(tmp_path: Path, source: str) -> None:
    """Weights beside the model come along; what MLflow writes for itself stays there."""
    mlflow = FakeMlflow()
    mlflow.register("m", 1, source=source)
    for folder in ("model1", "logged"):
        mlflow.files[f"{folder}/model.onnx"] = b"onnx4"
        mlflow.files[f"{folder}/0a1b-weights"] = b"weights"
        mlflow.files[f"{folder}/MLmodel"] = b"flavors:"
    digests = await fetched(mlflow, tmp_path)
    assert digests == {"model.onnx": sha256(b"onnx4"), "0a1b-weights": sha256(b"weights")}
    assert (tmp_path / "model.onnx").read_bytes() == b"onnx4"


async def test_another_file_may_be_the_model(tmp_path: Path) -> None:
    """It is `model.onnx` here, whatever it is called there."""
    mlflow = FakeMlflow()
    mlflow.register("m", 1)
    mlflow.files["model1/nets/net.onnx"] = b"onnx2"
    digests = await fetched(mlflow, tmp_path, artifact="nets/net.onnx")
    assert digests == {"model.onnx": sha256(b"onnx2")}


@pytest.mark.parametrize(
    "source",
    [
        "http://169.254.169.254/latest",
        "file:///etc",
        "gopher://x/",
        "s3://elsewhere/model",
        "models:/m/1",
    ],
)
async def test_a_source_elsewhere_never_moves_us(tmp_path: Path, source: str) -> None:
    """Only MLflow is asked, by the version's name; nobody connects to what a source says (M19)."""
    mlflow = FakeMlflow()
    mlflow.register("m", 1, source=source)
    mlflow.files["logged/model.onnx"] = b"onnx4"
    await fetched(mlflow, tmp_path)
    assert {request.url.host for request in mlflow.asked} == {"mlflow.test"}
    assert mlflow.asked[-1].url.path == "/model-versions/get-artifact"


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "..", "%2e%2e/x", "a\\..\\b", " ..", "a//../x", "a b"]
)
async def test_a_source_cannot_climb(tmp_path: Path, path: str) -> None:
    """A path in a source is names only, so no decoding makes it lead elsewhere (M20)."""
    mlflow = FakeMlflow()
    mlflow.register("m", 1, source=f"runs:/{RUN}/{path}")
    with pytest.raises(InvalidRequest):
        await fetched(mlflow, tmp_path)
    assert is_empty(tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b", "..", "%2e%2e", "x" * 65])
async def test_a_listed_file_with_an_odd_name_refuses_the_version(
    tmp_path: Path, name: str
) -> None:
    """Nothing is written (M20)."""
    mlflow = FakeMlflow()
    mlflow.register("m", 1)
    mlflow.files[f"model1/{name}"] = b"x"
    with pytest.raises(InvalidRequest):
        await fetched(mlflow, tmp_path)
    assert is_empty(tmp_path)


async def test_a_file_larger_than_listed_is_cut_off(tmp_path: Path) -> None:
    """What is written is counted, whatever the listing says (M17)."""
    mlflow = FakeMlflow()
    mlflow.register("m", 1, b"x" * (1 << 20) + b"y")
    mlflow.answers[f"{API}/artifacts/list"] = httpx.Response(
        200, json={"files": [{"path": "model1/model.onnx", "file_size": 1}]}
    )
    with pytest.raises(TooLarge):
        await fetched(mlflow, tmp_path, max_mb=1)


async def test_a_version_without_the_file_is_refused(tmp_path: Path) -> None:
    """With the name of the file that is missing."""
    mlflow = FakeMlflow()
    mlflow.register("m", 1)
    with pytest.raises(InvalidRequest, match=r"net\.onnx"):
        await fetched(mlflow, tmp_path, artifact="net.onnx")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(httpx.Response(302, headers={"location": "http://evil.test"}), id="redirect"),
        pytest.param(httpx.Response(500), id="failure"),
        pytest.param(httpx.Response(200, content=b"<html>"), id="page"),
        pytest.param(httpx.Response(200, json={"registered_models": 3}), id="other-kind"),
        pytest.param(httpx.Response(200, content=b" " * (MAX_ANSWER_BYTES + 1)), id="too-long"),
        pytest.param(
            httpx.Response(200, headers={"content-encoding": "odd"}, content=b"{}"),
            id="packed",
        ),
    ],
)
async def test_any_other_answer_is_a_failure(answer: httpx.Response) -> None:
    """No redirect is followed, and none of the answer is repeated."""
    mlflow = FakeMlflow()
    mlflow.answers[f"{API}/registered-models/search"] = answer
    with pytest.raises(UpstreamFailed) as caught:
        await mlflow.registry(token="secret-token").models()
    assert "secret" not in str(caught.value)
    assert "evil" not in str(caught.value)
    assert len(mlflow.asked) == 1


async def test_a_server_that_is_away_is_told() -> None:
    """As a sentence without its address."""
    mlflow = FakeMlflow()
    mlflow.down = True
    with pytest.raises(UpstreamFailed, match="cannot be reached"):
        await mlflow.registry().models()


async def test_the_token_is_sent_as_a_bearer() -> None:
    """And a user with a password as basic authorization."""
    mlflow = FakeMlflow()
    await mlflow.registry(token="t").models()
    await mlflow.registry(user="u", password="p").models()
    told = [request.headers["authorization"] for request in mlflow.asked]
    assert told == ["Bearer t", "Basic dTpw"]


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "file:///etc"},
        {"url": "http://user:pw@host"},
        {"url": "http://"},
        {"url": "http://h", "token": "t", "user": "u"},
        {"url": "http://h", "artifact": "../model.onnx"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    """At the start, with a sentence."""
    with pytest.raises(InvalidRequest):
        MlflowRegistry(MlflowSettings(**settings))


@pytest.mark.parametrize("name", ["it's", "back\\slash"])
async def test_a_name_that_could_leave_the_filter_is_not_asked_for(name: str) -> None:
    """A model's name is part of a filter's text there."""
    mlflow = FakeMlflow()
    with pytest.raises(GatewayError):
        await mlflow.registry().versions(name)
    assert mlflow.asked == []


async def test_a_version_number_that_is_none_is_zero() -> None:
    """Which names no version here (M21)."""
    mlflow = FakeMlflow()
    mlflow.register("m", 1, version="1e3")
    found: FollowedVersion = (await mlflow.registry().versions("m"))[0]
    assert found.number == 0
