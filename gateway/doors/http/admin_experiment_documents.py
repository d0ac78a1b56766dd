"""Documents of the admin API on experiments: what its bodies hold and what it answers."""

from msgspec import Struct

from gateway.core.experiments import ExperimentRecord, HoldOut, Layer
from gateway.core.reporting import Point
from gateway.doors.http.admin_documents import AuditItem


class ExperimentEntry(Struct, frozen=True):
    """An experiment in the list; `remarks` are sentences on what a reader should know."""

    name: str
    endpoint: str
    strategy: str
    state: str
    reason: str
    since: float
    step: int
    exposure: int
    verdicts: dict[str, str]
    etag: str
    remarks: tuple[str, ...]


class ExperimentList(Struct, frozen=True):
    """Every experiment, drafts and those that have ended among them."""

    revision: int
    experiments: tuple[ExperimentEntry, ...]


class ExperimentDocument(Struct, frozen=True):
    """An experiment as it stands: its document and what became of it."""

    name: str
    revision: int
    etag: str
    remarks: tuple[str, ...]
    record: ExperimentRecord


class History(Struct, frozen=True):
    """Points of an experiment's history, oldest first; no more than one in a few seconds."""

    name: str
    points: list[Point]


class Begin(Struct, frozen=True, forbid_unknown_fields=True):
    """Start a draft; `supersedes` names a live experiment that the same commit stops."""

    reason: str = ""
    supersedes: str | None = None
    allow_signature_change: bool = False


class Because(Struct, frozen=True, forbid_unknown_fields=True):
    """Pause, resume, approve, stop or roll back, and why."""

    reason: str = ""


class LayerEntry(Struct, frozen=True):
    """A layer: its salt, who holds which of its slots, and how many of 10,000 are free."""

    name: str
    etag: str
    salt: str
    experiments: dict[str, int]
    free: int


class LayerList(Struct, frozen=True):
    """Every layer."""

    revision: int
    layers: tuple[LayerEntry, ...]


class LayerDocument(Struct, frozen=True):
    """A layer as it stands."""

    name: str
    revision: int
    etag: str
    document: Layer
    experiments: dict[str, int]
    free: int


class PutLayer(Struct, frozen=True, forbid_unknown_fields=True):
    """A layer's salt; without one it keeps its own, or gets a fresh one."""

    salt: str | None = None


class HoldOutDocument(Struct, frozen=True):
    """The global hold-out, None where nobody is held out."""

    revision: int
    etag: str | None
    document: HoldOut | None


class PutHoldOut(Struct, frozen=True, forbid_unknown_fields=True):
    """How many units out of 10,000 no experiment may enrol."""

    share: int


class LedgerPage(Struct, frozen=True):
    """Decisions, oldest first; `next` is the `after` of the page that follows, if any.

    `head` is the hash of the newest audit entry, which the Snapshot of `revision` holds.
    """

    revision: int
    head: str
    entries: tuple[AuditItem, ...]
    next: int | None
