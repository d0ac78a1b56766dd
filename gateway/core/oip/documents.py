"""JSON text to typed documents: strict, bounded in depth, and with errors fit for the caller.

The fast path is one typed decode whose tensor data stay undecoded. A document that holds the
literals NaN or Infinity, which strict JSON lacks, takes the standard library's reader and the
same types. Of duplicate keys the last wins; unknown keys are ignored.
"""

import json
import re
from typing import Any, Final, TypeVar

import numpy as np
from msgspec import DecodeError, MsgspecError, ValidationError, convert
from msgspec.json import Decoder

from gateway.core.errors import GatewayError, InvalidRequest, TooLarge
from gateway.core.oip.messages import Limits

T = TypeVar("T")

_LITERALS: Final = re.compile(rb"NaN|Infinity")
_ESCAPED: Final = re.compile(rb"\\.", re.DOTALL)
_TEXTS: Final = re.compile(rb'"[^"]*"')
_MARKS: Final = b'[]{}"'
_OTHERS: Final = bytes(set(range(256)) - set(_MARKS))
_STEPS: Final = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def check_size(body: bytes, limits: Limits) -> None:
    """Refuse a decompressed body that is too long.

    Raises:
        TooLarge: more than `body_bytes`.
    """
    if len(body) > limits.body_bytes:
        message = f"The body holds {len(body)} bytes; at most {limits.body_bytes} are read."
        raise TooLarge(message)


def read_document(text: bytes, decoder: Decoder[T], loose: type[T], limits: Limits) -> T:
    """Decode a JSON document to its type.

    Args:
        text: UTF-8; nothing else is accepted, nor a byte order mark.
        decoder: leaves tensor data as `msgspec.Raw`.
        loose: the same type with data of any kind, for documents with NaN or Infinity.
        limits: `json_bytes` and `depth` are used.

    Raises:
        InvalidRequest: not JSON, not the type, or nested too deeply; TooLarge: too long.
    """
    if len(text) > limits.json_bytes:
        message = f"The JSON part holds {len(text)} bytes; at most {limits.json_bytes} are read."
        raise TooLarge(message)
    if text.count(b"[") + text.count(b"{") > limits.depth:
        _check_depth(text, limits.depth)
    try:
        if not text.isascii():
            text.decode()
        return decoder.decode(text)
    except ValidationError as error:
        raise refusal(error) from None
    except DecodeError as error:
        if not _LITERALS.search(text):
            raise refusal(error) from None
    except (ValueError, RecursionError) as error:
        raise refusal(error) from None
    return read_literals(text, loose)


def read_values(source: bytes) -> object:
    """Decode JSON whose depth was checked, literals and overflowing numbers included.

    Raises:
        InvalidRequest: not JSON, or text that is not Unicode.
    """
    try:
        values: object = json.loads(source.decode())
        if b"\\" in source:  # an escape may spell half a surrogate pair
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise refusal(error) from None
    return values


def refusal(error: Exception) -> GatewayError:
    """Say in one sentence what a decoder refused, without its internals."""
    if isinstance(error, ValidationError):
        said = str(error).replace("`", "'").replace(" - at '$", " at '").replace(" at '.", " at '")
        return InvalidRequest(f"The request is not valid: {said[:1].lower()}{said[1:]}.")
    if isinstance(error, UnicodeError):
        return InvalidRequest("The body is not valid JSON: its text must be UTF-8.")
    if isinstance(error, RecursionError):
        return InvalidRequest("The JSON is nested too deeply.")
    if isinstance(error, MsgspecError):
        said = str(error).removeprefix("JSON is malformed: ")
        return InvalidRequest(f"The body is not valid JSON: {said[:1].lower()}{said[1:]}.")
    return InvalidRequest("The body is not valid JSON.")


def read_literals(text: bytes, loose: type[T]) -> T:
    """Decode a JSON document whose depth was checked, literals included.

    Raises:
        InvalidRequest: not JSON, or not the type.
    """
    values = read_values(text)
    try:
        return convert(values, loose)
    except (MsgspecError, ValueError, RecursionError) as error:
        raise refusal(error) from None


def _check_depth(text: bytes, limit: int) -> None:
    """Refuse deep nesting without recursion.

    Only brackets outside strings count. Where the text is no JSON this may count more than
    a parser would reach, never less.
    """
    marks: Any = _ESCAPED.sub(b"", text) if b"\\" in text else text
    marks = _TEXTS.sub(b"", marks.translate(None, _OTHERS))
    levels = _STEPS[np.frombuffer(marks + b" ", np.uint8)].cumsum(dtype=np.int32)
    if int(levels.max()) > limit:
        message = f"The JSON is nested more than {limit} levels deep."
        raise InvalidRequest(message)
