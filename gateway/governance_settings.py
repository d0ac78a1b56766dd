"""Settings of governance; they belong to the tree of `gateway.settings`, which is full."""

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
