"""Auditing on a real server: what is sought is found, what was tampered with, and archives."""

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.adapters.redis import RedisAuditLog, RedisStore
from gateway.adapters.redis_keys import keys_of
from gateway.control.auditing import Auditing, AuditingParts, AuditPlace, Found, Wanted
from gateway.control.denials import Denials
from gateway.control.registry import Edit, Registry, Request
from gateway.core.chain import Chain, begin, encode_line
from gateway.core.checkpoints import Signed
from gateway.core.errors import Conflict, InvalidRequest, NotFound
from gateway.core.snapshot import Snapshot
from gateway.core.sought import Sought
from tests.chains import facts
from tests.control.building import ASKED
from tests.fakes import CountingEntropy, ManualClock, manifest_of

KEY = bytes(range(32))
DAY_S = 86_400.0


class Stage:
    """A registry and its audit log on a real server, and a client that knows no rules."""

    def __init__(self, url: str, namespace: str, store: RedisStore) -> None:
        self.clock = ManualClock()
        self.store = store
        self.registry = Registry(store, now=self.clock, entropy=CountingEntropy())
        self.log = RedisAuditLog(url, namespace=namespace, timeout_s=2.0, name="test")
        self.redis: Any = Redis.from_url(url)
        self.keys = keys_of(namespace)
        self.auditing = self.auditing_with(KEY)

    def auditing_with(self, key: bytes, keep_s: float = DAY_S) -> Auditing:
        """Auditing as a host with this key has it."""
        parts = AuditingParts(
            place=AuditPlace(log=self.log, namespace="tiltyard", keep_s=keep_s),
            registry=self.registry,
            key=lambda: key,
            now=self.clock,
        )
        return Auditing(parts)

    async def register(self, *numbers: int, actor: str = "ana", model: str = "m") -> None:
        """Register versions, an hour between each and the next."""
        for number in numbers:
            manifest = manifest_of(model, number)
            await self.registry.register(manifest, Request(actor=actor))
            self.clock.at += 3_600.0

    async def note(self, evidence: Any) -> None:
        """An entry with this evidence."""

        async def make(base: Snapshot) -> Snapshot:
            return base

        edit = Edit("model.promote", "models/m", make, evidence=evidence, noted=True)
        await self.registry.commit(edit, ASKED)

    async def verify(self) -> Chain:
        """Look at the whole log, as the command does."""
        head = await self.auditing.head()
        chain = begin(head)
        async for line in self.auditing.past.lines(chain.revision):
            chain.add(line)
        chain.finish(head)
        return chain

    async def rewrite(self, change: Callable[[list[Any]], list[Any]]) -> None:
        """Replace the stream by other entries, as only somebody with Redis can."""
        entries = await self.redis.xrange(self.keys.audit)
        await self.redis.delete(self.keys.audit)
        for stream_id, fields in change(entries):
            await self.redis.xadd(self.keys.audit, fields, id=stream_id)

    async def archive(self, before: int) -> Signed:
        """Sign and trim."""
        signed = await self.auditing.checkpoint(Wanted(before=before))
        await self.auditing.trim(signed, ASKED)
        return signed


@pytest.fixture
async def stage(valkey_url: str, namespace: str, redis_store: RedisStore) -> AsyncIterator[Stage]:
    """An empty stage."""
    stage = Stage(valkey_url, namespace, redis_store)
    yield stage
    await stage.log.close()
    await stage.redis.aclose()


def revisions(found: Found) -> list[int]:
    """Of a page."""
    return [entry.revision for _, entry in found.entries]


async def test_entries_are_found_by_what_they_say(stage: Stage) -> None:
    """By actor, action, target, model, time, force and denial."""
    await stage.register(1, 2, actor="ana")
    await stage.register(1, actor="ben", model="other")
    await stage.note({"override": True, "missing": []})
    denials = Denials(stage.registry, now=stage.clock)
    denials.note("eve", "promote", "m")
    await denials.flush()
    began = ManualClock().at

    async def found(**asked: Any) -> list[int]:
        return revisions(await stage.auditing.page(Sought(**asked), 10))

    assert await found() == [1, 2, 3, 4, 5]
    assert await found(actor="ben") == [3]
    assert await found(action="model.") == [1, 2, 3, 4]
    assert await found(action="access.") == await found(denials=True) == [5]
    assert await found(target="models/o") == await found(model="other") == [3]
    assert await found(model="m") == [1, 2, 4]
    assert await found(since=began + 3_600.0, until=began + 7_200.0) == [2]
    assert await found(overrides=True) == [4]
    assert await found(actor="nobody") == []


async def test_pages_lead_to_each_other_in_both_directions(stage: Stage) -> None:
    """Every entry once, and the last page says that it is."""
    await stage.register(*range(1, 8))
    for newest in (False, True):
        seen: list[int] = []
        edge: int | None = None
        while True:
            page = await stage.auditing.page(Sought(), 3, edge=edge, newest=newest)
            seen += revisions(page)
            if page.next is None:
                break
            edge = page.next
        assert seen == (list(range(7, 0, -1)) if newest else list(range(1, 8)))


async def test_an_entry_that_cannot_be_read_hides_no_other(stage: Stage) -> None:
    """It is told by its revision."""
    await stage.register(1, 2, 3)
    await stage.rewrite(
        lambda entries: [
            (stream_id, {**fields, b"entry": b"\n{"} if place == 1 else fields)
            for place, (stream_id, fields) in enumerate(entries)
        ]
    )
    page = await stage.auditing.page(Sought(), 10)
    assert (revisions(page), page.unreadable) == ([1, 3], (2,))
    assert facts((await stage.verify()).faults) == [(2, "changed")]


async def test_an_untouched_log_holds(stage: Stage) -> None:
    """From nothing to the head of the Snapshot that is served."""
    await stage.register(1, 2, 3)
    chain = await stage.verify()
    assert (chain.faults, chain.entries, chain.head) == ([], 3, stage.registry.snapshot.audit_head)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(
    place=st.integers(0, 2), at=st.integers(0, 10_000), field=st.sampled_from([b"entry", b"hash"])
)
async def test_one_changed_byte_of_the_stream_is_found(
    stage: Stage, place: int, at: int, field: bytes
) -> None:
    """In whichever entry, in its text or its hash; and it is named."""
    if stage.registry.snapshot.revision == 0:
        await stage.register(1, 2, 3)
    whole = await stage.redis.xrange(stage.keys.audit)

    def damaged(entries: list[Any]) -> list[Any]:
        stream_id, fields = entries[place]
        content = bytearray(fields[field])
        content[at % len(content)] ^= 1
        return [
            *entries[:place],
            (stream_id, {**fields, field: bytes(content)}),
            *entries[place + 1 :],
        ]

    await stage.rewrite(damaged)
    chain = await stage.verify()
    await stage.rewrite(lambda _: whole)
    assert facts(chain.faults) == [(place + 1, "changed")]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(lambda entries: entries[1:], (1, "missing"), id="trimmed by hand"),
        pytest.param(lambda entries: [*entries[:1], *entries[2:]], (2, "missing"), id="hole"),
        pytest.param(lambda entries: entries[:3], (4, "cut"), id="cut tail"),
    ],
)
async def test_what_was_taken_out_is_named(
    stage: Stage, change: Callable[[list[Any]], list[Any]], fault: tuple[int, str]
) -> None:
    """By the first revision that is gone."""
    await stage.register(1, 2, 3, 4)
    await stage.rewrite(change)
    assert facts((await stage.verify()).faults) == [fault]


async def test_a_trim_leaves_a_chain_that_holds(stage: Stage) -> None:
    """It begins at the signed checkpoint, which stands in the audit log too."""
    await stage.register(*range(1, 6))
    stage.clock.at += DAY_S
    lines = [line async for line in stage.auditing.past.lines(0)][:3]
    signed = await stage.archive(before=4)
    chain = await stage.verify()
    assert (chain.faults, chain.began, chain.entries) == ([], 3, 3)
    assert chain.trims == [signed]
    export = Chain()
    for line in lines:
        export.add(line)
    file = b"".join(map(encode_line, lines)) + encode_line(export.end())
    assert signed.checkpoint.sha256 == hashlib.sha256(file).hexdigest()
    entry = (await stage.store.audit())[-1]
    assert (entry.action, entry.actor, entry.reason) == ("audit.trim", ASKED.actor, ASKED.reason)


async def test_trims_follow_each_other(stage: Stage) -> None:
    """The second archive begins behind the first; one base is kept."""
    await stage.register(*range(1, 6))
    stage.clock.at += DAY_S
    first = await stage.archive(before=3)
    second = await stage.archive(before=5)
    assert (second.checkpoint.after, second.checkpoint.before) == (2, first.checkpoint.head)
    assert list(await stage.log.bases()) == [4]
    assert (await stage.verify()).faults == []


async def test_a_trim_by_hand_behind_a_checkpoint_is_found(stage: Stage) -> None:
    """A checkpoint excuses what it holds, and no more."""
    await stage.register(*range(1, 6))
    stage.clock.at += DAY_S
    await stage.archive(before=3)
    await stage.redis.xtrim(stage.keys.audit, maxlen=2, approximate=False)
    assert facts((await stage.verify()).faults) == [(3, "missing")]


async def test_a_checkpoint_that_nobody_signed_is_found(stage: Stage) -> None:
    """Who can write to Redis cannot make one up."""
    await stage.register(*range(1, 6))
    stage.clock.at += DAY_S
    await stage.archive(before=3)
    kept = await stage.log.bases()
    base = kept[2]
    assert base.signed is not None
    checkpoint = replace(base.signed.checkpoint, last=4, head="0" * 64)
    forged = msgspec.json.encode(replace(base, signed=Signed(checkpoint, "0" * 64)))
    await stage.redis.hset(stage.keys.audit_bases, "2", forged)
    assert {what for _, what in facts((await stage.verify()).faults)} >= {"base", "changed"}


async def test_nothing_young_is_trimmed(stage: Stage) -> None:
    """However old somebody says it is."""
    await stage.register(1, 2, 3)
    with pytest.raises(Conflict, match="younger than 1 days"):
        await stage.auditing.checkpoint(Wanted(before=2))
    with pytest.raises(Conflict, match="nothing to archive"):
        await stage.auditing.checkpoint(Wanted(older_than_s=1.0))
    stage.clock.at += DAY_S - 3_600.0
    signed = await stage.auditing.checkpoint(Wanted(older_than_s=1.0))
    assert (signed.checkpoint.first, signed.checkpoint.last) == (1, 3)


async def test_only_what_this_host_signed_is_trimmed(stage: Stage) -> None:
    """Another key, a forged fact and a log that moved are refused; the store stays as it is."""
    await stage.register(1, 2, 3)
    stage.clock.at += DAY_S
    signed = await stage.auditing.checkpoint(Wanted(before=3))
    forged = replace(signed, checkpoint=replace(signed.checkpoint, last=1))
    for wrong, auditing in ((signed, stage.auditing_with(bytes(32))), (forged, stage.auditing)):
        with pytest.raises(Conflict, match="not signed"):
            await auditing.trim(wrong, ASKED)
    await stage.auditing.trim(signed, ASKED)
    with pytest.raises(Conflict):
        await stage.auditing.trim(signed, ASKED)
    assert [entry.revision for entry in await stage.store.audit()] == [3, 4]


async def test_a_broken_chain_is_never_archived(stage: Stage) -> None:
    """A signature under it would hide the break."""
    await stage.register(1, 2, 3)
    stage.clock.at += DAY_S
    await stage.rewrite(lambda entries: entries[1:])
    with pytest.raises(Conflict, match="does not hold"):
        await stage.auditing.checkpoint(Wanted(before=3))


async def test_earlier_revisions_are_told_where_the_log_still_leads_to_them(stage: Stage) -> None:
    """Behind the checkpoint as before; what was archived is said to be."""
    await stage.register(*range(1, 6))
    stage.clock.at += DAY_S
    before = await stage.auditing.past.snapshot_at(4)
    await stage.archive(before=4)
    assert await stage.auditing.past.snapshot_at(4) == before
    assert sorted((await stage.auditing.past.snapshot_at(3)).models["m"].versions) == [1, 2, 3]
    with pytest.raises(NotFound, match="lies in an archive"):
        await stage.auditing.past.snapshot_at(2)


async def test_a_base_that_cannot_be_read_is_told(stage: Stage) -> None:
    """As any other damage."""
    await stage.register(1)
    await stage.redis.hset(stage.keys.audit_bases, "1", b"{}")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        await stage.auditing.head()
