"""The admin API as commands see it: ask, and get a document or one of our own errors."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import typer

from gateway.core import errors
from gateway.core.errors import Missing
from gateway.doors.cli.front import FrontStep, front_of

Document = TypeVar("Document")

ROOT: Final = "/admin/v1"
_DOTS: Final = {".": "%2E", "..": "%2E%2E"}
TIMEOUT_S: Final = 30.0
MAX_SENTENCE: Final = 1000
_KINDS: Final[Mapping[int, type[errors.GatewayError]]] = {
    400: errors.InvalidRequest,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    429: errors.Throttled,
    503: errors.StoreUnavailable,
}


class AdminClient:
    """One conversation with the admin API. Requires: used as a context manager."""

    def __init__(
        self,
        context: typer.Context,
        given: str | None,
        token_file: Path | None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Find the address and the token; nothing is asked yet.

        Raises:
            Unauthenticated: no token was found.
            InvalidRequest: the URL is none, or a setting or the token's file is wrong.
        """
        front = front_of(context)
        url = front.admin_url(given)
        headers = {"authorization": f"Bearer {find_token(front, token_file)}"}
        self._client = front.client(url, timeout_s=timeout_s, headers=headers)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self._client.close()

    def get(self, *path: str, query: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Read a document."""
        return self._ask("GET", path, query=query)

    def read(
        self, *path: str, into: type[Document], query: Mapping[str, Any] | None = None
    ) -> Document:
        """Read a document of a known type, byte by byte where it holds raw parts.

        Raises:
            UpstreamFailed: what answered is something else.
        """
        response = self._send("GET", path, query=query)
        if not response.is_success:
            _document(response)
        try:
            return msgspec.json.decode(response.content, type=into)
        except msgspec.DecodeError as error:
            message = "The admin API answered with a document that this version does not know."
            raise errors.UpstreamFailed(message) from error

    def post(
        self,
        *path: str,
        document: object,
        query: Mapping[str, Any] | None = None,
        if_match: str | None = None,
    ) -> Any:  # noqa: ANN401 - a document
        """Ask for an action."""
        body = msgspec.json.encode(document)
        return self._ask("POST", path, body=body, query=query, if_match=if_match)

    def put(self, *path: str, body: bytes, query: Mapping[str, Any], if_match: str | None) -> Any:  # noqa: ANN401
        """Replace a document."""
        return self._ask("PUT", path, body=body, query=query, if_match=if_match)

    def send(self, *path: str, content: bytes | Iterator[bytes], size: int, sha256: str) -> Any:  # noqa: ANN401
        """Send a file's bytes as they are; `sha256` is checked at the other end."""
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(size),
            "x-sha256": sha256,
        }
        url = _url(path)
        return _document(self._client.request("PUT", url, headers=headers, content=content))

    def delete(self, *path: str, query: Mapping[str, Any], if_match: str | None) -> Any:  # noqa: ANN401
        """Drop a document."""
        return self._ask("DELETE", path, query=query, if_match=if_match)

    def _ask(self, method: str, path: tuple[str, ...], **given: Any) -> Any:  # noqa: ANN401
        return _document(self._send(method, path, **given))

    def _send(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        body: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        if_match: str | None = None,
    ) -> httpx.Response:
        headers = {} if body is None else {"content-type": "application/json"}
        if if_match is not None:
            headers["if-match"] = "*" if if_match == "*" else f'"{if_match.strip(chr(34))}"'
        url = _url(path)
        given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        return self._client.request(method, url, params=given, headers=headers, content=body)


def _url(path: tuple[str, ...]) -> str:
    """A path in which every part stays one, whatever it holds; dots alone would lead elsewhere."""
    return "/".join([ROOT, *(_DOTS.get(part) or quote(part, safe="") for part in path)])


def find_token(front: FrontStep, token_file: Path | None) -> str:
    """The bearer token: from a file, TILTYARD_TOKEN, the settings or the state folder.

    Raises:
        Unauthenticated: there is none.
        InvalidRequest: the file cannot be read.
    """
    if token_file is not None:
        try:
            found: str | None = token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            message = f"The token file '{token_file.name}' cannot be read."
            raise errors.InvalidRequest(message) from error
    else:
        found = front.environ.get("TILTYARD_TOKEN") or _own_token(front)
    if not found:
        message = "Give a token: --token-file, TILTYARD_TOKEN, or run where the state folder is."
        raise errors.Unauthenticated(message)
    if not (found.isascii() and found.isprintable()):
        message = "The token holds characters that no token has."
        raise errors.Unauthenticated(message)
    return found


def _own_token(front: FrontStep) -> str | None:
    settings = front.settings()
    return settings.admin.token or front.admin_token(settings)


def _document(response: httpx.Response) -> Any:  # noqa: ANN401
    try:
        document = msgspec.json.decode(response.content)
    except msgspec.DecodeError as error:
        message = f"What answered is no admin API: status {response.status_code}."
        raise errors.UpstreamFailed(message) from error
    if response.is_success:
        return document
    sentence = document.get("error") if isinstance(document, dict) else None
    if isinstance(document, dict) and document.get("missing"):
        missing = msgspec.convert(document["missing"], tuple[Missing, ...])
        raise errors.GateClosed(str(sentence), missing)
    if response.status_code == _REFUSED and isinstance(document.get("checks"), dict):
        said = errors.excerpt(sentence or "It is refused.", MAX_SENTENCE)
        raise errors.VersionRefused(said, document["checks"])
    kind = _KINDS.get(response.status_code, errors.UpstreamFailed)
    raise kind(errors.excerpt(sentence or f"status {response.status_code}", MAX_SENTENCE))


_REFUSED: Final = 400
