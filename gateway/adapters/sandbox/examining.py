"""Examining: all checks of one version in their order, told one by one. Runs in the child."""

from collections.abc import Callable, Mapping
from typing import Final

from gateway.adapters.sandbox import comparisons, static_checks, trials
from gateway.adapters.sandbox.anatomy import Fault
from gateway.adapters.sandbox.measuring import Memory
from gateway.adapters.sandbox.static_checks import failed, skipped
from gateway.adapters.sandbox.subject import Subject
from gateway.adapters.sandbox.wire import Begun, Checked, Errand, Told
from gateway.core.errors import GatewayError
from gateway.core.reviews import REQUIRED, Check, CheckResult, Outcome

CHECKS: Final[Mapping[Check, Callable[[Subject], CheckResult]]] = {
    Check.FILES: static_checks.files,
    Check.FORMAT: static_checks.form,
    Check.DOMAINS: static_checks.domains,
    Check.EXTERNAL_DATA: static_checks.external_data,
    Check.NAMES: static_checks.names,
    Check.LOADS: trials.loads,
    Check.RUNS: trials.runs,
    Check.FINITE: trials.finite,
    Check.DETERMINISM: trials.determinism,
    Check.BATCHING: trials.batching,
    Check.GOLDEN: comparisons.golden,
    Check.SIGNATURE: comparisons.signature,
    Check.LATENCY: trials.latency,
    Check.MEMORY: trials.memory,
    Check.AGREEMENT: comparisons.agreement,
}
NEEDS: Final[Mapping[Check, frozenset[Check]]] = {
    Check.FILES: frozenset(),
    Check.FORMAT: frozenset({Check.FILES}),
    **dict.fromkeys((Check.DOMAINS, Check.EXTERNAL_DATA, Check.NAMES), frozenset({Check.FORMAT})),
    Check.LOADS: REQUIRED - {Check.LOADS},
    **dict.fromkeys(
        (Check.RUNS, Check.GOLDEN, Check.SIGNATURE, Check.MEMORY, Check.AGREEMENT),
        frozenset({Check.LOADS}),
    ),
    **dict.fromkeys(
        (Check.FINITE, Check.DETERMINISM, Check.BATCHING, Check.LATENCY), frozenset({Check.RUNS})
    ),
}
"""What must be passed before a check can be made at all."""
SHORT: Final = REQUIRED | {Check.RUNS}


def examine(errand: Errand, say: Callable[[Told], None], memory: Memory) -> None:
    """Make every check, and say so before and after each.

    Whatever a check raises is its failure; what ends the process is told by those who watch it.
    """
    subject = Subject(errand, memory)
    outcomes: dict[Check, Outcome] = {}
    anatomy, behaviour = subject.anatomy, subject.behaviour
    for check, look in CHECKS.items():
        say(Begun(check))
        missed = [one for one in Check if one in NEEDS[check] and outcomes[one] != Outcome.PASSED]
        if missed:
            result = skipped(f"It needs the check '{missed[0]}' to be passed.")
        elif errand.short and check not in SHORT:
            result = skipped("Inspections are short here.")
        else:
            result = _look(look, subject)
        outcomes[check] = result.outcome
        if subject.anatomy is not anatomy:
            anatomy = subject.anatomy
            say(anatomy)
        if subject.behaviour is not behaviour:
            behaviour = subject.behaviour
            say(behaviour)
        say(Checked(check, result))


def _look(look: Callable[[Subject], CheckResult], subject: Subject) -> CheckResult:
    try:
        return look(subject)
    except (Fault, GatewayError) as error:
        return failed(str(error))
    except MemoryError:
        summary = "It needs more memory than an inspection may take."
        return CheckResult(Outcome.FAILED, summary, forced=True)
    except Exception as error:  # noqa: BLE001 - a candidate may make anything of ours raise
        return failed(f"The check could not be made ({type(error).__name__}).")
