import copy
import gzip
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.assignment import SplitState
from gateway.core.endpoints import Endpoint, EndpointRecord
from gateway.core.errors import InvalidRequest, NotFound, TooLarge
from gateway.core.snapshot import (
    EMPTY,
    ModelRecord,
    Snapshot,
    decode,
    document_digest,
    encode,
    endpoint_names,
    endpoint_record,
    named_versions,
    plan_of,
    stated_revision,
)

DIGESTS = {str(number): f"{number:064x}" for number in (1, 2, 3, 10)}


def document() -> dict[str, Any]:
    """A whole Snapshot as it stands in Redis."""
    return {
        "schema": 1,
        "epoch": 1,
        "revision": 42,
        "audit_head": "f" * 64,
        "models": {
            "m": {
                "versions": dict(DIGESTS),
                "aliases": {"champion": 2, "challenger": 3},
                "previous": {"champion": [10, 1]},
                "loaded": [10],
                "allow_nonfinite": True,
                "labels": ["no", "yes"],
            },
            "new": {"versions": {"1": "0" * 64}},
        },
        "endpoints": {
            "e": {
                "document": {
                    "schema": 1,
                    "model": "m",
                    "rules": [
                        {
                            "name": "gold",
                            "when": [{"header": "X-Plan", "in": ["gold", 1]}],
                            "serve": {"version": 3},
                        },
                        {
                            "name": "ab",
                            "split": {
                                "exposure": 5000,
                                "variants": [
                                    {"name": "a", "weight": 7500, "alias": "champion"},
                                    {"name": "b", "weight": 2500, "alias": "challenger"},
                                ],
                            },
                        },
                    ],
                    "shadows": [{"name": "s", "share": 100, "version": 10}],
                },
                "splits": {
                    "ab": {
                        "salt": "e:1",
                        "hash_version": 1,
                        "intervals": {"a": [[0, 5000], [7500, 10000]], "b": [[5000, 7500]]},
                    }
                },
            }
        },
    }


def read(whole: Any) -> Snapshot:
    """A document as it comes out of Redis."""
    return decode(json.dumps(whole).encode())


def changed(*path: Any, to: Any = None) -> dict[str, Any]:
    """The document with one value replaced, or taken out."""
    whole = document()
    inner: Any = whole
    for step in path[:-1]:
        inner = inner[step]
    if to is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return whole


RULES = ("endpoints", "e", "document", "rules")
VARIANTS = (*RULES, 1, "split", "variants")
STATE = ("endpoints", "e", "splits", "ab")


def with_second(salt: str) -> dict[str, Any]:
    """The document with a second endpoint whose split has this salt."""
    whole = document()
    whole["endpoints"]["Other"] = copy.deepcopy(whole["endpoints"]["e"])
    whole["endpoints"]["Other"]["splits"]["ab"]["salt"] = salt
    return whole


def test_a_snapshot_is_written_and_read_back_byte_for_byte() -> None:
    """Writing what was read gives the very bytes, and reading what was written the Snapshot."""
    for snapshot in (EMPTY, read(document()), read(with_second("e:2"))):
        written = encode(snapshot)
        assert decode(written) == snapshot
        assert encode(decode(written)) == written


def test_a_snapshot_is_written_as_sorted_compact_json() -> None:
    """Any JSON library that sorts keys and leaves out blanks writes the same bytes."""
    written = encode(read(document()))
    parsed = json.loads(written)
    assert written == json.dumps(parsed, sort_keys=True, separators=(",", ":")).encode()
    assert parsed["models"]["m"]["versions"] == DIGESTS


@given(st.permutations(["m", "new"]), st.permutations(["a", "b"]), st.permutations(list(DIGESTS)))
def test_the_order_of_keys_does_not_show(
    models: list[str], variants: list[str], numbers: list[str]
) -> None:
    """Two Snapshots that say the same have the same bytes, however they were put together."""
    whole = document()
    whole["models"] = {name: whole["models"][name] for name in models}
    whole["models"]["m"]["versions"] = {number: DIGESTS[number] for number in numbers}
    intervals = whole["endpoints"]["e"]["splits"]["ab"]["intervals"]
    whole["endpoints"]["e"]["splits"]["ab"]["intervals"] = {v: intervals[v] for v in variants}
    assert encode(read(whole)) == encode(read(document()))


RAW = json.dumps(document()).encode()


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="not-json"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"{}", id="no-fields"),
        pytest.param(RAW[:-1], id="truncated"),
        pytest.param(RAW + b"x", id="trailing"),
        pytest.param(RAW + RAW, id="twice"),
        pytest.param(b"\xef\xbb\xbf" + RAW, id="byte-order-mark"),
        pytest.param(RAW.decode().encode("utf-16"), id="utf-16"),
        pytest.param(RAW.replace(b"no", b"n\xff"), id="not-utf-8"),
        pytest.param(RAW.replace(b'"no"', b'"\\ud800 "'), id="lone-surrogate"),
        pytest.param(gzip.compress(RAW, mtime=0), id="gzip"),
        pytest.param(b"\0" * 100, id="zeros"),
        pytest.param(b"[" * 500_000, id="deep-array"),
        pytest.param(b'{"schema":' * 500_000, id="deep-object"),
        pytest.param(RAW.replace(b"42", b"4" * 5000), id="5000-digits"),
        pytest.param(RAW.replace(b"42", b"NaN"), id="nan"),
        pytest.param(RAW.replace(b"42", b"1e999"), id="overflow"),
        pytest.param(RAW.replace(b'"labels"', b'"' + b"x" * 9999 + b'"'), id="long-unknown-key"),
        pytest.param(RAW.replace(b'"labels"', b'"\\n\\u001b[31m"'), id="control-characters"),
    ],
)
def test_bytes_of_any_other_kind_are_refused(raw: bytes) -> None:
    """What is not a Snapshot is refused in one short, printable sentence."""
    with pytest.raises(InvalidRequest) as refusal:
        decode(raw)
    assert str(refusal.value).startswith("The Snapshot cannot be read: ")
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 300


def test_every_truncation_is_refused() -> None:
    """No part of a Snapshot reads as one."""
    written = encode(read(document()))
    for length in range(len(written)):
        with pytest.raises(InvalidRequest):
            decode(written[:length])


def test_an_oversize_document_is_refused_unread() -> None:
    """More than 8 MiB is refused for its size, whatever it holds."""
    with pytest.raises(TooLarge, match="8388609 bytes"):
        decode(b" " * (8 * 1024 * 1024 + 1))
    padded = RAW + b" " * (8 * 1024 * 1024 - len(RAW))
    assert decode(padded).revision == 42


def test_what_could_not_be_read_back_is_never_written() -> None:
    """A Snapshot that outgrew its bound is refused before any process has to refuse it."""
    record = ModelRecord(versions={1: "0" * 64}, labels=("x" * 9 * 1024 * 1024,))
    with pytest.raises(TooLarge):
        encode(replace(EMPTY, models={"m": record}))


@pytest.mark.parametrize(
    ("whole", "sentence"),
    [
        pytest.param(changed("schema", to=2), "has schema 2", id="schema-2"),
        pytest.param(changed("schema"), "missing required field `schema`", id="no-schema"),
        pytest.param(changed("revision", to=-1), "counted from", id="negative-revision"),
        pytest.param(changed("revision", to=2**63), "counted from", id="revision-2-63"),
        pytest.param(changed("revision", to=10**300), "counted from", id="revision-1e300"),
        pytest.param(changed("revision", to=42.0), "got `float`", id="float-revision"),
        pytest.param(changed("revision", to="42"), "got `str`", id="text-revision"),
        pytest.param(changed("revision", to=True), "got `bool`", id="bool-revision"),
        pytest.param(changed("epoch", to=0), "counted from", id="epoch-0"),
        pytest.param(changed("epoch", to=2**63), "counted from", id="epoch-2-63"),
        pytest.param(changed("models"), "missing required field", id="no-models"),
        pytest.param({**document(), "more": 1}, "unknown field", id="unknown-field"),
        pytest.param(
            changed("models", "m", "more", to=1), "unknown field", id="unknown-model-field"
        ),
        pytest.param(changed(*STATE, "seed", to="x"), "unknown field", id="unknown-state-field"),
        pytest.param(
            changed("models", "a}:x", to={"versions": {}}), "cannot name a model", id="model-name"
        ),
        pytest.param(
            changed("endpoints", "a\nb", to=document()["endpoints"]["e"]),
            "cannot name an endpoint",
            id="endpoint-name",
        ),
        pytest.param(
            changed("models", "m", "aliases", "*", to=1), "cannot name an alias", id="alias-name"
        ),
        pytest.param(
            changed("models", "m", "previous", "a b", to=[1]), "name an alias", id="history-name"
        ),
        pytest.param(
            changed("models", "m", "versions", "0", to="0" * 64), "is not 1 to", id="version-0"
        ),
        pytest.param(
            changed("models", "m", "versions", "-1", to="0" * 64), "is not 1 to", id="version-minus"
        ),
        pytest.param(
            changed("models", "m", "versions", "1000000000", to="0" * 64),
            "is not 1 to",
            id="version-10-digits",
        ),
        pytest.param(
            changed("models", "m", "versions", "007", to="0" * 64),
            "Expected `int`",
            id="version-007",
        ),
        pytest.param(
            changed("models", "m", "versions", "1", to="../../etc/passwd"),
            "has a digest that is not",
            id="digest-path",
        ),
        pytest.param(
            changed("models", "m", "aliases", "champion", to=99),
            "names version 99, which is not registered",
            id="alias-of-nothing",
        ),
        pytest.param(
            changed("models", "m", "previous", "champion", to=[99]),
            "names version 99",
            id="history-of-nothing",
        ),
        pytest.param(changed("models", "m", "loaded", to=[99]), "version 99", id="loaded-nothing"),
        pytest.param(changed("models", "m"), "which is not registered", id="model-missing"),
        pytest.param(
            changed(*RULES, 0, "serve", to={"version": 99}), "names version 99", id="rule-missing"
        ),
        pytest.param(
            changed(*RULES, 0, "serve", to={"version": 0}), "names version 0", id="rule-version-0"
        ),
        pytest.param(
            changed(*RULES, 0, "serve", to={"version": 10**300}),
            "names version 1000",
            id="rule-huge",
        ),
        pytest.param(
            changed(*RULES, 0, "serve", to={"alias": "gone"}), "names alias 'gone'", id="rule-alias"
        ),
        pytest.param(
            changed(*VARIANTS, 0, "alias", to="gone"), "names alias 'gone'", id="variant-alias"
        ),
        pytest.param(
            changed("endpoints", "e", "document", "default", to={"alias": "gone"}),
            "names alias 'gone'",
            id="default-alias",
        ),
        pytest.param(
            changed("endpoints", "e", "document", "shadows", 0, "version", to=99),
            "names version 99",
            id="shadow-version",
        ),
        pytest.param(
            changed("endpoints", "e", "document", "model", to="new"),
            "model 'new' does not have",
            id="other",
        ),
        pytest.param(
            changed(*VARIANTS, 0, "weight", to=7000), "add up to 9500", id="weights-do-not-add-up"
        ),
        pytest.param(changed(*VARIANTS, 0, "weight", to=7500.0), "got `float`", id="float-weight"),
        pytest.param(changed(*VARIANTS, 0, "weight", to=True), "got `bool`", id="bool-weight"),
        pytest.param(changed(*VARIANTS, 0, "weight", to="7500"), "got `str`", id="text-weight"),
        pytest.param(changed(*VARIANTS, 0, "weight"), "missing required field", id="no-weight"),
        pytest.param(changed(*STATE), "state of each of its splits", id="no-state"),
        pytest.param(
            changed(
                "endpoints", "e", "splits", "gold", to=document()["endpoints"]["e"]["splits"]["ab"]
            ),
            "state of each of its splits",
            id="state-of-no-split",
        ),
        pytest.param(changed(*STATE, "hash_version", to=2), "hash version 2", id="hash-version"),
        pytest.param(changed(*STATE, "salt", to=""), "a salt holds", id="empty-salt"),
        pytest.param(changed(*STATE, "salt", to="x" * 65), "a salt holds", id="long-salt"),
        pytest.param(
            changed(*RULES, 1, "split", "salt", to="another"), "stored salt is not", id="other-salt"
        ),
        pytest.param(changed(*STATE, "intervals", to={}), "do not tile", id="no-intervals"),
        pytest.param(
            changed(*STATE, "intervals", "b", to=[[5000, 7499]]), "do not tile", id="torn-gap"
        ),
        pytest.param(
            changed(*STATE, "intervals", "b", to=[[5000, 7501]]), "do not tile", id="torn-overlap"
        ),
        pytest.param(
            changed(*STATE, "intervals", "a", to=[[0, 5000], [7500, 10_001]]),
            "do not tile",
            id="torn-end",
        ),
        pytest.param(
            changed(*STATE, "intervals", to={"a": [[0, 5000]], "b": [[5000, 10_000]]}),
            "do not have the widths",
            id="torn-widths",
        ),
        pytest.param(
            changed(*STATE, "intervals", to={"a": [[0, 7500]], "c": [[7500, 10_000]]}),
            "do not have the widths",
            id="torn-owner",
        ),
        pytest.param(
            changed(*STATE, "intervals", "a", to=[[0, 5000, 1], [7500, 10_000]]),
            "Expected `array` of length 2",
            id="torn-triple",
        ),
        pytest.param(
            changed(*STATE, "intervals", "c", to=[[5.0, 6.0]]), "`float`", id="torn-float"
        ),
    ],
)
def test_a_snapshot_that_contradicts_itself_is_refused(whole: Any, sentence: str) -> None:
    """Each broken reference, count, width or type is refused in a sentence that names it."""
    with pytest.raises(InvalidRequest) as refusal:
        read(whole)
    assert sentence in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400


def test_a_shared_salt_is_refused_by_the_names_as_they_are_written() -> None:
    """Two splits with one salt would be correlated; the sentence keeps the case of names."""
    with pytest.raises(InvalidRequest) as refusal:
        read(with_second("e:1"))
    assert str(refusal.value) == (
        "The rule 'ab' of endpoint 'e' and the rule 'ab' of endpoint 'Other' share a salt, "
        "so their assignments would be correlated; give each its own."
    )


def test_two_splits_of_one_endpoint_may_not_share_a_salt() -> None:
    """The refusal of a shared salt holds within an endpoint too."""
    whole = document()
    rules = whole["endpoints"]["e"]["document"]["rules"]
    rules.append({**rules[1], "name": "ab2"})
    splits = whole["endpoints"]["e"]["splits"]
    splits["ab2"] = splits["ab"]
    with pytest.raises(InvalidRequest, match="share a salt"):
        read(whole)


def test_the_largest_revision_is_read() -> None:
    """Revisions are counted in 63 bits, and may jump."""
    assert read(changed("revision", to=2**63 - 1)).revision == 2**63 - 1
    assert read(changed("revision", to=9_999_999)).revision == 9_999_999


@pytest.mark.parametrize("exposure", [0, 1, 10_000])
def test_whatever_is_accepted_can_be_planned(exposure: int) -> None:
    """Every endpoint of a Snapshot that was read compiles."""
    whole = changed(*RULES, 1, "split", "exposure", to=exposure)
    whole["endpoints"]["e"]["splits"]["ab"]["salt"] = "x" * 64
    snapshot = read(whole)
    assert [plan_of(snapshot, name).endpoint for name in endpoint_names(snapshot)] == ["e", "m"]


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in a document."""
    found = [here] if here else []
    steps: Any = ()
    if isinstance(value, dict):
        steps = value.items()
    elif isinstance(value, list):
        steps = enumerate(value)
    for step, inner in steps:
        found.extend(paths(inner, (*here, step)))
    return found


PATHS = paths(document())
texts = st.text(max_size=8) | st.sampled_from(
    ["", "a", "m", "e", "ab", "champion", "x" * 70, "a b", "../x", "0", "1", "-1", "99", "塩" * 30]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, -1, 2, 9999, 10_000, 10_001, 2**63, 10**400])
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def at(whole: Any, path: tuple[Any, ...]) -> Any:
    """The value at a place."""
    for step in path:
        whole = whole[step]
    return whole


def damage(whole: Any, path: tuple[Any, ...], kind: str, value: Any) -> None:
    """Replace, take out or rename what stands at a place, if it is still there."""
    try:
        inner = at(whole, path[:-1])
        if kind == "rename":
            moved = inner[path[-1]]
            del inner[path[-1]]
            inner[value] = moved
        elif kind == "remove":
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
    except (KeyError, IndexError, TypeError):
        return


places = st.sampled_from(PATHS)
damages = st.one_of(
    st.tuples(places, st.just("replace"), values),
    st.tuples(places, st.just("replace"), places.map(lambda path: at(document(), path))),
    st.tuples(places, st.just("remove"), st.none()),
    st.tuples(places, st.just("rename"), texts),
)


@settings(deadline=None)
@given(st.lists(damages, min_size=1, max_size=3))
@example(
    [
        (("models", "m", "aliases"), "replace", 1),
        (("models", "m", "aliases", "champion"), "rename", ""),
    ]
)
def test_a_damaged_document_is_read_or_refused_and_nothing_else(
    edits: list[tuple[tuple[Any, ...], str, Any]],
) -> None:
    """Values replaced, taken out, renamed or moved anywhere give a sound Snapshot or one error."""
    whole = document()
    for path, kind, value in edits:
        damage(whole, path, kind, value)
    try:
        snapshot = read(whole)
    except InvalidRequest:
        return
    assert decode(encode(snapshot)) == snapshot
    named_versions(snapshot)
    for name in endpoint_names(snapshot):
        plan_of(snapshot, name)


@given(st.binary(max_size=64), st.integers(0, len(RAW)), st.integers(0, 64))
def test_damaged_bytes_are_read_or_refused_and_nothing_else(
    patch: bytes, place: int, width: int
) -> None:
    """Bytes written over any part of a document give a Snapshot or one error."""
    try:
        decode(RAW[:place] + patch + RAW[place + width :])
    except InvalidRequest:
        return


@pytest.mark.parametrize(
    ("raw", "revision"),
    [
        pytest.param(b'{"revision":7,"schema":9}', 7, id="another-schema"),
        pytest.param(b'{"revision":7.0}', None, id="float"),
        pytest.param(b'{"revision":7', None, id="cut"),
        pytest.param(b"[" * 100_000, None, id="deep"),
        pytest.param(b'{"revision":7,"a":"\xff"}', 7, id="not-utf-8"),
        pytest.param(b'{"revision":7}' + b" " * 8 * 1024 * 1024, None, id="too-large"),
    ],
)
def test_a_refused_document_may_still_state_its_revision(raw: bytes, revision: int | None) -> None:
    """The revision is told wherever it can be read, whatever else is wrong."""
    assert stated_revision(raw) == revision


def test_a_model_is_an_endpoint_that_follows_its_champion() -> None:
    """Without a document of its own a model is called by its name."""
    snapshot = read(document())
    record = endpoint_record(snapshot, "m")
    assert record == EndpointRecord(document=Endpoint(schema=1, model="m"))
    assert plan_of(snapshot, "m").default.version == 2


def test_an_endpoint_comes_before_a_model_of_its_name() -> None:
    """A document for a name replaces what the model of that name would do."""
    whole = document()
    whole["endpoints"]["m"] = {
        "document": {"schema": 1, "model": "m", "default": {"version": 10}},
        "splits": {},
    }
    assert plan_of(read(whole), "m").default.version == 10


@pytest.mark.parametrize("name", ["none", "M", "", "x" * 10_000])
def test_an_unknown_name_is_not_found(name: str) -> None:
    """A name that is neither an endpoint nor a model is refused in a short sentence."""
    with pytest.raises(NotFound) as refusal:
        plan_of(read(document()), name)
    assert len(str(refusal.value)) < 120


def test_a_model_without_a_champion_is_no_endpoint_yet() -> None:
    """Every name that clients may call has a plan; a model with another alias only has none."""
    whole = document()
    whole["models"]["new"]["aliases"] = {"challenger": 1}
    snapshot = read(whole)
    assert endpoint_names(snapshot) == ["e", "m"]
    with pytest.raises(NotFound, match="names alias 'champion', which model 'new' does not have"):
        plan_of(snapshot, "new")


def test_named_versions_are_those_that_are_kept_warm() -> None:
    """Aliases, endpoints, shadows, the version before and what was loaded by hand are named."""
    whole = document()
    assert named_versions(read(whole)) == {
        "m": frozenset({1, 2, 3, 10}),
        "new": frozenset(),
    }
    whole["models"]["m"]["loaded"] = []
    whole["models"]["m"]["previous"] = {"champion": [1, 3]}
    del whole["endpoints"]["e"]["document"]["shadows"]
    assert named_versions(read(whole))["m"] == {2, 3}


def test_a_digest_is_of_what_a_document_says() -> None:
    """Equal documents have one digest, and any change gives another."""
    first, second = (read(document()).endpoints["e"] for _ in range(2))
    assert document_digest(first) == document_digest(second)
    state = SplitState(salt="e:2", hash_version=1, intervals=first.splits["ab"].intervals)
    assert document_digest(replace(first, splits={"ab": state})) != document_digest(first)
    model = read(document()).models["m"]
    assert document_digest(model) != document_digest(replace(model, loaded=()))
    assert len(document_digest(model)) == 64
