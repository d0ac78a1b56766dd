"""Simulation: what a document would decide, over many synthetic rollouts with known truth.

Each rollout draws tallies, tick by tick, and puts them to the real `decide`; steps that it takes
change the traffic that follows. So the shares of false promotions and rollbacks are those of the
very code that runs in production. Chance comes from the generator that is passed in: the same seed
gives the same rollouts.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from msgspec import Struct
from scipy import special

from gateway.core.assignment import HASH_VERSION, SplitState
from gateway.core.drawing import Scenario, begin
from gateway.core.experiments import (
    TERMINAL,
    Experiment,
    ExperimentRecord,
    Phase,
    State,
)
from gateway.core.judging import decide
from gateway.core.readings import Reading, Verdict
from gateway.core.stepping import next_record
from gateway.core.strategies import Step, opening
from gateway.core.tallies import Cell, Evidence

_CLAIMS: Final = frozenset({Verdict.BETTER, Verdict.WORSE})
_PROMOTED: Final = frozenset({State.PROMOTED, State.HOLDING_OUT})
_DONE: Final = TERMINAL | _PROMOTED


class Rollout(Struct, frozen=True):
    """How one rollout ended.

    Attributes:
        state: In which it ended, or stood after the last tick.
        reason: Why.
        seconds: Until then.
        units: Of all variants.
        treated: Of the treatments.
        winner: Variant that was promoted.
        claimed: `metric/variant` that was ever called better or worse.
        naive: The same, had a z-test for a single look been read at every look.
        held: Reasons for which it was ever held.
        harmed: Treatments of which harm was ever shown: one of several is taken out, and the
            rollout goes on.
    """

    state: State
    reason: str
    seconds: float
    units: int
    treated: int
    winner: str | None
    claimed: tuple[str, ...]
    naive: tuple[str, ...]
    held: tuple[str, ...]
    harmed: tuple[str, ...] = ()


class Rate(Struct, frozen=True):
    """How often something happened, with its 95 per cent interval (Clopper and Pearson)."""

    count: int
    of: int
    rate: float
    lower: float
    upper: float


class Spread(Struct, frozen=True):
    """Tenth, fiftieth and ninetieth percentile."""

    p10: float
    p50: float
    p90: float


class Summary(Struct, frozen=True):
    """What came of all rollouts.

    Attributes:
        rollouts: How many there were.
        promoted: Ended as promoted, the reverse hold-out included.
        rolled_back: Ended as rolled back.
        harmed: Had any treatment taken out, or were rolled back, because of harm.
        undecided: Still ran, or were held, after the last tick.
        claimed: Had any metric called better or worse at any look.
        naive: Would have had, by a z-test for a single look that is read at every look.
        held: Were ever held, by reason.
        seconds: Until the end of those that were decided; None if none was.
        units: Of all variants until then.
        treated: Of the treatments until then.
    """

    rollouts: int
    promoted: Rate
    rolled_back: Rate
    harmed: Rate
    undecided: Rate
    claimed: Rate
    naive: Rate
    held: dict[str, Rate]
    seconds: Spread | None
    units: Spread | None
    treated: Spread | None


def rollouts(
    document: Experiment, scenario: Scenario, count: int, generator: np.random.Generator
) -> Iterator[Rollout]:
    """So many rollouts, one after the other, to be counted or drawn as they come."""
    for _ in range(count):
        yield rollout(document, scenario, generator)


def rollout(document: Experiment, scenario: Scenario, generator: np.random.Generator) -> Rollout:
    """One rollout, with a look at every tick, until it is decided or the ticks are over.

    Its shadow stage is left out, and approval is given at once.
    """
    record = started(document)
    blocks = [begin(record, scenario, 0, generator)]
    claimed: dict[str, None] = {}
    naive: dict[str, None] = {}
    held: dict[str, None] = {}
    harmed: dict[str, None] = {}
    winner: str | None = None
    cells: list[Cell] = []
    now = 0.0
    for tick in range(1, scenario.ticks + 1):
        now = tick * scenario.tick_s
        cells = [cell for block in blocks for cell in block.cells(tick, scenario.delay)]
        decision = decide(record, Evidence(tuple(cells), through_ms=round(now * 1_000)), now)
        claimed |= dict.fromkeys(r.key for r in decision.readings if r.verdict in _CLAIMS)
        naive |= dict.fromkeys(r.key for r in decision.readings if _would_claim(r))
        harmed |= dict.fromkeys(r.variant for r in decision.readings if r.is_harm)
        if decision.state is State.HELD:
            held[decision.reason] = None
        number, phases = len(blocks) + 1, len(record.phases)
        record = next_record(record, decision, at=now, number=number, champion=None)
        if record.state in _DONE:
            winner = decision.winner
            break
        if len(record.phases) > phases:
            blocks[-1].stop(tick)
            blocks.append(begin(record, scenario, tick, generator))
    return Rollout(
        state=record.state,
        reason=record.reason,
        seconds=now,
        units=sum(cell.assigned for cell in cells),
        treated=sum(cell.assigned for cell in cells if cell.variant),
        winner=winner,
        claimed=tuple(claimed),
        naive=tuple(naive),
        held=tuple(held),
        harmed=tuple(harmed),
    )


def started(document: Experiment, step: Step | None = None) -> ExperimentRecord:
    """A record of the document in its first phase, at time zero."""
    first = step or opening(document)
    names = [variant.name for variant in document.variants]
    return ExperimentRecord(
        document=document,
        id="simulated",
        split=SplitState.fresh(salt="simulated", hash_version=HASH_VERSION, weights=first.weights),
        state=State.RUNNING,
        exposure=first.exposure,
        phases=(Phase(1, 0.0, first.exposure, first.weights),),
        versions={name: index + 1 for index, name in enumerate(names)},
        approved=True,
    )


def summary(ended: Iterable[Rollout]) -> Summary:
    """Count how rollouts ended.

    Raises:
        ValueError: there are none.
    """
    every = list(ended)
    if not every:
        raise ValueError("Without rollouts there is nothing to sum up.")
    n = len(every)
    promoted = [one for one in every if one.state in _PROMOTED]
    back = [one for one in every if one.state is State.ROLLED_BACK]
    decided = [*promoted, *back]
    reasons = sorted({reason for one in every for reason in one.held})
    return Summary(
        rollouts=n,
        promoted=rate(len(promoted), n),
        rolled_back=rate(len(back), n),
        harmed=rate(sum(bool(one.harmed) for one in every), n),
        undecided=rate(n - len(decided), n),
        claimed=rate(sum(bool(one.claimed) for one in every), n),
        naive=rate(sum(bool(one.naive) for one in every), n),
        held={reason: rate(sum(reason in one.held for one in every), n) for reason in reasons},
        seconds=_spread([one.seconds for one in decided]),
        units=_spread([one.units for one in decided]),
        treated=_spread([one.treated for one in decided]),
    )


def rate(count: int, of: int, level: float = 0.95) -> Rate:
    """A share with its exact interval.

    Source: Clopper and Pearson, Biometrika 26 (1934): quantiles of Beta(x, n - x + 1) and
    Beta(x + 1, n - x).
    """
    tail = (1.0 - level) / 2.0
    lower = float(special.betaincinv(count, of - count + 1, tail)) if count else 0.0
    upper = float(special.betaincinv(count + 1, of - count, 1.0 - tail)) if count < of else 1.0
    return Rate(count, of, count / of, lower, upper)


def _would_claim(reading: Reading) -> bool:
    """Whether a two-sided z-test for one look finds a difference, at the level of claims."""
    if reading.claim is None or not reading.settled or not reading.error:
        return False
    z = abs(reading.estimate or 0.0) / reading.error
    return z > _quantile(1.0 - 0.5 / reading.claim.threshold)


@lru_cache(maxsize=64)
def _quantile(share: float) -> float:
    return float(special.ndtri(share))


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    p10, p50, p90 = np.quantile(np.asarray(values, dtype=np.float64), (0.1, 0.5, 0.9)).tolist()
    return Spread(p10, p50, p90)
