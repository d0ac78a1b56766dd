"""MlflowRegistry: an MLflow tracking server's registry, read over its REST API.

Whatever the server says is words until it is checked: names are checked before they stand in a
path, every answer is bounded, no redirect is followed and no other host is ever asked, also where
a version's source names one. Files come through the server's own artifact routes.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import httpx
import msgspec

from gateway.adapters import mlflow_replies as replies
from gateway.core.errors import InvalidRequest, NotFound, TooLarge, UpstreamFailed, excerpt
from gateway.core.following import FollowedModel, FollowedRun, FollowedVersion
from gateway.core.models import is_name
from gateway.mlflow_settings import MlflowSettings

API: Final = "/api/2.0/mlflow"
MODEL_FILE: Final = "model.onnx"
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
MAX_PAGES: Final = 50
PAGE: Final = 200
MAX_FILES: Final = 64
CHUNK: Final = 1024 * 1024
FETCH_S: Final = 900.0
"""All files of one version must be here within this time."""
LEFT_THERE: Final = frozenset(
    {
        "MLmodel",
        "conda.yaml",
        "input_example.json",
        "model.toml",
        "python_env.yaml",
        "registered_model_meta",
        "requirements.txt",
        "serving_input_example.json",
        "version.toml",
    }
)
"""Files beside a model that MLflow writes for itself, and those that are written here."""

T = TypeVar("T")


class MlflowRegistry:
    """The `FollowedRegistry` port on a server's REST API. Requires an event loop."""

    __slots__ = ("_artifact", "_client", "_max_bytes")

    def __init__(
        self, settings: MlflowSettings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Open no connection yet.

        Raises:
            InvalidRequest: a URL that is none, both kinds of login, or an artifact's path that
                could lead elsewhere.
        """
        headers = {"accept-encoding": "identity"}
        if settings.token is not None:
            headers["authorization"] = f"Bearer {settings.token}"
        self._artifact = _checked_path(settings.artifact)
        self._max_bytes = settings.max_mb << 20
        self._client = httpx.AsyncClient(
            base_url=_checked_url(settings),
            auth=(settings.user, settings.password or "") if settings.user else None,
            headers=headers,
            timeout=settings.timeout_s,
            follow_redirects=False,
            trust_env=False,
            transport=transport,
            limits=httpx.Limits(max_connections=4),
        )

    async def models(self) -> list[FollowedModel]:
        """Every registered model, with its aliases."""
        path, found = f"{API}/registered-models/search", list[FollowedModel]()
        query: dict[str, Any] = {"max_results": PAGE}
        for _ in range(MAX_PAGES):
            page = await self._read(path, query, replies.Models)
            found += [model.followed() for model in page.registered_models]
            if not page.next_page_token:
                return found
            query["page_token"] = page.next_page_token
        raise UpstreamFailed(_TOO_MANY)

    async def versions(self, model: str) -> list[FollowedVersion]:
        """The versions of a model.

        Raises:
            InvalidRequest: its name cannot be asked for.
        """
        if "'" in model or "\\" in model:
            raise InvalidRequest(f"'{excerpt(model)}' holds signs that cannot be searched for.")
        path, found = f"{API}/model-versions/search", list[FollowedVersion]()
        query: dict[str, Any] = {"max_results": PAGE, "filter": f"name='{model}'"}
        for _ in range(MAX_PAGES):
            page = await self._read(path, query, replies.Versions)
            found += [version.followed() for version in page.model_versions]
            if not page.next_page_token:
                return [version for version in found if version.model == model]
            query["page_token"] = page.next_page_token
        raise UpstreamFailed(_TOO_MANY)

    async def run(self, run_id: str) -> FollowedRun | None:
        """A run with its lineage; None where there is none."""
        if not is_name(run_id):
            return None
        try:
            answer = await self._read(f"{API}/runs/get", {"run_id": run_id}, replies.RunAnswer)
        except NotFound:
            return None
        return answer.run.followed()

    async def fetch(
        self, version: FollowedVersion, run: FollowedRun | None, folder: Path
    ) -> Mapping[str, str]:
        """Write a version's files into an empty folder; their names with their SHA-256.

        Raises:
            InvalidRequest: there is no such file, or a name or size is not allowed here.
        """
        place = _place_of(version, run)
        inner, _, wanted = self._artifact.rpartition("/")
        names = await self._names(place, inner, wanted)
        digests: dict[str, str] = {}
        budget = self._max_bytes
        try:
            async with asyncio.timeout(FETCH_S):
                for name in names:
                    target = folder / (MODEL_FILE if name == wanted else name)
                    path, query = place.download(_joined(inner, name))
                    digests[target.name], size = await self._copy(path, query, target, budget)
                    budget -= size
        except TimeoutError as error:
            raise UpstreamFailed("MLflow did not send a version's files in time.") from error
        return digests

    async def close(self) -> None:
        """Hang up."""
        await self._client.aclose()

    async def _names(self, place: "_Place", inner: str, wanted: str) -> list[str]:
        """The model's file and those beside it, once nothing speaks against them."""
        listing = place.listing(inner)
        if listing is None:
            return [wanted]
        path, query = listing
        page = await self._read(path, query, replies.Files)
        prefix = _joined(place.folder, inner)
        found = {
            file.path[len(prefix) :].lstrip("/"): file.file_size
            for file in page.files
            if not file.is_dir and file.path.startswith(prefix)
        }
        if wanted not in found:
            message = f"There is no file '{excerpt(self._artifact)}' in the version's source."
            raise InvalidRequest(message)
        names = sorted(name for name in found if name == wanted or name not in LEFT_THERE)
        for name in names:
            if not is_name(name) or (name == MODEL_FILE and name != wanted):
                message = f"The version holds '{excerpt(name)}', which cannot name a file here."
                raise InvalidRequest(message)
        total = sum(found[name] for name in names)
        if len(names) > MAX_FILES or total > self._max_bytes or page.next_page_token:
            message = (
                f"The version has {len(names)} files and {total} bytes or more; at most "
                f"{MAX_FILES} and {self._max_bytes} may (mlflow.max_mb)."
            )
            raise TooLarge(message)
        return names

    async def _copy(
        self, path: str, query: Mapping[str, str], target: Path, budget: int
    ) -> tuple[str, int]:
        """Write one file, hashing what is written; its SHA-256 and size."""
        digest, size = hashlib.sha256(), 0
        async with self._asked(path, query) as response:
            with target.open("xb") as file:
                async for chunk in response.aiter_raw(CHUNK):
                    size += len(chunk)
                    if size > budget:
                        raise TooLarge("The version's files hold more than mlflow.max_mb allows.")
                    digest.update(chunk)
                    await asyncio.to_thread(_write, file, chunk)
        stated = response.headers.get("content-length")
        if stated is not None and stated != str(size):
            raise UpstreamFailed("MLflow sent less of a file than it said.")
        return digest.hexdigest(), size

    async def _read(self, path: str, query: Mapping[str, Any], kind: type[T]) -> T:
        """A JSON answer of bounded size."""
        body = bytearray()
        async with self._asked(path, query) as response:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise UpstreamFailed("MLflow answered more than is read here.")
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamFailed("MLflow answered what is no answer of its REST API.") from error

    @asynccontextmanager
    async def _asked(self, path: str, query: Mapping[str, Any]) -> AsyncIterator[httpx.Response]:
        """A good answer whose body is still to be read.

        Raises:
            NotFound: there is no such thing there.
            UpstreamFailed: no answer, or any other than 200; it tells no address and no login.
        """
        try:
            async with self._client.stream("GET", path, params=query) as response:
                if response.status_code == httpx.codes.NOT_FOUND:
                    raise NotFound("MLflow knows no such thing.")
                if response.status_code != httpx.codes.OK:
                    raise UpstreamFailed(f"MLflow answered with status {response.status_code}.")
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise UpstreamFailed("MLflow packed an answer though it was asked not to.")
                yield response
        except httpx.TimeoutException as error:
            raise UpstreamFailed("MLflow did not answer in time.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UpstreamFailed("MLflow cannot be reached.") from error


class _Place(msgspec.Struct, frozen=True):
    """Where a version's files are, as the server's routes want it said.

    Of a run's artifacts where `run_id` is set, with the `folder` in them; of a logged model where
    `logged` is; else only by the version's name and number, which nothing lists.
    """

    version: FollowedVersion
    run_id: str = ""
    logged: str = ""
    folder: str = ""

    def listing(self, inner: str) -> tuple[str, dict[str, str]] | None:
        """Path and query that list a folder; None where nothing does."""
        if self.run_id:
            query = {"run_id": self.run_id, "path": _joined(self.folder, inner)}
            return f"{API}/artifacts/list", query
        if self.logged:
            query = {"artifact_directory_path": inner} if inner else {}
            return f"{API}/logged-models/{self.logged}/artifacts/directories", query
        return None

    def download(self, path: str) -> tuple[str, dict[str, str]]:
        """Path and query that fetch a file."""
        if self.run_id:
            return "/get-artifact", {"run_id": self.run_id, "path": _joined(self.folder, path)}
        named = {"name": self.version.model, "version": str(self.version.number)}
        return "/model-versions/get-artifact", {**named, "path": path}


def _place_of(version: FollowedVersion, run: FollowedRun | None) -> _Place:
    """Where a version's source is; a source elsewhere is left to the server to find."""
    source = version.source
    if source.startswith("runs:/"):
        run_id, _, folder = source.removeprefix("runs:/").lstrip("/").partition("/")
        if is_name(run_id):
            return _Place(version, run_id=run_id, folder=_checked_path(folder))
    if source.startswith("models:/") and is_name(source.removeprefix("models:/")):
        return _Place(version, logged=source.removeprefix("models:/"))
    if run is not None and run.artifacts and source.startswith(run.artifacts.rstrip("/") + "/"):
        folder = source[len(run.artifacts.rstrip("/")) + 1 :]
        return _Place(version, run_id=run.run_id, folder=_checked_path(folder))
    return _Place(version)


def _checked_path(path: str) -> str:
    """A path below some folder, refused if it could lead elsewhere however it is decoded."""
    parts = [part for part in path.split("/") if part] if path != "/" else []
    if not all(is_name(part) for part in parts):
        message = f"'{excerpt(path)}' is no path of names; letters, digits, '.', '_' and '-' only."
        raise InvalidRequest(message)
    return "/".join(parts)


def _checked_url(settings: MlflowSettings) -> httpx.URL:
    try:
        url = httpx.URL(settings.url or "")
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        message = "Setting mlflow.url must be http:// or https:// with a host and without a login."
        raise InvalidRequest(message)
    if settings.token is not None and settings.user is not None:
        raise InvalidRequest("Set mlflow.token or mlflow.user and mlflow.password, not both.")
    return url


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _write(file: BinaryIO, chunk: bytes) -> None:
    file.write(chunk)


_TOO_MANY: Final = "MLflow lists more than is followed here."
