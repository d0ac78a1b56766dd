"""Documents that people and CI write: JSON read strictly, so that a slip is never taken for intent.

A key that stands twice, an unknown field, a number as text and anything but UTF-8 are refused.
"""

import json
from typing import Any, TypeVar

import msgspec

from gateway.core.errors import InvalidRequest, excerpt

T = TypeVar("T")

MAX_FAULT = 200
"""Characters of a decoder's words that an error repeats."""


def read_strictly(text: bytes, kind: type[T]) -> T:
    """Read a JSON document of the given type.

    Raises:
        InvalidRequest: with a sentence that says where.
    """
    try:
        json.loads(text.decode(), object_pairs_hook=_distinct)
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        message = f"The document is wrong: {excerpt(str(error), MAX_FAULT)}."
        raise InvalidRequest(message) from error
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        message = "The document is not JSON in UTF-8."
        raise InvalidRequest(message) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            message = f"The key '{excerpt(key)}' stands twice in one object."
            raise InvalidRequest(message)
        table[key] = value
    return table
