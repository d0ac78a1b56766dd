"""Documents of versions in the admin API: registering, listing, comparing."""

from typing import Any

from msgspec import Struct

from gateway.control.versions import Origins
from gateway.core.inspections import Inspection
from gateway.core.lineage import Lineage
from gateway.core.models import StoredFile
from gateway.core.reviews import Check, CheckResult, Review
from gateway.core.tensors import Signature


class RegisterVersion(Struct, frozen=True, forbid_unknown_fields=True):
    """Register a version from an upload, or from a folder inside the model store.

    Without a number it is the next. `lineage` is joined with what `version.toml` says, and wins.
    """

    version: int | None = None
    upload: str | None = None
    source: str | None = None
    lineage: dict[str, Any] = {}
    reason: str = ""


class Registered(Struct, frozen=True):
    """A registered version and what its inspection found; `changed` is false if it was before."""

    revision: int
    model: str
    version: int
    digest: str
    changed: bool
    review: Review | None
    checks: dict[Check, CheckResult]


class Inspected(Struct, frozen=True):
    """What a new inspection found."""

    model: str
    version: int
    acceptable: bool
    inspection: Inspection


class InspectVersion(Struct, frozen=True, forbid_unknown_fields=True):
    """Inspect a version again."""

    reason: str = ""


class VersionEntry(Struct, frozen=True):
    """A version in a list; `checks` has outcomes only, and is empty where none were made."""

    number: int
    digest: str
    created_at: float
    aliases: tuple[str, ...]
    registered_by: str | None
    approved_by: tuple[str, ...]
    checks: dict[str, str]
    lineage: Lineage


class VersionList(Struct, frozen=True):
    """Versions of a model, highest number first."""

    model: str
    revision: int
    versions: tuple[VersionEntry, ...]


class WholeVersion(Struct, frozen=True):
    """All that is known of a version."""

    model: str
    number: int
    digest: str
    created_at: float
    aliases: tuple[str, ...]
    files: tuple[StoredFile, ...]
    signature: Signature
    told: dict[str, Any]
    lineage: Lineage
    review: Review | None
    inspection: Inspection | None


class LineageDocument(Struct, frozen=True):
    """Where the versions of a model come from."""

    model: str
    versions: tuple[Origins, ...]


class UploadedFile(Struct, frozen=True):
    """A file of an upload that is whole; `size` is in bytes."""

    name: str
    size: int
    sha256: str


class Upload(Struct, frozen=True):
    """An upload on this host. It is discarded at `expires_at` (UTC seconds) if nothing comes."""

    id: str
    model: str
    expires_at: float
    files: tuple[UploadedFile, ...]


class BeginUpload(Struct, frozen=True, forbid_unknown_fields=True):
    """Open an upload."""


class Discarded(Struct, frozen=True):
    """An upload is gone."""

    id: str
