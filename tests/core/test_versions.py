import pytest

from gateway.core.errors import InvalidRequest
from gateway.core.goldens import MAX_GOLDEN, read_golden
from gateway.core.inspections import Inspection
from gateway.core.reviews import REQUIRED, Check, CheckResult, Outcome
from gateway.core.snapshot import ModelRecord
from gateway.core.versions import forbidding, next_number, refusal_of, review_of

PASSED = {check: CheckResult(Outcome.PASSED, "It is well.") for check in Check}


def report(**changes: CheckResult) -> Inspection:
    """A report in which all passed but what is given."""
    checks = PASSED | {Check(name): result for name, result in changes.items()}
    return Inspection(
        schema=1, model="m", number=3, digest="d" * 64, at=5.0, took_s=1.0, tools={}, checks=checks
    )


def test_a_review_keeps_words_only_where_something_did_not_pass() -> None:
    """The Snapshot stays small; measures stay."""
    slow = CheckResult(Outcome.FAILED, "S" * 500, 99.0)
    review = review_of(report(latency=slow), "ana", 7.0)
    assert (review.registered_by, review.registered_at, review.inspected_at) == ("ana", 7.0, 5.0)
    assert review.checks[Check.LOADS] == CheckResult(Outcome.PASSED)
    assert review.checks[Check.LATENCY].measure == 99.0
    assert len(review.checks[Check.LATENCY].summary) == 160
    assert len(review.report) == 64


@pytest.mark.parametrize("check", sorted(REQUIRED))
@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.SKIPPED])
def test_a_required_check_forbids(check: Check, outcome: Outcome) -> None:
    """Failed or not made, the version is refused by its name."""
    refusal = refusal_of(report(**{check: CheckResult(outcome, "Why not.")}))
    assert refusal is not None
    assert f"{check}: Why not." in str(refusal)
    assert refusal.checks[check] == CheckResult(outcome, "Why not.")


def test_a_violent_end_forbids_in_any_check() -> None:
    """A crash in a check that gates judge is a refusal; an ordinary failure there is none."""
    crashed = CheckResult(Outcome.FAILED, "It crashed.", forced=True)
    assert forbidding(report(batching=crashed)) == {"batching": "It crashed."}
    assert refusal_of(report(batching=crashed)) is not None
    assert refusal_of(report(batching=CheckResult(Outcome.FAILED, "It differs."))) is None


def test_what_follows_from_a_failure_is_not_named() -> None:
    """Only the check that failed, not those that could not be made for it."""
    skipped = CheckResult(Outcome.SKIPPED, "It needs another.")
    found = report(format=CheckResult(Outcome.FAILED, "No ONNX."), loads=skipped, names=skipped)
    assert forbidding(found) == {"format": "No ONNX."}


def test_the_next_number_was_never_given() -> None:
    """Not to a registered version, nor to one that was retired, nor to what lies in the store."""
    record = ModelRecord(versions={1: "a", 2: "b"}, retired={5: "c"})
    assert next_number(record, "m", [("m", 3), ("other", 9)]) == 6
    assert next_number(record, "m", [("m", 8)]) == 9
    assert next_number(None, "m", []) == 1


def test_golden_requests_are_read() -> None:
    """Names and tolerances may be left out."""
    (golden,) = read_golden(
        b'{"schema":1,"golden":[{"request":{"inputs":[]},"expected":{"y":[1]}}]}'
    )
    assert (golden.expected, golden.relative) == ({"y": [1]}, 1e-5)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"schema":2,"golden":[]}',
        b'{"schema":1,"golden":[{"request":3}]}',
        b'{"schema":1,"golden":[],"more":1}',
        b'{"schema":1,"golden":[%s]}'
        % b",".join([b'{"request":{},"expected":{}}'] * (MAX_GOLDEN + 1)),
        b"[" * 100_000,
    ],
)
def test_golden_requests_that_are_none_are_refused(content: bytes) -> None:
    """Another shape, another schema, too many, too deep."""
    with pytest.raises(InvalidRequest):
        read_golden(content)
