"""A small MLflow in this process: answers in the shapes that a real server was seen to give."""

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from gateway.adapters.mlflow import MlflowRegistry
from gateway.mlflow_settings import MlflowSettings

RUN = "4d1cdac19e1d4f1680c30b308ad3efbb"
LOGGED = "m-893019399ebc4702a29bdc5e9b60e086"
ROOT = f"mlflow-artifacts:/1/{RUN}/artifacts"
API = "/api/2.0/mlflow"


class _Stream(httpx.AsyncByteStream):
    """A body on its way."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content


class FakeMlflow:
    """Models, versions and files; `answers` replaces the answer of a path."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, httpx.Response] = {}
        self.asked: list[httpx.Request] = []
        self.down = False

    def register(
        self,
        model: str,
        number: int,
        content: bytes = b"onnx4",
        *,
        created_ms: int = 1_000,
        source: str = "",
        **more: Any,
    ) -> None:
        """Register a version whose file a run logged."""
        self.models.setdefault(model, {"name": model, "creation_timestamp": created_ms})
        folder = f"model{number}"
        self.files[f"{folder}/model.onnx"] = content
        told = {
            "name": model,
            "version": str(number),
            "creation_timestamp": created_ms,
            "source": source or f"runs:/{RUN}/{folder}",
            "run_id": RUN,
            "status": "READY",
        }
        self.versions.setdefault(model, []).append({**told, **more})

    def alias(self, model: str, alias: str, number: int | None) -> None:
        """Move an alias, or take it away."""
        standing = self.models[model].setdefault("aliases", [])
        standing[:] = [one for one in standing if one["alias"] != alias]
        if number is not None:
            standing.append({"alias": alias, "version": str(number)})

    def registry(self, **settings: Any) -> MlflowRegistry:
        """The adapter on this server."""
        return MlflowRegistry(
            MlflowSettings(url="http://mlflow.test", **settings), httpx.MockTransport(self.streamed)
        )

    def streamed(self, request: httpx.Request) -> httpx.Response:
        """What the server answers, not read yet."""
        answer = self.answer(request)
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=_Stream(answer.content)
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        """What the server answers."""
        self.asked.append(request)
        if self.down:
            raise httpx.ConnectError("refused")
        path, query = request.url.path, request.url.params
        if path in self.answers:
            return self.answers[path]
        ways: dict[str, Callable[[], httpx.Response]] = {
            f"{API}/registered-models/search": lambda: _json(
                registered_models=list(self.models.values())
            ),
            f"{API}/model-versions/search": lambda: _json(
                model_versions=self.versions.get(query["filter"][len("name='") : -1], [])
            ),
            f"{API}/runs/get": lambda: _run(query["run_id"]),
            f"{API}/artifacts/list": lambda: self._listed(query["path"], f"{query['path']}/"),
            f"{API}/logged-models/{LOGGED}/artifacts/directories": lambda: self._listed(
                "logged", ""
            ),
            "/get-artifact": lambda: self._file(query["path"]),
            "/model-versions/get-artifact": lambda: self._file(f"logged/{query['path']}"),
        }
        return ways[path]() if path in ways else _nowhere()

    def _listed(self, folder: str, prefix: str) -> httpx.Response:
        files = [
            {"path": prefix + path[len(folder) + 1 :], "is_dir": False, "file_size": len(content)}
            for path, content in self.files.items()
            if path.startswith(f"{folder}/")
        ]
        return httpx.Response(200, json={"root_uri": ROOT, "files": files})

    def _file(self, path: str) -> httpx.Response:
        if path not in self.files:
            return httpx.Response(500, json={"error_code": "INTERNAL_ERROR"})
        return httpx.Response(200, content=self.files[path])


def sha256(content: bytes) -> str:
    """In hex."""
    return hashlib.sha256(content).hexdigest()


def _json(**document: Any) -> httpx.Response:
    return httpx.Response(200, json=document)


def _nowhere() -> httpx.Response:
    return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})


def _run(run_id: str) -> httpx.Response:
    if run_id != RUN:
        return _nowhere()
    tags = {"mlflow.user": "tina", "mlflow.source.git.commit": "abc123", "team": "ops"}
    dataset = {
        "name": "flights",
        "digest": "2981c147",
        "source_type": "s3",
        "source": '{"uri": "https://tina:secret@data.test/flights.csv?signature=secret"}',
    }
    run = {
        "info": {"run_id": run_id, "run_name": "r1", "user_id": "tina", "artifact_uri": ROOT},
        "data": {
            "metrics": [
                {"key": "auc", "value": 0.71, "step": 1},
                {"key": "loss", "value": "NaN", "step": 1},
            ],
            "params": [{"key": "depth", "value": "3"}],
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        },
        "inputs": {
            "dataset_inputs": [
                {
                    "tags": [{"key": "mlflow.data.context", "value": "training"}],
                    "dataset": dataset,
                }
            ]
        },
        "outputs": {},
    }
    return httpx.Response(200, json={"run": run})
