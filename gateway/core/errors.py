"""Every error that the gateway means to raise, as one flat and neutral tree.

GatewayError
  InvalidRequest        the caller's bytes, tensors or document are wrong
    TooLarge            more than a stated limit allows
    UnsupportedMedia    an encoding or media type that is not spoken here
    VersionRefused      a model's version did not pass a check that each must pass
  Unauthenticated       who are you
  Forbidden             you may not
  NotFound              endpoint, model or version
  Conflict              the document moved, or the transition is not legal now
    GateClosed          a gate asks for what is not there yet
  Unsupported           a part of a protocol that is not offered
  Overloaded            a bounded queue is full; retry later
  Throttled             this caller failed too often; retry later
    ShareExceeded       this caller holds more than their share; retry later
  NotReady              loading, draining, or nothing to serve yet
  DeadlineExceeded      the caller's time ran out
  Cancelled             the caller left; nobody reads the answer
  EngineFailed          the model raised or returned what it should not
    InvalidOutput       the latter
  UpstreamFailed        a remote engine failed or answered nonsense
  StoreUnavailable      Redis cannot be reached (control only; serving goes on)
    Unsealed            Redis holds a Snapshot that nobody with the seal key wrote

No class knows a status code: `gateway.doors.errors` holds the one table that maps them.
A message is a full sentence that names the thing and the fix; it never holds a path,
a source line or more than 64 characters of what the caller sent.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct


class GatewayError(Exception):
    """Anything the gateway refuses or fails to do, with a sentence fit for the caller."""

    kind = "internal"
    """Low-cardinality `error.type` for telemetry."""


class InvalidRequest(GatewayError):
    """The caller's bytes, tensors or document are wrong."""

    kind = "invalid_request"


class TooLarge(InvalidRequest):
    """More than a stated limit allows."""

    kind = "body_too_large"


class UnsupportedMedia(InvalidRequest):
    """An encoding or media type that is not spoken here."""

    kind = "unsupported_media"


class VersionRefused(InvalidRequest):
    """A version did not pass a check that each must pass; `checks` has all that were made."""

    kind = "version_refused"

    def __init__(self, message: str, checks: Mapping[str, object] | None = None) -> None:
        """Keep the checks, so that whoever asked can be shown them."""
        super().__init__(message)
        self.checks = checks or {}


class Unauthenticated(GatewayError):
    """The caller did not show who they are."""

    kind = "unauthenticated"


class Forbidden(GatewayError):
    """The caller is known and may not do this."""

    kind = "forbidden"


class NotFound(GatewayError):
    """No endpoint, model or version of that name."""

    kind = "not_found"


class Conflict(GatewayError):
    """The document moved since it was read, or the transition is not legal now."""

    kind = "conflict"


class Missing(Struct, frozen=True):
    """One thing that a gate wants and that is not there, as a sentence with the way to it."""

    gate: str
    requirement: str
    sentence: str


class GateClosed(Conflict):
    """A gate asks for what is not there yet; `missing` lists it, each with a sentence."""

    kind = "gate_closed"

    def __init__(self, message: str, missing: Sequence[Missing] = ()) -> None:
        """Keep what is missing, so that each can be shown by itself."""
        super().__init__(message)
        self.missing = tuple(missing)


class Unsupported(GatewayError):
    """A part of a protocol that is not offered here."""

    kind = "unsupported"


class Overloaded(GatewayError):
    """A bounded queue is full; the caller may retry later."""

    kind = "overloaded"


class Throttled(GatewayError):
    """This caller failed too often to be heard now; others are not concerned."""

    kind = "throttled"


class ShareExceeded(Throttled):
    """This caller holds their share of an endpoint that is contended; others may come in."""

    kind = "share_exceeded"


class NotReady(GatewayError):
    """Loading, draining, or nothing to serve yet."""

    kind = "model_not_ready"


class DeadlineExceeded(GatewayError):
    """The caller's time ran out before the answer was there."""

    kind = "deadline_exceeded"


class Cancelled(GatewayError):
    """The caller left before the answer was there; nobody reads this."""

    kind = "cancelled"


class EngineFailed(GatewayError):
    """The model raised, or returned what its signature does not allow."""

    kind = "model_error"


class InvalidOutput(EngineFailed):
    """The model returned what its signature does not allow."""

    kind = "invalid_output"


class UpstreamFailed(GatewayError):
    """A remote engine failed or answered nonsense."""

    kind = "upstream_error"


class StoreUnavailable(GatewayError):
    """Redis cannot be reached; writes wait, serving goes on."""

    kind = "store_unavailable"


class Unsealed(StoreUnavailable):
    """The store holds a document without a valid seal; `document` is what it holds."""

    kind = "store_unsealed"

    def __init__(self, message: str, document: bytes = b"") -> None:
        """Keep the document, so that it can be told by its digest."""
        super().__init__(message)
        self.document = document


def excerpt(value: object, limit: int = 64) -> str:
    """Shorten what a caller sent so that it may stand in an error: printable, at most `limit`."""
    text = value if isinstance(value, str) else repr(value)
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in cut)


def words_of(error: Exception) -> str:
    """An error as a sentence, without the path that an OSError names."""
    return f"{error.strerror}." if isinstance(error, OSError) else str(error)
