"""What another policy would have earned: asked by people, answered from the units in the store."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from gateway.control.registry import Registry
from gateway.core import cohorts
from gateway.core.errors import InvalidRequest, NotFound, excerpt
from gateway.core.experimenting import experiment_of
from gateway.core.experiments import ExperimentRecord, Metric
from gateway.core.unit_states import decode_unit, first_of
from gateway.core.whatif import LoggedUnit, Policy, WhatIf, evaluate

MAX_UNITS: Final = 200_000
"""Units that are looked at; beyond them which ones is left to the store."""
OTHER: Final = "other"

UnitsOf = Callable[[str, int], Awaitable[Mapping[bytes, bytes]]]
"""The states of an experiment's units by id, at most about so many; raises StoreUnavailable."""


ALPHA: Final = 0.05
"""Intervals leave out the truth with this chance."""


class WhatIfs:
    """Answers questions about experiments, whoever leads."""

    __slots__ = ("_registry", "_units_of")

    def __init__(self, registry: Registry, units_of: UnitsOf) -> None:
        """Read through the given call."""
        self._registry = registry
        self._units_of = units_of

    async def answer(self, name: str, wanted: str, policy: Policy) -> WhatIf:
        """What the policy would have earned of the experiment's units, by a metric.

        Raises:
            NotFound: there is no such experiment or metric.
            InvalidRequest: the policy is none, or there is nothing to judge it by.
            StoreUnavailable: the store is away.
        """
        record = experiment_of(self._registry.snapshot, name)
        metric = _metric_of(record, name, wanted)
        states = await self._units_of(record.id, MAX_UNITS) if record.phases else {}
        return await asyncio.to_thread(_answered, record, metric, policy, states)


def logged_units(
    record: ExperimentRecord, metric: Metric, states: Mapping[bytes, bytes]
) -> list[LoggedUnit]:
    """The units of an experiment whose value of a metric is final, in the order of enrolment.

    A unit's propensities are the weights of the phase that enrolled it, among the enrolled.

    Raises:
        InvalidRequest: the silent ones have a value, and are counted without being kept.
    """
    document = record.document
    if document.unit is None and metric.silence == "default":
        message = (
            f"Silence is a value of '{metric.name}', and where each request is a unit those of "
            "which nothing came are only counted; no policy can be judged by the others alone."
        )
        raise InvalidRequest(message)
    place = document.metrics.index(metric)
    variants = [variant.name for variant in document.variants]
    segments = (OTHER, *(document.segment.values if document.segment is not None else ()))
    weights = {
        phase.number: {variant: phase.propensity(variant) for variant in variants}
        for phase in record.phases
    }
    found: list[tuple[int, bytes, LoggedUnit]] = []
    for key, data in states.items():
        if cohorts.is_cohort(key):
            continue
        state = decode_unit(data)
        if place not in state.frozen:
            continue
        ms, phase, variant, segment = first_of(state)
        value = state.frozen[place]
        if phase not in weights or not weights[phase].get(variants[variant]):
            continue
        unit = LoggedUnit(
            variant=variants[variant],
            propensities=weights[phase],
            reward=value[0] if value else None,
            segment=segments[segment] if segment < len(segments) else OTHER,
            fold=key[0],
        )
        found.append((ms, key, unit))
    return [unit for _, _, unit in sorted(found, key=lambda one: one[:2])]


def _answered(
    record: ExperimentRecord, metric: Metric, policy: Policy, states: Mapping[bytes, bytes]
) -> WhatIf:
    try:
        logged = logged_units(record, metric, states)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = "The store holds a unit's state that cannot be read."
        raise InvalidRequest(message) from error
    variants = [variant.name for variant in record.document.variants]
    bounded = metric.kind == "binary" or metric.score == "correct"
    return evaluate(
        policy,
        logged,
        variants,
        alpha=ALPHA,
        bounds=(0.0, 1.0) if bounded and metric.combine != "sum" else None,
    )


def _metric_of(record: ExperimentRecord, name: str, wanted: str) -> Metric:
    """The metric that a policy is judged by.

    Raises:
        NotFound: the experiment has none of that name.
        InvalidRequest: it is no mean over units.
    """
    metric = next((one for one in record.document.metrics if one.name == wanted), None)
    if metric is None:
        known = ", ".join(one.name for one in record.document.metrics) or "none"
        message = f"Experiment '{name}' has no metric '{excerpt(wanted)}'; it has {known}."
        raise NotFound(message)
    if metric.kind in {"ratio", "quantile"}:
        message = f"'{wanted}' is a {metric.kind}; a policy is judged by a mean over units."
        raise InvalidRequest(message)
    return metric
