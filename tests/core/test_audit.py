import hashlib
import json
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.audit import (
    AuditEntry,
    Moved,
    commit_of,
    decode_entry,
    encode_entry,
    entry_hash,
    first_break,
)
from gateway.core.endpoints import Endpoint, EndpointRecord, Rule, Split, Weighted
from gateway.core.errors import InvalidRequest
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot
from gateway.core.transitions import delete_endpoint, promote, put_endpoint, register

DIGESTS = {number: f"{number:064x}" for number in range(1, 4)}
SPLIT = Split(
    exposure=10_000,
    variants=(
        Weighted(name="a", weight=9000, version=1),
        Weighted(name="b", weight=1000, version=2),
    ),
)
DOCUMENT = Endpoint(schema=1, model="m", rules=(Rule(name="r", split=SPLIT),))


def chain() -> tuple[list[AuditEntry], Snapshot]:
    """Six commits on top of each other and the Snapshot that they lead to."""
    steps: list[tuple[Callable[[Snapshot], Snapshot], str, str]] = [
        (lambda s: register(s, "m", 1, DIGESTS[1]), "model.register", "models/m"),
        (lambda s: register(s, "m", 2, DIGESTS[2]), "model.register", "models/m"),
        (lambda s: promote(s, "m", 1), "model.promote", "models/m"),
        (lambda s: put_endpoint(s, "e", DOCUMENT, {"r": "salt"}), "endpoint.put", "endpoints/e"),
        (lambda s: promote(s, "m", 2), "model.promote", "models/m"),
        (lambda s: delete_endpoint(s, "e"), "endpoint.delete", "endpoints/e"),
    ]
    entries: list[AuditEntry] = []
    snapshot = EMPTY
    for number, (change, action, target) in enumerate(steps):
        commit = commit_of(
            snapshot,
            change(snapshot),
            at=1_767_225_600.5 + number,
            actor="ops@example.com",
            action=action,
            target=target,
            reason='because "so"\nand so',
        )
        assert commit.base is snapshot
        entries.append(commit.entry)
        snapshot = commit.snapshot
    return entries, snapshot


ENTRIES, NOW = chain()


def test_a_chain_of_commits_leads_from_nothing_to_the_head() -> None:
    """Each entry holds the hash of the one before, and the Snapshot that of the newest."""
    assert first_break(ENTRIES, NOW.audit_head) is None
    assert [entry.revision for entry in ENTRIES] == [1, 2, 3, 4, 5, 6]
    assert NOW.revision == 6
    assert first_break([], "") is None


def test_the_hash_is_that_of_the_written_bytes() -> None:
    """An entry's hash can be computed by anyone from sorted, compact JSON."""
    for entry in ENTRIES:
        written = encode_entry(entry)
        again = json.dumps(
            json.loads(written), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        assert written == again.encode()
        assert entry_hash(entry) == hashlib.sha256(written).hexdigest()
        assert decode_entry(written) == entry


def test_an_entry_says_what_was_before_and_after() -> None:
    """A first document has nothing before it, a deleted one nothing after it, others both."""
    before = [bool(entry.before) for entry in ENTRIES]
    after = [bool(entry.after) for entry in ENTRIES]
    assert before == [False, True, True, False, True, True]
    assert after == [True, True, True, True, True, False]
    assert ENTRIES[1].before == ENTRIES[0].after
    assert ENTRIES[4].before == ENTRIES[2].after
    assert ENTRIES[5].before == ENTRIES[3].after
    assert ENTRIES[5].document is None


def test_any_earlier_document_can_be_rebuilt_from_its_entry() -> None:
    """The whole document is in the entry, the numbers of versions included."""
    model = msgspec.convert(ENTRIES[4].document, ModelRecord, str_keys=True)
    assert model == NOW.models["m"]
    endpoint = msgspec.convert(ENTRIES[3].document, EndpointRecord)
    assert endpoint.document == DOCUMENT
    assert endpoint.splits["r"].intervals == {"a": ((0, 9000),), "b": ((9000, 10_000),)}


@pytest.mark.parametrize("place", range(6))
def test_a_changed_field_breaks_the_chain(place: int) -> None:
    """No fact of any entry can be rewritten unseen."""
    entry = ENTRIES[place]
    changes = [
        replace(entry, schema=2),
        replace(entry, epoch=2),
        replace(entry, revision=99),
        replace(entry, at=entry.at + 0.001),
        replace(entry, actor="someone"),
        replace(entry, action="model.rollback"),
        replace(entry, target="models/n"),
        replace(entry, reason=""),
        replace(entry, before="0" * 64),
        replace(entry, after="0" * 64),
        replace(entry, document={}),
        replace(entry, previous="0" * 64),
        replace(entry, also=(Moved(target="models/m", before="", after="", document=None),)),
        replace(entry, evidence={}),
    ]
    assert len(changes) == len(entry.__struct_fields__)
    for changed in changes:
        entries = [*ENTRIES[:place], changed, *ENTRIES[place + 1 :]]
        assert first_break(entries, NOW.audit_head) is not None


@given(st.integers(0, 5), st.data())
def test_a_changed_byte_is_found(place: int, data: st.DataObject) -> None:
    """A byte that changes what an entry says makes it unreadable or breaks the chain."""
    raw = bytearray(encode_entry(ENTRIES[place]))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[at]))
    try:
        changed = decode_entry(bytes(raw))
    except InvalidRequest:
        return
    entries = [*ENTRIES[:place], changed, *ENTRIES[place + 1 :]]
    assert changed == ENTRIES[place] or first_break(entries, NOW.audit_head) is not None


@pytest.mark.parametrize("place", range(6))
def test_a_dropped_entry_is_found(place: int) -> None:
    """Nothing can be taken out: not the first, not the last, nothing between."""
    expected = [2, 3, 4, 5, 6, 6][place]
    assert first_break([*ENTRIES[:place], *ENTRIES[place + 1 :]], NOW.audit_head) == expected


@pytest.mark.parametrize("kept", range(6))
def test_a_cut_tail_is_found(kept: int) -> None:
    """A chain that ends early breaks at the first revision that is missing."""
    assert first_break(ENTRIES[:kept], NOW.audit_head) == kept + 1


@pytest.mark.parametrize("place", range(5))
def test_a_swapped_pair_is_found(place: int) -> None:
    """Two neighbours in the other order break the chain where the first of them stands."""
    entries = list(ENTRIES)
    entries[place], entries[place + 1] = entries[place + 1], entries[place]
    assert first_break(entries, NOW.audit_head) == place + 2


def test_a_repeated_or_appended_entry_is_found() -> None:
    """Nothing can be put in, and nothing behind the head."""
    assert first_break([*ENTRIES[:3], ENTRIES[2], *ENTRIES[3:]], NOW.audit_head) == 3
    longer = [*ENTRIES, replace(ENTRIES[5], revision=7, previous=entry_hash(ENTRIES[5]))]
    assert first_break(longer, NOW.audit_head) == 8


def test_a_chain_may_begin_at_a_checkpoint() -> None:
    """What was archived is stood for by its last hash, and by no other."""
    assert first_break(ENTRIES[3:], NOW.audit_head, origin=entry_hash(ENTRIES[2])) is None
    assert first_break(ENTRIES[3:], NOW.audit_head, origin=entry_hash(ENTRIES[1])) == 4
    assert first_break([], NOW.audit_head, origin=NOW.audit_head) is None


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{}", id="no-fields"),
        pytest.param(b"\xff\xfe", id="not-utf-8"),
        pytest.param(encode_entry(ENTRIES[0])[:-1], id="truncated"),
        pytest.param(encode_entry(ENTRIES[0])[:-1] + b',"more":1}', id="unknown-field"),
        pytest.param(encode_entry(ENTRIES[0]).replace(b"ops", b"op\xff"), id="bad-text"),
        pytest.param(
            encode_entry(ENTRIES[5]).replace(b"null", b"[" * 100_000 + b"]" * 100_000), id="deep"
        ),
    ],
)
def test_what_is_no_entry_is_refused(raw: bytes) -> None:
    """Bytes of any other kind are refused with one error."""
    with pytest.raises(InvalidRequest, match=r"^The audit entry cannot be read\.$"):
        decode_entry(raw)


def test_an_entry_written_before_fields_were_added_keeps_its_hash() -> None:
    """What says nothing is not written, so that old chains verify under newer code."""
    written = encode_entry(ENTRIES[0])
    assert b"evidence" not in written
    assert b"also" not in written
    assert decode_entry(written) == ENTRIES[0]


def test_documents_that_move_along_are_named_with_what_they_became() -> None:
    """A commit of two documents is told whole, whichever of them it was meant for."""
    before = put_endpoint(NOW, "e", DOCUMENT, {"r": "salt"})
    after = put_endpoint(promote(before, "m", 1), "e", Endpoint(schema=1, model="m"), {})
    entry = commit_of(
        before, after, at=1.0, actor="a", action="x", target="endpoints/e", reason=""
    ).entry
    assert [moved.target for moved in entry.also] == ["models/m"]
    assert entry.also[0].document["aliases"] == {"champion": 1}
    assert entry.also[0].before != entry.also[0].after
    assert decode_entry(encode_entry(entry)) == entry


def test_evidence_is_kept_and_hashed() -> None:
    """What a decision was made from is as tamper-proof as what it did."""
    changed = promote(NOW, "m", 1)
    facts = {"at": 1.25, "rows": [1, 2]}
    entry = commit_of(
        NOW,
        changed,
        at=1.0,
        actor="a",
        action="x",
        target="models/m",
        reason="",
        evidence=facts,
    ).entry
    assert decode_entry(encode_entry(entry)).evidence == facts
    assert entry_hash(replace(entry, evidence={**facts, "at": 1.5})) != entry_hash(entry)
