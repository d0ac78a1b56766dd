"""Heads: what the headers of an inference say, read in one pass."""

from typing import Final, TypeAlias

from msgspec import Struct

from gateway.core.errors import InvalidRequest, TooLarge, UnsupportedMedia, excerpt

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""As they came, with names in lower case."""

_LENGTH_DIGITS: Final = 19
TIMEOUT: Final = b"x-request-timeout-ms"
HEADER_LENGTH: Final = b"inference-header-content-length"
FORCE: Final = b"x-force-variant"
_AUTHORIZATION: Final = b"authorization"
_FURTHER: Final = frozenset({b"content-encoding", b"traceparent", HEADER_LENGTH, FORCE, TIMEOUT})
_SPECIAL: Final = _FURTHER | {_AUTHORIZATION}
_USUAL_TYPES: Final = frozenset({None, b"application/json", b"application/octet-stream"})
_CODINGS: Final = frozenset({None, b"gzip", b"x-gzip", b"deflate"})


class Head(Struct, gc=False):
    """The headers of a request; where a name comes more than once, `headers` holds the first.

    `is_plain` says that the headers hold nothing which asks for more than the usual: most requests
    are spared the look at each. `size` is the length of the body in bytes, as far as it is stated.
    `fields` are all of them, where a name came more than once.
    """

    headers: dict[bytes, bytes]
    size: int
    is_plain: bool = True
    fields: Headers = []

    @classmethod
    def of(cls, fields: Headers) -> "Head":
        """Read the headers as they came."""
        headers = dict(fields)
        again: Headers = []
        is_plain = _SPECIAL.isdisjoint(headers)
        if len(headers) != len(fields):
            is_plain, again = False, fields
            headers = dict(reversed(fields))
        size = 0
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < _LENGTH_DIGITS:
            size = int(length)
        else:
            is_plain = False
        is_plain = is_plain and headers.get(b"content-type") in _USUAL_TYPES
        return cls(headers, size, is_plain, again)

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header, by its lower-case name."""
        value = self.headers.get(name)
        if value is None:
            return []
        if not self.fields:
            return [value]
        return [value for key, value in self.fields if key == name]

    def _only(self, name: bytes) -> bytes | None:
        """The value of a header that came once."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None

    @property
    def accept_encoding(self) -> bytes | None:
        """What the caller says it can decompress."""
        return self.headers.get(b"accept-encoding")

    @property
    def authorization(self) -> bytes | None:
        """The caller's credentials; several are none."""
        if not self.fields:
            return self.headers.get(_AUTHORIZATION)
        return self._only(_AUTHORIZATION)

    @property
    def traceparent(self) -> bytes | None:
        """The caller's trace; several are as good as a broken one."""
        if b"traceparent" not in self.headers:
            return None
        return self._only(b"traceparent") or b""

    @property
    def tracestate(self) -> bytes | None:
        """What other tracers add to the trace."""
        return self.headers.get(b"tracestate")

    @property
    def force(self) -> str | None:
        """The variant that the caller wants."""
        value = self.headers.get(FORCE)
        return None if value is None else value.decode("latin-1")

    @property
    def coding(self) -> bytes | None:
        """How the body is compressed, None for not at all."""
        value = self.headers.get(b"content-encoding")
        if value is None:
            return None
        coding = value.strip().lower()
        return None if coding == b"identity" else coding

    def settle(self) -> None:
        """Its token was seen to: it is plain if nothing else asks for more than the usual.

        Requires: `check_body` passed.
        """
        self.is_plain = (
            not self.fields
            and _FURTHER.isdisjoint(self.headers)
            and self.headers.get(b"content-type") in _USUAL_TYPES
        )

    def json_bytes(self, body: bytes) -> int:
        """About the bytes of a body that are JSON; what follows it is only viewed."""
        stated = self.headers.get(HEADER_LENGTH, b"")
        return int(stated) if stated.isdigit() and len(stated) < _LENGTH_DIGITS else len(body)

    def check_body(self, limit: int) -> None:
        """Refuse a body before it comes.

        Raises:
            TooLarge: it states more than `limit` bytes.
            UnsupportedMedia: a form, or a content encoding that is not spoken, or several.
            InvalidRequest: a broken length.
        """
        self._check_lengths(limit)
        self._check_media()

    def _check_lengths(self, limit: int) -> None:
        for value in self.all(b"content-length"):
            if not value.isdigit():
                message = "Content-Length is not a number."
                raise InvalidRequest(message)
            if len(value) > _LENGTH_DIGITS or int(value) > limit:
                raise TooLarge(too_large(limit))

    def _check_media(self) -> None:
        for value in self.all(b"content-type"):
            # Nothing here reads a form; a body of any other stated type is taken for what it is.
            if value.lstrip()[:10].lower() == b"multipart/":
                message = "A form is not read here; send JSON, or JSON and binary tensors."
                raise UnsupportedMedia(message)
        codings = self.all(b"content-encoding")
        if len(codings) > 1 or self.coding not in _CODINGS:
            coding = excerpt(codings[0].strip().lower().decode("latin-1"))
            message = f"Content-Encoding '{coding}' is not spoken here."
            raise UnsupportedMedia(message)


def too_large(limit: int) -> str:
    """What is said of a body beyond the limit."""
    return f"The body is larger than the {limit} bytes allowed."
