"""Scenarios: the worlds in which a document should be tried before it meets the real one.

Each is named by what is true in it, so that what the simulated experiments conclude can be called
right or false.
"""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from gateway.core.drawing import Scenario, Truth, Value
from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.experiments import Experiment, Metric

Name: TypeAlias = Literal["same", "margin", "better", "harm"]
NAMES: Final[tuple[Name, ...]] = ("same", "margin", "better", "harm")
WORDS: Final[Mapping[Name, str]] = {
    "same": "nothing differs",
    "margin": "each metric is worse by exactly its margin",
    "better": "each goal is better by twice its margin",
    "harm": "events are five times as frequent",
}
GAIN: Final = 2.0
HARM: Final = 5.0
_LOWEST, _HIGHEST = 0.001, 0.999


class Base(Struct, frozen=True):
    """What is assumed of the control where nothing else is said.

    Attributes:
        event_rate: Share of units with the event of a guard.
        share: Mean of a binary metric.
        mean: Mean of any other.
        deviation: Its standard deviation.
        units: Units that come per tick, if all were enrolled.
        ticks: Looks, at most.
        tick_s: Seconds between looks.
        delay: Ticks until a unit's outcome is final.
        rates: Event rates by guard.
        values: Mean and deviation by metric.
    """

    event_rate: float = 0.01
    share: float = 0.2
    mean: float = 1.0
    deviation: float = 1.0
    units: float = 1_000.0
    ticks: int = 60
    tick_s: float = 60.0
    delay: int = 0
    rates: Mapping[str, float] = {}
    values: Mapping[str, tuple[float, float]] = {}


def scenario_of(name: Name, document: Experiment, base: Base) -> Scenario:
    """One world for a document.

    Raises:
        InvalidRequest: something is assumed of a guard or metric that the document does not have.
    """
    _check(document, base)
    control = Truth(
        events={
            guard.name: base.rates.get(guard.name, base.event_rate) for guard in document.guards
        },
        metrics={metric.name: _value(metric, base) for metric in document.metrics},
    )
    treatment = _treatment(name, document, control)
    truths = {variant.name: treatment for variant in document.variants}
    return Scenario(
        truths={**truths, document.control: control},
        units=base.units,
        ticks=base.ticks,
        tick_s=base.tick_s,
        delay=base.delay,
    )


def _treatment(name: Name, document: Experiment, control: Truth) -> Truth:
    events, metrics = dict(control.events), dict(control.metrics)
    if name == "harm":
        events = {guard: min(rate * HARM, 1.0) for guard, rate in events.items()}
    if name == "margin":
        metrics = {m.name: _moved(m, metrics[m.name], -m.margin) for m in document.metrics}
        events = {
            guard.name: min(events[guard.name] * guard.allowed, 1.0) for guard in document.guards
        }
    if name == "better":
        metrics = {
            m.name: _moved(m, metrics[m.name], GAIN * m.margin if m.role == "goal" else 0.0)
            for m in document.metrics
        }
    return Truth(events=events, metrics=metrics)


def _value(metric: Metric, base: Base) -> Value:
    mean, deviation = base.values.get(
        metric.name,
        (base.share, 0.0) if metric.kind == "binary" else (base.mean, base.deviation),
    )
    return Value(mean=mean, deviation=deviation)


def _moved(metric: Metric, value: Value, gain: float) -> Value:
    """The value after a gain in the metric's own direction."""
    mean = value.mean + (gain if metric.direction == "increase" else -gain)
    if metric.kind == "binary":
        mean = min(max(mean, _LOWEST), _HIGHEST)
    return Value(mean=mean, deviation=value.deviation, correlation=value.correlation)


def _check(document: Experiment, base: Base) -> None:
    known = (
        ("guard", {guard.name for guard in document.guards}, base.rates),
        ("metric", {metric.name for metric in document.metrics}, base.values),
    )
    for what, names, assumed in known:
        for name in assumed:
            if name not in names:
                message = f"The document has no {what} '{excerpt(name)}'."
                raise InvalidRequest(message)
