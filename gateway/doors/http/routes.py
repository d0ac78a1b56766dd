"""Routes of the inference port: from a raw path to what it asks for.

Paths are split before they are decoded, and each part is decoded once, so no encoding can smuggle
a slash or a dot-dot into a name. A name that is none is answered as an unknown one.
"""

from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from msgspec import Struct

from gateway.core.errors import InvalidRequest, NotFound
from gateway.core.models import is_name, parse_version

MAX_PATH_BYTES: Final = 1024
_PLAIN: Final = {
    (): "alive",
    ("v2",): "server",
    ("v2", "health", "live"): "live",
    ("v2", "health", "ready"): "ready",
    ("v2", "models"): "models",
    ("v2", "models", "stats"): "stats",
    ("v2", "repository", "index"): "index",
    ("v1", "models"): "v1_models",
    ("v1", "outcomes"): "outcomes",
}
_OF_MODEL: Final = {
    (): "model",
    ("ready",): "model_ready",
    ("infer",): "infer",
    ("config",): "config",
    ("stats",): "model_stats",
}
METHOD: Final = {
    "infer": "POST",
    "predict": "POST",
    "index": "POST",
    "load": "POST",
    "unload": "POST",
    "outcomes": "POST",
}
"""What is not asked for with GET."""
TEMPLATES: Final = {
    "alive": "/",
    "server": "/v2",
    "live": "/v2/health/live",
    "ready": "/v2/health/ready",
    "models": "/v2/models",
    "stats": "/v2/models/stats",
    "model": "/v2/models/{model_name}",
    "model_ready": "/v2/models/{model_name}/ready",
    "infer": "/v2/models/{model_name}/infer",
    "config": "/v2/models/{model_name}/config",
    "model_stats": "/v2/models/{model_name}/stats",
    "index": "/v2/repository/index",
    "load": "/v2/repository/models/{model_name}/load",
    "unload": "/v2/repository/models/{model_name}/unload",
    "v1_models": "/v1/models",
    "v1_model": "/v1/models/{model_name}",
    "predict": "/v1/models/{model_name}:predict",
    "outcomes": "/v1/outcomes",
    "unknown": "_OTHER",
}
"""`http.route` of each action; a pinned version or alias is left out."""


class Route(Struct, frozen=True):
    """What a path asks for: an action, and the endpoint and version or alias it names."""

    action: str
    name: str = ""
    version: int | None = None
    alias: str | None = None


@lru_cache(maxsize=4096)
def route_of(path: bytes) -> Route:
    """Read a raw path, without its query.

    Raises:
        NotFound: nothing is there, or a version that could not be one.
    """
    if len(path) > MAX_PATH_BYTES:
        raise NotFound(_NOTHING)
    stripped = path.removeprefix(b"/").removesuffix(b"/")
    parts = tuple(_decode(part) for part in stripped.split(b"/")) if stripped else ()
    plain = _PLAIN.get(parts)
    if plain is not None:
        return Route(plain)
    if parts[:2] == ("v2", "models") and len(parts) > 2:  # noqa: PLR2004 - a name follows
        return _model_route(parts[2], parts[3:])
    if parts[:3] == ("v2", "repository", "models"):
        return _repository_route(parts[3:])
    if parts[:2] == ("v1", "models"):
        return _v1_route(parts[2:])
    raise NotFound(_NOTHING)


def _model_route(name: str, rest: tuple[str, ...]) -> Route:
    version = None
    if rest[:1] == ("versions",) and len(rest) > 1:
        version = _version(name, rest[1])
        rest = rest[2:]
    action = _OF_MODEL.get(rest)
    if action is None:
        raise NotFound(_NOTHING)
    return Route(action, _name(name), version)


def _repository_route(rest: tuple[str, ...]) -> Route:
    if len(rest) == 2 and rest[1] in ("load", "unload"):  # noqa: PLR2004 - a name and a verb
        return Route(rest[1], _name(rest[0]))
    raise NotFound(_NOTHING)


def _v1_route(rest: tuple[str, ...]) -> Route:
    action = "v1_model"
    last, colon, verb = rest[-1].rpartition(":")
    if colon:
        if verb != "predict":
            raise NotFound(_NOTHING)
        action, rest = "predict", (*rest[:-1], last)
    match rest:
        case (name,):
            return Route(action, _name(name))
        case (name, "versions", number):
            return Route(action, _name(name), _version(name, number))
        case (name, "labels", alias):
            return Route(action, _name(name), alias=alias)
        case _:
            raise NotFound(_NOTHING)


def _decode(part: bytes) -> str:
    return unquote(part.decode("latin-1"), encoding="utf-8", errors="replace")


def _name(text: str) -> str:
    if not is_name(text):
        message = "There is no endpoint or model of that name."
        raise NotFound(message)
    return text


def _version(name: str, text: str) -> int:
    try:
        return parse_version(text)
    except InvalidRequest as error:
        message = f"'{_name(name)}' has no such version: {error}"
        raise NotFound(message) from error


_NOTHING: Final = "Not Found"
