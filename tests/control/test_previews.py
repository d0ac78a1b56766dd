from gateway.control.previews import ExperimentPreview, VariantPreview, preview_of
from gateway.core.endpoints import Endpoint, Rule, Target
from gateway.core.targeting import Condition
from gateway.core.transitions import put_endpoint
from tests.experiments import record_of, with_study


def test_a_preview_shows_the_experiments_behind_the_rules() -> None:
    """Whoever edits an endpoint sees who else decides."""
    base = with_study(record_of(exposure=2_000, weights={"control": 7_500, "candidate": 2_500}))
    gold = Rule("gold", (Condition(header="x-plan", equals="gold"),), Target(version=3))
    changed = put_endpoint(base, "m", Endpoint(schema=1, model="m", rules=(gold,)), {})
    preview = preview_of(base, changed, "m", None)
    assert [rule.name for rule in preview.rules] == ["gold"]
    assert preview.experiments == (
        ExperimentPreview(
            "x0",
            "running",
            7,
            0.2,
            (
                VariantPreview("control", 1, 0.75, ((0, 7_500),)),
                VariantPreview("candidate", 2, 0.25, ((7_500, 10_000),)),
            ),
        ),
    )
