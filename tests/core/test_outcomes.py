import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.assignment import Reason
from gateway.core.errors import GatewayError, InvalidRequest, TooLarge
from gateway.core.evidence import Outcome, decode_entry, enter
from gateway.core.outcomes import (
    AHEAD_MS,
    EVENTS_OF_ENTRY,
    MAX_ITEMS,
    Checked,
    Checker,
    events_of,
    read_body,
)
from gateway.core.predictions import PredictionFacts, Scalars, Signer, SigningKeys

NOW_MS = 1_790_000_000_000
MAX_AGE_MS = 1_000_000
SIGNER = Signer(SigningKeys(schema=1, current=1, keys={1: "11" * 32}, unit_key="22" * 32))
STRANGER = Signer(SigningKeys(schema=1, current=1, keys={1: "33" * 32}, unit_key="22" * 32))


def facts_of(
    at_ms: int = NOW_MS, scalars: Scalars = ((0.5, 0.25),), intended: str = ""
) -> PredictionFacts:
    """What a prediction of an experiment says."""
    return PredictionFacts(
        at_ms=at_ms,
        nonce=b"12345678",
        revision=5,
        endpoint="flights",
        rule="ramp",
        variant="canary",
        version=2,
        reason=Reason.SPLIT,
        propensity=0.5,
        unit_hash=b"u" * 16,
        intended=intended,
        phase=7,
        scalars=scalars,
    )


def issued(**fields: Any) -> str:
    """An id of ours."""
    return SIGNER.sign(facts_of(**fields))


def item(prediction_id: str | None = None, **fields: Any) -> dict[str, Any]:
    """An outcome as callers write it."""
    found = {"prediction_id": prediction_id or issued(), "metric": "arrival", "value": 1.5}
    return {**found, **fields}


def check(body: object, *, lines: bool = False, signer: Signer = SIGNER) -> Checked:
    """What becomes of a body."""
    whole = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Checker(signer, NOW_MS, MAX_AGE_MS).check(read_body(whole, lines=lines))


def why(**fields: Any) -> tuple[str, str]:
    """Cause and sentence of the refusal of one outcome."""
    (refused,) = check(item(**fields)).refused
    return refused.cause, refused.error


def test_an_outcome_says_what_its_id_says() -> None:
    """All that is needed to credit it comes from the id."""
    (outcome,) = check(item(row=0, sequence=3, time=1_789_999_999.5)).accepted
    assert outcome == Outcome(
        phase=7,
        variant="canary",
        version=2,
        endpoint="flights",
        unit=b"u" * 16,
        nonce=b"12345678",
        at_ms=NOW_MS,
        propensity=0.5,
        name="arrival",
        value=1.5,
        row=0,
        sequence=3,
        observed_ms=1_789_999_999_500,
        scalars=(0.5, 0.25),
    )


def test_a_fallback_is_credited_to_the_intended_variant() -> None:
    """The unit was drawn for it, whoever answered."""
    (outcome,) = check(item(issued(intended="first"))).accepted
    assert outcome.variant == "first"


@pytest.mark.parametrize(
    ("body", "lines", "count"),
    [
        pytest.param(json.dumps(item()).encode(), False, 1, id="one"),
        pytest.param(json.dumps([item(), item()]).encode(), False, 2, id="list"),
        pytest.param(b" \n" + json.dumps(item()).encode() + b"\r\n", True, 1, id="line"),
        pytest.param(b"\n\n".join([json.dumps(item()).encode()] * 3), True, 3, id="lines"),
    ],
)
def test_each_form_of_a_body_is_read(body: bytes, lines: bool, count: int) -> None:
    """One, a list, or a line each."""
    assert len(check(body, lines=lines).accepted) == count


@pytest.mark.parametrize(("value", "read"), [(True, 1.0), (False, 0.0), (3, 3.0), (-2.5, -2.5)])
def test_values_become_numbers(value: float, read: float) -> None:
    """True and false are 1 and 0."""
    (outcome,) = check(item(value=value)).accepted
    assert outcome.value == read


@pytest.mark.parametrize(
    "time",
    ["2026-09-21T14:13:20Z", "2026-09-21T16:13:20+02:00", 1_790_000_000, 1_790_000_000.0],
)
def test_times_are_read_in_both_forms(time: str | float) -> None:
    """RFC 3339 with an offset, or Unix seconds."""
    assert datetime.fromtimestamp(NOW_MS / 1000, UTC).isoformat() == "2026-09-21T14:13:20+00:00"
    (outcome,) = check(item(time=time)).accepted
    assert outcome.observed_ms == NOW_MS


@pytest.mark.parametrize(
    ("fields", "cause", "words"),
    [
        pytest.param({"prediction_id": "x"}, "forged", "not issued here", id="no-id"),
        pytest.param({"prediction_id": "é" * 9}, "forged", "not issued here", id="no-ascii"),
        pytest.param({"prediction_id": "x" * 9999}, "malformed", "<= 2048", id="long-id"),
        pytest.param(
            {"prediction_id": issued(at_ms=NOW_MS - MAX_AGE_MS - 1)}, "expired", "older", id="old"
        ),
        pytest.param(
            {"prediction_id": issued(at_ms=NOW_MS + AHEAD_MS + 1)}, "expired", "future", id="early"
        ),
        pytest.param({"metric": ""}, "malformed", "cannot name", id="empty"),
        pytest.param({"metric": "x" * 65}, "malformed", "cannot name", id="long"),
        pytest.param({"metric": "a b"}, "malformed", "cannot name", id="space"),
        pytest.param({"metric": None}, "malformed", "got `null`", id="no-metric"),
        pytest.param({"value": "1"}, "malformed", "got `str`", id="text"),
        pytest.param({"value": None}, "malformed", "got `null`", id="null"),
        pytest.param({"row": 1}, "malformed", "Row 1 is not there", id="row"),
        pytest.param({"row": -1}, "malformed", ">= 0", id="before-rows"),
        pytest.param({"row": 10**9}, "malformed", "<= 1000000", id="far-row"),
        pytest.param({"sequence": -1}, "malformed", ">= 0", id="sequence"),
        pytest.param({"sequence": 2**53}, "malformed", "<= 9007199254740991", id="far-sequence"),
        pytest.param({"time": 1_790_000_000_000}, "malformed", "in seconds", id="milliseconds"),
        pytest.param({"time": -1}, "malformed", "1970", id="before-1970"),
        pytest.param({"time": "2026-09-21T14:13:20"}, "malformed", "timezone", id="no-offset"),
        pytest.param({"time": "yesterday"}, "malformed", "RFC3339", id="no-time"),
        pytest.param({"time": True}, "malformed", "got `bool`", id="bool-time"),
        pytest.param({"seq": 1}, "malformed", "unknown field `seq`", id="unknown"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, Any], cause: str, words: str) -> None:
    """Each fault has a cause to count and a sentence that names it."""
    found, sentence = why(**fields)
    assert found == cause
    assert words in sentence
    assert sentence.endswith(".")


def test_a_value_that_is_no_number_in_json_is_refused() -> None:
    """Beyond the range of a double, or not JSON at all."""
    body = json.dumps([item(), item()]).encode()
    checked = check(body.replace(b"1.5", b"1e999", 1))
    assert [one.index for one in checked.refused] == [0]
    with pytest.raises(InvalidRequest, match="not JSON"):
        check(body.replace(b"1.5", b"NaN", 1))


def test_an_id_of_other_keys_is_forged() -> None:
    """Nobody without our keys makes an outcome count."""
    (refused,) = check(item(STRANGER.sign(facts_of()))).refused
    assert refused.cause == "forged"


@given(st.integers(0, 10_000), st.sampled_from("AQgw-_Z"))
def test_an_altered_id_is_forged(place: int, letter: str) -> None:
    """Whichever character is changed."""
    whole = issued()
    at = place % len(whole)
    altered = whole[:at] + letter + whole[at + 1 :]
    assert len(check(item(altered)).accepted) == (altered == whole)


@pytest.mark.parametrize(
    ("scalars", "row", "held"),
    [
        pytest.param((), 7, (), id="none-declared"),
        pytest.param(((0.5,),) * 16, 15, (0.5,), id="last-held"),
        pytest.param(((0.5,),) * 16, 16, (), id="beyond-what-is-held"),
    ],
)
def test_a_row_that_an_id_need_not_hold_is_accepted(
    scalars: Scalars, row: int, held: tuple[float, ...]
) -> None:
    """An id holds the scalars of the first rows only, and of none where none are declared."""
    (outcome,) = check(item(issued(scalars=scalars), row=row)).accepted
    assert outcome.scalars == held


good = st.fixed_dictionaries(
    {
        "prediction_id": st.just(issued()),
        "metric": st.sampled_from(["a", "b.c"]),
        "value": st.one_of(st.booleans(), st.floats(-1e9, 1e9)),
    },
    optional={"sequence": st.integers(0, 2**53 - 1), "row": st.just(0)},
)
wrong = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    good.map(lambda one: {**one, "value": "x"}),
    good.map(lambda one: {**one, "prediction_id": "x"}),
    good.map(lambda one: {**one, "row": 5}),
)


@given(st.lists(st.tuples(st.booleans(), good, wrong), min_size=1, max_size=12), st.booleans())
def test_the_good_are_accepted_and_the_others_named(
    drawn: list[tuple[bool, Any, Any]], lines: bool
) -> None:
    """One bad outcome costs only itself, in every form of a body."""
    items = [well if is_good else ill for is_good, well, ill in drawn]
    texts = [json.dumps(one).encode() for one in items]
    body = b"\n".join(texts) if lines else b"[" + b",".join(texts) + b"]"
    checked = check(body, lines=lines)
    assert [one.index for one in checked.refused] == [
        index for index, (is_good, _, _) in enumerate(drawn) if not is_good
    ]
    assert [(one.name, one.value) for one in checked.accepted] == [
        (well["metric"], float(well["value"])) for is_good, well, _ in drawn if is_good
    ]


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_do_more_than_be_refused(body: bytes, lines: bool) -> None:
    """Whatever comes, there is a sentence and no other error."""
    try:
        checked = check(body, lines=lines)
        sentences = [one.error for one in checked.refused]
        assert checked.accepted == []
    except GatewayError as error:
        sentences = [str(error)]
    assert all(sentence.isprintable() for sentence in sentences)


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        pytest.param(
            b"[" + b",".join([json.dumps(item()).encode()] * (MAX_ITEMS + 1)) + b"]",
            False,
            id="list",
        ),
        pytest.param(b"[" + b"1," * 2**20 + b"1]", False, id="not-even-objects"),
        pytest.param(b"[" + b"1," * MAX_ITEMS + b"1]", False, id="wrong-ones"),
        pytest.param(b"[" + b"{}," * 2 * MAX_ITEMS + b"{}]", False, id="braces"),
        pytest.param(b"1\n" * 2**20, True, id="lines"),
    ],
)
def test_a_body_of_too_many_is_refused(body: bytes, lines: bool) -> None:
    """The bound is told, before each item is looked at."""
    with pytest.raises(TooLarge, match="at most 10000"):
        check(body, lines=lines)


@pytest.mark.parametrize("body", [b"", b"  \n", b"[]", b"[", b"[" * 100_000, b'[{"a":' * 99_999])
def test_a_body_of_nothing_is_refused(body: bytes) -> None:
    """No outcome, no JSON, or no end of nesting."""
    with pytest.raises(InvalidRequest):
        check(body)


def test_events_make_entries_of_bounded_size() -> None:
    """A long body becomes several entries, which read back as what was accepted."""
    accepted = check([item(sequence=n) for n in range(EVENTS_OF_ENTRY + 1)]).accepted
    entries = [decode_entry(enter(9, events)) for events in events_of(accepted)]
    assert [len(entry.events) for entry in entries] == [EVENTS_OF_ENTRY, 1]
    assert [event for entry in entries for event in entry.events] == accepted
    assert {entry.accepted_ms for entry in entries} == {9}
