"""The announcer on a real server and real HTTP: order, at least once, retries, dead letters."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import msgspec
import pytest
from cloudevents.http import from_http

from gateway.adapters.redis import RedisAnnouncements, RedisStore
from gateway.control.announcing import ALARM, MAX_ALARMS
from gateway.control.registry import Registry, Request
from gateway.core.errors import StoreUnavailable
from gateway.core.snapshot import ModelRecord
from gateway.core.webhooks import Progress
from tests.announcing import SECRET, Crier, note
from tests.fakes import CountingEntropy, ManualClock, manifest_of
from tests.webhook_receiver import HookReceiver, Reply, verifies

DENIED = "tiltyard.access.denied"
DAY_S = 86_400.0


class KilledError(BaseException):
    """The process ended here."""


@pytest.fixture
async def announcements(valkey_url: str, namespace: str) -> AsyncIterator[RedisAnnouncements]:
    """The store under test, empty."""
    store = RedisAnnouncements(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    yield store
    await store.close()


@pytest.fixture
def clock() -> ManualClock:
    """Time that stands still."""
    return ManualClock(1_700_000_000.0)


@pytest.fixture
def registry(redis_store: RedisStore, clock: ManualClock) -> Registry:
    """Who commits."""
    return Registry(redis_store, now=clock, entropy=CountingEntropy())


@pytest.fixture
async def crier(announcements: RedisAnnouncements, clock: ManualClock) -> AsyncIterator[Crier]:
    """The announcer under test."""
    crier = Crier(announcements, clock)
    yield crier
    await crier.courier.close()


@pytest.fixture
def receiver() -> Iterator[HookReceiver]:
    """Who listens."""
    with HookReceiver() as receiver:
        yield receiver


def ids(receiver: HookReceiver) -> list[str]:
    """Of the events that were taken."""
    return [event["id"] for event in receiver.taken]


async def test_each_event_comes_signed_and_in_order(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """A webhook gets what it asked for as CloudEvents, whose signatures hold."""
    await crier.subscribe("ops", receiver.url, "tiltyard.access.*")
    for _ in range(3):
        await note(registry, "access.denied", reason="no role")
        await note(registry, "gate.put")
    await crier.tell()
    assert ids(receiver) == ["1-1", "1-3", "1-5"]
    assert all(verifies(SECRET, one, crier.clock()) for one in receiver.received)
    event = from_http(receiver.received[0].headers, receiver.received[0].body)
    assert event["type"] == DENIED
    assert event["source"] == "/tiltyard/tiltyard"
    assert event.data["reason"] == "no role"
    assert (await crier.progress("ops")).cursor == "1-6"
    assert crier.counted("tiltyard.webhook.delivered") == 3


async def test_a_changed_body_or_another_secret_is_seen(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """The receiver's own check fails for what we did not send, and for what is old."""
    await crier.subscribe("ops", receiver.url)
    await note(registry, "access.denied")
    await crier.tell()
    sent = receiver.received[0]
    other = replace(sent, body=sent.body.replace(b"ana", b"eve"))
    assert verifies(SECRET, sent, crier.clock())
    assert not verifies(SECRET, other, crier.clock())
    assert not verifies("whsec_" + "A" * 32, sent, crier.clock())
    assert not verifies(SECRET, sent, crier.clock() + 3_600)


async def test_a_receiver_that_comes_back_gets_everything_in_order(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """While it is down nothing is lost, nothing overtakes, and tries become rare."""
    await crier.subscribe("ops", receiver.url)
    receiver.stop()
    for _ in range(5):
        await note(registry, "access.denied")
    for _ in range(10):
        await crier.tell(60.0)
    failing = await crier.progress("ops")
    assert 3 <= failing.tries <= 7
    assert failing.problem.startswith("The receiver cannot be reached")
    receiver.start()
    await crier.tell(3_600.0)
    await crier.tell()
    assert ids(receiver) == [f"1-{n}" for n in range(1, 6)]
    assert (await crier.progress("ops")).problem == ""


async def test_one_that_is_down_delays_nobody(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """Each webhook has a cursor of its own."""
    with HookReceiver() as other:
        other.stop()
        await crier.subscribe("down", other.url)
        await crier.subscribe("up", receiver.url)
        for _ in range(3):
            await note(registry, "access.denied")
        await crier.tell()
    assert ids(receiver) == ["1-1", "1-2", "1-3"]
    assert (await crier.progress("down")).delivered == 0


async def test_killed_between_delivery_and_cursor_it_tells_again(
    crier: Crier,
    registry: Registry,
    receiver: HookReceiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next leader sends the same event under the same id, and then goes on."""
    await crier.subscribe("ops", receiver.url)
    await note(registry, "access.denied")
    await note(registry, "access.denied")

    async def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as broken:
        broken.setattr(RedisAnnouncements, "save_progress", die)
        await crier.announcer.tick()
        await crier.announcer.settled()
    successor = Crier(crier.store, crier.clock, crier.courier)
    await successor.tell()
    assert ids(receiver) == ["1-1", "1-1", "1-2"]
    first, again = receiver.received[:2]
    assert first.body == again.body
    assert first.headers["webhook-id"] == again.headers["webhook-id"] == "1-1"


async def test_a_first_start_begins_with_what_comes(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """A webhook whose progress is not known does not get the whole history."""
    webhook = await crier.subscribe("ops", receiver.url)
    await crier.store.drop_webhook("ops")
    await note(registry, "access.denied")
    await crier.store.put_webhook("ops", webhook, None)
    await crier.tell()
    await note(registry, "access.denied")
    await crier.tell()
    assert ids(receiver) == ["1-2"]


async def test_an_event_that_is_refused_makes_room_for_later_ones(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """After six tries in minutes it lies with the dead letters, whole."""
    await crier.subscribe("ops", receiver.url)
    receiver.script.extend([Reply(400)] * 6)
    await note(registry, "access.denied")
    await note(registry, "access.denied")
    for _ in range(6):
        await crier.tell(300.0)
    assert ids(receiver) == ["1-2"]
    ((_, letter),) = await crier.store.dead_letters("ops", 10)
    assert msgspec.json.decode(letter.event)["id"] == "1-1"
    assert (letter.tries, letter.problem) == (6, "The receiver answered 400.")
    progress = await crier.progress("ops")
    assert (progress.dead, progress.delivered, progress.failed) == (1, 1, 6)
    assert crier.counted("tiltyard.webhook.dead") == 1


async def test_a_receiver_that_stays_away_costs_a_day(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """An event is given up when it is older than the bound, not before."""
    await crier.subscribe("ops", receiver.url)
    receiver.stop()
    await note(registry, "access.denied")
    for _ in range(24):
        await crier.tell(3_590.0)
    assert (await crier.progress("ops")).dead == 0
    await crier.tell(3_600.0)
    assert (await crier.progress("ops")).dead == 1
    assert (await crier.store.count_dead_letters(["ops"])) == {"ops": 1}


async def test_410_ends_it(crier: Crier, registry: Registry, receiver: HookReceiver) -> None:
    """A receiver that wants no more hears no more, and an alarm says so."""
    await crier.subscribe("ops", receiver.url)
    receiver.script.append(Reply(410))
    await note(registry, "access.denied")
    await crier.tell()
    await crier.tell(DAY_S)
    assert len(receiver.received) == 1
    assert "410" in (await crier.progress("ops")).disabled
    assert "'ops'" in crier.standing.alarms[ALARM]


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_heard(
    crier: Crier, registry: Registry, receiver: HookReceiver, status: int
) -> None:
    """A receiver that says when it wants to be asked again is asked then."""
    await crier.subscribe("ops", receiver.url)
    receiver.script.append(Reply(status, (("retry-after", "600"),)))
    await note(registry, "access.denied")
    await crier.tell()
    await crier.tell(599.0)
    assert len(receiver.received) == 1
    await crier.tell(2.0)
    assert ids(receiver) == ["1-1"]


async def test_who_does_not_lead_tells_nothing(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """Only the leader speaks."""
    await crier.subscribe("ops", receiver.url)
    crier.standing.leads = False
    await note(registry, "access.denied")
    await crier.tell()
    assert receiver.received == []


async def test_alarms_are_told_when_they_rise_and_when_they_end(
    crier: Crier, receiver: HookReceiver
) -> None:
    """Once each, also by a leader that comes later."""
    await crier.subscribe("ops", receiver.url, "tiltyard.alert.*")
    crier.others["two"] = {"secrets": "They cannot be read.\x1b[2J"}
    await crier.tell(10.0)
    await crier.tell(10.0)
    successor = Crier(crier.store, crier.clock, crier.courier)
    successor.others["two"] = {"secrets": "They cannot be read."}
    await successor.tell(10.0)
    successor.others.clear()
    await successor.tell(10.0)
    assert [event["type"] for event in receiver.taken] == [
        "tiltyard.alert.raised",
        "tiltyard.alert.cleared",
    ]
    data = receiver.taken[0]["data"]
    assert (data["process"], data["alarm"]) == ("two", "secrets")
    assert data["text"] == "They cannot be read.\\u001b[2J"


async def test_alarms_are_bounded(crier: Crier, receiver: HookReceiver) -> None:
    """A flood of alarms fills neither the store nor a receiver."""
    crier.others["two"] = {f"alarm{n}": "text" for n in range(2 * MAX_ALARMS)}
    await crier.tell(10.0)
    await crier.tell(10.0)
    assert len(await crier.store.alarms()) == MAX_ALARMS


async def test_a_promotion_says_from_where_to_where(
    crier: Crier, registry: Registry, redis_store: RedisStore, receiver: HookReceiver
) -> None:
    """What the alias named before is found in the audit log, by whoever leads then."""
    for number in (1, 2):
        manifest = manifest_of("m", number)
        await redis_store.put_manifest(manifest)
        seed = ModelRecord(versions={}, aliases={"champion": 1})
        await registry.register(manifest, Request(actor="ana"), seed=seed)
    await crier.subscribe("ops", receiver.url, "tiltyard.version.*")
    await registry.promote("m", 2, Request(actor="ana", reason="better"))
    await crier.tell()
    await registry.rollback("m", Request(actor="ben", reason="worse"))
    await crier.tell()
    told = [(one["type"], one["subject"], one["data"]["from"]) for one in receiver.taken]
    assert told == [
        ("tiltyard.version.promoted", "models/m/versions/2", 1),
        ("tiltyard.version.rolled_back", "models/m/versions/1", 2),
    ]


async def test_entries_that_were_trimmed_are_counted(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """A gap behind the cursor is not passed over in silence."""
    webhook = await crier.subscribe("ops", receiver.url)
    for _ in range(5):
        await note(registry, "access.denied")
    await crier.store.put_webhook("ops", webhook, Progress(cursor="1-1", alerts="0-0"))
    client = await crier.store._connections.get()  # type: ignore[attr-defined]
    await client.xtrim(crier.store._keys.audit, maxlen=2, approximate=False)  # type: ignore[attr-defined]
    await crier.tell()
    assert ids(receiver) == ["1-4", "1-5"]
    assert (await crier.progress("ops")).missed == 2


async def test_what_is_damaged_stops_nobody(
    crier: Crier, registry: Registry, receiver: HookReceiver
) -> None:
    """Neither an entry of the log nor an alert that somebody wrote by hand."""
    await crier.subscribe("ops", receiver.url)
    await note(registry, "access.denied")
    client = await crier.store._connections.get()  # type: ignore[attr-defined]
    keys = crier.store._keys  # type: ignore[attr-defined]
    await client.xadd(keys.audit, {"entry": b"{"}, id="1-7")
    for event in (b"{", b'{"id":"x"}', b"\xff"):
        await client.xadd(keys.alerts, {"event": event})
    crier.others["two"] = {"secrets": "They cannot be read."}
    for _ in range(3):
        await crier.tell(10.0)
    assert [event["type"] for event in receiver.taken] == [DENIED, "tiltyard.alert.raised"]
    assert (await crier.progress("ops")).missed == 6


async def test_a_store_that_is_away_is_told(clock: ManualClock) -> None:
    """And nothing hangs."""
    away = RedisAnnouncements("redis://127.0.0.1:1", namespace="t", timeout_s=0.2, name="test")
    with pytest.raises(StoreUnavailable):
        await Crier(away, clock).tell()
    await away.close()
