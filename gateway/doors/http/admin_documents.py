"""Documents of the admin API: what its bodies hold and what it answers."""

from typing import Any

from msgspec import Struct

from gateway.control.previews import Preview
from gateway.core.assignment import SplitState
from gateway.core.audit import AuditEntry
from gateway.core.chain import Line
from gateway.core.checkpoints import Signed
from gateway.core.endpoints import Endpoint
from gateway.core.models import CHAMPION
from gateway.core.tensors import Signature


class Failure(Struct, frozen=True):
    """The one shape of every error."""

    error: str


class Alive(Struct, frozen=True):
    """This process answers."""

    status: str = "alive"


class EndpointEntry(Struct, frozen=True):
    """An endpoint in the list; `implicit` ones have no document and follow a model's champion."""

    name: str
    model: str
    implicit: bool
    etag: str | None
    default_version: int
    rules: int
    shadows: int


class EndpointList(Struct, frozen=True):
    """Every name that clients may call."""

    revision: int
    endpoints: tuple[EndpointEntry, ...]


class EndpointDocument(Struct, frozen=True, omit_defaults=True):
    """An endpoint as it stands; `splits` hold the salt and the intervals of each rule that splits.

    `plan` is there where it was asked for.
    """

    name: str
    implicit: bool
    revision: int
    etag: str | None
    document: Endpoint
    splits: dict[str, SplitState]
    plan: Preview | None = None


class Changed(Struct, frozen=True):
    """What a write came to; `changed` is false where everything stood like that already."""

    revision: int
    etag: str | None
    changed: bool


class ShadowReport(Struct, frozen=True):
    """What the shadows of an endpoint found on this host."""

    endpoint: str
    shadows: list[dict[str, Any]]


class RecentInputs(Struct, frozen=True):
    """A sample of the requests that an endpoint answered lately, redacted; `request` is a body."""

    endpoint: str
    inputs: list[dict[str, Any]]


class ModelEntry(Struct, frozen=True):
    """A model in the list; `warm` versions are kept loaded."""

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]
    warm: tuple[int, ...]


class RefusedVersion(Struct, frozen=True):
    """A version that lies in this host's model store and is not taken as it is."""

    model: str
    version: int
    reason: str


class ModelList(Struct, frozen=True):
    """Every registered model, and what the model store holds that was refused."""

    revision: int
    models: tuple[ModelEntry, ...]
    refused: tuple[RefusedVersion, ...]


class VersionDocument(Struct, frozen=True):
    """A version; `state` and `reason` are those of this host, None where it is not loaded.

    What the manifest says is None while the store is away. `checks` has the outcomes of its Review.
    """

    number: int
    digest: str
    warm: bool
    state: str | None
    reason: str | None
    signature: Signature | None
    lineage: dict[str, Any] | None
    created_at: float | None
    checks: dict[str, str]
    approved_by: tuple[str, ...]


class ModelDocument(Struct, frozen=True):
    """A model: its aliases, what each named before (latest last), and its versions.

    `refused` tells of versions that lie in this host's model store and are not taken as they are.
    """

    name: str
    revision: int
    etag: str | None
    aliases: dict[str, int]
    previous: dict[str, tuple[int, ...]]
    loaded: tuple[int, ...]
    allow_nonfinite: bool
    labels: tuple[str, ...]
    versions: tuple[VersionDocument, ...]
    refused: tuple[RefusedVersion, ...]


class Promote(Struct, frozen=True, forbid_unknown_fields=True):
    """Move an alias to a version; `override` passes closed gates by force, and needs a reason."""

    version: int
    alias: str = CHAMPION
    reason: str = ""
    allow_signature_change: bool = False
    override: bool = False


class Rollback(Struct, frozen=True, forbid_unknown_fields=True):
    """Move an alias back to the version it named before."""

    alias: str = CHAMPION
    reason: str = ""


class Keep(Struct, frozen=True, forbid_unknown_fields=True):
    """Load or unload a version; without one, the highest is loaded, or all unused are let go."""

    version: int | None = None
    reason: str = ""


class AuditItem(Struct, frozen=True):
    """An audit entry and its hash, which the next one holds as `previous`."""

    hash: str
    entry: AuditEntry


class AuditPage(Struct, frozen=True):
    """Audit entries, oldest first unless the newest were asked for.

    `next` is the `after` of the page that follows (`before`, where the newest come first), None at
    the end; a page may hold none and yet not be the last. `unreadable` are revisions whose entries
    cannot be read.
    """

    entries: tuple[AuditItem, ...]
    next: int | None
    unreadable: tuple[int, ...] = ()


class LinesPage(Struct, frozen=True):
    """Audit entries byte by byte as they lie in the store; `next` as in `AuditPage`."""

    lines: tuple[Line, ...]
    next: int | None


class Archive(Struct, frozen=True, forbid_unknown_fields=True):
    """What to archive: entries before a revision, or older than so many days."""

    before: int | None = None
    older_than_days: float | None = None


class TrimAudit(Struct, frozen=True, forbid_unknown_fields=True):
    """Drop what was archived behind this checkpoint."""

    signed: Signed
    reason: str = ""


class Restore(Struct, frozen=True, forbid_unknown_fields=True):
    """Put back what this host serves; `dry_run` says only what that would do."""

    reason: str
    dry_run: bool = False


class Statistics(Struct, frozen=True):
    """Triton-shaped statistics of each version loaded on this host."""

    model_stats: list[dict[str, Any]]


class KeyEntry(Struct, frozen=True):
    """A signing key, by its id alone; times are UTC seconds, None where they are not known.

    `signs` is true of one key. It is `waiting` if it is to sign next. `until` is when the next one
    began to sign.
    """

    id: int
    signs: bool
    waiting: bool
    since: float | None
    until: float | None


class KeyList(Struct, frozen=True):
    """The keys of prediction ids: which one signs, and all that can be read; never the keys."""

    current: int
    keys: tuple[KeyEntry, ...]
