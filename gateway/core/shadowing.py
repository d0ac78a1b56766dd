"""Shadowing: whether the answers of a candidate to copies of requests are like the control's."""

from gateway.core.experiments import ExperimentRecord, ShadowStage
from gateway.core.guarding import from_log
from gateway.core.readings import ShadowReading
from gateway.core.stats import bernoulli
from gateway.core.tallies import Evidence, ShadowCell, shadow_of


def read(
    record: ExperimentRecord, evidence: Evidence, now: float
) -> tuple[tuple[ShadowReading, ...], bool, str | None]:
    """What the shadows say, whether all have passed, and the first that has failed.

    An answer counts against a variant if it differs beyond the tolerance or if there is none. The
    stage is passed when the rate of these is certified below `max_disagreed`, at beta, and failed
    when it is shown to be above, at alpha; the treatments share both. In between it goes on.
    """
    stage, document = record.document.shadow, record.document
    if stage is None:
        return (), True, None
    treatments = len(document.variants) - 1
    levels = document.alpha / treatments, document.beta / treatments
    readings = tuple(
        _read(variant.name, shadow_of(evidence, index), stage, levels)
        for index, variant in enumerate(document.variants)
        if index > 0
    )
    failed = next((reading.variant for reading in readings if reading.harm.holds), None)
    enough = all(
        reading.safe.holds and reading.compared >= stage.min_compared for reading in readings
    )
    return readings, enough and now - record.since >= stage.dwell_s, failed


def _read(
    name: str, cell: ShadowCell | None, stage: ShadowStage, levels: tuple[float, float]
) -> ShadowReading:
    if cell is None:
        return ShadowReading(name, harm=from_log(0.0, levels[0]), safe=from_log(0.0, levels[1]))
    bad = cell.disagreed + cell.failed
    good = max(cell.compared - cell.disagreed, 0)
    limit = min(max(stage.max_disagreed, 1e-9), 1.0 - 1e-9)
    return ShadowReading(
        name,
        cell.compared,
        cell.disagreed,
        cell.failed,
        from_log(bernoulli.log_e_above(bad, good, limit), levels[0]),
        from_log(bernoulli.log_e_below(bad, good, limit), levels[1]),
    )
