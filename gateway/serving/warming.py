"""Warming: the first runs of a version, before any request sees it.

Synthetic rows are run at a few sizes so that the first caller does not pay for memory planning,
the runs are timed, and two rows run together are compared with the same rows run singly: only a
version that passes may ever share a run between requests.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from gateway.core.errors import GatewayError
from gateway.core.tensors import BYTES, DTYPES, FLOATS, Array, Signature, Tensors, TensorSpec
from gateway.ports import Engine

WARM_ROWS: Final = (1, 2, 8, 64)
"""Ascending; the last is the default of the rows that may share a run."""
TIMED_RUNS: Final = 5
LONG_NS: Final = 50_000_000
"""A model whose runs take so long is neither timed again nor tried with more rows."""
FREE_EXTENT: Final = 4
"""Extent tried in free dimensions other than the first."""
_ABSOLUTE: Final = 1e-4
_RELATIVE: Final = 1e-3

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the fastest of a few runs of one size took."""

    rows: int
    elements: int
    ns: int


@dataclass(frozen=True, slots=True)
class Warmth:
    """What warming found: how fast the version is, and whether rows of several may share a run.

    `timings` are of ascending sizes, none where the model refused synthetic input. `note` says why
    rows may not share a run, where that is a finding and not the signature.
    """

    timings: tuple[Timing, ...]
    rows_independent: bool
    note: str | None = None


def warm(engine: Engine, now_ns: Callable[[], int]) -> Warmth:
    """Run a fresh engine on synthetic rows. Blocking; call it in a thread.

    A model that refuses synthetic input is served all the same, never shares a run, and is
    treated as slow.
    """
    signature = engine.signature
    sizes = WARM_ROWS if signature.batched else (1,)
    timings: list[Timing] = []
    try:
        for rows in sizes:
            tensors = synthetic(signature, rows)
            elements = sum(tensor.size for tensor in tensors.values())
            timings.append(Timing(rows, elements, _best(engine, tensors, now_ns)))
            if timings[-1].ns > LONG_NS:
                break
        independent = signature.batched and rows_independent(engine)
    except GatewayError as error:
        log.info("a model was not warmed on synthetic input: %s", error)
        return Warmth((), rows_independent=False, note="It refused synthetic input.")
    note = None
    if signature.batched and not independent:
        note = "Two rows run together differ from the same rows run singly."
    return Warmth(tuple(timings), rows_independent=independent, note=note)


def rows_independent(engine: Engine) -> bool:
    """Whether a two-row run equals two single-row runs, to rounding."""
    signature = engine.signature
    outputs = [spec.name for spec in signature.outputs]
    pair = synthetic(signature, 2)
    together = engine.run(pair, outputs)
    singles = [
        engine.run({name: tensor[row : row + 1] for name, tensor in pair.items()}, outputs)
        for row in range(2)
    ]
    for index, joined in enumerate(together):
        apart = [single[index] for single in singles]
        if joined.shape[:1] != (2,) or any(part.shape != (1, *joined.shape[1:]) for part in apart):
            return False
        if not _same(joined, np.concatenate(apart)):
            return False
    return True


def synthetic(signature: Signature, rows: int) -> dict[str, Array]:
    """Input of the signature's shape whose rows differ, with values that any model should take."""
    return {spec.name: _fill(spec, rows) for spec in signature.inputs}


def _fill(spec: TensorSpec, rows: int) -> Array:
    shape = [FREE_EXTENT if extent == -1 else extent for extent in spec.shape]
    if shape and spec.shape[0] == -1:
        shape[0] = rows
    dtype = DTYPES[spec.datatype]
    if spec.datatype in FLOATS:
        count = int(np.prod(shape))
        return np.linspace(0.1, 1.0, count).astype(dtype).reshape(shape)
    # Rows of ones and rows of zeros in turn: their sums and largest values differ too.
    ones = np.ones(shape, dtype=np.uint8)
    if shape:
        ones[1::2] = 0
    if spec.datatype == BYTES:
        return np.where(ones == 1, b"a", b"b").astype(dtype)
    return ones.astype(dtype)


def _best(engine: Engine, tensors: Tensors, now_ns: Callable[[], int]) -> int:
    """Nanoseconds of the fastest of a few runs."""
    outputs = [spec.name for spec in engine.signature.outputs]
    runs: list[int] = []
    while len(runs) < TIMED_RUNS and sum(runs) <= LONG_NS:
        start = now_ns()
        engine.run(tensors, outputs)
        runs.append(now_ns() - start)
    return min(runs)


def _same(left: Array, right: Array) -> bool:
    if left.dtype.kind != "f":
        return bool((left == right).all())
    return bool(np.allclose(left, right, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True))
