from typing import Any

import msgspec
import pytest

from gateway.core.endpoints import (
    Endpoint,
    Recording,
    Rule,
    Shadow,
    Split,
    Target,
    UnitKey,
    Weighted,
    check_endpoint,
    targets_of,
    weights_of,
)
from gateway.core.errors import InvalidRequest
from gateway.core.targeting import Condition

HALVES = [
    {"name": "a", "weight": 5000, "version": 1},
    {"name": "b", "weight": 5000, "alias": "challenger"},
]
SPLIT = {"exposure": 10_000, "variants": HALVES}


def read(document: Any) -> Endpoint:
    """An endpoint as it comes over the wire."""
    return msgspec.json.decode(msgspec.json.encode(document), type=Endpoint)


def with_rule(**rule: Any) -> dict[str, Any]:
    """A document with one rule."""
    return {"schema": 1, "model": "m", "rules": [{"name": "r", **rule}]}


def with_split(**split: Any) -> dict[str, Any]:
    """A document with one split."""
    return with_rule(split={**SPLIT, **split})


def with_weights(*weights: int) -> dict[str, Any]:
    """A document whose variants have these weights."""
    variants = [
        {"name": f"v{place}", "weight": weight, "version": 1}
        for place, weight in enumerate(weights)
    ]
    return with_split(variants=variants)


def with_shadow(**shadow: Any) -> dict[str, Any]:
    """A document with one shadow."""
    shadow = {"name": "s", "share": 10_000, "version": 2, **shadow}
    return {"schema": 1, "model": "m", "shadows": [shadow]}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"schema": 1, "model": "m"}, id="smallest"),
        pytest.param({"schema": 1, "model": "m", "default": {"version": 3}}, id="fixed-default"),
        pytest.param(with_rule(serve={"alias": "champion"}), id="serve"),
        pytest.param(with_rule(serve={"version": 1}, on_error="fallback"), id="fallback"),
        pytest.param(with_split(), id="split"),
        pytest.param(with_split(exposure=0), id="nobody-exposed"),
        pytest.param(with_split(unit={"parameter": "user"}), id="unit-parameter"),
        pytest.param(with_split(unit={"input": "user_id"}), id="unit-input"),
        pytest.param(with_split(unit={"header": "h" * 128}), id="longest-unit-key"),
        pytest.param(with_split(salt="塩" * 21 + "x"), id="salt-of-64-bytes"),
        pytest.param(with_split(salt="x"), id="salt-of-1-byte"),
        pytest.param(with_weights(10_000), id="one-variant"),
        pytest.param(with_weights(0, 10_000, 0), id="weight-zero"),
        pytest.param(with_weights(*[100] * 100), id="100-variants"),
        pytest.param(with_shadow(share=0), id="shadow-of-none"),
        pytest.param(with_shadow(tolerance={"top_k": 5}), id="shadow-tolerance"),
        pytest.param(
            {
                **with_split(),
                "shadows": [{"name": "s", "share": 1, "alias": "champion"}],
            },
            id="shadow-of-the-default-beside-rules",
        ),
        pytest.param(
            {
                "schema": 1,
                "model": "m",
                "token_scalars": ["p", "p:1", "Identity:0:1", "a b:999999999"],
            },
            id="token-scalars",
        ),
        pytest.param(
            {"schema": 1, "model": "m", "recording": {"inputs": True, "max_bytes": 0}},
            id="recording",
        ),
        pytest.param({"schema": 1, "model": "m", "cache": {"max_mb": 1}}, id="cache"),
        pytest.param(
            {"schema": 1, "model": "m", "cache": {"max_mb": 1_048_576, "ttl_s": 0.001}},
            id="cache-with-a-time",
        ),
        pytest.param(
            {"schema": 1, "model": "m", "cache": {"max_mb": 5, "ttl_s": None}},
            id="cache-without-a-time",
        ),
        pytest.param(
            {
                "schema": 1,
                "model": "m",
                "rules": [
                    {"name": "one", "split": SPLIT},
                    {"name": "two", "split": SPLIT},
                    {"name": "a", "serve": {"version": 1}},
                ],
            },
            id="one-name-one-target",
        ),
        pytest.param(
            {
                "schema": 1,
                "model": "m",
                "rules": [
                    {
                        "name": f"r{rule}",
                        "when": [{"header": "h", "equals": 1}] * 20,
                        "serve": {"version": 1},
                    }
                    for rule in range(100)
                ],
            },
            id="100-rules-of-20-conditions",
        ),
    ],
)
def test_a_sound_document_is_accepted(document: dict[str, Any]) -> None:
    """What the documentation allows, up to each bound, is let through and read back the same."""
    endpoint = read(document)
    check_endpoint("e", endpoint)
    assert read(endpoint) == endpoint


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        pytest.param(with_weights(9000, 999), "add up to 9999", id="sum-9999"),
        pytest.param(with_weights(9000, 1001), "add up to 10001", id="sum-10001"),
        pytest.param(with_weights(0, 0), "add up to 0", id="all-zero"),
        pytest.param(with_weights(-1, 10_001), "weight -1 of 'v0'", id="negative-weight"),
        pytest.param(with_weights(10_001, -1), "weight 10001 of 'v0'", id="weight-above"),
        pytest.param(with_weights(2**63, 0), "is not 0 to 10000", id="weight-2-63"),
        pytest.param(with_weights(10**300, 0), "is not 0 to 10000", id="weight-1e300"),
        pytest.param(with_split(exposure=-1), "exposure is -1", id="negative-exposure"),
        pytest.param(with_split(exposure=10_001), "exposure is 10001", id="exposure-above"),
        pytest.param(with_split(exposure=10**300), "exposure is 1000", id="exposure-1e300"),
        pytest.param(with_split(variants=[]), "at least one variant", id="no-variants"),
        pytest.param(with_weights(*[0] * 101), "101 variants; at most 100", id="101-variants"),
        pytest.param(
            with_split(variants=[HALVES[0], HALVES[0]]),
            "two variants named 'a'",
            id="twin-variants",
        ),
        pytest.param(
            with_split(variants=[{**HALVES[0], "name": "default"}, HALVES[1]]),
            "take another",
            id="variant-default",
        ),
        pytest.param(
            with_split(variants=[{"name": "a", "weight": 10_000}]),
            "variant 'a': give exactly one of 'version' and 'alias'",
            id="variant-without-target",
        ),
        pytest.param(
            with_split(variants=[{"name": "a", "weight": 10_000, "version": 1, "alias": "x"}]),
            "exactly one of 'version' and 'alias'",
            id="variant-with-two-targets",
        ),
        pytest.param(
            with_split(variants=[{"name": "a", "weight": 10_000, "alias": "a b"}]),
            "'a b' cannot name an alias",
            id="alias-with-space",
        ),
        pytest.param(with_split(unit={}), "'unit' names exactly one", id="no-unit-key"),
        pytest.param(
            with_split(unit={"header": "a", "parameter": "b"}), "exactly one", id="two-unit-keys"
        ),
        pytest.param(with_split(unit={"header": ""}), "exactly one", id="empty-unit-key"),
        pytest.param(with_split(unit={"input": "i" * 129}), "exactly one", id="long-unit-key"),
        pytest.param(with_split(salt=""), "a salt holds 1 to 64 bytes", id="empty-salt"),
        pytest.param(with_split(salt="x" * 65), "1 to 64 bytes", id="long-salt"),
        pytest.param(with_split(salt="塩" * 22), "1 to 64 bytes", id="salt-of-66-bytes"),
        pytest.param(with_rule(), "exactly one of 'serve' and 'split'", id="rule-does-nothing"),
        pytest.param(
            with_rule(serve={"version": 1}, split=SPLIT),
            "exactly one of 'serve'",
            id="rule-does-two",
        ),
        pytest.param(with_rule(serve={}), "exactly one of 'version'", id="serve-nothing"),
        pytest.param(
            with_rule(serve={"version": 1}, on_error="retry"), "'on_error' is", id="on-error"
        ),
        pytest.param(
            with_rule(serve={"version": 1}, when=[{"header": "h"}]),
            "rule 'r': a condition compares with",
            id="condition",
        ),
        pytest.param(
            with_rule(serve={"version": 1}, when=[{"header": "h", "equals": 1}] * 21),
            "21 conditions; at most 20",
            id="21-conditions",
        ),
        pytest.param(
            {"schema": 1, "model": "m", "rules": [{"name": "r", "serve": {"version": 1}}] * 2},
            "two rules named 'r'",
            id="twin-rules",
        ),
        pytest.param(
            {
                "schema": 1,
                "model": "m",
                "rules": [{"name": f"r{n}", "serve": {"version": 1}} for n in range(101)],
            },
            "101 rules; at most 100",
            id="101-rules",
        ),
        pytest.param(
            {"schema": 1, "model": "m", "rules": [{"name": "x" * 65, "serve": {"version": 1}}]},
            "cannot name a rule",
            id="long-rule-name",
        ),
        pytest.param(
            {
                "schema": 1,
                "model": "m",
                "rules": [
                    {"name": "one", "split": SPLIT},
                    {"name": "a", "serve": {"version": 2}},
                ],
            },
            "gives variant 'a' two targets",
            id="two-targets",
        ),
        pytest.param(
            {"schema": 1, "model": "m", "rules": [{"name": "default", "serve": {"version": 2}}]},
            "gives variant 'default' two targets",
            id="rule-named-default",
        ),
        pytest.param({"schema": 2, "model": "m"}, "has schema 2", id="schema-2"),
        pytest.param({"schema": 0, "model": "m"}, "has schema 0", id="schema-0"),
        pytest.param({"schema": 1, "model": "../m"}, "cannot name a model", id="model-path"),
        pytest.param(
            {"schema": 1, "model": "m", "default": {}}, "default: give exactly one", id="no-default"
        ),
        pytest.param(with_shadow(share=-1), "share is -1", id="negative-share"),
        pytest.param(with_shadow(share=10_001), "share is 10001", id="share-above"),
        pytest.param(with_shadow(name="a*"), "cannot name a shadow", id="shadow-name"),
        pytest.param(with_shadow(version=None), "exactly one of 'version'", id="shadow-of-nothing"),
        pytest.param(
            with_shadow(version=None, alias="champion"), "shadow itself", id="shadow-to-itself"
        ),
        pytest.param(
            {**with_shadow(), "default": {"version": 2}}, "shadow itself", id="shadow-same-version"
        ),
        pytest.param(
            with_shadow(tolerance={"absolute": -1.0}), "'absolute' and 'relative'", id="tolerance"
        ),
        pytest.param(with_shadow(tolerance={"top_k": 0}), "'top_k' is 0", id="top-0"),
        pytest.param(
            {"schema": 1, "model": "m", "shadows": with_shadow()["shadows"] * 2},
            "two shadows named 's'",
            id="twin-shadows",
        ),
        pytest.param(
            {"schema": 1, "model": "m", "shadows": with_shadow()["shadows"] * 9},
            "9 shadows; at most 8",
            id="9-shadows",
        ),
        pytest.param(
            {"schema": 1, "model": "m", "token_scalars": ["p"] * 5},
            "5 token scalars; at most 4",
            id="5-token-scalars",
        ),
        *[
            pytest.param(
                {"schema": 1, "model": "m", "token_scalars": [scalar]},
                "token scalars are",
                id=f"token-scalar-{name}",
            )
            for name, scalar in {
                "empty": "",
                "no-output": ":1",
                "no-column": "p:",
                "negative": "p:-1",
                "text": "p:x",
                "other-digit": "p:²",
                "huge": "p:" + "9" * 5000,
            }.items()
        ],
        pytest.param(
            {"schema": 1, "model": "m", "recording": {"max_bytes": -1}},
            "recording.max_bytes must be",
            id="negative-max-bytes",
        ),
        pytest.param(
            {"schema": 1, "model": "m", "recording": {"reservoir": 1_001}},
            "recording.reservoir must be",
            id="a-reservoir-too-large",
        ),
        pytest.param(
            {"schema": 1, "model": "m", "recording": {"max_bytes": 262_145}},
            "recording.max_bytes must be",
            id="max-bytes-above",
        ),
        *[
            pytest.param({"schema": 1, "model": "m", "cache": cache}, said, id=f"cache-{name}")
            for name, cache, said in (
                ("nothing", {"max_mb": 0}, "cache.max_mb is 0; it must be 1 to 1048576"),
                ("huge", {"max_mb": 1_048_577}, "cache.max_mb is 1048577; it must be"),
                ("no-time", {"max_mb": 1, "ttl_s": 0}, "cache.ttl_s is 0.0; it must be above 0"),
                ("past", {"max_mb": 1, "ttl_s": -1.5}, "cache.ttl_s is -1.5; it must be above 0"),
                ("ages", {"max_mb": 1, "ttl_s": 1e9}, "or null to keep answers while there is"),
            )
        ],
    ],
)
def test_a_document_that_contradicts_itself_is_refused(
    document: dict[str, Any], sentence: str
) -> None:
    """Each fault is refused by a short, printable sentence that says where it is."""
    with pytest.raises(InvalidRequest) as refusal:
        check_endpoint("e", read(document))
    assert sentence in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "name", ["", "a b", "a}:x", "{e}", "*", "e*", "..", "a/../b", "e\n", "e\r\nx: y", "x" * 65]
)
@pytest.mark.parametrize("place", ["endpoint", "model", "rule", "variant", "alias", "shadow"])
def test_a_name_that_could_be_a_key_or_a_path_is_refused_everywhere(place: str, name: str) -> None:
    """Blanks, braces, wildcards, parents and newlines name nothing, wherever a name may stand."""
    whole = {
        "model": {"schema": 1, "model": name},
        "rule": {"schema": 1, "model": "m", "rules": [{"name": name, "serve": {"version": 1}}]},
        "variant": with_split(variants=[{"name": name, "weight": 10_000, "version": 1}]),
        "alias": with_rule(serve={"alias": name}),
        "shadow": with_shadow(name=name),
    }
    document = whole.get(place, {"schema": 1, "model": "m"})
    with pytest.raises(InvalidRequest) as refusal:
        check_endpoint(name if place == "endpoint" else "e", read(document))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "weight",
    [
        "9000.0",
        "9e3",
        "1e-12",
        "1e308",
        "NaN",
        "Infinity",
        '"9000"',
        "true",
        "null",
        "[9000]",
        "-0.0",
    ],
)
@pytest.mark.parametrize("field", ["weight", "exposure", "share"])
def test_a_weight_that_is_not_an_integer_is_refused(field: str, weight: str) -> None:
    """Floats, even whole ones, texts, booleans and NaN are no weights, exposures or shares."""
    documents = {"weight": with_weights(7777), "exposure": with_split(exposure=7777)}
    raw = msgspec.json.encode(documents.get(field, with_shadow(share=7777)))
    assert raw.count(b"7777") == 1
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(raw.replace(b"7777", weight.encode()), type=Endpoint)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"schema": 1, "model": "m", "more": 1}, id="endpoint"),
        pytest.param({"schema": 1, "model": "m", "default": {"label": "x"}}, id="target"),
        pytest.param(with_rule(serve={"version": 1}, If=[]), id="rule"),
        pytest.param(with_split(weights=[]), id="split"),
        pytest.param(
            with_split(variants=[{"name": "a", "weight": 10_000, "version": 1, "w": 1}]),
            id="variant",
        ),
        pytest.param(with_split(unit={"cookie": "x"}), id="unit"),
        pytest.param(with_rule(when=[{"header": "h", "regex": "(a+)+$"}]), id="condition"),
        pytest.param(with_shadow(weight=1), id="shadow"),
        pytest.param(with_shadow(tolerance={"abs": 1}), id="tolerance"),
        pytest.param({"schema": 1, "model": "m", "recording": {"input": True}}, id="recording"),
        pytest.param({"schema": 1, "model": "m", "cache": {"max_mb": 1, "ttl": 1}}, id="cache-key"),
    ],
)
def test_an_unknown_field_is_refused(document: dict[str, Any]) -> None:
    """A field that is not known, such as a misspelt one, is never ignored."""
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        read(document)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        pytest.param({"model": "m"}, "schema", id="schema"),
        pytest.param({"schema": 1}, "model", id="model"),
        pytest.param(with_rule(split={"variants": HALVES}), "exposure", id="exposure"),
        pytest.param(with_split(variants=[{"name": "a", "version": 1}]), "weight", id="weight"),
    ],
)
def test_a_missing_field_is_not_zero(document: dict[str, Any], field: str) -> None:
    """A weight that is not written is an error, and not a weight of 0 or of an even part."""
    with pytest.raises(msgspec.ValidationError, match=f"missing required field `{field}`"):
        read(document)


def test_every_target_is_named() -> None:
    """The targets of a document are its default and those of rules, variants and shadows."""
    endpoint = Endpoint(
        schema=1,
        model="m",
        default=Target(version=1),
        rules=(
            Rule(name="one", serve=Target(version=2)),
            Rule(
                name="two",
                split=Split(
                    exposure=1,
                    variants=(
                        Weighted(name="a", weight=10_000, version=3),
                        Weighted(name="b", weight=0, alias="x"),
                    ),
                ),
            ),
        ),
        shadows=(Shadow(name="s", share=0, alias="y"),),
    )
    assert list(targets_of(endpoint)) == [
        Target(version=1),
        Target(version=2),
        Target(version=3),
        Target(alias="x"),
        Target(alias="y"),
    ]


def test_weights_are_in_the_order_of_the_document() -> None:
    """Fresh intervals are cut in the order of writing, so the order is kept."""
    split = Split(
        exposure=1,
        variants=(
            Weighted(name="z", weight=1, version=1),
            Weighted(name="a", weight=9999, version=1),
        ),
    )
    assert list(weights_of(split).items()) == [("z", 1), ("a", 9999)]


def test_what_is_not_said_has_the_documented_default() -> None:
    """A document need only name its model: it follows the champion and records no payload."""
    assert read({"schema": 1, "model": "m"}) == Endpoint(
        schema=1,
        model="m",
        rules=(),
        default=Target(alias="champion"),
        shadows=(),
        recording=Recording(inputs=False, outputs=False, redact=(), max_bytes=4096),
        token_scalars=(),
        cache=None,
    )
    split = read(with_rule(split=SPLIT)).rules[0].split
    assert split is not None
    assert split.unit == UnitKey(header="X-Unit-Id")
    rule = read(with_rule(serve={"version": 1}, when=[{"header": "h", "equals": "x"}])).rules[0]
    assert (rule.on_error, rule.when) == ("error", (Condition(header="h", equals="x"),))
