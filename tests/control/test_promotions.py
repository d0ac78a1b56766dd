import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.adapters.redis import RedisStore
from gateway.adapters.redis_keys import Keys, keys_of
from gateway.control.gates import Gates
from gateway.control.promotions import Promotions
from gateway.control.registry import Registry
from gateway.control.status import Standing
from gateway.core.access import Principal, Token, Tokens, digest_of, id_of
from gateway.core.audit import encode_entry
from gateway.core.errors import StoreUnavailable
from gateway.core.gates import ApprovalRule, Gate, Requirements
from gateway.core.principals import Grant, Role
from gateway.core.snapshot import ModelRecord
from tests.control.building import ASKED
from tests.fakes import CountingEntropy, manifest_of, signature_of

SECRET = "tilt_ci_0123456789"
TOKENS = Tokens(
    Token(id_of(token.encode()), digest_of(token.encode()), holder)
    for token, holder in (
        (SECRET, Principal("ci", (Grant(Role.DEPLOYER, ("m*", "x")),), fixed=True)),
        ("tilt_v_viewing", Principal("viewer", (Grant(Role.VIEWER),), fixed=True)),
        ("tilt_o_others", Principal("other", (Grant(Role.DEPLOYER, ("n",)),), fixed=True)),
    )
)


class Stage:
    """A store with a model of three versions, and leaders that may answer."""

    def __init__(self, store: RedisStore, client: Any, keys: Keys) -> None:
        self.store = store
        self.client = client
        self.keys = keys
        self.registry = Registry(store, now=lambda: 5.0, entropy=CountingEntropy())

    async def begin(self) -> None:
        """Register the versions; the third has another signature."""
        for number in (1, 2, 3):
            manifest = manifest_of(number=number, signature=signature_of(4 + number // 3))
            await self.store.put_manifest(manifest)
            seed = ModelRecord(versions={}, aliases={"champion": 1})
            await self.registry.register(manifest, ASKED, seed=seed)

    def leader(self, name: str = "host-1") -> Promotions:
        """A process that would lead, with a registry of its own."""
        registry = Registry(self.store, now=lambda: 5.0, entropy=CountingEntropy())
        standing = Standing(process=name)
        return Promotions(
            self.store, registry, tokens=lambda _: TOKENS, standing=standing, now=lambda: 5.0
        )

    async def ask(self, **fields: str) -> str:
        """Put a request on the stream as CI would."""
        stated = {"token": SECRET, "model": "m", **fields}
        added: bytes = await self.client.xadd(self.keys.promotions, stated)
        return added.decode()

    async def answers(self) -> list[dict[str, str]]:
        """The results stream."""
        entries = await self.client.xrange(self.keys.promotion_results)
        return [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in entries]

    async def champion(self) -> int:
        """The version that serves, by the store."""
        document = msgspec.json.decode(await self.store.read() or b"")
        number: int = document["models"]["m"]["aliases"]["champion"]
        return number


@pytest.fixture
async def stage(redis_store: RedisStore, valkey_url: str, namespace: str) -> AsyncIterator[Stage]:
    """A store that is ready for promotions."""
    client = Redis.from_url(valkey_url)
    made = Stage(redis_store, client, keys_of(namespace))
    await made.begin()
    yield made
    await client.aclose()


async def test_a_request_is_granted_once(stage: Stage) -> None:
    """CI's request becomes a commit in CI's name, with the answer in the same transaction."""
    request_id = await stage.ask(version="2", reason="night build")
    leader = stage.leader()
    for _ in range(3):
        await leader.tick()
    assert await stage.champion() == 2
    assert await stage.answers() == [
        {
            "request": request_id,
            "status": "accepted",
            "reason": "night build",
            "action": "promote",
            "model": "m",
            "version": "2",
            "alias": "champion",
            "revision": "4",
            "actor": "ci",
        }
    ]
    entry = (await stage.store.audit())[-1]
    assert (entry.actor, entry.action, entry.reason) == ("ci", "model.promote", "night build")
    assert await stage.client.xlen(stage.keys.promotions) == 0


async def test_requests_are_granted_in_their_order(stage: Stage) -> None:
    """A promotion, another alias and a rollback each follow the one before."""
    await stage.ask(version="2")
    await stage.ask(version="1", alias="challenger")
    await stage.ask(action="rollback")
    await stage.leader().tick()
    assert await stage.champion() == 1
    answers = await stage.answers()
    assert [(a["action"], a["alias"], a["version"]) for a in answers] == [
        ("promote", "champion", "2"),
        ("promote", "challenger", "1"),
        ("rollback", "champion", "1"),
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"token": "wrong", "version": "2"}, "not known", id="unknown-token"),
        pytest.param({"token": "", "version": "2"}, "bearer token", id="no-token"),
        pytest.param({"token": "tök", "version": "2"}, "not known", id="odd-token"),
        pytest.param({"token": "tilt_v_viewing", "version": "2"}, "'promote'", id="reader"),
        pytest.param({"token": "tilt_o_others", "version": "2"}, "model 'm'", id="other-model"),
        pytest.param({"version": "99"}, "no version 99", id="unknown-version"),
        pytest.param({"version": "1"}, "already", id="serving-already"),
        pytest.param({"version": "3"}, "signature", id="other-signature"),
        pytest.param({"version": "-1"}, "not a version number", id="negative"),
        pytest.param({}, "not a version number", id="no-version"),
        pytest.param({"version": "2", "model": "x"}, "no model", id="unknown-model"),
        pytest.param({"version": "2", "model": "../m"}, "cannot name", id="path"),
        pytest.param({"version": "2", "alias": "a b"}, "cannot name", id="alias"),
        pytest.param({"version": "2", "action": "delete"}, "no action", id="action"),
        pytest.param({"version": "2", "edition": "3"}, "no field", id="misspelt"),
        pytest.param({"action": "rollback"}, "no earlier version", id="nothing-before"),
    ],
)
async def test_a_wrong_request_is_refused_with_a_reason(
    stage: Stage, fields: dict[str, str], reason: str
) -> None:
    """What may not or cannot be done is answered in words, once, and changes nothing."""
    request_id = await stage.ask(**fields)
    leader = stage.leader()
    await leader.tick()
    await leader.tick()
    (answer,) = await stage.answers()
    assert (answer["request"], answer["status"]) == (request_id, "refused")
    assert reason in answer["reason"]
    assert len(await stage.store.audit()) == 3


async def test_a_megabyte_of_nonsense_does_not_stop_the_rest(stage: Stage) -> None:
    """An entry of raw bytes is refused, and the one behind it granted."""
    await stage.client.xadd(stage.keys.promotions, {b"\xff\xfe": b"\xff" * (1024 * 1024)})
    await stage.ask(version="2")
    await stage.leader().tick()
    answers = await stage.answers()
    assert [answer["status"] for answer in answers] == ["refused", "accepted"]
    assert sum(len(value) for value in answers[0].values()) < 1000


async def test_the_token_is_kept_to_itself(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Neither results nor audit nor log nor stream hold the token, granted or refused."""
    caplog.set_level("DEBUG")
    await stage.ask(version="2")
    await stage.ask(version="77")
    await stage.ask(token=SECRET[:-1], version="1")
    await stage.leader().tick()
    audit = b"".join(encode_entry(entry) for entry in await stage.store.audit())
    told = str(await stage.answers()) + audit.decode() + caplog.text
    assert SECRET[:-1] not in told
    assert await stage.client.xlen(stage.keys.promotions) == 0


async def test_one_of_two_leads(stage: Stage) -> None:
    """Only the holder of the lock answers; the other says that it does not lead."""
    first, second = stage.leader("host-1"), stage.leader("host-2")
    await first.tick()
    await stage.ask(version="2")
    await second.tick()
    assert await stage.champion() == 1
    assert (first._standing.leads, second._standing.leads) == (True, False)
    await first.tick()
    assert await stage.champion() == 2


async def test_an_idle_leader_seldom_writes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is looked at often; the lead is renewed in time, and not each time."""
    leader, key = stage.leader(), stage.keys.leader
    await leader.tick()
    await stage.client.pexpire(key, 5_000)
    for _ in range(3):
        await leader.tick()
    assert await stage.client.pttl(key) <= 5_000
    monkeypatch.setattr("gateway.control.promotions.RENEW_S", 0.0)
    await leader.tick()
    assert await stage.client.pttl(key) > 5_000


async def test_two_that_believe_to_lead_answer_once(stage: Stage) -> None:
    """Without any lock, each request is still answered exactly once."""
    await stage.ask(version="2")
    for number in range(6):
        await stage.ask(action="rollback" if number % 2 == 0 else "promote", version="2")
    leaders = [stage.leader("same") for _ in range(4)]
    await asyncio.gather(*(leader.tick() for leader in leaders))
    await leaders[0].tick()
    answers = await stage.answers()
    assert len({answer["request"] for answer in answers}) == len(answers) == 7
    granted = [answer for answer in answers if answer["status"] == "accepted"]
    assert len(await stage.store.audit()) == 3 + len(granted)


async def test_a_leader_killed_in_between_is_followed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that dies after its commit was applied leaves nothing to answer again."""
    await stage.ask(version="2")
    await stage.ask(version="1")
    killed = stage.leader("killed")
    commit = RedisStore.commit

    async def applied_then_dies(*arguments: Any) -> None:
        await commit(*arguments)
        raise asyncio.CancelledError

    monkeypatch.setattr(RedisStore, "commit", applied_then_dies)
    with pytest.raises(asyncio.CancelledError):
        await killed.tick()
    monkeypatch.undo()
    await stage.client.delete(stage.keys.leader)
    await stage.leader("next").tick()
    answers = await stage.answers()
    assert [answer["version"] for answer in answers] == ["2", "1"]
    assert len(await stage.store.audit()) == 5


async def test_requests_wait_while_the_store_cannot_be_written(stage: Stage) -> None:
    """A request that could not be answered stays and is answered later."""
    await stage.ask(version="2")
    await stage.client.set(stage.keys.promotion_results, "in the way")
    leader = stage.leader()
    with pytest.raises(StoreUnavailable):
        await leader.tick()
    assert await stage.champion() == 1
    await stage.client.delete(stage.keys.promotion_results)
    await leader.tick()
    assert await stage.champion() == 2


async def test_the_loop_survives_the_store(stage: Stage) -> None:
    """The loop goes on after a fault, and answers when it can."""
    await stage.client.rpush(stage.keys.leader, "wrong type")
    leader = stage.leader()
    with pytest.raises(StoreUnavailable):
        await leader.tick()
    running = asyncio.create_task(leader.run(0.01))
    await stage.ask(version="2")
    await stage.client.delete(stage.keys.leader)
    async with asyncio.timeout(5):
        while await stage.champion() != 2:  # noqa: ASYNC110 - the loop under test changes it
            await asyncio.sleep(0.01)
    assert leader._standing.leads
    running.cancel()


async def test_a_request_that_a_gate_does_not_allow_is_refused(stage: Stage) -> None:
    """The answer says what is missing; a rollback is granted all the same."""
    await stage.registry.promote("m", 2, ASKED)
    gate = Gate(schema=1, models=("m",), promotion=Requirements(approvals=(ApprovalRule(),)))
    await Gates(stage.registry, lambda: 5.0).put("g", gate, ASKED)
    await stage.ask(version="1", action="rollback")
    await stage.ask(version="2")
    await stage.leader().tick()
    granted, refused = await stage.answers()
    assert granted["status"] == "accepted"
    assert refused["status"] == "refused"
    assert "1 approval by an approver is missing: whoever asks ('ci')" in refused["reason"]
    assert await stage.champion() == 1
