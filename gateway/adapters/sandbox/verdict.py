"""The verdict: a report made of what a child told, which may have been taken over by what it ran.

So every line is typed, text is cut and cleaned, and whatever is missing or wrong is a failure of
the check that was under way.
"""

import signal
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.adapters.sandbox.nursery import Account
from gateway.adapters.sandbox.wire import (
    MAX_TOLD_BYTES,
    Anatomy,
    Begun,
    Behaviour,
    Checked,
    Confined,
    Ended,
    Errand,
    Told,
    name_fault,
)
from gateway.core.errors import excerpt
from gateway.core.inspections import SCHEMA, Inspection
from gateway.core.reviews import Check, CheckResult, Outcome

MAX_SUMMARY: Final = 400
_DECODER: Final = msgspec.json.Decoder(Told)


class Times(Struct, frozen=True):
    """When an inspection was made, in UTC seconds, and what it took."""

    at: float
    took_s: float


class Testimony(Struct):
    """What was told so far, read line by line."""

    tools: dict[str, str] = {}
    checks: dict[Check, CheckResult] = {}
    anatomy: Anatomy = Anatomy()
    behaviour: Behaviour = Behaviour()
    under_way: Check | None = None

    def take(self, told: Told) -> None:
        """Add one line."""
        match told:
            case Confined(tools):
                self.tools = {excerpt(name): excerpt(text) for name, text in tools.items()}
            case Begun(check):
                self.under_way = check
            case Checked(check, result):
                cleaned = excerpt(result.summary, MAX_SUMMARY)
                self.checks[check] = replace(result, summary=cleaned)
                self.under_way = None
            case Anatomy():
                self.anatomy = told
            case Behaviour():
                self.behaviour = told


def report(errand: Errand, account: Account, times: Times) -> Inspection:
    """The report of an inspection that ended in whatever way."""
    testimony = Testimony()
    readable = _read(account.told, testimony)
    force = _force(errand, account, readable=readable)
    if force is None and len(testimony.checks) < len(Check):
        force = "The sandbox did not tell of every check."
    checks = _complete(testimony, force)
    order, anatomy, behaviour = errand.order, testimony.anatomy, testimony.behaviour
    return Inspection(
        schema=SCHEMA,
        model=order.model,
        number=order.number,
        digest=order.digest,
        at=times.at,
        took_s=round(times.took_s, 3),
        tools=testimony.tools,
        checks=checks,
        size=sum(file.size for file in order.files),
        **msgspec.structs.asdict(anatomy),
        **msgspec.structs.asdict(behaviour),
    )


def _read(told: bytes, testimony: Testimony) -> bool:
    """Take every line; whether all could be read."""
    for line in told.splitlines():
        try:
            one = _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if isinstance(one, Behaviour) and _is_odd(one):
            return False
        testimony.take(one)
    return True


def _is_odd(behaviour: Behaviour) -> bool:
    """Whether it names tensors as the check of names would never have allowed."""
    told = behaviour.signature
    return told is not None and any(
        name_fault([spec.name for spec in specs]) for specs in (told.inputs, told.outputs)
    )


def _force(errand: Errand, account: Account, *, readable: bool) -> str | None:
    """How the child was ended, or did what it may not, if so."""
    if account.flooded:
        return f"The sandbox told more than {MAX_TOLD_BYTES} bytes and was ended."
    if account.ended is None:
        return "The sandbox was lost."
    if account.ended.late:
        return f"It was not done within {errand.time_s:g} s and was ended."
    if account.ended.signal:
        return _of_signal(errand, account.ended)
    if account.ended.code:
        return f"The sandbox ended before it was done (code {account.ended.code})."
    return None if readable else "What the sandbox told cannot be read."


def _of_signal(errand: Errand, ended: Ended) -> str:
    if ended.signal == signal.SIGALRM:
        return f"A run of a few rows took longer than {errand.run_s:g} s and was ended."
    if ended.signal == signal.SIGXCPU:
        return f"It used a processor for longer than {errand.time_s:g} s and was ended."
    if ended.signal == signal.SIGKILL:
        return "It was ended from outside, perhaps because the host ran out of memory."
    try:
        name = signal.Signals(ended.signal).name
    except ValueError:
        name = str(ended.signal)
    return f"It crashed the sandbox ({name})."


def _complete(testimony: Testimony, force: str | None) -> dict[Check, CheckResult]:
    """All checks in their order; the one under way failed if the child was ended by force."""
    checks = testimony.checks
    guilty = testimony.under_way
    if force is not None:
        missing = [check for check in Check if check not in checks]
        guilty = guilty or (missing[0] if missing else Check.FILES)
        checks[guilty] = CheckResult(Outcome.FAILED, force, forced=True)
    unreached = CheckResult(Outcome.SKIPPED, "It was not reached.")
    return {check: checks.get(check, unreached) for check in Check}
