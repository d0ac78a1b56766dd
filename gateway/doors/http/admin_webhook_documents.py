"""Documents of the admin API about webhooks."""

from typing import Any

from msgspec import Struct

from gateway.control.webhooks import WebhookStanding


class WebhookWritten(Struct, frozen=True):
    """A webhook was written. `secret` is there only if it was made now; it is never shown again."""

    name: str
    secret: str | None


class WebhookGone(Struct, frozen=True):
    """A webhook was deleted, and its dead letters with it."""

    name: str


class WebhookList(Struct, frozen=True):
    """Every webhook, and how far each is."""

    webhooks: tuple[WebhookStanding, ...]


class Tried(Struct, frozen=True):
    """What became of a test event: the status of the answer, None where there was none."""

    taken: bool
    status: int | None
    problem: str


class DeadLetterEntry(Struct, frozen=True):
    """An event that a webhook did not take; `at` is in UTC seconds."""

    id: str
    at: float
    tries: int
    problem: str
    event: dict[str, Any]


class DeadLetterList(Struct, frozen=True):
    """What a webhook did not take, the oldest first; at most a hundred."""

    name: str
    dead_letters: tuple[DeadLetterEntry, ...]


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """An empty object."""
