from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.assignment import SCALE, Reason, positions, reweigh
from gateway.core.endpoints import Endpoint, EndpointRecord, Rule, Target, UnitKey
from gateway.core.errors import InvalidRequest
from gateway.core.experiments import (
    ExperimentRecord,
    Guard,
    HoldOut,
    Layer,
    Metric,
    Phase,
    Segment,
    ShadowStage,
    State,
)
from gateway.core.plans import Assignment, Plan, Variant, assign, force, shares
from gateway.core.snapshot import check, plan_of
from gateway.core.targeting import Condition
from tests.core.test_plans import DRAW, Request
from tests.experiments import EVEN, experiment_of, record_of, with_study

UNITS = [f"unit-{number}" for number in range(2_000)]
LAYERS = {"pricing": Layer(salt="layer")}


def planned(*records: ExperimentRecord, **fields: Any) -> Plan:
    """The plan of endpoint `m` under these experiments, which are in order."""
    snapshot = with_study(*records, **fields)
    check(snapshot)
    return plan_of(snapshot, "m")


def given_to(plan: Plan, unit: str, **headers: str) -> Assignment:
    """What a unit gets."""
    return assign(plan, Request({"x-unit-id": unit, **headers}), DRAW)


def moved(record: ExperimentRecord, exposure: int, **weights: int) -> ExperimentRecord:
    """The record after another phase began."""
    shares = weights or dict(record.phases[-1].weights)
    return replace(
        record,
        exposure=exposure,
        split=reweigh(record.split, shares),
        phases=(
            *record.phases,
            Phase(record.phases[-1].number + 1, 200.0, exposure, shares),
        ),
    )


def test_a_unit_gets_the_variant_that_hashlib_gives_it() -> None:
    """Experiments draw as splits do, with the share of the enrolled as propensity."""
    plan = planned(record_of(exposure=4_000, weights={"control": 7_500, "candidate": 2_500}))
    for unit in UNITS[:200]:
        at = positions("study", unit.encode())
        got = given_to(plan, unit)
        if at.enrolment >= 4_000:
            assert got == Assignment(Variant("default", 1), Reason.DEFAULT)
        else:
            name, part = ("control", 0.75) if at.variant < 7_500 else ("candidate", 0.25)
            version = {"control": 1, "candidate": 2}[name]
            assert got == Assignment(
                Variant(name, version),
                Reason.SPLIT,
                part,
                "x0",
                "study",
                unit.encode(),
                sticky=True,
            )


@settings(max_examples=30, deadline=None)
@given(
    before=st.integers(0, SCALE),
    after=st.integers(0, SCALE),
    candidate=st.integers(1, SCALE - 1),
    salt=st.text(min_size=1, max_size=8),
)
def test_a_growing_exposure_moves_no_enrolled_unit(
    before: int, after: int, candidate: int, salt: str
) -> None:
    """Whoever is enrolled keeps the variant, and only units of the default come in."""
    weights = {"control": SCALE - candidate, "candidate": candidate}
    small, large = sorted((before, after))
    record = record_of(salt=salt, exposure=small, weights=weights)
    first, second = planned(record), planned(moved(record, large))
    for unit in UNITS[:300]:
        one, two = given_to(first, unit), given_to(second, unit)
        if one.rule == "x0":
            assert two == one


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.integers(1, SCALE), min_size=2, max_size=6, unique=True))
def test_a_growing_candidate_takes_from_the_control_only_what_it_must(steps: list[int]) -> None:
    """With all remaining traffic as control a unit moves once at most, and never back."""
    first, *rest = sorted(steps)
    record = record_of(weights={"control": SCALE - first, "candidate": first})
    plans = [planned(record)]
    for step in rest:
        record = moved(record, SCALE, control=SCALE - step, candidate=step)
        plans.append(planned(record))
    for unit in UNITS[:200]:
        names = [given_to(plan, unit).variant.name for plan in plans]
        assert names == sorted(names, reverse=True)  # control, then candidate


def test_a_request_without_the_unit_goes_on() -> None:
    """It is nobody's, so it cannot be enrolled; a blank unit is none."""
    plan = planned(record_of())
    for request in (Request(), Request({"x-unit-id": "  "})):
        assert assign(plan, request, DRAW) == Assignment(Variant("default", 1), Reason.DEFAULT)


def test_a_unit_that_is_too_long_is_refused() -> None:
    """As by splits."""
    with pytest.raises(InvalidRequest, match="1025 bytes"):
        given_to(planned(record_of()), "u" * 1_025)


@pytest.mark.parametrize(
    ("key", "request_"),
    [
        (UnitKey(parameter="user"), Request(parameters={"user": "u7"})),
        (UnitKey(input="id"), Request(tensors={"id": np.array([b"u7"], dtype=object)})),
        (UnitKey(header="X-User"), Request({"x-user": "u7"})),
    ],
)
def test_units_are_read_from_wherever_the_document_says(key: UnitKey, request_: Request) -> None:
    """From a header, a parameter or an input."""
    got = assign(planned(record_of(experiment_of(unit=key))), request_, DRAW)
    assert (got.rule, got.unit, got.sticky) == ("x0", b"u7", True)


def test_without_a_unit_every_request_is_one() -> None:
    """The fresh bytes of the request decide, whoever sends it."""
    plan = planned(record_of(experiment_of(unit=None), exposure=5_000))
    given_out = [
        assign(plan, Request({"x-unit-id": "same"}), number.to_bytes(8, "big"))
        for number in range(2_000)
    ]
    enrolled = [one for one in given_out if one.rule == "x0"]
    assert 900 < len(enrolled) < 1_100
    assert {one.variant.name for one in enrolled} == {"control", "candidate"}
    assert not any(one.sticky for one in enrolled)


def test_conditions_choose_who_is_enrolled() -> None:
    """Whom they do not fit goes on."""
    plan = planned(record_of(experiment_of(when=(Condition(header="x-plan", equals="gold"),))))
    assert given_to(plan, "u").rule is None
    assert given_to(plan, "u", **{"x-plan": "gold"}).rule == "x0"


def test_the_endpoints_own_rules_come_first() -> None:
    """An experiment enrols of what they leave."""
    gold = Rule("gold", (Condition(header="x-plan", equals="gold"),), Target(version=3))
    document = Endpoint(schema=1, model="m", rules=(gold,))
    plan = planned(record_of(), endpoints={"m": EndpointRecord(document=document)})
    assert given_to(plan, "u", **{"x-plan": "gold"}).rule == "gold"
    assert given_to(plan, "u").rule == "x0"


def test_experiments_of_a_layer_exclude_each_other_and_keep_their_odds() -> None:
    """A unit is in one of them at most; within each, variants are drawn as without the layer."""
    one = record_of(
        experiment_of(layer="pricing", layer_share=4_000), salt="one", slots=((0, 4_000),)
    )
    two = record_of(
        experiment_of(layer="pricing", layer_share=3_000),
        salt="two",
        slots=((4_000, 5_000), (6_000, 8_000)),
    )
    plan = planned(one, two, layers=LAYERS)
    seen = Counter((given_to(plan, u).rule, given_to(plan, u).variant.name) for u in UNITS)
    for unit in UNITS:
        place = positions("layer", unit.encode()).variant
        inside = {"x0": place < 4_000, "x1": 4_000 <= place < 5_000 or 6_000 <= place < 8_000}
        assert given_to(plan, unit).rule == next((n for n, holds in inside.items() if holds), None)
    assert abs(seen["x0", "control"] - 400) < 80
    assert abs(seen["x1", "candidate"] - 300) < 70


def test_a_layer_keeps_apart_across_endpoints() -> None:
    """No unit is in two experiments of a layer, wherever they run."""
    one = record_of(
        experiment_of(layer="pricing", layer_share=5_000), salt="one", slots=((0, 5_000),)
    )
    two = record_of(
        experiment_of(endpoint="e", layer="pricing", layer_share=5_000),
        salt="two",
        slots=((5_000, 10_000),),
    )
    endpoints = {"e": EndpointRecord(document=Endpoint(schema=1, model="m"))}
    snapshot = with_study(one, two, layers=LAYERS, endpoints=endpoints)
    first, second = plan_of(snapshot, "m"), plan_of(snapshot, "e")
    for unit in UNITS:
        assert (given_to(first, unit).rule is None) != (given_to(second, unit).rule is None)


def test_units_of_the_hold_out_are_in_no_experiment() -> None:
    """Their share is that of the hold-out, and the others draw as before."""
    out = HoldOut(salt="out", share=2_000)
    plain, held = planned(record_of()), planned(record_of(), hold_out=out)
    for unit in UNITS:
        if positions("out", unit.encode()).enrolment < 2_000:
            assert given_to(held, unit).rule is None
        else:
            assert given_to(held, unit) == given_to(plain, unit)


def test_the_segment_is_told_with_the_assignment() -> None:
    """By its index in the document, 0 for all that is not listed."""
    segment = Segment(header="X-Country", values=("de", "fr"))
    plan = planned(record_of(experiment_of(segment=segment)))
    told = [given_to(plan, "u", **{"x-country": c}).segment for c in ("de", "fr", "es")]
    assert [*told, given_to(plan, "u").segment] == [1, 2, 0, 0]
    numbered = Segment(parameter="tier", values=("1", "2"))
    plan = planned(record_of(experiment_of(segment=numbered)))
    assert assign(plan, Request({"x-unit-id": "u"}, {"tier": 2}), DRAW).segment == 2


def test_versions_of_the_record_are_served_whatever_aliases_say() -> None:
    """A promotion does not change the control under study."""
    snapshot = with_study(record_of(versions={"control": 3, "candidate": 2}))
    plan = plan_of(snapshot, "m")
    assert {given_to(plan, unit).variant for unit in UNITS[:50]} == {
        Variant("control", 3),
        Variant("candidate", 2),
    }
    assert plan.versions == {1, 2, 3}


@pytest.mark.parametrize("state", list(State))
def test_units_are_enrolled_in_the_states_that_say_so(state: State) -> None:
    """Held, paused and holding out go on as they are; drafts and what has ended do not."""
    enrolling = {State.RUNNING, State.HELD, State.PAUSED, State.HOLDING_OUT}
    plan = planned(record_of(state=state))
    assert {given_to(plan, u).rule for u in UNITS[:20]} == {"x0" if state in enrolling else None}


def test_in_the_shadow_stage_candidates_get_copies_and_nobody_is_enrolled() -> None:
    """With the share and the tolerance of the document, and the phase to note findings under."""
    stage = ShadowStage(share=2_500)
    plan = planned(record_of(experiment_of(shadow=stage), state=State.SHADOW, exposure=0))
    assert given_to(plan, "u") == Assignment(Variant("default", 1), Reason.STATIC)
    (shadow,) = plan.shadows
    assert (shadow.variant, shadow.share) == (Variant("candidate", 2), 2_500)
    assert shadow.tolerance == stage.tolerance
    assert shadow.study is not None
    assert (shadow.study.phase, shadow.study.variants["candidate"]) == (7, 1)
    assert planned(record_of(experiment_of(shadow=stage))).shadows == ()


def test_variants_can_be_forced_by_their_own_name_or_the_experiments() -> None:
    """Forced traffic is in no experiment; a name with two meanings is told in full."""
    slots = [((0, 5_000),), ((5_000, 10_000),)]
    one, two = (
        record_of(
            experiment_of(layer="pricing", layer_share=5_000),
            salt=f"{number}",
            slots=slots[number],
            versions={"control": 1, "candidate": 2 + number},
        )
        for number in (0, 1)
    )
    plan = planned(one, two, layers=LAYERS)
    assert force(plan, "candidate") == Assignment(Variant("candidate", 2), Reason.FORCED)
    assert force(plan, "x1/candidate").variant.version == 3


def test_expected_shares_are_those_of_the_enrolled() -> None:
    """For whoever compares them with what was counted."""
    weights = {"control": 7_500, "candidate": 2_500}
    plan = planned(record_of(exposure=100, weights=weights))
    assert shares(plan) == {"x0": {"control": 0.75, "candidate": 0.25}}


def test_only_a_guard_on_outputs_has_them_looked_at() -> None:
    """All others pay nothing for it."""
    assert not planned(record_of()).watches_outputs
    document = experiment_of(guards=(Guard(name="nan", event="invalid_output"),))
    assert planned(record_of(document)).watches_outputs


def test_units_are_counted_without_names_where_each_is_a_request() -> None:
    """Also where silence means something: folding tells the silent by their number."""

    def is_counted(**fields: Any) -> bool:
        return planned(record_of(experiment_of(**fields))).experiments[0].study.is_counted

    assert is_counted(unit=None)
    assert not is_counted()
    silent = Metric(name="q", outcome="bought", silence="default")
    assert is_counted(unit=None, metrics=(silent,))


def test_an_endpoint_without_experiments_has_the_plan_it_had() -> None:
    """Experiments elsewhere cost it nothing."""
    endpoints = {"e": EndpointRecord(document=Endpoint(schema=1, model="m"))}
    plan = plan_of(with_study(record_of(weights=EVEN), endpoints=endpoints), "e")
    assert plan.experiments == ()
    assert given_to(plan, "u") == Assignment(Variant("default", 1), Reason.STATIC)
