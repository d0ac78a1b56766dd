from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

from gateway.core.assignment import Reason, SplitState
from gateway.core.compare import Tolerance
from gateway.core.endpoints import (
    Caching,
    Endpoint,
    EndpointRecord,
    Recording,
    Rule,
    Shadow,
    Split,
    Target,
    UnitKey,
    Weighted,
    weights_of,
)
from gateway.core.errors import InvalidRequest, NotFound
from gateway.core.plans import (
    Assignment,
    Plan,
    ShadowPlan,
    Variant,
    assign,
    compile_plan,
    force,
    shares,
)
from gateway.core.targeting import Condition, Scalar
from gateway.core.tensors import Array

ALIASES = {"champion": 1, "challenger": 2}
DRAW = b"fresh random"


@dataclass
class Request:
    """What a request says of itself."""

    headers: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)

    def header(self, name: str) -> str | None:
        assert name == name.lower()
        return self.headers.get(name)

    def raw_header(self, name: bytes) -> bytes | None:
        value = self.header(name.decode("latin-1"))
        return None if value is None else value.encode("latin-1")


def planned(*rules: Rule, **more: Any) -> Plan:
    """The plan of an endpoint with these rules; the salt of a split is its rule's name."""
    splits = {
        rule.name: SplitState.fresh(salt=rule.name, hash_version=1, weights=weights_of(rule.split))
        for rule in rules
        if rule.split is not None
    }
    document = Endpoint(schema=1, model="m", rules=rules, **more)
    return compile_plan("e", EndpointRecord(document=document, splits=splits), ALIASES, 7)


def halves(exposure: int = 10_000, **unit: str) -> Split:
    """An even split over champion and challenger."""
    return Split(
        exposure=exposure,
        variants=(
            Weighted(name="a", weight=5000, alias="champion"),
            Weighted(name="b", weight=5000, alias="challenger"),
        ),
        unit=UnitKey(**unit) if unit else UnitKey(header="X-Unit-Id"),
    )


def drawn(salt: str, unit: bytes, exposure: int = 10_000) -> str:
    """The variant of an even split, by hashlib alone."""
    raw = blake2b(unit, digest_size=16, key=salt.encode(), person=b"tiltyard-split-1").digest()
    if int.from_bytes(raw[:8], "big") * 10_000 >> 64 >= exposure:
        return "default"
    return "a" if raw[8] < 128 else "b"


def texts(*values: bytes) -> Array:
    """A BYTES tensor."""
    return np.array(values, dtype=object)


def test_without_rules_the_default_answers() -> None:
    """An endpoint that has no rules is static: certain, unhashed and outside any rule."""
    assert assign(planned(), Request(), DRAW) == Assignment(
        variant=Variant("default", 1),
        reason=Reason.STATIC,
        propensity=1.0,
        rule=None,
        salt=None,
        unit=None,
        sticky=False,
        falls_back=False,
    )


GOLD = Condition(header="X-Plan", equals="gold")
ADULT = Condition(parameter="age", at_least=18)
LADDER = planned(
    Rule(name="both", when=(GOLD, ADULT), serve=Target(version=4)),
    Rule(name="gold", when=(GOLD,), serve=Target(alias="challenger"), on_error="fallback"),
    Rule(name="adult", when=(ADULT,), serve=Target(version=6)),
    default=Target(version=3),
)


@pytest.mark.parametrize(
    ("request_", "variant", "reason", "falls_back"),
    [
        pytest.param(
            Request({"x-plan": "gold"}, {"age": 18}),
            Variant("both", 4),
            Reason.TARGETING_MATCH,
            False,
            id="first-of-three",
        ),
        pytest.param(
            Request({"x-plan": "gold"}, {"age": 17}),
            Variant("gold", 2),
            Reason.TARGETING_MATCH,
            True,
            id="second",
        ),
        pytest.param(
            Request({}, {"age": 18}),
            Variant("adult", 6),
            Reason.TARGETING_MATCH,
            False,
            id="third",
        ),
        pytest.param(
            Request({"x-plan": "Gold"}, {"age": "old"}),
            Variant("default", 3),
            Reason.DEFAULT,
            False,
            id="none",
        ),
    ],
)
def test_the_first_rule_whose_conditions_all_hold_decides(
    request_: Request, variant: Variant, reason: Reason, falls_back: bool
) -> None:
    """Rules are read from the top, a rule needs all its conditions, and nobody gets the default."""
    decided = assign(LADDER, request_, DRAW)
    rule = None if reason is Reason.DEFAULT else variant.name
    assert decided == Assignment(variant, reason, rule=rule, falls_back=falls_back)


def test_a_rule_below_one_that_always_holds_is_never_reached() -> None:
    """The order of the document is the order of decision."""
    plan = planned(
        Rule(name="all", serve=Target(version=5)), Rule(name="late", serve=Target(version=6))
    )
    assert assign(plan, Request(), DRAW).variant == Variant("all", 5)


def test_a_split_may_stand_behind_conditions() -> None:
    """Only whom the conditions hold for is drawn; others go on to the rules below."""
    plan = planned(
        Rule(name="gold", when=(GOLD,), split=halves()),
        Rule(name="rest", serve=Target(version=9)),
    )
    gold = assign(plan, Request({"x-plan": "gold", "x-unit-id": "u"}), DRAW)
    assert (gold.reason, gold.rule) == (Reason.SPLIT, "gold")
    assert assign(plan, Request({"x-unit-id": "u"}), DRAW).variant == Variant("rest", 9)


def test_whom_a_split_does_not_enrol_gets_the_default_and_no_later_rule() -> None:
    """Not enrolled means the default, with what was drawn for it, and never the next rule."""
    plan = planned(
        Rule(name="ab", split=halves(0), on_error="fallback"),
        Rule(name="next", serve=Target(version=9)),
        default=Target(version=3),
    )
    assert assign(plan, Request({"x-unit-id": "u"}), DRAW) == Assignment(
        variant=Variant("default", 3),
        reason=Reason.DEFAULT,
        propensity=1.0,
        rule="ab",
        salt="ab",
        unit=b"u",
        sticky=True,
        falls_back=False,
    )


BY_HEADER = halves()
BY_PARAMETER = halves(parameter="user")
BY_INPUT = halves(input="user_id")


@pytest.mark.parametrize(
    ("split", "request_", "unit"),
    [
        pytest.param(BY_HEADER, Request({"x-unit-id": "u-1"}), b"u-1", id="header"),
        pytest.param(BY_HEADER, Request({"x-unit-id": " u "}), b" u ", id="header-as-it-came"),
        pytest.param(
            BY_HEADER, Request({"x-unit-id": "Ã©"}), "é".encode(), id="header-utf-8-bytes"
        ),
        pytest.param(
            BY_HEADER, Request({"x-unit-id": "u" * 1024}), b"u" * 1024, id="header-longest"
        ),
        pytest.param(BY_PARAMETER, Request({}, {"user": "é"}), "é".encode(), id="parameter"),
        pytest.param(BY_PARAMETER, Request({}, {"user": 42}), b"42", id="parameter-integer"),
        pytest.param(BY_PARAMETER, Request({}, {"user": 0}), b"0", id="parameter-zero"),
        pytest.param(BY_PARAMETER, Request({}, {"user": False}), b"False", id="parameter-bool"),
        pytest.param(
            BY_INPUT, Request({}, {}, {"user_id": texts(b"\xff\0")}), b"\xff\0", id="bytes"
        ),
        pytest.param(BY_INPUT, Request({}, {}, {"user_id": np.array([42])}), b"42", id="integer"),
        pytest.param(BY_INPUT, Request({}, {}, {"user_id": np.array(42)}), b"42", id="scalar"),
        pytest.param(
            BY_INPUT, Request({}, {}, {"user_id": np.array([[7], [7], [7]])}), b"7", id="one-unit"
        ),
        pytest.param(
            BY_INPUT,
            Request({}, {}, {"user_id": texts(b"a\0", b"a\0")}),
            b"a\0",
            id="rows-ending-in-zero",
        ),
        pytest.param(
            BY_INPUT, Request({}, {}, {"user_id": np.array([-0.5, -0.5])}), b"-0.5", id="float"
        ),
    ],
)
def test_a_unit_is_hashed_as_it_came_and_sticks(
    split: Split, request_: Request, unit: bytes
) -> None:
    """Header, parameter or input give the bytes that are hashed, whatever is drawn for others."""
    plan = planned(Rule(name="ab", split=split))
    decided = assign(plan, request_, DRAW)
    assert (decided.unit, decided.sticky, decided.salt) == (unit, True, "ab")
    assert decided.variant.name == drawn("ab", unit)
    assert assign(plan, request_, b"another draw") == decided


@pytest.mark.parametrize(
    ("split", "request_"),
    [
        pytest.param(BY_HEADER, Request(), id="no-header"),
        pytest.param(BY_HEADER, Request({"x-unit-id": ""}), id="empty-header"),
        pytest.param(BY_HEADER, Request({"x-unit-id": " \t "}), id="blank-header"),
        pytest.param(BY_HEADER, Request({}, {"X-Unit-Id": "u"}), id="parameter-of-that-name"),
        pytest.param(BY_HEADER, Request({"x-unit-id": " " * 5000}), id="long-blank"),
        pytest.param(BY_PARAMETER, Request({"user": "u"}), id="no-parameter"),
        pytest.param(BY_PARAMETER, Request({}, {"user": ""}), id="empty-parameter"),
        pytest.param(BY_PARAMETER, Request({}, {"user": "\n"}), id="blank-parameter"),
        pytest.param(BY_INPUT, Request(), id="no-input"),
        pytest.param(BY_INPUT, Request({}, {}, {"user_id": texts()}), id="no-rows"),
        pytest.param(BY_INPUT, Request({}, {}, {"user_id": texts(b"")}), id="empty-input"),
        pytest.param(BY_INPUT, Request({}, {}, {"user_id": texts(b" ", b" ")}), id="blank-input"),
        pytest.param(BY_INPUT, Request({}, {}, {"user_id": texts(b"a", b"b")}), id="two-units"),
        pytest.param(
            BY_INPUT, Request({}, {}, {"user_id": np.array([[7], [7], [8]])}), id="odd-row"
        ),
        pytest.param(
            BY_INPUT, Request({}, {}, {"user_id": texts(b"a\0", b"a")}), id="two-by-a-zero-byte"
        ),
    ],
)
def test_a_request_that_names_no_unit_is_drawn_afresh(split: Split, request_: Request) -> None:
    """Without a unit, or with several, the fresh bytes are hashed and nothing sticks."""
    plan = planned(Rule(name="ab", split=split))
    for number in range(20):
        draw = b"draw %d" % number
        decided = assign(plan, request_, draw)
        assert (decided.unit, decided.sticky, decided.salt) == (draw, False, "ab")
        assert decided.variant.name == drawn("ab", draw)


@pytest.mark.parametrize(
    ("split", "request_"),
    [
        pytest.param(BY_HEADER, Request({"x-unit-id": "u" * 1025}), id="header"),
        pytest.param(BY_PARAMETER, Request({}, {"user": "é" * 513}), id="parameter"),
        pytest.param(BY_INPUT, Request({}, {}, {"user_id": texts(b"u" * 70_000)}), id="input"),
    ],
)
def test_a_unit_that_is_too_long_is_refused(split: Split, request_: Request) -> None:
    """More than 1,024 bytes name nobody; the refusal does not repeat them."""
    with pytest.raises(InvalidRequest, match=r"^The unit holds \d+ bytes; at most 1024 are"):
        assign(planned(Rule(name="ab", split=split)), request_, DRAW)


UNEVEN = Split(
    exposure=4000,
    variants=(
        Weighted(name="a", weight=9000, version=4),
        Weighted(name="b", weight=1000, version=5),
        Weighted(name="off", weight=0, version=6),
    ),
)


def test_a_propensity_is_the_share_of_units_that_get_the_variant() -> None:
    """Exposure times weight, and for the default what is left out; the draws bear it out."""
    plan = planned(Rule(name="ab", split=UNEVEN))
    expected = {"a": 0.36, "b": 0.04, "default": 0.6}
    counts: Counter[str] = Counter()
    for number in range(20_000):
        decided = assign(plan, Request({"x-unit-id": f"unit-{number}"}), DRAW)
        assert decided.propensity == expected[decided.variant.name]
        counts[decided.variant.name] += 1
    assert counts.keys() == expected.keys()
    for name, share in expected.items():
        deviation = (20_000 * share * (1 - share)) ** 0.5
        assert abs(counts[name] - 20_000 * share) < 4 * deviation


def test_expected_shares_are_given_for_every_rule() -> None:
    """A rule's shares add up to 1: what each variant draws, and the default the rest."""
    plan = planned(
        Rule(name="gold", when=(GOLD,), serve=Target(version=8)), Rule(name="ab", split=UNEVEN)
    )
    assert shares(plan) == {
        "gold": {"gold": 1.0},
        "ab": {"a": 0.36, "b": 0.04, "off": 0.0, "default": 0.6},
    }
    assert shares(planned()) == {}


def test_only_a_drawn_variant_falls_back() -> None:
    """A rule that falls back says so for its variants, and not for the default."""
    plan = planned(Rule(name="ab", split=halves(5000), on_error="fallback"))
    seen = set()
    for number in range(100):
        decided = assign(plan, Request({"x-unit-id": str(number)}), DRAW)
        seen.add((decided.variant.name, decided.falls_back))
    assert seen == {("a", True), ("b", True), ("default", False)}


@pytest.mark.parametrize(
    ("name", "version"), [("a", 4), ("b", 5), ("off", 6), ("gold", 8), ("default", 1)]
)
def test_any_variant_can_be_forced(name: str, version: int) -> None:
    """A caller may name the default, a rule's target or a variant, even one of weight 0."""
    plan = planned(
        Rule(name="gold", when=(GOLD,), serve=Target(version=8)), Rule(name="ab", split=UNEVEN)
    )
    assert force(plan, name) == Assignment(Variant(name, version), Reason.FORCED)


@pytest.mark.parametrize("name", ["", "ab", "shadow", "A", "x" * 5000, "a\n"])
def test_forcing_an_unknown_variant_is_refused(name: str) -> None:
    """Neither a rule that splits nor a shadow can be forced; the refusal says what can."""
    plan = planned(
        Rule(name="ab", split=halves()), shadows=(Shadow(name="shadow", share=1, version=9),)
    )
    with pytest.raises(InvalidRequest, match=r"it has a, b, default\.$") as refusal:
        force(plan, name)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 200


def test_a_plan_holds_everything_resolved() -> None:
    """Aliases become versions, and what the request path needs is copied from the document."""
    tolerance = Tolerance(top_k=3)
    recording = Recording(outputs=True, redact=("secret",))
    plan = planned(
        Rule(name="gold", when=(GOLD,), serve=Target(alias="challenger")),
        Rule(name="ab", split=UNEVEN),
        default=Target(alias="champion"),
        shadows=(Shadow(name="s", share=250, version=9, tolerance=tolerance),),
        recording=recording,
        token_scalars=("p:1",),
        cache=Caching(max_mb=3, ttl_s=1.5),
    )
    assert (plan.endpoint, plan.model, plan.revision) == ("e", "m", 7)
    assert plan.default == Variant("default", 1)
    assert plan.variants == {
        "default": Variant("default", 1),
        "gold": Variant("gold", 2),
        "a": Variant("a", 4),
        "b": Variant("b", 5),
        "off": Variant("off", 6),
    }
    assert plan.versions == {1, 2, 4, 5, 6, 9}
    assert plan.shadows == (ShadowPlan(Variant("s", 9), 250, tolerance),)
    assert (plan.recording, plan.token_scalars) == (recording, ("p:1",))
    assert plan.cache == Caching(max_mb=3, ttl_s=1.5)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"default": Target(alias="gone")}, id="default"),
        pytest.param({"shadows": (Shadow(name="s", share=1, alias="gone"),)}, id="shadow"),
        pytest.param({"rules": (Rule(name="r", serve=Target(alias="gone")),)}, id="rule"),
    ],
)
def test_an_alias_that_the_model_does_not_have_is_not_found(document: dict[str, Any]) -> None:
    """Compiling says which endpoint, alias and model do not fit."""
    record = EndpointRecord(document=Endpoint(schema=1, model="m", **document))
    with pytest.raises(NotFound) as refusal:
        compile_plan("e", record, ALIASES, 1)
    assert str(refusal.value) == ("Endpoint 'e' names alias 'gone', which model 'm' does not have.")


def test_two_splits_of_one_endpoint_draw_independently() -> None:
    """A unit's variant under one rule says nothing of the one that another rule would give."""
    first = planned(Rule(name="one", split=halves()))
    second = planned(Rule(name="two", split=halves()))
    table: Counter[tuple[str, str]] = Counter()
    for number in range(8000):
        facts = Request({"x-unit-id": f"unit-{number}"})
        pair = tuple(assign(plan, facts, DRAW).variant.name for plan in (first, second))
        table[pair[0], pair[1]] += 1
    # 2,000 each, with a standard deviation of 39.
    assert all(abs(table[x, y] - 2000) < 160 for x in "ab" for y in "ab")
