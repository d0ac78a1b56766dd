"""Settings of governance; they belong to the tree of `gateway.settings`, which is full."""

from typing import Literal

from msgspec import Struct


class WebhookSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where events may be sent."""

    allow_http: bool = False
    """Whether a webhook's URL may begin with `http://`."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts, addresses and networks that may be sent to though they are not on the internet."""
    timeout_s: float = 10.0
    """For each step of a delivery: to connect, to send, and to answer."""
    give_up_s: float = 86_400.0
    """An event that is older than this, and was tried a few times, is given up."""


class InspectionSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How versions are inspected before they may serve."""

    mode: Literal["full", "short", "off"] = "full"
    """`short` makes the checks without which no version is taken, and runs it once; `off` makes
    none and reads the file in the control process."""
    time_s: float = 60.0
    """One inspection may take so long, of the clock and of a processor; then it is ended."""
    run_s: float = 10.0
    """And one run of a few rows."""
    memory_mb: int = 4096
    """Address space beyond that of the libraries, in MiB, for the file and all that it asks for."""


class UploadSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on uploads: MiB of one and of all, how many at once, seconds that one may wait."""

    max_mb: int = 8192
    quota_mb: int = 32_768
    max_open: int = 16
    expire_s: float = 3600.0
