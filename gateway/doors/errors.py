"""The one table from errors to what a protocol says.

Statuses are those of the Open Inference Protocol's peers where clients test them, and of HTTP
where they do not: a full queue and a spent deadline are 503 with `Retry-After`.
"""

import logging
from collections.abc import Mapping
from typing import Final

from gateway.core import errors

log: Final = logging.getLogger(__name__)

HTTP_STATUS: Final[Mapping[type[errors.GatewayError], int]] = {
    errors.InvalidRequest: 400,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.VersionRefused: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.GateClosed: 409,
    errors.Unsupported: 501,
    errors.Overloaded: 503,
    errors.Throttled: 429,
    errors.ShareExceeded: 429,
    errors.NotReady: 503,
    errors.DeadlineExceeded: 503,
    errors.Cancelled: 499,
    errors.EngineFailed: 500,
    errors.InvalidOutput: 500,
    errors.UpstreamFailed: 502,
    errors.StoreUnavailable: 503,
    errors.Unsealed: 503,
}
RETRY_AFTER_S: Final[Mapping[type[errors.GatewayError], int]] = {
    errors.Overloaded: 1,
    errors.Throttled: 60,
    errors.ShareExceeded: 1,
    errors.NotReady: 1,
    errors.DeadlineExceeded: 1,
    errors.StoreUnavailable: 2,
    errors.Unsealed: 2,
}


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for what nobody foresaw."""
    return HTTP_STATUS.get(type(error), 500) if isinstance(error, errors.GatewayError) else 500


def sentence_of(error: Exception) -> str:
    """What the caller is told; an unforeseen error is logged, and told as nothing but that."""
    if isinstance(error, errors.GatewayError):
        if error.__cause__ is not None and isinstance(error, errors.EngineFailed):
            log.warning("%s", error, exc_info=error.__cause__)
        return str(error)
    log.error("an unforeseen error", exc_info=error)
    return "The gateway failed; its log says more."


def headers_of(error: Exception) -> list[tuple[bytes, bytes]]:
    """Headers that go with an error."""
    if isinstance(error, errors.Unauthenticated):
        return [(b"www-authenticate", b"Bearer")]
    # Which codings are read answers who sent another coding, not who sent another media type.
    if isinstance(error, errors.UnsupportedMedia) and str(error).startswith("Content-Encoding"):
        return [(b"accept-encoding", b"gzip, deflate")]
    wait = RETRY_AFTER_S.get(type(error)) if isinstance(error, errors.GatewayError) else None
    return [] if wait is None else [(b"retry-after", b"%d" % wait)]
