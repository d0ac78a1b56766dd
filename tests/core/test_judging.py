import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.experiments import (
    Bandit,
    ExperimentRecord,
    Fixed,
    Metric,
    Phase,
    Ramp,
    ShadowStage,
    State,
)
from gateway.core.judging import decide
from gateway.core.readings import Cause, Decision, Verdict
from gateway.core.stats.moments import Comoments
from gateway.core.stepping import next_record
from gateway.core.tallies import Evidence, MetricTally, ShadowCell
from tests.studies import ERRORS, EVEN, SALES, cell, experiment, hits, running, seen

RAMP = Ramp((500, 1_000, 5_000), dwell_s=60, min_units=100)
QUIET = seen(cell(0, 2_000), cell(1, 2_000))
"""No errors in either arm, enough to certify that they are negligible."""
BROKEN = seen(cell(0, 1_000, events=[5]), cell(1, 1_000, events=[60]))
ALIKE = seen(cell(0, 20_000, sales=hits(20_000, 6_000)), cell(1, 20_000, sales=hits(20_000, 6_010)))
FEW = seen(cell(0, 300, sales=hits(300, 90)), cell(1, 300, sales=hits(300, 91)))
SKEWED = seen(cell(0, 5_000), cell(1, 6_000))


def after(record: ExperimentRecord, evidence: Evidence, now: float) -> ExperimentRecord:
    """The record after a look."""
    decision, number = decide(record, evidence, now), len(record.phases) + 1
    return next_record(record, decision, at=now, number=number, champion=None)


def test_evidence_of_harm_by_a_guard_rolls_back() -> None:
    """Twelve times the errors need no goal to be judged by."""
    decision = decide(running(experiment(RAMP)), BROKEN, 10.0)

    assert (decision.state, decision.reason) == (State.ROLLED_BACK, Cause.HARM)
    assert decision.verdicts == {"errors/b": "worse"}
    assert "'b' does harm by 'errors'" in decision.detail


@pytest.mark.parametrize("role", ["goal", "guardrail"])
def test_evidence_of_a_loss_beyond_the_margin_rolls_back(role: str) -> None:
    """Goals are protected as guardrails are."""
    metric = msgspec.convert({**msgspec.to_builtins(SALES), "role": role}, Metric)
    record = running(experiment(guards=(), metrics=(metric,)))
    lost = seen(cell(0, 5_000, sales=hits(5_000, 1_500)), cell(1, 5_000, sales=hits(5_000, 1_000)))

    decision = decide(record, lost, 10.0)

    assert (decision.state, decision.reason) == (State.ROLLED_BACK, Cause.HARM)


def test_a_loss_of_all_units_is_harm_though_none_differs_from_the_others() -> None:
    """Each arm is without any spread: all of the control's units buy, and nobody else."""
    record = running(experiment(guards=(), metrics=(SALES,)))
    lost = seen(cell(0, 300, sales=hits(300, 300)), cell(1, 300, sales=hits(300, 0)))
    alike = seen(cell(0, 300, sales=hits(300, 300)), cell(1, 300, sales=hits(300, 300)))

    assert decide(record, lost, 10.0).state is State.ROLLED_BACK
    assert decide(record, alike, 10.0).verdicts == {"sales/b": "inconclusive"}


def test_a_metric_that_is_only_watched_neither_rolls_back_nor_blocks() -> None:
    """It has a verdict, and nothing follows from it."""
    watched = replace(SALES, role="watch")
    record = running(experiment(metrics=(watched,)))
    lost = seen(cell(0, 5_000, sales=hits(5_000, 1_500)), cell(1, 5_000, sales=hits(5_000, 1_000)))

    decision = decide(record, lost, 10.0)

    assert decision.state is State.PROMOTED
    assert decision.verdicts["sales/b"] == "worse"


def test_outcomes_beyond_arithmetic_do_not_blind_the_guards() -> None:
    """One who reports denominators of nearly nothing gets no ratio, and shields nobody."""
    rate = Metric("rate", "clicks", kind="ratio", denominator="views", margin=0.1)
    score = Metric("score", "score", margin=0.1, covariate="output")
    tiny = Comoments.of([(1.0, 1e-250), (2.0, 3e-250)] * 500)
    huge = Comoments.of([(1e100, 1.0), (1e100, 2.0)] * 500)
    low = Comoments.of([(-1e100, 1.0), (-1e100, 2.0)] * 500)
    record = running(experiment(metrics=(rate, score)))
    arms = [
        cell(
            place,
            1_000,
            events=[events],
            rate=MetricTally(1_000, pair=tiny),
            score=MetricTally(1_000, moments=pair.y, pair=pair),
        )
        for place, events, pair in ((0, 5, huge), (1, 60, low))
    ]

    decision = decide(record, seen(*arms), 10.0, display=True)

    assert decision.state is State.ROLLED_BACK
    assert "'b' does harm by 'errors'" in decision.detail


def test_a_loss_within_the_margin_is_no_harm() -> None:
    """The margin is what may be lost: sure to be a loss, and sure to be within it."""
    record = running(experiment(guards=(), metrics=(SALES,)))
    slight = seen(
        cell(0, 90_000, sales=hits(90_000, 27_000)), cell(1, 90_000, sales=hits(90_000, 25_650))
    )

    decision = decide(record, slight, 10.0)

    assert decision.state is State.PROMOTED
    assert decision.verdicts == {"sales/b": "equivalent"}


def test_certificates_for_guard_and_goal_promote() -> None:
    """Everything that gates is certified, so the one treatment wins."""
    record = running(experiment(metrics=(SALES,)))

    decision = decide(record, ALIKE, 10.0)

    assert (decision.state, decision.reason) == (State.PROMOTED, Cause.CERTIFIED)
    assert decision.winner == "b"


@pytest.mark.parametrize(
    "missing",
    [
        cell(1, 20_000, events=[200], sales=hits(20_000, 6_010)),
        cell(1, 20_000, sales=hits(90, 28)),
    ],
    ids=["the guard", "the goal"],
)
def test_nothing_is_promoted_without_the_certificate_of(missing: object) -> None:
    """One thing that is still open is enough to go on."""
    control = cell(0, 20_000, events=[200], sales=hits(20_000, 6_000))
    evidence = msgspec.convert(msgspec.to_builtins(seen(control)), Evidence)
    record = running(experiment(metrics=(SALES,)))

    decision = decide(record, replace(evidence, cells=(*evidence.cells, missing)), 10.0)

    assert decision.state is State.RUNNING
    assert "Not certified yet" in decision.detail


def test_an_experiment_that_measures_nothing_is_never_promoted() -> None:
    """No requirement is not a requirement that was met."""
    record = running(experiment(guards=()))

    assert decide(record, ALIKE, 1e6).state is State.RUNNING


def test_a_split_that_is_off_holds_and_makes_every_verdict_invalid() -> None:
    """The split is read first, and ends the reading."""
    record = running(experiment(metrics=(SALES,)))

    decision = decide(record, SKEWED, 10.0)

    assert (decision.state, decision.reason) == (State.HELD, "srm")
    assert set(decision.verdicts.values()) == {"invalid"}
    assert decision.funnel is not None
    assert decision.funnel.assigned.expected == {"a": 0.5, "b": 0.5}
    assert decision.funnel.assigned.p < 0.001


def test_only_people_lift_a_hold_for_a_broken_split() -> None:
    """Evidence that was enough once is enough, even if it fades."""
    record = running(experiment(), state=State.HELD, reason="srm")

    decision = decide(record, QUIET, 10.0)

    assert (decision.state, decision.reason) == (State.HELD, "srm")
    assert set(decision.verdicts.values()) == {"invalid"}


def test_a_broken_split_does_not_shield_a_broken_version() -> None:
    """Rates alone, without trust in the shares, show ten times the errors."""
    record = running(experiment())
    broken = seen(cell(0, 5_000, events=[50]), cell(1, 6_000, events=[600]))

    assert decide(record, broken, 10.0).state is State.ROLLED_BACK


def test_a_broken_split_is_no_harm_by_itself() -> None:
    """Twice the events by twice the units are no more errors per unit."""
    record = running(experiment())
    # Twice the events because of twice the units.
    doubled = seen(cell(0, 5_000, events=[100]), cell(1, 10_000, events=[200]))

    decision = decide(record, doubled, 10.0)

    assert (decision.state, decision.reason) == (State.HELD, "srm")


def test_units_that_get_no_answer_are_for_the_guards_to_judge() -> None:
    """That they are fewer is told in the funnel; what it means depends on their events."""
    record = running(experiment())
    unserved = seen(cell(0, 5_000), cell(1, 5_000, served=4_000, received=4_900))

    decision = decide(record, unserved, 10.0)

    assert decision.funnel is not None
    assert decision.funnel.served.is_off
    assert decision.state is State.PROMOTED


def test_outcomes_that_come_for_one_variant_only_hold() -> None:
    """Who is not told of may differ, so metrics are invalid; guards are not."""
    record = running(experiment(metrics=(SALES,)))
    untold = seen(
        cell(0, 5_000, received=5_000, sales=hits(5_000, 1_500)),
        cell(1, 5_000, received=4_000, sales=hits(4_000, 1_200)),
    )

    decision = decide(record, untold, 10.0)

    assert (decision.state, decision.reason) == (State.HELD, "missing_outcomes")
    assert decision.verdicts == {"errors/b": "equivalent", "sales/b": "invalid"}


BOUGHT = replace(SALES, silence="default")
"""Told only when somebody buys."""


def test_outcomes_that_come_because_of_the_effect_are_no_missing_ones() -> None:
    """Silence is a value here, so the better variant is told of more often."""
    record = running(experiment(metrics=(BOUGHT,)))
    better = seen(
        cell(0, 20_000, received=4_000, sales=hits(20_000, 4_000)),
        cell(1, 20_000, received=5_000, sales=hits(20_000, 5_000)),
    )

    decision = decide(record, better, 10.0)

    assert decision.verdicts["sales/b"] == "better"
    assert decision.state is State.PROMOTED


def test_beside_them_outcomes_that_should_come_for_all_are_still_asked_for() -> None:
    """Labels of one variant get lost, while its sales are told as ever."""
    label = Metric("label", "label", kind="binary", margin=0.1)
    record = running(experiment(metrics=(BOUGHT, label)))
    lost = seen(
        cell(0, 5_000, received=5_000, sales=hits(5_000, 1_500), label=hits(5_000, 2_500)),
        cell(1, 5_000, received=5_000, sales=hits(5_000, 1_500), label=hits(4_000, 2_000)),
    )

    assert decide(record, lost, 10.0).reason == "missing_outcomes"


def test_each_metric_must_be_told_of_for_all_variants() -> None:
    """That some outcome came of every unit does not hide that one of two did not."""
    label = Metric("label", "label", kind="binary", margin=0.1)
    record = running(experiment(metrics=(SALES, label)))
    lost = seen(
        cell(0, 5_000, sales=hits(5_000, 1_500), label=hits(5_000, 2_500)),
        cell(1, 5_000, sales=hits(5_000, 1_500), label=hits(4_000, 2_000)),
    )

    assert decide(record, lost, 10.0).reason == "missing_outcomes"


def test_units_seen_under_two_variants_hold_beyond_the_allowed_share() -> None:
    """One and a half per cent are more than one."""
    record = running(experiment(metrics=(SALES,)))
    mixed = seen(cell(0, 1_000, contaminated=30), cell(1, 1_000))

    decision = decide(record, mixed, 10.0)

    assert (decision.state, decision.reason) == (State.HELD, "contamination")
    assert decision.verdicts["sales/b"] == "invalid"


REMAINING = Ramp((500, 5_000), control="remaining", dwell_s=1e6)
LATER = Phase(2, 100.0, 10_000, {"a": 5_000, "b": 5_000})
# The second step moved half of the control's units. What happens to them later is nobody's, so the
# control has half of the errors that the candidate has.
MOVED = (cell(0, 9_500, events=[500], contaminated=4_500), cell(1, 500, events=[50]))


def test_events_that_moved_units_take_away_with_them_are_no_harm() -> None:
    """Of units that stay, a step moves many if all the others are the control."""
    record = running(experiment(REMAINING), LATER, step=1)
    moved = seen(*MOVED, cell(0, 500, phase=2, events=[50]), cell(1, 500, phase=2, events=[50]))

    decision = decide(record, moved, 200.0)

    assert (decision.state, decision.reason) == (State.HELD, "contamination")
    assert decision.verdicts == {"errors/b": "invalid"}


def test_units_that_moved_do_not_shield_a_broken_version() -> None:
    """Those that came since the last change of weights were moved by nobody."""
    record = running(experiment(REMAINING), LATER, step=1)
    broken = seen(*MOVED, cell(0, 500, phase=2, events=[50]), cell(1, 500, phase=2, events=[400]))

    assert decide(record, broken, 200.0).state is State.ROLLED_BACK


def test_few_units_seen_under_two_variants_are_allowed() -> None:
    """Not even one per cent."""
    mixed = seen(cell(0, 2_000, contaminated=19), cell(1, 2_000, contaminated=20))

    assert decide(running(experiment()), mixed, 10.0).state is State.PROMOTED


def test_no_data_is_neither_a_pass_nor_a_failure() -> None:
    """After a minute without a unit there is a reason to hold."""
    record = running(experiment(RAMP, metrics=(SALES,)))

    assert decide(record, seen(), 59.0).state is State.RUNNING
    decision = decide(record, seen(), 60.0)

    assert (decision.state, decision.reason) == (State.HELD, "no_data")


def test_a_phase_without_units_of_its_own_holds_a_ramp() -> None:
    """It does not climb on what was seen before traffic stopped."""
    record = running(experiment(RAMP), Phase(2, 100.0, 2_000, {"a": 5_000, "b": 5_000}), step=1)

    assert decide(record, QUIET, 155.0).state is State.RUNNING
    assert decide(record, QUIET, 160.0).reason == "no_data"


def test_a_hold_ends_by_itself_when_its_reason_has_gone() -> None:
    """Units came, so the ramp goes on where it stood."""
    record = running(experiment(RAMP), state=State.HELD, reason="no_data")

    decision = decide(record, QUIET, 60.0)

    assert (decision.state, decision.reason, decision.step) == (State.RUNNING, "", 1)


def test_harm_rolls_back_on_hold_and_on_pause() -> None:
    """As long as units are assigned, they are protected."""
    held = running(experiment(), state=State.HELD, reason="inconclusive")
    paused = running(experiment(), state=State.PAUSED, reason="lunch")

    assert decide(held, BROKEN, 10.0).state is State.ROLLED_BACK
    assert decide(paused, BROKEN, 10.0).state is State.ROLLED_BACK


def test_on_pause_nothing_else_happens() -> None:
    """Certificates wait until somebody resumes it."""
    record = running(experiment(), state=State.PAUSED, reason="lunch")

    decision = decide(record, QUIET, 10.0)

    assert (decision.state, decision.reason) == (State.PAUSED, "lunch")


@pytest.mark.parametrize("state", [State.DRAFT, State.STOPPED, State.ROLLED_BACK, State.PROMOTED])
def test_what_does_not_run_stays_as_it_is(state: State) -> None:
    """It can still be read, for reports."""
    record = running(experiment(), state=state, reason="so")

    decision = decide(record, BROKEN, 10.0)

    assert (decision.state, decision.reason) == (state, "so")
    assert decision.verdicts == {"errors/b": "worse"}


def test_a_ramp_climbs_to_its_end_and_is_promoted() -> None:
    """One step per look, each with units of its own."""
    record = running(experiment(RAMP))
    states = []
    for number in range(1, 5):
        cells = [cell(v, 2_000, phase=p) for p in range(1, number + 1) for v in (0, 1)]
        record = after(record, seen(*cells), 60.0 * number)
        states.append((record.state, record.exposure))

    assert states == [
        (State.RUNNING, 2_000),
        (State.RUNNING, 10_000),
        (State.PROMOTED, 10_000),
        (State.PROMOTED, 10_000),
    ]


def test_a_risk_budget_climbs_before_certificates() -> None:
    """The worst case of the next step fits, so it is taken."""
    ramp = replace(RAMP, risk_budget=1_000.0)
    evidence = seen(cell(0, 2_000, events=[40]), cell(1, 2_000, events=[41]))

    assert decide(running(experiment(RAMP)), evidence, 60.0).step == 0
    assert decide(running(experiment(ramp)), evidence, 60.0).step == 1


def test_the_last_step_is_never_passed_on_a_risk_budget() -> None:
    """Promotion needs certificates."""
    ramp = replace(RAMP, risk_budget=1_000.0)
    evidence = seen(cell(0, 2_000, events=[40]), cell(1, 2_000, events=[41]))

    assert decide(running(experiment(ramp), step=2), evidence, 60.0).state is State.RUNNING


def test_promotion_waits_for_approval() -> None:
    """Certified, but somebody must agree."""
    record = running(experiment(promote="approval"))

    asked = decide(record, QUIET, 10.0)
    given = decide(replace(record, approved=True), QUIET, 10.0)

    assert (asked.state, asked.reason) == (State.HELD, "approval")
    assert given.state is State.PROMOTED


def test_promotion_may_be_left_to_people() -> None:
    """The certificate is told and nothing is done."""
    decision = decide(running(experiment(promote="never")), QUIET, 10.0)

    assert decision.state is State.RUNNING
    assert decision.detail == "'b' is certified."


@pytest.mark.parametrize(
    ("choice", "state", "reason"),
    [
        ("hold", State.HELD, "inconclusive"),
        ("rollback", State.ROLLED_BACK, "deadline"),
        ("ship", State.PROMOTED, "deadline"),
    ],
)
def test_after_the_deadline_happens_what_the_document_says(
    choice: str, state: State, reason: str
) -> None:
    """Held, rolled back or shipped, and always by choice."""
    document = experiment(metrics=(SALES,), deadline_s=100.0, on_deadline=choice)

    assert decide(running(document), FEW, 99.0).state is State.RUNNING
    decision = decide(running(document), FEW, 100.0)

    assert (decision.state, decision.reason) == (state, reason)


@pytest.mark.parametrize("choice", ["hold", "rollback", "ship"])
def test_a_deadline_without_data_of_a_goal_concludes_nothing(choice: str) -> None:
    """No data is no reason to ship, nor to roll back."""
    document = experiment(metrics=(SALES,), deadline_s=100.0, on_deadline=choice)

    decision = decide(running(document), QUIET, 100.0)

    assert (decision.state, decision.reason) == (State.HELD, "no_data")


@pytest.mark.parametrize("strategy", [RAMP, Fixed({"a": 5_000, "b": 5_000})])
def test_a_deadline_is_waited_for_anew_after_a_pause(strategy: Ramp | Fixed) -> None:
    """Who resumes what was paused for a day does not ship it at the next look."""
    document = experiment(strategy, metrics=(SALES,), deadline_s=100.0, on_deadline="ship")
    resumed = running(document, since=86_400.0, state=State.RUNNING)
    noisy = seen(
        cell(0, 500, events=[20], sales=hits(300, 90)),
        cell(1, 500, events=[20], sales=hits(300, 91)),
    )

    assert not decide(resumed, noisy, 86_499.0).moves(resumed)
    assert decide(resumed, noisy, 86_499.0).state is State.RUNNING
    later = decide(resumed, noisy, 86_500.0)
    assert later.state is State.PROMOTED or later.step == 1


def test_a_ramp_that_ships_after_its_deadline_takes_one_step() -> None:
    """Shipping skips certificates, not steps."""
    document = experiment(RAMP, deadline_s=100.0, on_deadline="ship")
    noisy = seen(cell(0, 500, events=[20]), cell(1, 500, events=[20]))

    decision = decide(running(document), noisy, 100.0)

    assert (decision.state, decision.step) == (State.RUNNING, 1)


def test_what_was_inconclusive_is_promoted_once_it_is_certified() -> None:
    """A hold after the deadline goes on looking."""
    document = experiment(metrics=(SALES,), deadline_s=100.0)
    record = running(document, state=State.HELD, reason="inconclusive")

    assert decide(record, FEW, 200.0).state is State.HELD
    assert decide(record, ALIKE, 200.0).state is State.PROMOTED


HOLD_OUT = experiment(hold_out=200, hold_out_s=1_000.0)
BEHIND = running(
    HOLD_OUT,
    Phase(2, 100.0, 10_000, {"a": 200, "b": 9_800}),
    state=State.HOLDING_OUT,
    reason="certified",
    since=100.0,
)


def test_a_promotion_may_leave_a_hold_out_behind() -> None:
    """All are enrolled, and a few stay with the control."""
    decision = decide(running(HOLD_OUT), QUIET, 10.0)

    assert (decision.state, decision.winner) == (State.HOLDING_OUT, "b")
    assert (decision.exposure, decision.weights) == (10_000, {"a": 200, "b": 9_800})


def test_late_outcomes_still_roll_back() -> None:
    """A loss that shows after the promotion is still a loss."""
    record = replace(BEHIND, document=replace(HOLD_OUT, metrics=(SALES,)))
    lost = seen(cell(0, 5_000, sales=hits(5_000, 1_500)), cell(1, 5_000, sales=hits(5_000, 1_000)))

    decision = decide(record, lost, 200.0)

    assert (decision.state, decision.reason) == (State.ROLLED_BACK, Cause.HARM)


def test_the_hold_out_ends_as_promoted() -> None:
    """When its time is over nothing is left to wait for."""
    assert decide(BEHIND, QUIET, 1_099.0).state is State.HOLDING_OUT
    assert decide(BEHIND, QUIET, 1_100.0).state is State.PROMOTED


def test_in_a_hold_out_events_of_units_that_were_moved_are_not_compared() -> None:
    """Where each request is a unit nobody is moved, and all events count."""
    # Since the promotion the control's earlier units have been served by the winner.
    moved = seen(
        cell(0, 5_000, events=[10]),
        cell(1, 5_000, events=[80]),
        cell(0, 20, phase=2),
        cell(1, 980, phase=2, events=[5]),
    )
    each = replace(BEHIND, document=replace(HOLD_OUT, unit=None))

    assert decide(BEHIND, moved, 200.0).state is State.HOLDING_OUT
    assert decide(each, moved, 200.0).state is State.ROLLED_BACK


def test_in_a_hold_out_units_that_were_moved_do_not_end_the_reading_of_outcomes() -> None:
    """Nearly all of the control's units come back to the winner; new ones still tell."""
    record = replace(BEHIND, document=replace(HOLD_OUT, metrics=(SALES,)))
    moved = (
        cell(0, 5_000, contaminated=4_000, sales=hits(5_000, 1_500)),
        cell(1, 5_000, sales=hits(5_000, 1_500)),
    )
    lost = (
        cell(0, 400, phase=2, sales=hits(400, 120)),
        cell(1, 19_600, phase=2, sales=hits(19_600, 2_000)),
    )

    assert decide(record, seen(*moved), 200.0).state is State.HOLDING_OUT
    assert decide(record, seen(*moved, *lost), 200.0).state is State.ROLLED_BACK


THREE = experiment(Fixed({"a": 4_000, "b": 3_000, "c": 3_000}), metrics=(SALES,), names="abc")


def test_of_several_treatments_a_harmful_one_is_taken_out() -> None:
    """Its weight goes to the control; the others stay as they are."""
    harmful = seen(cell(0, 4_000), cell(1, 3_000, events=[90]), cell(2, 3_000))

    decision = decide(running(THREE), harmful, 10.0)

    assert decision.state is State.RUNNING
    assert decision.weights == {"a": 7_000, "b": 0, "c": 3_000}


def test_what_was_taken_out_is_read_and_decides_nothing() -> None:
    """Neither its harm nor its units that had to move."""
    record = running(THREE, Phase(2, 10.0, 10_000, {"a": 7_000, "b": 0, "c": 3_000}))
    harmful = seen(
        cell(0, 4_000, sales=hits(4_000, 1_200)),
        cell(1, 3_000, events=[90], contaminated=3_000, sales=hits(3_000, 900)),
        cell(2, 3_000, sales=hits(3_000, 900)),
    )

    decision = decide(record, harmful, 20.0)

    assert decision.state is State.RUNNING
    assert decision.verdicts["errors/b"] == "worse"
    assert not decision.moves(record)


def test_without_any_treatment_left_it_is_rolled_back() -> None:
    """Both are harmful at the same look."""
    harmful = seen(cell(0, 4_000), cell(1, 3_000, events=[90]), cell(2, 3_000, events=[90]))

    assert decide(running(THREE), harmful, 10.0).state is State.ROLLED_BACK


def test_of_several_certified_treatments_the_best_is_promoted() -> None:
    """By the estimate of the first goal."""
    evidence = seen(
        cell(0, 40_000, sales=hits(40_000, 12_000)),
        cell(1, 30_000, sales=hits(30_000, 9_000)),
        cell(2, 30_000, sales=hits(30_000, 9_600)),
    )

    assert decide(running(THREE), evidence, 10.0).winner == "c"


def test_a_bandit_moves_its_weights_to_what_is_better() -> None:
    """Two standard errors are a chance of more than three quarters."""
    document = experiment(Bandit(every_s=900), metrics=(SALES,))
    evidence = seen(
        cell(0, 1_000, events=[20], sales=hits(1_000, 290)),
        cell(1, 1_000, events=[20], sales=hits(1_000, 310)),
    )

    decision = decide(running(document), evidence, 900.0)

    assert decision.state is State.RUNNING
    assert decision.weights["b"] > 7_500
    assert decision.moves(running(document))


def test_a_bandit_goes_on_learning_where_nothing_is_promoted() -> None:
    """A certificate is no reason to leave the weights as they are."""
    document = experiment(Bandit(every_s=900), metrics=(SALES,), promote="never")

    decision = decide(running(document), ALIKE, 900.0)

    assert decision.state is State.RUNNING
    assert decision.moves(running(document))


def clicks(per_view: float) -> MetricTally:
    """A ratio of 2,000 units, the half of which has four views and the other half two."""
    pair = Comoments.of([(views * per_view + off, views) for views in (2.0, 4.0) for off in NOISE])
    return MetricTally(pair.n, pair=pair)


NOISE = [0.1 * (place % 7 - 3) for place in range(1_000)]


def test_a_bandit_learns_a_ratio_from_both_of_its_parts() -> None:
    """The variant with as many clicks on fewer views is the better one."""
    rate = Metric("rate", "clicks", kind="ratio", denominator="views", margin=0.1)
    document = experiment(Bandit(every_s=900), metrics=(rate,), promote="never")
    fewer_views = replace(
        clicks(1.0),
        pair=Comoments.of([(2.0 * views + off, views) for views in (1.0, 2.0) for off in NOISE]),
    )
    evidence = seen(cell(0, 2_000, rate=clicks(1.0)), cell(1, 2_000, rate=fewer_views))

    assert decide(running(document), evidence, 900.0).weights["b"] == 9_500


def test_phases_with_other_weights_are_not_added_up() -> None:
    """Simpson's paradox, as every ramp makes it."""
    # The rate doubled with the second phase for both variants; adding up would blame the second.
    record = running(
        experiment(Fixed({"a": 9_000, "b": 1_000})),
        Phase(2, 100.0, 10_000, {"a": 1_000, "b": 9_000}),
    )
    evidence = seen(
        cell(0, 9_000, events=[90]),
        cell(1, 1_000, events=[10]),
        cell(0, 1_000, phase=2, events=[30]),
        cell(1, 9_000, phase=2, events=[270]),
    )

    decision = decide(record, evidence, 200.0)

    assert decision.state is State.RUNNING
    assert decision.verdicts == {"errors/b": "inconclusive"}


def test_an_outcome_of_a_phase_that_nobody_knows_is_not_counted() -> None:
    """There is no weight to compare it with."""
    evidence = seen(*QUIET.cells, cell(1, 900, phase=77, events=[900]))

    assert decide(running(experiment()), evidence, 10.0).state is State.PROMOTED


SHADOW = experiment(RAMP, shadow=ShadowStage(min_compared=200, dwell_s=10.0))


def shadowed(*counts: int) -> Evidence:
    """Evidence of a shadow: compared, disagreed, failed."""
    return Evidence(shadows=(ShadowCell(1, 1, *counts),))


@pytest.mark.parametrize(
    ("counts", "now", "state"),
    [
        ((400, 0, 0), 10.0, State.RUNNING),
        ((400, 0, 0), 9.0, State.SHADOW),
        ((150, 0, 0), 10.0, State.SHADOW),
        ((400, 18, 0), 10.0, State.SHADOW),
        ((400, 80, 0), 1.0, State.ROLLED_BACK),
        ((400, 0, 80), 1.0, State.ROLLED_BACK),
        ((0, 0, 0), 1e6, State.SHADOW),
    ],
)
def test_a_shadow_stage_is_passed_or_failed_on_evidence(
    counts: tuple[int, int, int], now: float, state: State
) -> None:
    """In between, and without any data, it goes on."""
    record = running(SHADOW, state=State.SHADOW)

    assert decide(record, shadowed(*counts), now).state is state


def test_a_passed_shadow_stage_opens_the_first_step() -> None:
    """Traffic follows as if it had just been started."""
    record = running(SHADOW, state=State.SHADOW)

    decision = decide(record, shadowed(400, 0, 0), 10.0)

    assert (decision.exposure, decision.weights) == (1_000, {"a": 5_000, "b": 5_000})


CASES = [
    (running(experiment(RAMP, metrics=(SALES,))), BROKEN),
    (running(experiment(metrics=(SALES,))), ALIKE),
    (running(experiment(metrics=(SALES,))), FEW),
    (running(experiment()), SKEWED),
    (running(THREE), seen(cell(0, 4_000), cell(1, 3_000, events=[90]), cell(2, 3_000))),
    (BEHIND, QUIET),
    (running(experiment()), seen()),
    (running(SHADOW, state=State.SHADOW), shadowed(400, 1, 0)),
]


@pytest.mark.parametrize(("record", "evidence"), CASES)
@pytest.mark.parametrize("display", [False, True])
def test_a_decision_read_back_and_made_again_is_the_same(
    record: ExperimentRecord, evidence: Evidence, display: bool
) -> None:
    """What the ledger stores is enough to replay it."""
    decision = decide(record, evidence, 123.4, display=display)
    stored = msgspec.json.encode((record, evidence, decision))

    again = msgspec.json.decode(stored, type=tuple[ExperimentRecord, Evidence, Decision])

    assert again == (record, evidence, decision)
    assert decide(again[0], again[1], 123.4, display=display) == decision


def test_a_decision_that_changes_nothing_is_nothing_to_commit() -> None:
    """A look that says nothing yet is no entry, and neither is a second one that says the same."""
    record = running(experiment(metrics=(SALES,)))
    assert not decide(record, FEW, 10.0).differs(record)

    said = replace(record, verdicts={"errors/b": "equivalent"})
    taken_back = decide(said, FEW, 10.0)
    assert taken_back.differs(said)
    assert not decide(replace(said, verdicts=taken_back.verdicts), FEW, 11.0).differs(
        replace(said, verdicts=taken_back.verdicts)
    )


COUNTS = st.tuples(
    st.integers(0, 3_000), st.integers(0, 3_000), st.integers(0, 60), st.integers(0, 60)
)


@settings(max_examples=150, deadline=None)
@given(COUNTS, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_what_is_told_for_display_changes_no_decision(
    counts: tuple[int, int, int, int], first: float, second: float
) -> None:
    """Ceilings stand in for e-values only where those cannot suffice."""
    old, new, *events = counts
    evidence = seen(
        cell(0, old, events=[min(events[0], old)], sales=hits(old, round(old * first))),
        cell(1, new, events=[min(events[1], new)], sales=hits(new, round(new * second))),
    )
    record = running(experiment(RAMP, metrics=(SALES,)))

    quick = decide(record, evidence, 60.0)
    full = decide(record, evidence, 60.0, display=True)

    assert (quick.state, quick.reason, quick.step) == (full.state, full.reason, full.step)
    assert quick.verdicts == full.verdicts
    for one, other in zip(quick.readings, full.readings, strict=True):
        assert one.harm.holds == other.harm.holds
        assert one.safe.holds == other.safe.holds
        assert one.harm.e >= other.harm.e * (1 - 1e-12)
    assert Verdict.BETTER not in {one.verdict for one in full.readings if one.role == "guard"}


def test_a_guard_may_have_a_risk_of_its_own() -> None:
    """A greater risk needs less evidence."""
    careless = replace(ERRORS, alpha=0.5)
    evidence = seen(cell(0, 500, events=[4]), cell(1, 500, events=[14]))

    assert decide(running(experiment(EVEN)), evidence, 1.0).state is State.RUNNING
    assert decide(running(experiment(guards=(careless,))), evidence, 1.0).state is State.ROLLED_BACK
