"""The demo's chapters: three experiments, as the documents that anybody could write.

All of it happens on endpoints and an alias of the demo's own, so that nobody's rules, units or
champion move. Months of flights pass in about a minute, so windows are seconds, not days.
"""

from typing import Any, Final

from msgspec import Struct

MODEL: Final = "flight-delay"
DRILL: Final = "flight-delay-drill"
ALIAS: Final = "demo-champion"
ENDPOINT: Final = "flight-delay-demo"
DRILL_ENDPOINT: Final = "flight-delay-drill-demo"
OUTCOME: Final = "late"
LATE: Final = "probabilities:1"
"""The scalar that answers carry in their ids: the chance of being late."""
SLOW_MS: Final = 15.0
FLIGHTS_A_SECOND: Final = 1_000
LEAST_WINDOW_S: Final = 2.0
MOST_WINDOW_S: Final = 20.0
UNIT: Final = {"header": "X-Unit-Id"}


class Chapter(Struct, frozen=True):
    """An experiment, and how it is to end.

    `share` is the part of all flights that may be spent on it; `good` are the states that it may
    end in, and `claims` whether it may call anything better or worse.
    """

    name: str
    title: str
    endpoint: str
    model: str
    share: float
    good: tuple[str, ...]
    document: dict[str, Any]
    claims: bool = True


def endpoint_document(model: str, *, with_scalars: bool) -> dict[str, Any]:
    """An endpoint of the demo's own: no rule but those of its experiments."""
    document: dict[str, Any] = {"schema": 1, "model": model, "default": {"alias": ALIAS}}
    return {**document, "token_scalars": [LATE]} if with_scalars else document


def _metrics(window_s: float) -> list[dict[str, Any]]:
    """What an arrival says of a chance of being late, for each aircraft."""
    scored = {"outcome": OUTCOME, "scalar": LATE, "window_s": window_s, "maturity_s": 2.0}
    return [
        {
            **scored,
            "name": "log_loss",
            "score": "log_loss",
            "direction": "decrease",
            "margin": 0.05,
            "planned_units": 600,
        },
        {**scored, "name": "accuracy", "score": "correct", "margin": 0.05, "planned_units": 600},
    ]


_GUARDS: Final = [
    {"name": "errors", "event": "error", "negligible": 0.05},
    {"name": "latency", "event": "slow", "over_ms": 250.0, "negligible": 0.05, "allowed": 2.0},
]

NAMES: Final = ("demo-ramp", "demo-aa", "demo-drill")


def chapters(requests: int) -> tuple[Chapter, ...]:
    """The story for so many flights: the fewer there are, the shorter are the windows."""
    window_s = min(max(requests / FLIGHTS_A_SECOND, LEAST_WINDOW_S), MOST_WINDOW_S)
    return (_ramp(window_s), _same(window_s / 2), _drill())


def _ramp(window_s: float) -> Chapter:
    return Chapter(
        name="demo-ramp",
        title="Version 2 ramps against version 1",
        endpoint=ENDPOINT,
        model=MODEL,
        share=0.6,
        good=("promoted", "running", "held"),
        document={
            "schema": 1,
            "endpoint": ENDPOINT,
            "variants": [{"name": "v1", "version": 1}, {"name": "v2", "version": 2}],
            "strategy": {
                "kind": "ramp",
                "steps": [500, 2_500, 5_000],
                "dwell_s": 3.0,
                "min_units": 20,
                "risk_budget": 200.0,
            },
            "shadow": {"share": 10_000, "min_compared": 100, "max_disagreed": 1.0, "dwell_s": 1.0},
            "metrics": _metrics(window_s),
            "guards": _GUARDS,
            "unit": UNIT,
            "alias": ALIAS,
        },
    )


def _same(window_s: float) -> Chapter:
    return Chapter(
        name="demo-aa",
        title="The same version against itself",
        endpoint=ENDPOINT,
        model=MODEL,
        share=0.3,
        good=("promoted", "running", "held"),
        claims=False,
        document={
            "schema": 1,
            "endpoint": ENDPOINT,
            "variants": [{"name": "a", "version": 2}, {"name": "the-same", "version": 2}],
            "strategy": {"kind": "fixed", "weights": {"a": 5_000, "the-same": 5_000}},
            "metrics": _metrics(window_s),
            "guards": _GUARDS,
            "unit": UNIT,
            "alias": ALIAS,
            "promote": "never",
        },
    )


def _drill() -> Chapter:
    return Chapter(
        name="demo-drill",
        title="A version that is broken on purpose",
        endpoint=DRILL_ENDPOINT,
        model=DRILL,
        share=0.1,
        good=("rolled_back",),
        document={
            "schema": 1,
            "endpoint": DRILL_ENDPOINT,
            "variants": [{"name": "sound", "version": 1}, {"name": "broken", "version": 2}],
            "strategy": {"kind": "ramp", "steps": [500, 2_500], "control": "remaining"},
            "guards": [
                {"name": "invalid", "event": "invalid_output"},
                {"name": "slow", "event": "slow", "over_ms": SLOW_MS},
            ],
            "unit": None,
            "alias": ALIAS,
        },
    )
