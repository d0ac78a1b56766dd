from math import fsum, inf, isfinite, isinf, isnan, nan
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.compare import (
    Comparison,
    ComparisonTally,
    Tolerance,
    check_tolerance,
    compare,
    tally_of,
)
from gateway.core.errors import InvalidRequest

EXACT = Tolerance(absolute=0.0, relative=0.0)


def fp32(*rows: Any) -> np.ndarray[Any, Any]:
    """A float32 tensor."""
    return np.array(rows, dtype="<f4")


def fp64(*rows: Any) -> np.ndarray[Any, Any]:
    """A float64 tensor."""
    return np.array(rows, dtype="<f8")


def int64(*rows: Any) -> np.ndarray[Any, Any]:
    """An int64 tensor."""
    return np.array(rows, dtype="<i8")


def texts(*values: bytes) -> np.ndarray[Any, Any]:
    """A BYTES tensor."""
    return np.array(values, dtype=object)


def test_equal_answers_agree_in_everything() -> None:
    """An answer compared with itself differs by nothing, in numbers and in labels."""
    answer = {"scores": fp32([0.1, 0.9], [0.8, 0.2]), "label": int64(1, 0)}
    assert compare(answer, answer, EXACT) == Comparison(
        agrees=True,
        rows=2,
        label_agreement=1.0,
        top_k_agreement=1.0,
        max_absolute=0.0,
        mean_absolute=0.0,
        max_relative=0.0,
    )


def test_differences_are_the_written_ones() -> None:
    """The largest, the mean and the relative difference are over all float elements."""
    primary = {"a": fp64(1.0, 2.0, 4.0), "b": fp64([8.0], [0.0], [-2.0])}
    other = {"a": fp64(1.5, 2.0, 4.0), "b": fp64([8.0], [0.0], [-3.0])}
    comparison = compare(primary, other, EXACT)
    assert comparison == Comparison(
        agrees=False,
        rows=3,
        max_absolute=1.0,
        mean_absolute=0.25,
        max_relative=0.5,
    )


@pytest.mark.parametrize(
    ("primary", "other", "agrees"),
    [
        pytest.param(100.0, 100.5, True, id="at-the-bound"),
        pytest.param(100.0, 100.75, False, id="beyond"),
        pytest.param(-100.0, -99.5, True, id="negative"),
        pytest.param(0.0, 0.25, True, id="absolute-part"),
        pytest.param(0.0, 0.5, False, id="relative-part-is-of-the-primary"),
        pytest.param(200.0, 200.75, True, id="relative-part-grows"),
        pytest.param(1e308, -1e308, False, id="overflowing-difference"),
    ],
)
def test_tolerance_is_absolute_plus_relative_to_the_primary(
    primary: float, other: float, agrees: bool
) -> None:
    """|a - b| <= absolute + relative * |a|, the bound included."""
    tolerance = Tolerance(absolute=0.25, relative=0.0025)
    assert compare({"y": fp64(primary)}, {"y": fp64(other)}, tolerance).agrees is agrees


@pytest.mark.parametrize(
    ("primary", "other", "largest", "relative"),
    [
        pytest.param(nan, nan, 0.0, 0.0, id="nan-nan"),
        pytest.param(nan, 1.0, inf, inf, id="nan-number"),
        pytest.param(1.0, nan, inf, inf, id="number-nan"),
        pytest.param(inf, inf, 0.0, 0.0, id="inf-inf"),
        pytest.param(inf, -inf, inf, inf, id="opposite-infinities"),
        pytest.param(inf, 1.0, inf, inf, id="inf-number"),
        pytest.param(1.0, inf, inf, inf, id="number-inf"),
        pytest.param(nan, inf, inf, inf, id="nan-inf"),
        pytest.param(0.0, -0.0, 0.0, 0.0, id="signed-zeros"),
        pytest.param(0.0, 2.0, 2.0, inf, id="against-zero"),
        pytest.param(2.0, 0.0, 2.0, 1.0, id="from-two-to-zero"),
    ],
)
def test_what_is_not_finite_differs_from_all_but_itself(
    primary: float, other: float, largest: float, relative: float
) -> None:
    """NaN equals NaN and infinity equals itself; against all else the difference is infinite."""
    loose = Tolerance(absolute=10.0, relative=10.0)
    comparison = compare({"y": fp64(primary, 1.0)}, {"y": fp64(other, 1.0)}, loose)
    assert comparison.max_absolute == largest
    assert comparison.mean_absolute == largest / 2
    assert comparison.max_relative == relative
    assert comparison.agrees is isfinite(largest)


def test_an_integer_output_is_the_label_and_is_compared_exactly() -> None:
    """Rows agree when the label is the same, whatever the scores say."""
    primary = {"label": int64(1, 2, 3, 4), "scores": fp32(*[[0.4, 0.6]] * 4)}
    other = {"label": int64(1, 2, 3, 5), "scores": fp32(*[[0.6, 0.4]] * 4)}
    comparison = compare(primary, other, Tolerance(absolute=1.0))
    assert comparison.label_agreement == 0.75
    assert comparison.top_k_agreement == 0.0
    assert not comparison.agrees


@pytest.mark.parametrize(
    ("primary", "other", "share"),
    [
        pytest.param(texts(b"a", b"b"), texts(b"a", b"c"), 0.5, id="text"),
        pytest.param(texts(b"a\0", b""), texts(b"a", b""), 0.5, id="trailing-zero-byte"),
        pytest.param(np.array([True, False]), np.array([True, True]), 0.5, id="bool"),
        pytest.param(int64([1, 2], [3, 4]), int64([1, 2], [3, 5]), 0.5, id="every-column-counts"),
        pytest.param(int64(2**62, 0), int64(2**62 + 1, 0), 0.5, id="exact-above-2-53"),
        pytest.param(np.array(7), np.array(7), 1.0, id="scalar"),
        pytest.param(np.array(7), np.array(8), 0.0, id="other-scalar"),
    ],
)
def test_labels_of_any_exact_type(primary: Any, other: Any, share: float) -> None:
    """Integers, texts and booleans are labels; a row agrees when all of its elements do."""
    comparison = compare({"y": primary}, {"y": other}, Tolerance())
    assert comparison.label_agreement == share
    assert comparison.agrees is (share == 1.0)
    assert comparison.max_absolute is None
    assert comparison.mean_absolute is None
    assert comparison.max_relative is None
    assert comparison.top_k_agreement is None


def test_a_row_agrees_only_when_all_of_its_labels_do() -> None:
    """Two label outputs are one label together."""
    primary = {"a": int64(1, 1, 1, 1), "b": int64(1, 1, 1, 1)}
    other = {"a": int64(1, 0, 1, 0), "b": int64(1, 1, 0, 0)}
    assert compare(primary, other, Tolerance()).label_agreement == 0.25


def test_scores_are_labelled_by_their_best_class() -> None:
    """Without a label output the highest score of each row is one; the first of equal ones wins."""
    primary = {"scores": fp32([0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [nan, 0.0])}
    other = {"scores": fp32([0.3, 0.7], [0.6, 0.4], [0.1, 0.9], [nan, 0.0])}
    comparison = compare(primary, other, Tolerance(absolute=1.0))
    assert comparison.label_agreement == 0.75
    assert comparison.top_k_agreement == 0.75
    assert not comparison.agrees


def test_another_label_disagrees_even_within_tolerance() -> None:
    """A near tie that falls the other way is another decision."""
    primary, other = {"p": fp32([0.501, 0.499])}, {"p": fp32([0.499, 0.501])}
    comparison = compare(primary, other, Tolerance(absolute=0.1))
    assert (comparison.label_agreement, comparison.agrees) == (0.0, False)


@pytest.mark.parametrize(
    ("top_k", "share"),
    [
        pytest.param(1, 0.5, id="1"),
        pytest.param(2, 1.0, id="2-in-any-order"),
        pytest.param(3, 0.5, id="3"),
        pytest.param(4, 1.0, id="all"),
        pytest.param(99, 1.0, id="more-than-there-are"),
    ],
)
def test_top_k_compares_the_best_classes_as_a_set(top_k: int, share: float) -> None:
    """The k highest scores name the same classes in whatever order."""
    primary = {"p": fp32([4, 3, 2, 1], [4, 3, 2, 1])}
    other = {"p": fp32([3, 4, 1, 2], [4, 3, 2, 1])}
    assert compare(primary, other, Tolerance(top_k=top_k)).top_k_agreement == share


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"y": fp32(1.0, 2.0)}, id="one-number-a-row"),
        pytest.param({"y": fp32([1.0], [2.0])}, id="one-column"),
        pytest.param({"y": np.zeros((2, 3, 4), dtype="<f4")}, id="three-dimensions"),
    ],
)
def test_a_regression_has_no_label(answer: dict[str, Any]) -> None:
    """Nothing label-like gives no share rather than one of 1."""
    comparison = compare(answer, answer, Tolerance())
    assert comparison.agrees
    assert comparison.rows == 2
    assert comparison.label_agreement is None
    assert comparison.top_k_agreement is None


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        pytest.param({}, "Output 'y' is in one answer only.", id="missing"),
        pytest.param(
            {"y": fp32(1, 2), "z": fp32(1)}, "Output 'z' is in one answer only.", id="surplus"
        ),
        pytest.param(
            {"y": fp64(1, 2)},
            "Output 'y' is FP32 in one answer and FP64 in the other.",
            id="datatype",
        ),
        pytest.param(
            {"y": np.array([1, 2], dtype=">i4")},
            "Output 'y' is FP32 in one answer and another datatype in the other.",
            id="unknown-datatype",
        ),
        pytest.param(
            {"y": fp32([1], [2])},
            "Output 'y' has shape [2] in one answer and [2, 1] in the other.",
            id="rank",
        ),
        pytest.param(
            {"y": fp32(1, 2, 3)},
            "Output 'y' has shape [2] in one answer and [3] in the other.",
            id="rows",
        ),
    ],
)
def test_answers_of_another_form_are_a_mismatch(other: dict[str, Any], sentence: str) -> None:
    """Other names, datatypes or shapes are said and nothing is compared."""
    assert compare({"y": fp32(1, 2)}, other, Tolerance()) == Comparison(
        agrees=False, rows=2, mismatch=sentence
    )


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        pytest.param({}, 1, id="no-outputs"),
        pytest.param({"y": fp32()}, 0, id="no-rows"),
        pytest.param({"y": np.zeros((0, 3), dtype="<f4"), "l": int64()}, 0, id="no-rows-classes"),
        pytest.param({"y": np.zeros((3, 0), dtype="<f4")}, 3, id="no-columns"),
    ],
)
def test_no_data_agrees_and_has_no_shares(answer: dict[str, Any], rows: int) -> None:
    """Empty answers give None for every share and difference."""
    assert compare(answer, answer, Tolerance()) == Comparison(agrees=True, rows=rows)


def test_outputs_of_unequal_rows_are_one_row() -> None:
    """Where outputs do not share their first dimension the whole answer agrees or does not."""
    primary = {"boxes": fp32([0.0, 1.0], [2.0, 3.0], [4.0, 5.0]), "count": int64(3)}
    other = {"boxes": fp32([0.0, 1.0], [2.0, 3.0], [5.0, 4.0]), "count": int64(3)}
    comparison = compare(primary, other, Tolerance(absolute=2.0))
    assert comparison.rows == 1
    assert comparison.label_agreement == 1.0
    assert comparison.top_k_agreement == 0.0


@pytest.mark.parametrize("datatype", ["<f2", "<f4", "<f8"])
def test_every_float_datatype_is_compared(datatype: str) -> None:
    """Half, single and double precision give the same differences for the same numbers."""
    primary = {"y": np.array([1.0, 65504.0], dtype=datatype)}
    other = {"y": np.array([1.5, -65504.0], dtype=datatype)}
    assert compare(primary, other, EXACT).max_absolute == 131008.0


numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-3, 1e300, inf, -inf, nan])


def reference_difference(a: float, b: float) -> float:
    """How far two numbers are apart, in plain Python."""
    if a == b or (isnan(a) and isnan(b)):
        return 0.0
    return abs(a - b) if isfinite(a) and isfinite(b) else inf


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12),
    st.sampled_from([0.0, 1e-3, 0.5, 3.0]),
    st.sampled_from([0.0, 1e-3, 2.0]),
)
def test_numbers_are_compared_as_plain_python_would(
    pairs: list[tuple[float, float]], absolute: float, relative: float
) -> None:
    """Differences and agreement are those of a loop over the elements."""
    primary, other = (fp64(*side) for side in zip(*pairs, strict=True))
    comparison = compare({"y": primary}, {"y": other}, Tolerance(absolute, relative))
    differences = [reference_difference(a, b) for a, b in pairs]
    within = [
        gap == 0 or (isfinite(gap) and gap <= absolute + relative * abs(a))
        for gap, (a, _) in zip(differences, pairs, strict=True)
    ]
    assert comparison.agrees is all(within)
    assert comparison.max_absolute == max(differences)
    mean = inf if isinf(max(differences)) else fsum(gap / len(pairs) for gap in differences)
    assert comparison.mean_absolute == pytest.approx(mean)


@given(st.integers(1, 6), st.integers(2, 5), st.integers(1, 6), st.data())
def test_best_classes_are_those_of_a_plain_sort(
    rows: int, classes: int, top_k: int, data: st.DataObject
) -> None:
    """Label and top-k agreement are those of sorting each row by score, then by class."""
    score = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    row = st.lists(score, min_size=classes, max_size=classes)
    table = st.lists(row, min_size=rows, max_size=rows)
    first, second = data.draw(table), data.draw(table)

    def best(scores: list[float], count: int) -> set[int]:
        return set(sorted(range(classes), key=lambda place: (-scores[place], place))[:count])

    def share(count: int) -> float:
        pairs = zip(first, second, strict=True)
        return sum(best(a, count) == best(b, count) for a, b in pairs) / rows

    comparison = compare({"p": fp32(*first)}, {"p": fp32(*second)}, Tolerance(top_k=top_k))
    assert comparison.label_agreement == share(1)
    assert comparison.top_k_agreement == share(top_k)


def test_comparing_leaves_both_answers_alone() -> None:
    """The primary's tensors are still to be answered with, so nothing is written into them."""
    primary, other = fp64(nan, 1.0), fp64(1.0, inf)
    primary.flags.writeable = other.flags.writeable = False
    assert not compare({"y": primary}, {"y": other}, Tolerance()).agrees


@pytest.mark.parametrize(
    "tolerance",
    [
        pytest.param(Tolerance(absolute=-1e-9), id="negative-absolute"),
        pytest.param(Tolerance(relative=-1.0), id="negative-relative"),
        pytest.param(Tolerance(absolute=nan), id="nan"),
        pytest.param(Tolerance(relative=inf), id="infinite"),
        pytest.param(Tolerance(top_k=0), id="top-0"),
        pytest.param(Tolerance(top_k=-1), id="top-minus-1"),
    ],
)
def test_a_tolerance_that_decides_nothing_is_refused(tolerance: Tolerance) -> None:
    """Bounds are finite and not negative, and top-k counts from 1."""
    with pytest.raises(InvalidRequest, match=r"^Shadow 's': "):
        check_tolerance("Shadow 's'", tolerance)


def test_zero_tolerance_is_a_tolerance() -> None:
    """Exact equality may be asked for."""
    check_tolerance("here", Tolerance(absolute=0.0, relative=0.0, top_k=1))


def test_a_tally_counts_rows_and_keeps_sums_finite() -> None:
    """Shares become counts of rows, and an infinite difference is counted instead of summed."""
    good = Comparison(
        agrees=False,
        rows=4,
        label_agreement=0.75,
        top_k_agreement=0.5,
        max_absolute=0.5,
        mean_absolute=0.125,
        max_relative=inf,
    )
    broken = Comparison(agrees=False, rows=3, max_absolute=inf, mean_absolute=inf, max_relative=inf)
    odd = Comparison(agrees=False, rows=2, mismatch="Output 'y' is in one answer only.")
    fine = Comparison(agrees=True, rows=1, label_agreement=1.0)
    close = Comparison(
        agrees=True, rows=1, max_absolute=0.25, mean_absolute=0.25, max_relative=0.125
    )
    failed = ComparisonTally(errors=1)
    total = sum(
        (
            tally_of(good, 10, 20),
            tally_of(broken, 1, 2),
            tally_of(odd, 100, 200),
            tally_of(fine, 1000, 2000),
            tally_of(close, 10_000, 20_000),
            failed,
        ),
        ComparisonTally(),
    )
    assert total == ComparisonTally(
        compared=5,
        agreed=2,
        mismatched=1,
        errors=1,
        rows=11,
        label_rows=5,
        label_agreed=4,
        top_k_rows=4,
        top_k_agreed=2,
        measured=2,
        infinite=1,
        sum_absolute=0.375,
        max_absolute=0.5,
        primary_latency_ns=11_111,
        shadow_latency_ns=22_222,
    )


def test_every_row_of_a_share_is_counted_again() -> None:
    """A share of rows becomes the very count that it was made from."""
    for rows in range(1, 200):
        for agreed in range(rows + 1):
            comparison = Comparison(agrees=False, rows=rows, label_agreement=agreed / rows)
            assert tally_of(comparison, 0, 0).label_agreed == agreed


counts = st.integers(0, 1000)
tallies = st.builds(
    ComparisonTally,
    **{
        name: counts.map(lambda count: count / 8)
        if name in {"sum_absolute", "max_absolute"}
        else counts
        for name in ComparisonTally.__struct_fields__
    },
)


@given(st.lists(tallies, max_size=8), st.data())
def test_tallies_of_any_partition_add_up_to_the_whole(
    parts: list[ComparisonTally], data: st.DataObject
) -> None:
    """Folding groups in any order and merging them equals one pass, field by field."""
    groups: list[ComparisonTally] = [ComparisonTally() for _ in range(3)]
    for part in data.draw(st.permutations(parts)):
        chosen = data.draw(st.integers(0, 2))
        groups[chosen] += part
    merged = groups[2] + (groups[0] + groups[1])
    for name in ComparisonTally.__struct_fields__:
        values = [getattr(part, name) for part in parts]
        expected = max(values, default=0) if name == "max_absolute" else sum(values)
        assert getattr(merged, name) == expected, name


@given(tallies)
def test_a_tally_survives_json(tally: ComparisonTally) -> None:
    """A tally is written and read back unchanged."""
    assert msgspec.json.decode(msgspec.json.encode(tally), type=ComparisonTally) == tally
