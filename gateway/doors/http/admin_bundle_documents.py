"""Documents of the admin API about bundles."""

from msgspec import Struct

from gateway.core.applying import DocumentChange
from gateway.core.bundles import Bundle


class Apply(Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle to be applied; `expected` is that of the dry run that was looked at."""

    bundle: Bundle
    expected: dict[str, str] | None = None
    reason: str = ""


class BundleApplied(Struct, frozen=True):
    """What applying came to; `changed` is false where everything stood like that already."""

    revision: int
    changed: bool
    changes: tuple[DocumentChange, ...]
