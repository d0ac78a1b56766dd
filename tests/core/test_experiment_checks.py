from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.compare import Tolerance
from gateway.core.endpoints import UnitKey
from gateway.core.errors import InvalidRequest
from gateway.core.experiment_checks import check_experiment
from gateway.core.experiments import (
    Bandit,
    ExperimentVariant,
    Fixed,
    Guard,
    Metric,
    Ramp,
    Segment,
    ShadowStage,
)
from gateway.core.targeting import Condition
from tests.experiments import ERRORS, EVEN, experiment_of

GOAL = Metric(name="delay", outcome="arrived")
THREE = tuple(ExperimentVariant(name=name, version=1) for name in "abc")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"strategy": Ramp(steps=(100, 1_000, 5_000))},
        {"strategy": Ramp(steps=(100, 10_000), control="remaining", risk_budget=5.0)},
        {"strategy": Bandit(), "metrics": (GOAL,)},
        {"variants": THREE, "strategy": Fixed(weights={"a": 5_000, "b": 2_500, "c": 2_500})},
        {"guards": (Guard(name="slow", event="slow", over_ms=20.0),)},
        {"guards": tuple(Guard(name=f"g{n}", event="error") for n in range(15))},
        {"guards": (), "promote": "never"},
        {"guards": (), "metrics": (GOAL,)},
        {"unit": None},
        {"unit": UnitKey(parameter="user")},
        {"shadow": ShadowStage(share=500)},
        {"segment": Segment(header="X-Country", values=("de", "fr"))},
        {"layer": "pricing", "layer_share": 2_500},
        {"hold_out": 200, "hold_out_s": 3_600.0},
        {
            "metrics": (
                Metric(name="loss", outcome="late", score="log_loss", scalar="p:1"),
                Metric(name="rate", outcome="bought", kind="ratio", denominator="seen"),
                Metric(name="calm", outcome="stress", covariate="p:0", role="watch"),
            )
        },
    ],
)
def test_sound_documents_are_taken(fields: dict[str, Any]) -> None:
    """Every strategy, guard and kind of metric has a document that is in order."""
    check_experiment("x", experiment_of(**fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"shadow": ShadowStage(max_disagreed=0.0)}, "no number of answers can be certain"),
        ({"endpoint": "a b"}, "cannot name an endpoint"),
        ({"variants": THREE[:1]}, "2 to 20 variants"),
        ({"variants": THREE[:1] * 2}, "two variants are named 'a'"),
        ({"variants": (ExperimentVariant(name="default", version=1), *THREE)}, "'default' names"),
        ({"variants": (ExperimentVariant(name="z"), *THREE)}, "exactly one of 'version'"),
        ({"strategy": Fixed(weights={"control": 10_000})}, "each variant its weight"),
        ({"strategy": Fixed(weights={**EVEN, "control": 4_999})}, "add up to 9999"),
        ({"strategy": Fixed(weights={"control": 10_000, "candidate": 0})}, "must be 1 to"),
        ({"strategy": Fixed(weights=EVEN, exposure=10_001)}, "exposure is 10001"),
        ({"strategy": Ramp(steps=())}, "1 to 50 steps"),
        ({"strategy": Ramp(steps=(100, 100))}, "must grow, and 100 comes after 100"),
        ({"strategy": Ramp(steps=(6_000,))}, "a step is 6000; it must be 1 to 5000"),
        ({"strategy": Ramp(steps=(100,)), "variants": THREE}, "two variants"),
        ({"strategy": Ramp(steps=(100,), dwell_s=float("nan"))}, "dwell_s is nan"),
        ({"strategy": Ramp(steps=(100,), risk_budget=0.0)}, "must be above 0"),
        ({"strategy": Bandit(floor=5_001), "metrics": (GOAL,)}, "floor is 5001"),
        ({"strategy": Bandit()}, "learns from its first goal"),
        (
            {"strategy": Bandit(), "metrics": (replace(GOAL, kind="quantile"),)},
            "its first goal cannot be a quantile",
        ),
        ({"guards": tuple(Guard(name=f"g{n}", event="error") for n in range(16))}, "at most 15"),
        ({"guards": (ERRORS, ERRORS)}, "are named 'errors'"),
        ({"guards": (Guard(name="slow", event="slow"),)}, "'slow' needs it"),
        ({"guards": (Guard(name="e", event="error", over_ms=1.0),)}, "belongs to 'slow'"),
        ({"guards": (Guard(name="e", event="error", tolerance=0.5),)}, "tolerance is 0.5"),
        ({"guards": (Guard(name="e", event="error", allowed=1.0),)}, "must be above 1"),
        ({"guards": (Guard(name="e", event="error", alpha=0.0),)}, "alpha is 0.0"),
        ({"guards": ()}, "nothing could certify a promotion"),
        ({"metrics": (Metric(name="m", outcome=""),)}, "outcome holds 1 to 128"),
        ({"metrics": (Metric(name="m", outcome="o", kind="ratio"),)}, "a ratio needs it"),
        ({"metrics": (Metric(name="m", outcome="o", denominator="d"),)}, "belongs to a ratio"),
        ({"metrics": (Metric(name="m", outcome="o", score="correct"),)}, "'scalar' names"),
        ({"metrics": (Metric(name="m", outcome="o", scalar="p"),)}, "'scalar' names"),
        ({"metrics": (Metric(name="m", outcome="o", covariate="p:x"),)}, "'output:column'"),
        (
            {"metrics": (Metric(name="m", outcome="o", kind="quantile", covariate="p"),)},
            "takes no covariate",
        ),
        ({"metrics": (Metric(name="m", outcome="o", margin=-1.0),)}, "margin is -1.0"),
        ({"metrics": (Metric(name="m", outcome="o", margin=float("inf")),)}, "margin is inf"),
        ({"metrics": (Metric(name="m", outcome="o", window_s=0.0),)}, "window_s is 0.0"),
        ({"metrics": (Metric(name="m", outcome="o", maturity_s=1e9),)}, "maturity_s is"),
        ({"metrics": (Metric(name="m", outcome="o", quantile=1.0),)}, "below 1"),
        ({"metrics": (Metric(name="m", outcome="o", planned_units=0),)}, "planned_units is 0"),
        ({"unit": UnitKey()}, "'unit' names exactly one"),
        ({"when": (Condition(header="a"),)}, "compares with exactly one"),
        ({"when": (Condition(header="a", equals=1),) * 21}, "at most 20 conditions"),
        ({"shadow": ShadowStage(share=0)}, "share is 0"),
        ({"shadow": ShadowStage(tolerance=Tolerance(absolute=-1.0))}, "finite numbers from 0"),
        ({"segment": Segment(values=("a",))}, "exactly one of 'header' and 'parameter'"),
        ({"segment": Segment(header="h")}, "1 to 50 values"),
        ({"segment": Segment(header="h", values=("a", "a"))}, "two values are named 'a'"),
        ({"layer_share": 500}, "name the layer"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"beta": 0.6}, "beta is 0.6"),
        ({"srm_alpha": float("nan")}, "srm_alpha is nan"),
        ({"max_contaminated": 1.5}, "max_contaminated is 1.5"),
        ({"deadline_s": 0.0}, "deadline_s is 0.0"),
        ({"hold_out": 100}, "are given together"),
        ({"hold_out": 5_001, "hold_out_s": 1.0}, "hold_out is 5001"),
    ],
)
def test_unsound_documents_are_refused_with_a_sentence(fields: dict[str, Any], said: str) -> None:
    """The first fault is told, and where it stands."""
    with pytest.raises(InvalidRequest) as refused:
        check_experiment("x", experiment_of(**fields))
    assert said in str(refused.value)
    assert str(refused.value).endswith(".")


def test_a_name_that_no_url_would_hold_is_refused() -> None:
    """Names are checked as those of models and endpoints are."""
    with pytest.raises(InvalidRequest, match="cannot name an experiment"):
        check_experiment("../x", experiment_of())
