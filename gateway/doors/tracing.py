"""Traces as callers state them, in the headers `traceparent` and `tracestate`.

Source: W3C Trace Context, sections 3.2 and 3.3.
"""

from binascii import unhexlify
from typing import Final

from gateway.telemetry import Trace

DRAW_BYTES: Final = 24
"""Fresh random bytes that a trace needs: 16 for its id, 8 for our span's."""
MAX_STATE_BYTES: Final = 512
_PARENT_BYTES: Final = 55
_HEX: Final = b"0123456789abcdef"
_ODD_DIGITS: Final = b"13579bdf"
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16
_RATIO_BITS: Final = 56


def parse_traceparent(
    value: bytes | None, tracestate: bytes | None, draw: bytes, ratio: float
) -> Trace | None:
    """Continue the caller's trace, or start one for a share of the requests that bring none.

    Anything but the 55 bytes of the standard is as good as nothing; so is a `tracestate` of more
    than 512 bytes.

    Args:
        value: the `traceparent` header.
        tracestate: the header of that name.
        draw: 24 fresh random bytes.
        ratio: share of requests without a caller's trace that start one.
    """
    if value is not None and _is_traceparent(value):
        return Trace(
            unhexlify(value[3:35]),
            draw[16:24],
            unhexlify(value[36:52]),
            value[54] in _ODD_DIGITS,
            _state(tracestate),
        )
    if ratio <= 0 or int.from_bytes(draw[9:16], "big") >= ratio * (1 << _RATIO_BITS):
        return None
    return Trace(draw[:16], draw[16:24], None, sampled=True)


def _is_traceparent(value: bytes) -> bool:
    # What is left without lower-case hexadecimal digits is three dashes, and they are in place.
    return (
        len(value) == _PARENT_BYTES
        and value.translate(None, _HEX) == b"---"
        and value[2:3] == value[35:36] == value[52:53] == b"-"
        and value[:2] != b"ff"
        and value[3:35] != _NO_TRACE
        and value[36:52] != _NO_SPAN
    )


def _state(tracestate: bytes | None) -> str:
    if tracestate is None or len(tracestate) > MAX_STATE_BYTES or not tracestate.isascii():
        return ""
    text = tracestate.decode("ascii")
    return text if text.isprintable() else ""
