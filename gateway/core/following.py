"""Following another registry: what is known of its models, and what follows from it here.

Pure: names and bytes come from elsewhere and are taken for nothing but words until they are
checked here.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.models import is_hex256, is_name
from gateway.core.patterns import check_pattern, matches_any

MAX_ENTRIES: Final = 60
"""Of one table of a version's lineage; the rest is counted and left out."""
MAX_TABLE: Final = 12 * 1024
"""Bytes of one such table."""
MAX_KEY: Final = 64
MAX_TEXT: Final = 250
LEFT_OUT: Final = "left_out"
OWN_TAGS: Final = "mlflow."
"""Tags of a run that begin so are MLflow's own; those that tell of its making are taken by name."""


class FollowedModel(Struct, frozen=True):
    """A registered model there: when it was made, in Unix milliseconds, and what aliases name."""

    name: str
    created_ms: int
    aliases: Mapping[str, int] = {}


class FollowedVersion(Struct, frozen=True):
    """A registered version there. `source` says where its files are; `ready` that they are."""

    model: str
    number: int
    ready: bool
    created_ms: int
    source: str
    run_id: str = ""
    description: str = ""
    tags: Mapping[str, str] = {}


class FollowedData(Struct, frozen=True):
    """A data set that a run read: its digest, where it is, and what for."""

    name: str
    digest: str
    location: str = ""
    context: str = ""


class FollowedRun(Struct, frozen=True):
    """The run that made a version. `artifacts` is the place of its files."""

    run_id: str
    name: str = ""
    user: str = ""
    commit: str = ""
    script: str = ""
    artifacts: str = ""
    parameters: Mapping[str, str] = {}
    metrics: Mapping[str, float | str] = {}
    tags: Mapping[str, str] = {}
    data: tuple[FollowedData, ...] = ()


class Seen(Struct, frozen=True):
    """What an alias there named last, 0 for nothing, and why it was not granted here, if so."""

    version: int
    at: float
    refused: str = ""


class Following(Struct, frozen=True):
    """How far following is; kept in the shared store, by the names that models have here.

    Times are in UTC seconds. `asked` is the last request to look that was served. `error` says why
    the last look failed as a whole; `refused` and `waiting` are by `model/number` or
    `model@alias`, `skipped` by the names of models there.
    """

    schema: int = 1
    since: float = 0.0
    looked_at: float = 0.0
    answered_at: float = 0.0
    asked: int = 0
    error: str | None = None
    seen: dict[str, dict[str, Seen]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class Rules(Struct, frozen=True):
    """Which models are followed, by patterns of the names they have here, and under which names.

    `names` and `aliases` map what a model or alias is called there to what it is called here.
    """

    models: tuple[str, ...]
    names: Mapping[str, str]
    aliases: Mapping[str, str]


def rules_of(models: Iterable[str], names: Iterable[str], aliases: Iterable[str]) -> Rules:
    """Rules from the words of the settings, pairs being `there=here`.

    Raises:
        InvalidRequest: a pair or pattern that is none, or a name that cannot be one here.
    """
    patterns = tuple(check_pattern("models", pattern) for pattern in models)
    return Rules(patterns, _pairs("mlflow.names", names), _pairs("mlflow.aliases", aliases))


def local_name(rules: Rules, name: str) -> str | None:
    """What a model is called here, None if it is not followed.

    Raises:
        InvalidRequest: it would be followed, but its name cannot be one here.
    """
    here = rules.names.get(name, name)
    if not is_name(here):
        message = (
            f"'{excerpt(name)}' cannot name a model here; the setting mlflow.names can give it "
            "another name."
        )
        raise InvalidRequest(message)
    return here if name in rules.names or matches_any(rules.models, here) else None


def origin_of(version: FollowedVersion) -> dict[str, Any]:
    """What tells a version there from every other, also from one that took its number later."""
    return {
        "model": excerpt(version.model, MAX_KEY),
        "version": version.number,
        "created_ms": version.created_ms,
        "run": excerpt(version.run_id, MAX_KEY),
    }


def lineage_of(version: FollowedVersion, run: FollowedRun | None, sha256: str) -> dict[str, Any]:
    """The lineage of a version as `version.toml` tells it, within bounds.

    Locations lose what stands before `@` and after `?`, where secrets would be.
    """
    created = datetime.fromtimestamp(version.created_ms / 1000, UTC).isoformat(timespec="seconds")
    made: dict[str, Any] = {"sha256": sha256, "created": created}
    if version.description:
        made["description"] = excerpt(version.description, MAX_TEXT)
    tags = dict(version.tags)
    if run is not None:
        told = {"trainer": run.user, "commit": run.commit, "script": run.script}
        made.update({key: excerpt(text, MAX_TEXT) for key, text in told.items() if text})
        tags = {**run.tags, **tags}
        made["parameters"] = _bounded(run.parameters)
        made["metrics"] = _bounded(run.metrics)
        made["data"] = [_data(data) for data in run.data[:MAX_ENTRIES]]
    own = {key: tags[key] for key in tags if is_name(key) and not key.startswith(OWN_TAGS)}
    made["tags"] = {key: str(text) for key, text in _bounded(own).items()}
    made["mlflow"] = {**origin_of(version), "source": bare_location(version.source)}
    if run is not None and run.name:
        made["mlflow"]["run_name"] = excerpt(run.name, MAX_TEXT)
    return {key: value for key, value in made.items() if value not in ({}, [])}


def bare_location(text: str) -> str:
    """A place without what may be secret in it: the login, the query and the fragment."""
    bare = text.partition("#")[0].partition("?")[0]
    scheme, mark, rest = bare.partition("://")
    if mark:
        host, slash, path = rest.partition("/")
        bare = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return excerpt(bare, MAX_TEXT)


def _data(data: FollowedData) -> dict[str, str]:
    """A data set; a digest is called `sha256` where it may be one."""
    told = {
        "location": bare_location(data.location),
        "sha256" if is_hex256(data.digest) else "digest": excerpt(data.digest, MAX_KEY),
        "name": excerpt(data.name, MAX_KEY),
        "context": excerpt(data.context, MAX_KEY),
    }
    return {key: text for key, text in told.items() if text}


def _bounded(table: Mapping[str, float | str]) -> dict[str, Any]:
    """As much of a table as lineage has room for; what is left out is counted."""
    kept: dict[str, Any] = {}
    size = 0
    for key in sorted(table)[:MAX_ENTRIES]:
        value = table[key]
        value = excerpt(value, MAX_TEXT) if isinstance(value, str) else value
        size += len(key.encode()) + len(str(value).encode())
        if size > MAX_TABLE:
            break
        kept[excerpt(key, MAX_KEY)] = value
    if len(kept) < len(table):
        kept[LEFT_OUT] = len(table) - len(kept)
    return kept


def _pairs(setting: str, words: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        there, equals, here = word.partition("=")
        if not equals or not there.strip() or not is_name(here.strip()):
            message = f"Setting {setting} holds '{excerpt(word)}'; write THERE=HERE."
            raise InvalidRequest(message)
        pairs[there.strip()] = here.strip()
    return pairs


def encode_following(following: Following) -> bytes:
    """As it is kept."""
    return msgspec.json.encode(following)


def decode_following(document: bytes | None) -> Following:
    """As it was kept; a fresh one where there is none or it cannot be read."""
    if document is None:
        return Following()
    try:
        return msgspec.json.decode(document, type=Following)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Following()
