from gateway.core.inspections import is_acceptable
from gateway.core.reviews import REQUIRED, Check, CheckResult, Outcome

PASSED = CheckResult(Outcome.PASSED)


def test_a_version_with_all_that_is_required_is_acceptable() -> None:
    """What fails beside that is for the gates to say."""
    checks = dict.fromkeys(REQUIRED, PASSED)
    assert is_acceptable(checks)
    assert is_acceptable(checks | {Check.GOLDEN: CheckResult(Outcome.FAILED)})


def test_a_version_without_one_that_is_required_is_not() -> None:
    """Failed, skipped or not there at all."""
    checks = dict.fromkeys(REQUIRED, PASSED)
    for name in REQUIRED:
        rest = {check: result for check, result in checks.items() if check is not name}
        assert not is_acceptable(rest)
        for outcome in (Outcome.FAILED, Outcome.SKIPPED):
            assert not is_acceptable(checks | {name: CheckResult(outcome)})


def test_a_version_that_ended_the_sandbox_by_force_is_not_acceptable() -> None:
    """In whatever check that was: it would end a worker too."""
    forced = CheckResult(Outcome.FAILED, forced=True)
    assert not is_acceptable(dict.fromkeys(REQUIRED, PASSED) | {Check.LATENCY: forced})
