"""Comparisons: how two answers to one request differ. A shadow is compared so, and a replay.

A label is what an answer decides: an integer, text or boolean output, or else the best class of
scores of shape (rows, classes). Numbers are compared as float64. NaN equals NaN; a number that is
not finite differs infinitely from everything but itself.
"""

from collections.abc import Mapping
from math import inf, isfinite
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.tensors import NAMES, Array

_MATRIX: Final = 2


class Tolerance(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When two numbers count as the same: |a - b| <= absolute + relative * |a|, a the primary's.

    `top_k` asks whether the k highest scores of the last axis name the same classes.
    """

    absolute: float = 1e-4
    relative: float = 1e-3
    top_k: int = 1


class Comparison(Struct, frozen=True):
    """How another answer differs from the primary's.

    `agrees` says that every number is within tolerance and every label is the same. Shares are
    over `rows`; they and the differences are None where there is nothing to compare.
    `mismatch` says why answers of another form cannot be compared at all.
    """

    agrees: bool
    rows: int
    label_agreement: float | None = None
    top_k_agreement: float | None = None
    max_absolute: float | None = None
    mean_absolute: float | None = None
    max_relative: float | None = None
    mismatch: str | None = None


class ComparisonTally(Struct, frozen=True, forbid_unknown_fields=True):
    """Sums over comparisons; tallies of any partition add up to the tally of the whole.

    `errors` counts copies that got no answer; they are not among `compared`. `measured` counts
    comparisons whose float outputs differ finitely: `sum_absolute` adds up their mean and
    `max_absolute` is the largest of their differences. `infinite` counts the others, so that
    every sum stays a number. Latencies are those of what was compared.
    """

    compared: int = 0
    agreed: int = 0
    mismatched: int = 0
    errors: int = 0
    rows: int = 0
    label_rows: int = 0
    label_agreed: int = 0
    top_k_rows: int = 0
    top_k_agreed: int = 0
    measured: int = 0
    infinite: int = 0
    sum_absolute: float = 0.0
    max_absolute: float = 0.0
    primary_latency_ns: int = 0
    shadow_latency_ns: int = 0

    def __add__(self, other: "ComparisonTally") -> "ComparisonTally":
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__struct_fields__
            if name != "max_absolute"
        }
        return ComparisonTally(**sums, max_absolute=max(self.max_absolute, other.max_absolute))


def check_tolerance(where: str, tolerance: Tolerance) -> None:
    """Refuse a tolerance that no answer, or every answer, would meet.

    Raises:
        InvalidRequest: with a sentence that begins with `where`.
    """
    bounds = (tolerance.absolute, tolerance.relative)
    if not all(isfinite(bound) and bound >= 0 for bound in bounds):
        message = f"{where}: 'absolute' and 'relative' are finite numbers from 0."
        raise InvalidRequest(message)
    if tolerance.top_k < 1:
        message = f"{where}: 'top_k' is {excerpt(tolerance.top_k)}; it must be at least 1."
        raise InvalidRequest(message)


def compare(
    primary: Mapping[str, Array], other: Mapping[str, Array], tolerance: Tolerance
) -> Comparison:
    """Compare two answers to one request.

    Rows are the leading extent where all outputs share it; any other answer is one row.
    """
    rows = _rows(primary)
    mismatch = _mismatch(primary, other)
    if mismatch is not None:
        return Comparison(agrees=False, rows=rows, mismatch=mismatch)
    pairs = [(primary[name], other[name]) for name in sorted(primary) if primary[name].size]
    floats = [(a, b) for a, b in pairs if a.dtype.kind == "f"]
    exact = [(a, b) for a, b in pairs if a.dtype.kind != "f"]
    scores = [(a, b) for a, b in floats if a.ndim == _MATRIX and a.shape[1] > 1]
    best = exact or [(_highest(a, 1), _highest(b, 1)) for a, b in scores]
    top = [(_highest(a, tolerance.top_k), _highest(b, tolerance.top_k)) for a, b in scores]
    labels = _agreement(best, rows)
    differences = [_differences(a, b) for a, b in floats]
    within = all(
        _within(difference, a, tolerance)
        for difference, (a, _) in zip(differences, floats, strict=True)
    )
    return Comparison(
        agrees=within and labels in (None, 1.0),
        rows=rows,
        label_agreement=labels,
        top_k_agreement=_agreement(top, rows),
        max_absolute=max((float(d.max()) for d in differences), default=None),
        mean_absolute=_mean(differences),
        max_relative=max(
            (_max_relative(d, a) for d, (a, _) in zip(differences, floats, strict=True)),
            default=None,
        ),
    )


def tally_of(
    comparison: Comparison, primary_latency_ns: int, shadow_latency_ns: int
) -> ComparisonTally:
    """The tally of one comparison. A copy that failed is `ComparisonTally(errors=1)`."""
    rows = comparison.rows
    labels, top = comparison.label_agreement, comparison.top_k_agreement
    mean, largest = comparison.mean_absolute, comparison.max_absolute
    finite = mean is not None and isfinite(mean)
    return ComparisonTally(
        compared=1,
        agreed=int(comparison.agrees),
        mismatched=int(comparison.mismatch is not None),
        rows=rows,
        label_rows=0 if labels is None else rows,
        label_agreed=round((labels or 0.0) * rows),
        top_k_rows=0 if top is None else rows,
        top_k_agreed=round((top or 0.0) * rows),
        measured=int(finite),
        infinite=int(mean is not None and not finite),
        sum_absolute=mean if mean is not None and finite else 0.0,
        max_absolute=largest if largest is not None and finite else 0.0,
        primary_latency_ns=primary_latency_ns,
        shadow_latency_ns=shadow_latency_ns,
    )


def _rows(outputs: Mapping[str, Array]) -> int:
    extents = {tensor.shape[0] if tensor.ndim else 1 for tensor in outputs.values()}
    return extents.pop() if len(extents) == 1 else 1


def _mismatch(primary: Mapping[str, Array], other: Mapping[str, Array]) -> str | None:
    odd = sorted(primary.keys() ^ other.keys())
    if odd:
        return f"Output '{excerpt(odd[0])}' is in one answer only."
    for name in sorted(primary):
        a, b = primary[name], other[name]
        if a.dtype != b.dtype:
            kinds = (NAMES.get(dtype, "another datatype") for dtype in (a.dtype, b.dtype))
            said = " in one answer and ".join(kinds)
            return f"Output '{excerpt(name)}' is {said} in the other."
        if a.shape != b.shape:
            return (
                f"Output '{excerpt(name)}' has shape {list(a.shape)} in one answer "
                f"and {list(b.shape)} in the other."
            )
    return None


def _highest(scores: Array, count: int) -> NDArray[np.int64]:
    """The classes of the highest scores, ascending; of equal scores the first, NaN never first."""
    # (rows, classes) -> (rows, count)
    order = np.argsort(-_wide(scores), axis=1, kind="stable")
    return np.sort(order[:, :count], axis=1)


def _agreement(pairs: list[tuple[Array, Array]], rows: int) -> float | None:
    """The share of rows in which all of these are equal."""
    if not pairs:
        return None
    agreed = np.ones(rows, dtype=np.bool_)
    for a, b in pairs:
        agreed &= (a == b).reshape(rows, -1).astype(np.bool_).all(axis=1)
    return int(agreed.sum()) / rows


def _wide(tensor: Array) -> NDArray[np.float64]:
    return tensor.astype(np.float64)


def _differences(a: Array, b: Array) -> NDArray[np.float64]:
    wide_a, wide_b = _wide(a), _wide(b)
    with np.errstate(over="ignore", invalid="ignore"):
        difference = np.abs(wide_a - wide_b)
    difference[np.isnan(difference)] = inf
    same = (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
    difference[same] = 0.0
    return difference


def _within(difference: NDArray[np.float64], a: Array, tolerance: Tolerance) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        bound = tolerance.absolute + tolerance.relative * np.abs(_wide(a))
    return bool(((difference == 0) | ((difference <= bound) & (difference < inf))).all())


def _mean(differences: list[NDArray[np.float64]]) -> float | None:
    if not differences:
        return None
    count = sum(difference.size for difference in differences)
    with np.errstate(over="ignore"):
        return float(sum(float((difference / count).sum()) for difference in differences))


def _max_relative(difference: NDArray[np.float64], a: Array) -> float:
    """The largest |a - b| / |a|: 0 where they are equal, infinite where only a is 0."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        relative = difference / np.abs(_wide(a))
    relative[np.isnan(relative)] = inf
    relative[difference == 0] = 0.0
    return float(relative.max())
