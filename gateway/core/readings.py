"""Readings: what a look at the evidence says, in a form that reports show and the ledger keeps.

Every number is finite and JSON holds it, so that a decision read back is the decision made.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from gateway.core.experiments import TERMINAL, ExperimentRecord, State

Role: TypeAlias = Literal["guard", "goal", "guardrail", "watch"]
Interval: TypeAlias = tuple[float | None, float | None]
"""Lower and upper end; None where it has none."""

LARGEST: Final = 1e300
"""E-values beyond it are told as it."""


class Verdict(StrEnum):
    """What may be said of a variant against the control, at any look."""

    BETTER = "better"
    """The interval lies above no effect, in the metric's direction."""
    WORSE = "worse"
    """It lies below no effect, and not within the margin; of a guard: harm is shown."""
    EQUIVALENT = "equivalent"
    """It lies within the margin; of a guard: certified as safe."""
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"
    """The units are not what the weights say, or were not kept apart: nothing can be said."""


class Cause(StrEnum):
    """Why a state was entered that is no hold."""

    HARM = "harm"
    CERTIFIED = "certified"
    DEADLINE = "deadline"
    SHADOW = "shadow"
    """The shadow stage has passed, or failed."""
    MATURED = "matured"
    """The reverse hold-out is over."""


class Evidential(Struct, frozen=True, omit_defaults=True):
    """An e-value and the threshold at which it counts; 1 stands for no evidence."""

    e: float = 1.0
    threshold: float = 20.0

    @property
    def holds(self) -> bool:
        """Whether the evidence is enough."""
        return self.e >= self.threshold


class Display(Struct, frozen=True, omit_defaults=True):
    """What textbooks would say at a single, planned look. Nothing here is ever decided on.

    Acting on the first `p` below 0.05 is wrong more than half the time without any effect, and a
    chance stopped at 97.5 per cent is the same thing by another name.
    """

    p: float
    interval: Interval
    chance: float
    """Bayesian chance, under a flat prior, that the variant is better than the control."""


class Reading(Struct, frozen=True, omit_defaults=True):
    """One guard or metric of one variant against the control.

    Attributes:
        name: Of the guard or metric.
        variant: The treatment.
        role: What depends on it; guards and metrics with the role `watch` aside, all gate.
        verdict: See `Verdict`.
        harm: Evidence that it is worse than what is tolerated.
        safe: Evidence that it is no worse than what is allowed.
        claim: Evidence for any difference; metrics only.
        negligible: Evidence that the variant's own rate is below `negligible`; guards only.
        control: Mean, rate or quantile of the control.
        treatment: The same of the variant.
        estimate: The difference, treatment minus control, in the metric's unit.
        error: Standard error of `estimate`; metrics only.
        interval: Around `estimate`, valid at every look; None before there is one.
        relative: The difference as a share of the control's; for display.
        relative_interval: Around `relative`, valid at every look.
        units: Units of the control and of the variant.
        events: Of these, units with the event, or that differ from zero; guards only.
        settled: Whether the burn-in is over.
        left: Units of both that are still needed to certify it, should what is seen go on; None
            if that is not in sight.
    """

    name: str
    variant: str
    role: Role
    verdict: Verdict = Verdict.INCONCLUSIVE
    harm: Evidential = Evidential()
    safe: Evidential = Evidential()
    claim: Evidential | None = None
    negligible: Evidential | None = None
    control: float | None = None
    treatment: float | None = None
    estimate: float | None = None
    error: float | None = None
    interval: Interval | None = None
    relative: float | None = None
    relative_interval: Interval | None = None
    units: tuple[int, int] = (0, 0)
    events: tuple[int, int] | None = None
    settled: bool = True
    left: int | None = None
    display: Display | None = None

    @property
    def key(self) -> str:
        """How the record names it."""
        return f"{self.name}/{self.variant}"

    @property
    def gates(self) -> bool:
        """Whether promotion depends on it."""
        return self.role != "watch"

    @property
    def is_harm(self) -> bool:
        """Whether it rolls back."""
        return self.gates and self.verdict is not Verdict.INVALID and self.harm.holds

    @property
    def is_safe(self) -> bool:
        """Whether it is certified."""
        if self.verdict is Verdict.INVALID:
            return False
        return self.safe.holds or (self.negligible is not None and self.negligible.holds)


class Stage(Struct, frozen=True, omit_defaults=True):
    """One stage of the funnel: how many units of each variant, against how many were due.

    `expected` and `seen` are shares by variant; without units both are empty.
    """

    name: Literal["assigned", "served", "received"]
    units: int = 0
    seen: dict[str, float] = {}
    expected: dict[str, float] = {}
    test: Evidential = Evidential()

    @property
    def p(self) -> float:
        """An upper bound of the chance that a right split looks like this at any look."""
        return min(1.0, 1.0 / self.test.e) if self.test.e > 0 else 1.0

    @property
    def is_off(self) -> bool:
        """Whether the shares are not what they should be."""
        return self.test.holds


class Funnel(Struct, frozen=True, omit_defaults=True):
    """The three stages, and the share of units that were seen under two variants."""

    assigned: Stage
    served: Stage
    received: Stage
    contaminated: float = 0.0


class ShadowReading(Struct, frozen=True, omit_defaults=True):
    """What the shadow of one variant says: the rate of answers that differ or failed."""

    variant: str
    compared: int = 0
    disagreed: int = 0
    failed: int = 0
    harm: Evidential = Evidential()
    safe: Evidential = Evidential()


class Decision(Struct, frozen=True, omit_defaults=True):
    """One look's result: where to go, what traffic to give, and why.

    Attributes:
        state: To be in after this look; often the one that it is in.
        step: Index into a ramp's steps.
        exposure: Of all units, out of 10,000.
        weights: Of the enrolled units, out of 10,000.
        reason: A `HoldReason` when held, a `Cause` at the end, empty while it runs.
        detail: A sentence with numbers for people; it changes with every look.
        winner: The variant to promote, when promoting.
        readings: Guards and metrics of each treatment, in the document's order.
    """

    state: State
    step: int = 0
    exposure: int = 0
    weights: dict[str, int] = {}
    reason: str = ""
    detail: str = ""
    winner: str | None = None
    readings: tuple[Reading, ...] = ()
    funnel: Funnel | None = None
    shadows: tuple[ShadowReading, ...] = ()

    @property
    def verdicts(self) -> dict[str, str]:
        """As the record keeps them."""
        return {reading.key: reading.verdict.value for reading in self.readings}

    def moves(self, record: ExperimentRecord) -> bool:
        """Whether units are to be assigned otherwise than now, so that a phase begins."""
        phase = record.phase
        if self.state in TERMINAL:
            return False
        if phase is None:
            return bool(self.weights)
        shares = {name: weight for name, weight in self.weights.items() if weight}
        before = {name: weight for name, weight in phase.weights.items() if weight}
        return self.exposure != phase.exposure or shares != before

    def differs(self, record: ExperimentRecord) -> bool:
        """Whether there is anything to commit: a new state, reason, step, weight or verdict."""
        if record.state is not self.state or record.reason != self.reason:
            return True
        if record.step != self.step or self.moves(record):
            return True
        return _said(record.verdicts) != _said(self.verdicts)


def _said(verdicts: Mapping[str, str]) -> dict[str, str]:
    """What verdicts say; one that says nothing yet is as good as none."""
    return {key: one for key, one in verdicts.items() if one != Verdict.INCONCLUSIVE}


def evidential(e: float, level: float) -> Evidential:
    """Evidence that counts at a risk of `level`, kept finite and deterministic to read back."""
    return Evidential(min(e, LARGEST) if e > 0 else 0.0, 1.0 / level)
