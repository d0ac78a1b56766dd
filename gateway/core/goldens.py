"""Golden requests: what a version's own folder says that it must answer, in `golden.json`.

`{"schema": 1, "golden": [{"name": …, "request": {…}, "expected": {…}}]}`, where a request is a body
of the Open Inference Protocol and `expected` has the data of outputs by name.
"""

from typing import Final

import msgspec
from msgspec import Struct

from gateway.core.errors import InvalidRequest, TooLarge, excerpt
from gateway.core.inspections import GoldenRequest

GOLDEN_FILE: Final = "golden.json"
MAX_GOLDEN_BYTES: Final = 1024 * 1024
MAX_GOLDEN: Final = 64
_SCHEMA: Final = 1


class GoldenFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file whole."""

    schema: int
    golden: tuple[GoldenRequest, ...]


def read_golden(content: bytes) -> tuple[GoldenRequest, ...]:
    """Read the file's content.

    Raises:
        InvalidRequest: it is no such file. TooLarge: it holds too many requests.
    """
    try:
        file = _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"{GOLDEN_FILE} cannot be read: {excerpt(str(error), 200)}."
        raise InvalidRequest(message) from error
    if file.schema != _SCHEMA:
        message = f"{GOLDEN_FILE} has the schema {file.schema}; {_SCHEMA} is known here."
        raise InvalidRequest(message)
    if len(file.golden) > MAX_GOLDEN:
        message = f"{GOLDEN_FILE} holds {len(file.golden)} requests; at most {MAX_GOLDEN} may be."
        raise TooLarge(message)
    return file.golden


_DECODER: Final = msgspec.json.Decoder(GoldenFile)
