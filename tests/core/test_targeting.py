from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest
from gateway.core.targeting import Condition, Scalar, check_condition, holds

HEADERS = {
    "x-plan": "gold",
    "x-age": "42",
    "x-big": "9007199254740993",
    "x-flag": "TRUE",
    "x-nan": "nan",
    "x-inf": "inf",
    "x-minus": "-Infinity",
    "x-huge": "1e999",
    "x-empty": "",
    "x-underscore": "4_2",
    "x-digits": "9" * 5000,
    "x-half": "0.5",
    "x-nbsp": "\xa042",
    "x-attr-tier": "pro",
    "x-attr-both": "header",
}
PARAMETERS: dict[str, Scalar] = {
    "plan": "gold",
    "age": 42,
    "ratio": 0.5,
    "flag": True,
    "off": False,
    "one": 1,
    "text": "42",
    "huge": 10**400,
    "big": 9007199254740993,
    "nan": float("nan"),
    "inf": float("inf"),
    "arabic": "٤٢",
    "attr.Region": "eu",
    "attr.both": "parameter",
}


def satisfied(condition: Condition) -> bool:
    """Whether the request above satisfies the condition."""
    return holds(condition, HEADERS.get, PARAMETERS)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        pytest.param(Condition(header="X-Plan", equals="gold"), True, id="equals-text"),
        pytest.param(Condition(header="X-Plan", equals="Gold"), False, id="case-matters"),
        pytest.param(Condition(header="X-Plan", equals="gol"), False, id="whole-text"),
        pytest.param(Condition(header="X-None", equals="gold"), False, id="absent-header"),
        pytest.param(Condition(header="X-Empty", equals=""), True, id="empty-is-present"),
        pytest.param(Condition(header="X-None", equals=""), False, id="absent-is-not-empty"),
        pytest.param(Condition(header="x-AGE", equals=42), True, id="header-spells-integer"),
        pytest.param(Condition(header="X-Age", equals=42.0), True, id="header-spells-float"),
        pytest.param(Condition(header="X-Age", equals="42.0"), False, id="text-is-not-number"),
        pytest.param(Condition(header="X-Half", equals=0.5), True, id="header-spells-half"),
        pytest.param(Condition(header="X-Plan", equals=0), False, id="text-spells-none"),
        pytest.param(Condition(header="X-Underscore", equals=42), False, id="underscore"),
        pytest.param(Condition(header="X-Nbsp", equals=42), False, id="no-break-space"),
        pytest.param(Condition(parameter="arabic", equals=42), False, id="other-digits"),
        pytest.param(
            Condition(header="X-Big", equals=9007199254740993), True, id="exact-above-2-53"
        ),
        pytest.param(
            Condition(header="X-Big", equals=9007199254740992), False, id="neighbour-above-2-53"
        ),
        pytest.param(
            Condition(header="X-Big", in_=(9007199254740992,)), False, id="neighbour-in-set"
        ),
        pytest.param(Condition(header="X-Digits", equals=1), False, id="5000-digits"),
        pytest.param(Condition(parameter="big", equals=9007199254740993), True, id="big-number"),
        pytest.param(Condition(parameter="plan", equals="gold"), True, id="parameter-text"),
        pytest.param(Condition(parameter="Plan", equals="gold"), False, id="parameter-case"),
        pytest.param(Condition(parameter="age", equals=42), True, id="parameter-number"),
        pytest.param(Condition(parameter="age", equals=42.0), True, id="numbers-by-value"),
        pytest.param(Condition(parameter="age", equals="42"), False, id="number-is-not-text"),
        pytest.param(Condition(parameter="text", equals=42), True, id="parameter-spells-number"),
        pytest.param(Condition(parameter="nan", equals=0.0), False, id="nan-equals-nothing"),
        pytest.param(Condition(parameter="flag", equals=True), True, id="true"),
        pytest.param(Condition(parameter="flag", equals=False), False, id="true-is-not-false"),
        pytest.param(Condition(parameter="off", equals=False), True, id="false"),
        pytest.param(Condition(parameter="flag", equals=1), False, id="true-is-not-1"),
        pytest.param(Condition(parameter="flag", equals="true"), False, id="true-is-not-text"),
        pytest.param(Condition(parameter="one", equals=True), False, id="1-is-not-true"),
        pytest.param(Condition(header="X-Flag", equals=True), True, id="header-spells-true"),
        pytest.param(Condition(header="X-Flag", equals=False), False, id="not-false"),
        pytest.param(Condition(header="X-Age", in_=("7", 42)), True, id="in-mixed-set"),
        pytest.param(Condition(header="X-Plan", in_=("silver", "gold")), True, id="in"),
        pytest.param(Condition(header="X-Plan", in_=("silver",)), False, id="not-in"),
        pytest.param(Condition(parameter="flag", in_=(1, "true")), False, id="bool-in-set"),
        pytest.param(Condition(header="X-Plan", prefix="go"), True, id="prefix"),
        pytest.param(Condition(header="X-Plan", prefix="gold!"), False, id="longer-prefix"),
        pytest.param(Condition(header="X-Plan", prefix=""), True, id="empty-prefix"),
        pytest.param(Condition(header="X-None", prefix=""), False, id="absent-prefix"),
        pytest.param(Condition(parameter="age", prefix="4"), False, id="prefix-of-number"),
        pytest.param(Condition(header="X-Age", less=42), False, id="less-at-bound"),
        pytest.param(Condition(header="X-Age", less=42.5), True, id="less"),
        pytest.param(Condition(header="X-Age", at_most=42), True, id="at-most-at-bound"),
        pytest.param(Condition(header="X-Age", at_most=41), False, id="at-most"),
        pytest.param(Condition(header="X-Age", greater=42), False, id="greater-at-bound"),
        pytest.param(Condition(header="X-Age", greater=-1), True, id="greater"),
        pytest.param(Condition(header="X-Age", at_least=42), True, id="at-least-at-bound"),
        pytest.param(Condition(header="X-Age", at_least=43), False, id="at-least"),
        pytest.param(Condition(parameter="ratio", less=0.6), True, id="parameter-in-order"),
        pytest.param(Condition(parameter="flag", at_least=0), False, id="bool-has-no-order"),
        pytest.param(Condition(parameter="huge", at_least=0), False, id="beyond-any-float"),
        pytest.param(Condition(parameter="inf", greater=0), False, id="infinite-parameter"),
        pytest.param(Condition(header="X-Plan", less=1e300), False, id="text-has-no-order"),
        pytest.param(Condition(header="X-Nan", at_most=1e308), False, id="nan-text"),
        pytest.param(Condition(header="X-Inf", greater=0), False, id="inf-text"),
        pytest.param(Condition(header="X-Minus", less=0), False, id="minus-inf-text"),
        pytest.param(Condition(header="X-Huge", greater=0), False, id="overflowing-text"),
        pytest.param(Condition(header="X-None", less=1), False, id="absent-has-no-order"),
        pytest.param(Condition(attribute="Tier", equals="pro"), True, id="attribute-by-header"),
        pytest.param(Condition(attribute="Region", equals="eu"), True, id="attribute-parameter"),
        pytest.param(Condition(attribute="region", equals="eu"), False, id="parameter-exact"),
        pytest.param(Condition(attribute="both", equals="header"), True, id="header-first"),
        pytest.param(Condition(attribute="both", equals="parameter"), False, id="not-both"),
        pytest.param(Condition(attribute="none", prefix=""), False, id="absent-attribute"),
    ],
)
def test_a_condition_holds_exactly_when_it_says_so(condition: Condition, expected: bool) -> None:
    """Each operator compares each type as documented, at and around its bound."""
    check_condition("here", condition)
    assert satisfied(condition) is expected


@given(st.integers(-(2**80), 2**80), st.integers(-(2**80), 2**80))
def test_a_header_equals_the_integers_that_it_spells_and_no_other(
    spelled: int, wanted: int
) -> None:
    """An id in a header equals that very integer, however long."""
    for number in (spelled, wanted, spelled + 1):
        condition = Condition(header="X-Id", equals=number)
        assert holds(condition, {"x-id": str(spelled)}.get, {}) is (spelled == number)


@given(st.text(max_size=40), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_is_compared_without_raising(text: str, bound: float) -> None:
    """A header of whatever text is either in order with a number or not, never an error."""
    low = holds(Condition(header="h", less=bound), {"h": text}.get, {})
    high = holds(Condition(header="h", at_least=bound), {"h": text}.get, {})
    assert not (low and high)
    holds(Condition(header="h", in_=(1, 2.5, True, "x")), {"h": text}.get, {})


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"equals": 1}, id="no-source"),
        pytest.param({"header": "a", "parameter": "b", "equals": 1}, id="two-sources"),
        pytest.param({"header": "", "equals": 1}, id="empty-source"),
        pytest.param({"header": "h" * 1025, "equals": 1}, id="long-source"),
        pytest.param({"header": "a"}, id="no-comparison"),
        pytest.param({"header": "a", "equals": None}, id="null-comparison"),
        pytest.param({"header": "a", "equals": 1, "less": 2}, id="two-comparisons"),
        pytest.param({"header": "a", "less": 1, "greater": 0}, id="two-orders"),
        pytest.param({"header": "a", "equals": "x" * 1025}, id="long-text"),
        pytest.param({"header": "a", "prefix": "x" * 1025}, id="long-prefix"),
        pytest.param({"header": "a", "in": ["x" * 1025]}, id="long-member"),
        pytest.param({"header": "a", "in": []}, id="empty-set"),
        pytest.param({"header": "a", "in": list(range(1001))}, id="large-set"),
    ],
)
def test_an_unclear_condition_is_refused(document: dict[str, Any]) -> None:
    """A condition has exactly one source and one comparison, of bounded size."""
    condition = msgspec.convert(document, Condition)
    with pytest.raises(InvalidRequest, match=r"^Rule 'r': "):
        check_condition("Rule 'r'", condition)


@pytest.mark.parametrize("operator", ["less", "at_most", "greater", "at_least"])
@pytest.mark.parametrize("bound", [float("nan"), float("inf"), float("-inf")])
def test_order_against_what_is_not_finite_is_refused(operator: str, bound: float) -> None:
    """NaN and the infinities bound nothing."""
    with pytest.raises(InvalidRequest, match="finite"):
        check_condition("here", msgspec.convert({"header": "a", operator: bound}, Condition))


def test_false_zero_and_empty_text_are_comparisons() -> None:
    """A comparison with false, 0 or an empty text is one, although each is false in Python."""
    for value in (False, 0, 0.0, ""):
        check_condition("here", Condition(header="a", equals=value))
    check_condition("here", Condition(header="a", at_most=0.0))


def test_the_largest_condition_is_accepted() -> None:
    """Names and texts of 1,024 characters and sets of 1,000 values are within bounds."""
    check_condition("here", Condition(header="h" * 1024, equals="x" * 1024))
    check_condition("here", Condition(parameter="p", prefix="x" * 1024))
    check_condition("here", Condition(attribute="a", in_=tuple(range(1000))))


def test_a_set_is_written_as_in() -> None:
    """The document's word for a set is `in`, and it is read back."""
    raw = b'{"header":"a","in":["x",1,1.5,true]}'
    condition = msgspec.json.decode(raw, type=Condition)
    assert condition == Condition(header="a", in_=("x", 1, 1.5, True))
    assert msgspec.json.encode(condition) == raw
