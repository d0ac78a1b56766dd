"""Heads of HTTP requests: what each must be before anything here reads it, as pure functions.

The parser below refuses what is no HTTP. These refuse what is HTTP but would be read differently
by somebody else on the way, or is larger than any honest caller sends.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

from gateway.doors.http.inference_head import Headers

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
MAX_URL_BYTES: Final = 8 * 1024
ONCE: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))
SPECIAL: Final = ONCE | {b"connection", b"upgrade"}
"""Headers that say how a request is read; the others are the application's."""

Framing: TypeAlias = tuple[str, bool, bool, bool]
"""The version, and whether the body is chunked, 100-continue expected, another protocol offered."""


class Refusal(Exception):
    """A request that this listener answers itself: the application never hears of it.

    Attributes:
        status: of the answer.
        sentence: what the caller is told.
    """

    def __init__(self, status: int, sentence: str) -> None:
        """Refuse with a status and one sentence."""
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def check_head(
    method: bytes, version: str, headers: Headers, url: bytes, max_body_bytes: int
) -> Refusal | None:
    """Why a whole head is refused; None if it is not.

    Args:
        method: as sent.
        version: `major.minor`.
        headers: in order, names in lower case.
        url: the request target, as sent.
        max_body_bytes: a body that states more is refused.
    """
    keep_alive = version == "1.1" and all(name != b"connection" for name, _ in headers)
    try:
        read_head((method, url), headers, lambda: version, max_body_bytes, keep_alive=keep_alive)
    except Refusal as refusal:
        return refusal
    return None


def read_head(
    asked: tuple[bytes, bytes],
    headers: Headers,
    version_of: Callable[[], str],
    max_body_bytes: int,
    *,
    keep_alive: bool,
) -> Framing:
    """Check a whole head in one pass; how it is to be read.

    Args:
        asked: the method and the target.
        headers: in order, names in lower case.
        version_of: asked only if the version does not follow from `keep_alive`: it is dear.
        max_body_bytes: a body that states more is refused.
        keep_alive: whether the connection lives on. Without a Connection header it does in
            HTTP/1.1 only.

    Raises:
        Refusal: it is not taken.
    """
    special = [header for header in headers if header[0] in SPECIAL]
    named = dict(special)
    if len(named) != len(special):
        _refuse_twice(special)
    version = "1.1" if keep_alive and b"connection" not in named else version_of()
    if version not in _VERSIONS:
        raise Refusal(505, "This version of HTTP is not spoken here; use HTTP/1.1.")
    host = named.get(b"host")
    if host is None:
        if version == "1.1":
            raise Refusal(400, "A request names its Host.")
    elif host.strip(_HOST_BYTES):
        raise Refusal(400, "The Host header is not a name and a port.")
    _check_asked(asked, len(headers))
    length = named.get(b"content-length")
    if length is not None:
        _check_length(length, max_body_bytes)
    codings, expects = named.get(b"transfer-encoding"), named.get(b"expect")
    if codings is not None:
        _check_chunked(codings, version, length)
    expected = expects is not None and _is_expected(expects, version)
    return version, codings is not None, expected, b"upgrade" in named


def check_size(headers: Headers, url: bytes) -> None:
    """Check the bytes of a head; only a head that came in more bytes than that needs it.

    Raises:
        Refusal: it is too large.
    """
    framing = len(b": \r\n")
    size = len(url) + sum(len(name) + len(value) + framing for name, value in headers)
    if size > MAX_HEAD_BYTES:
        raise Refusal(431, HEAD_TOO_LARGE)


def body_too_large(limit: int) -> Refusal:
    """The refusal of a body beyond the limit, in bytes."""
    return Refusal(413, f"The body is larger than the {limit} bytes allowed.")


def _check_asked(asked: tuple[bytes, bytes], count: int) -> None:
    method, url = asked
    if method in _REFUSED_METHODS:
        raise Refusal(405, "This method is not served here.")
    if len(url) > MAX_URL_BYTES:
        raise Refusal(414, f"The address is longer than the {MAX_URL_BYTES} bytes allowed.")
    if url[:1] != b"/" or b"#" in url or not url.isascii():
        raise Refusal(400, "The address must be a path.")
    if count > MAX_HEADERS:
        raise Refusal(431, f"There are more than the {MAX_HEADERS} headers allowed.")


def _refuse_twice(special: Headers) -> None:
    """Two of these are two opinions on where the request ends, or whom it is for."""
    names = [name for name, _ in special if name in ONCE]
    if len(names) != len(set(names)):
        raise Refusal(400, "A header that may be sent once was sent twice.")


def _check_chunked(codings: bytes, version: str, length: bytes | None) -> None:
    """Any coding but exactly `chunked` would make two readers see two different bodies."""
    if length is not None:
        raise Refusal(400, "Content-Length and Transfer-Encoding exclude each other.")
    if version != "1.1":
        raise Refusal(400, "Transfer-Encoding needs HTTP/1.1.")
    if codings.lower() != b"chunked":
        raise Refusal(400, "Transfer-Encoding can only be 'chunked'.")


def _check_length(length: bytes, max_body_bytes: int) -> None:
    if not length.isdigit():
        raise Refusal(400, "Content-Length must be a number.")
    if len(length) > _LENGTH_DIGITS or int(length) > max_body_bytes:
        raise body_too_large(max_body_bytes)


def _is_expected(expects: bytes, version: str) -> bool:
    if expects.lower() != b"100-continue":
        raise Refusal(417, "Only '100-continue' can be expected.")
    return version == "1.1"


HEAD_TOO_LARGE: Final = f"The head is larger than the {MAX_HEAD_BYTES} bytes allowed."
_VERSIONS: Final = frozenset(("1.1", "1.0"))
_REFUSED_METHODS: Final = frozenset((b"CONNECT", b"TRACE"))
_HOST_BYTES: Final = (
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+;=:[]"
)
_LENGTH_DIGITS: Final = 19
