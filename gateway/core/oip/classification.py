"""The classification extension: an output's largest values with their indices, as text.

Source: Triton Inference Server, "Classification Extension".
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import orjson

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.oip.elements import bytes_array
from gateway.core.tensors import Array

REFUSED = frozenset({"BOOL", "BYTES"})
"""Datatypes without an order worth asking for."""


def top_classes(name: str, output: Array, count: int, labels: Sequence[str] = ()) -> Array:
    """Find the classes with the largest values in each row.

    Ties go to the lower index; NaN comes last.

    Args:
        name: of the output.
        output: (rows, ...) or, of one row only, (classes,); what follows the rows is flattened.
        count: how many classes; fewer where there are fewer.
        labels: by index; may be shorter than there are classes.

    Returns:
        BYTES "<value>:<index>[:<label>]", (rows, count) or (count,).

    Raises:
        InvalidRequest: the output has no order.
    """
    if output.dtype.kind not in "iuf":
        message = f"Output '{excerpt(name)}' is not numeric; it has no classes."
        raise InvalidRequest(message)
    extents = output.shape if output.ndim > 1 else (1, output.size)
    rows = output.reshape(extents[0], prod(extents[1:]))
    count = min(count, rows.shape[1])
    texts = [_spell(row, index, labels) for row in rows for index in _order(row)[:count]]
    shape = (len(rows), count) if output.ndim > 1 else (count,)
    return bytes_array(texts, shape)


def _order(row: Array) -> list[int]:
    """Indices from the largest value down; both sorts are stable, so NaN stays last."""
    reverse = np.argsort(row[::-1], kind="stable")[::-1]
    indices = (row.size - 1) - reverse
    if row.dtype.kind == "f":
        indices = indices[np.argsort(np.isnan(row[indices]), kind="stable")]
    ordered: list[int] = indices.tolist()
    return ordered


def _spell(row: Array, index: int, labels: Sequence[str]) -> bytes:
    value = row[index]
    if row.dtype.kind == "f" and not np.isfinite(value):
        text = str(float(value)).encode()
    else:
        text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    label = f":{labels[index]}" if index < len(labels) else ""
    return text + f":{index}{label}".encode()
