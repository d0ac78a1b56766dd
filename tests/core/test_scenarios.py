"""Worlds to try documents in."""

import pytest

from gateway.core.errors import InvalidRequest
from gateway.core.experiments import Experiment, ExperimentVariant, Fixed, Guard, Metric
from gateway.core.scenarios import Base, scenario_of

DOCUMENT = Experiment(
    schema=1,
    endpoint="e",
    variants=(ExperimentVariant(name="a", version=1), ExperimentVariant(name="b", version=2)),
    strategy=Fixed(weights={"a": 5_000, "b": 5_000}),
    metrics=(
        Metric(name="bought", outcome="o", kind="binary", margin=0.02),
        Metric(name="loss", outcome="o", direction="decrease", margin=0.1, role="guardrail"),
    ),
    guards=(Guard(name="errors", event="error", allowed=1.5),),
)
BASE = Base(rates={"errors": 0.04}, values={"loss": (2.0, 0.5)})


def test_in_the_same_world_nothing_differs() -> None:
    """Both variants have one truth."""
    truths = scenario_of("same", DOCUMENT, BASE).truths
    assert truths["a"] == truths["b"]
    assert truths["a"].events == {"errors": 0.04}
    assert truths["a"].metrics["loss"].mean == 2.0
    assert truths["a"].metrics["bought"].mean == BASE.share


def test_at_the_margin_everything_is_worse_by_it() -> None:
    """Each metric against its direction, each guard by the ratio that it allows."""
    truths = scenario_of("margin", DOCUMENT, BASE).truths
    assert truths["b"].metrics["bought"].mean == pytest.approx(BASE.share - 0.02)
    assert truths["b"].metrics["loss"].mean == pytest.approx(2.1)
    assert truths["b"].events["errors"] == pytest.approx(0.06)
    assert truths["a"] == scenario_of("same", DOCUMENT, BASE).truths["a"]


def test_better_moves_goals_only() -> None:
    """Guardrails and guards stay as they are."""
    truths = scenario_of("better", DOCUMENT, BASE).truths
    assert truths["b"].metrics["bought"].mean == pytest.approx(BASE.share + 0.04)
    assert truths["b"].metrics["loss"] == truths["a"].metrics["loss"]
    assert truths["b"].events == truths["a"].events


def test_harm_is_five_times_the_events_and_never_more_than_all() -> None:
    """A share cannot pass one."""
    truths = scenario_of("harm", DOCUMENT, Base(rates={"errors": 0.4})).truths
    assert truths["b"].events["errors"] == 1.0
    assert scenario_of("harm", DOCUMENT, BASE).truths["b"].events["errors"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("base", "told"),
    [
        (Base(rates={"other": 0.1}), "no guard 'other'"),
        (Base(values={"errors": (1.0, 1.0)}), "no metric 'errors'"),
    ],
)
def test_what_the_document_does_not_have_cannot_be_assumed(base: Base, told: str) -> None:
    """A name that is written wrongly would change nothing, silently."""
    with pytest.raises(InvalidRequest, match=told):
        scenario_of("same", DOCUMENT, base)
