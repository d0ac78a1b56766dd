"""Documents of the admin API on gates, approvals and wishes."""

from msgspec import Struct

from gateway.core.errors import Missing
from gateway.core.gates import Gate
from gateway.core.gating import Finding
from gateway.core.models import CHAMPION
from gateway.core.reviews import Approval, PromotionWish


class GateEntry(Struct, frozen=True):
    """A gate in the list."""

    name: str
    etag: str
    document: Gate


class GateList(Struct, frozen=True):
    """Every gate."""

    revision: int
    gates: tuple[GateEntry, ...]


class GateDocument(Struct, frozen=True):
    """A gate as it stands, and the models that it means."""

    name: str
    revision: int
    etag: str
    document: Gate
    models: tuple[str, ...]


class VersionGates(Struct, frozen=True):
    """What stands between a version and an alias, for who asks: each requirement, met or not."""

    model: str
    version: int
    alias: str
    revision: int
    open: bool
    requirements: tuple[Finding, ...]
    approvals: tuple[Approval, ...]


class Approve(Struct, frozen=True, forbid_unknown_fields=True):
    """Stand for a version, and why."""

    reason: str = ""


class PutWish(Struct, frozen=True, forbid_unknown_fields=True):
    """Move an alias to a version as soon as its gates allow it."""

    version: int
    alias: str = CHAMPION
    reason: str = ""
    allow_signature_change: bool = False


class WishAnswer(Struct, frozen=True):
    """Whether the alias moved at once; if not, the wish stands, and this is missing."""

    revision: int
    etag: str | None
    changed: bool
    granted: bool
    missing: tuple[Missing, ...]


class WishEntry(Struct, frozen=True):
    """A wish in the list, and what it waits for."""

    model: str
    alias: str
    etag: str
    wish: PromotionWish
    missing: tuple[Missing, ...]


class WishList(Struct, frozen=True):
    """Promotions that were asked for and are not granted yet."""

    revision: int
    wishes: tuple[WishEntry, ...]
