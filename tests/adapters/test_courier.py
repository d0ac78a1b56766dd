"""The courier against real receivers, and against addresses that it must not go to."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator

import pytest
import trustme

from gateway.adapters.courier import MAX_ANSWER_BYTES, CourierRules, HttpCourier
from gateway.core.errors import InvalidRequest
from tests.fakes import ManualClock
from tests.webhook_receiver import HookReceiver, Reply

LOCAL = CourierRules(allow_http=True, allow_hosts=("127.0.0.0/8",), timeout_s=5.0)
HASTY = CourierRules(allow_http=True, allow_hosts=("127.0.0.0/8",), timeout_s=0.1)
BODY = b'{"x": 1}'


@pytest.fixture
def receiver() -> Iterator[HookReceiver]:
    """Who listens."""
    with HookReceiver() as receiver:
        yield receiver


@pytest.fixture
async def courier() -> AsyncIterator[HttpCourier]:
    """One that may go to this host."""
    courier = HttpCourier(LOCAL, ManualClock())
    yield courier
    await courier.close()


def resolving(*answers: list[str]) -> "Names":
    """Names that mean these addresses, one answer after the other."""
    return Names(list(answers))


class Names:
    def __init__(self, answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not answer:
            raise OSError("no such name")
        return answer


async def test_body_and_headers_arrive(courier: HttpCourier, receiver: HookReceiver) -> None:
    """As they are, once, with the name that was written in the Host header."""
    posted = await courier.post(receiver.url, {"webhook-id": "1-1"}, BODY)
    assert posted.status == 200
    (sent,) = receiver.received
    assert (sent.path, sent.body) == ("/hook", BODY)
    assert sent.headers["webhook-id"] == "1-1"
    assert sent.headers["host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/",
        "https://",
        "https:///x",
        "ftp://hooks.example/",
        "gopher://hooks.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://user:secret@hooks.example/",
        "https://hooks.example/#part",
        "https://hooks.example:0/",
        "https://hooks.example:99999/",
        "https://hooks.example/a b",
        "https://hooks.example/\r\nx: y",
        "https://hööks.example/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://10.0.0.1/",
        "https://100.100.100.200/",
        "https://" + "a" * 3_000,
        "",
    ],
)
async def test_addresses_that_nothing_is_sent_to(url: str) -> None:
    """Refused when they are written, and again when they are used (A15)."""
    names = resolving(["93.184.216.34"])
    courier = HttpCourier(CourierRules(), ManualClock(), resolve=names)
    with pytest.raises(InvalidRequest) as refused:
        courier.check(url)
    assert "secret" not in str(refused.value)
    if not url.startswith(("https://127", "https://[", "https://1")):
        assert (await courier.post(url, {}, BODY)).refused
        assert names.asked == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["fd00:ec2::254"],
        ["93.184.216.34", "10.0.0.1"],
        ["::ffff:192.168.0.1"],
    ],
)
async def test_names_that_lead_inside(addresses: list[str]) -> None:
    """A name is what it means now: one private address is enough to refuse it (A15)."""
    courier = HttpCourier(CourierRules(), ManualClock(), resolve=resolving(addresses))
    courier.check("https://hooks.example/")
    posted = await courier.post("https://hooks.example/", {}, BODY)
    assert posted.refused
    assert "webhooks.allow_hosts" in posted.problem


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "017700000001", "localhost"])
async def test_disguises_of_this_host(host: str) -> None:
    """What the system resolves is what is checked (A15)."""
    courier = HttpCourier(CourierRules(allow_http=True), ManualClock())
    posted = await courier.post(f"http://{host}:9/", {}, BODY)
    assert posted.refused or "no address" in posted.problem


async def test_the_connection_goes_to_the_address_that_was_checked(
    receiver: HookReceiver,
) -> None:
    """A name that means something else a moment later is not asked a second time (A15)."""
    names = resolving(["127.0.0.1"], ["127.0.0.2"])
    courier = HttpCourier(LOCAL, ManualClock(), resolve=names)
    posted = await courier.post(f"http://hooks.example:{receiver.port}/hook", {}, BODY)
    assert posted.status == 200
    assert names.asked == ["hooks.example"]
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
    await courier.close()


async def test_each_try_is_checked_anew(receiver: HookReceiver) -> None:
    """A kept connection does not outlive what its name means (A15)."""
    rules = CourierRules(allow_http=True, allow_hosts=("127.0.0.1",))
    names = resolving(["127.0.0.1"], ["127.0.0.2"])
    courier = HttpCourier(rules, ManualClock(), resolve=names)
    url = f"http://hooks.example:{receiver.port}/hook"
    assert (await courier.post(url, {}, BODY)).status == 200
    assert (await courier.post(url, {}, BODY)).refused
    await courier.close()


async def test_redirects_are_not_followed(courier: HttpCourier, receiver: HookReceiver) -> None:
    """Not even to this very receiver (A15)."""
    receiver.script.append(Reply(307, (("location", receiver.url),)))
    posted = await courier.post(receiver.url, {}, BODY)
    assert (posted.status, len(receiver.received)) == (307, 1)
    assert "not followed" in posted.problem


async def test_proxies_of_the_environment_are_not_used(
    courier: HttpCourier, receiver: HookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events go where they are meant to, whatever the process was born with."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert (await courier.post(receiver.url, {}, BODY)).status == 200


async def test_one_that_never_answers(receiver: HookReceiver) -> None:
    """Costs its time and no more."""
    receiver.script.append(Reply(hangs=True))
    courier = HttpCourier(HASTY, ManualClock())
    posted = await courier.post(receiver.url, {}, BODY)
    assert (posted.status, posted.problem) == (None, "The receiver did not answer in time.")
    await courier.close()


async def test_one_that_drips(receiver: HookReceiver) -> None:
    """A body without end changes nothing of a status that came."""
    receiver.script.append(Reply(drips=True))
    courier = HttpCourier(HASTY, ManualClock())
    assert (await courier.post(receiver.url, {}, BODY)).status == 200
    await courier.close()


async def test_a_huge_answer_is_left_alone(courier: HttpCourier, receiver: HookReceiver) -> None:
    """Its status counts; the rest is not read."""
    receiver.script.append(Reply(content=b"x" * (200 * MAX_ANSWER_BYTES)))
    assert (await courier.post(receiver.url, {}, BODY)).status == 200
    assert (await courier.post(receiver.url, {}, BODY)).status == 200


async def test_what_is_no_http(courier: HttpCourier) -> None:
    """A sentence of ours, without the address."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    posted = await courier.post(f"http://127.0.0.1:{port}/", {}, BODY)
    assert posted.status is None
    assert posted.problem.startswith("The receiver hung up or answered no HTTP")
    server.close()
    await server.wait_closed()


async def test_nobody_there(courier: HttpCourier, receiver: HookReceiver) -> None:
    """A refused connection and a name without an address are two sentences."""
    receiver.stop()
    assert "cannot be reached" in (await courier.post(receiver.url, {}, BODY)).problem
    lost = HttpCourier(LOCAL, ManualClock(), resolve=resolving([]))
    assert "no address" in (await lost.post("http://nowhere.example/", {}, BODY)).problem


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        ("7", 7.0),
        ("Thu, 01 Jan 1970 00:17:40 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("9" * 400, float("inf")),
    ],
)
async def test_retry_after_is_read(
    courier: HttpCourier, receiver: HookReceiver, stated: str, seconds: float | None
) -> None:
    """In seconds or as a date; anything else says nothing."""
    receiver.script.append(Reply(503, (("retry-after", stated),)))
    assert (await courier.post(receiver.url, {}, BODY)).retry_after_s == seconds


async def test_certificates_are_those_of_the_name() -> None:
    """The connection goes to an address; the certificate must be the name's."""
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]
    names = resolving(["127.0.0.1"])
    courier = HttpCourier(LOCAL, ManualClock(), context=trusting, resolve=names)
    assert (await courier.post(f"https://hooks.example:{port}/", {}, BODY)).status == 204
    other = await courier.post(f"https://other.example:{port}/", {}, BODY)
    assert "certificate is not trusted" in other.problem
    await courier.close()
    server.close()
    await server.wait_closed()
