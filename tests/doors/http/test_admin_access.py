"""Who may enter: every operation, every spelling, every token."""

import hashlib
import itertools
import logging
import re
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from gateway.core.access import Principal, Token, digest_of, id_of
from gateway.core.errors import Throttled
from gateway.core.principals import Action, Grant, Role
from gateway.doors.http.admin_calls import Operation
from gateway.doors.http.admin_guard import (
    MAX_FAILURES,
    MAX_PEERS,
    METRICS,
    READING,
    SECRET_FIELDS,
    WINDOW_S,
    Failures,
)
from gateway.doors.http.admin_routes import OPERATIONS
from gateway.settings import AdminSettings
from tests.doors.http.admin_world import FORCER, MODEL, READER, WRITER, World
from tests.fakes import ManualClock

CLOSED = [row for row in OPERATIONS if not row.is_open and row.path != METRICS]
CHANGING = ("PUT", "DELETE")
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY", "get")


def path_of(row: Operation) -> str:
    """The path with its places filled in."""
    return re.sub(r"\{\w+\}", MODEL, row.path.replace("{version}", "1"))


def label_of(row: Operation) -> str:
    """How a test names an operation."""
    return f"{row.method} {row.path}"


def odd_spellings(path: str) -> Iterator[str]:
    """Other ways to write a path, which a proxy or a router might take for the same."""
    yield f"{path}/"
    yield f"/{path}"
    yield path.replace("/admin", "//admin").replace("/v1", "//v1")
    yield path.upper()
    yield path.replace("/v1/", "/v1/./")
    yield path.replace("/v1/", "/v1/x/../")
    yield path.replace("/v1/", "/v1%2f")
    yield path.replace("admin", "%61dmin")
    yield f"{path};token={WRITER}"
    yield f"/health/..{path}"
    yield f"/health{path}"
    yield f"{path}%00"


each_closed = pytest.mark.parametrize("row", CLOSED, ids=label_of)


STRANGERS = {
    "none": None,
    "empty": "",
    "scheme alone": "Bearer",
    "empty token": "Bearer ",
    "unknown": "bearer x",
    "other scheme": f"Basic {WRITER}",
    "two spaces": f"Bearer  {WRITER}",
    "prefix": f"Bearer {WRITER[:-1]}",
    "longer": f"Bearer {WRITER}x",
    "100 kB": "Bearer " + "x" * 100_000,
    "not ASCII": "Bearer tök",
    "digest": "Bearer " + hashlib.sha256(WRITER.encode()).hexdigest(),
}


@each_closed
async def test_nobody_enters_without_a_token(row: Operation) -> None:
    """Without a token that someone holds, every operation answers 401 and nothing else (A1, A2)."""
    async with World().client(token=None) as client:
        for kind, authorization in STRANGERS.items():
            headers = [] if authorization is None else [(b"authorization", authorization.encode())]
            response = await client.request(row.method, path_of(row), headers=headers)
            assert response.status_code == 401, kind
            assert response.headers["www-authenticate"] == "Bearer"
            assert list(response.json()) == ["error"]


async def test_two_authorization_headers_are_none() -> None:
    """Of two tokens none is taken, so that no proxy and gateway can disagree on which counts."""
    headers = [("authorization", f"Bearer {READER}"), ("authorization", f"Bearer {WRITER}")]
    async with World().client(token=None) as client:
        response = await client.get("/admin/v1/status", headers=headers)
    assert response.status_code == 401


@each_closed
async def test_a_reader_only_reads(row: Operation) -> None:
    """A viewer is refused every operation that does not only read (A4)."""
    world = await World().seed()
    response = await world.ask(row.method, path_of(row), token=READER, content=b"{}")
    assert (response.status_code == 403) == (row.action is not Action.READ)
    assert world.registry.snapshot.revision == 3


@each_closed
async def test_a_writer_is_let_in(row: Operation) -> None:
    """An admin is refused nowhere for want of rights."""
    world = await World().seed()
    response = await world.ask(row.method, path_of(row), content=b"{}")
    assert response.status_code not in (401, 403, 405, 500)


@each_closed
async def test_another_scope_opens_nothing(row: Operation) -> None:
    """A token that may only force variants neither reads nor writes here."""
    response = await World().ask(row.method, path_of(row), token=FORCER, content=b"{}")
    assert response.status_code == 403


@each_closed
async def test_a_token_in_the_address_is_refused(
    row: Operation, caplog: pytest.LogCaptureFixture
) -> None:
    """A token in the query is refused, also beside a good one, and is never logged (A1)."""
    caplog.set_level(logging.DEBUG, logger="gateway")
    world = World()
    for field, token in itertools.product(sorted(SECRET_FIELDS), (None, WRITER)):
        response = await world.ask(
            row.method, path_of(row), token=token, params={field.upper(): WRITER}
        )
        assert response.status_code == 401, field
    assert WRITER not in caplog.text


@each_closed
async def test_no_spelling_leads_round_the_guard(row: Operation) -> None:
    """No method and no spelling of a path answers a stranger, or lets a reader write (A14, A16)."""
    world = await World().seed()
    paths = (path_of(row), *odd_spellings(path_of(row)))
    for method, path in itertools.product(METHODS, paths):
        status, _ = await world.knock(method, path, None)
        assert status == 401, (method, path)
        status, _ = await world.knock(method, path, READER)
        # What each document of a bundle takes is asked once the body is read; here it is empty.
        by_its_body = {400} if row.action is Action.READ else set()
        assert method in READING or status in {403, 404, 405} | by_its_body, path
    assert world.registry.snapshot.revision == 3


@each_closed
async def test_an_odd_spelling_is_nothing(row: Operation) -> None:
    """Another spelling of a path is another path: no redirect, and never the operation (A16)."""
    world = await World().seed()
    for method, path in itertools.product(METHODS, odd_spellings(path_of(row))):
        if unquote(path) == path_of(row):
            continue
        status, headers = await world.knock(method, path, WRITER)
        assert status in (400, 404, 405), path
        assert b"location" not in dict(headers)
    assert world.registry.snapshot.revision == 3


@pytest.mark.parametrize("header", ["x-http-method-override", "x-http-method", "x-method-override"])
async def test_a_method_is_not_overridden(header: str) -> None:
    """A header that names another method changes nothing (A16)."""
    world = await World().seed()
    path = f"/admin/v1/endpoints/{MODEL}"
    response = await world.ask("GET", path, token=READER, headers={header: "DELETE"})
    assert response.status_code == 200
    assert response.json()["name"] == MODEL


async def test_other_paths_do_not_stand_for_ours() -> None:
    """Headers by which proxies rewrite paths change nothing (A14)."""
    headers = {"x-original-url": "/health", "x-rewrite-url": "/health", "x-forwarded-prefix": "/"}
    response = await World().ask("GET", "/admin/v1/status", token=None, headers=headers)
    assert response.status_code == 401


async def test_head_answers_like_get_without_a_body() -> None:
    """HEAD needs the same token as GET and tells as much, but for the body."""
    world = await World().seed()
    path = "/admin/v1/models"
    assert (await world.ask("HEAD", path, token=None)).status_code == 401
    got, head = await world.ask("GET", path), await world.ask("HEAD", path)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(got.content))


async def test_a_wrong_method_says_which_are_right() -> None:
    """405 names what the path takes."""
    response = await World().ask("PATCH", "/admin/v1/status")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD"
    assert response.json() == {"error": "This path takes GET, HEAD."}


@pytest.mark.parametrize("path", ["/", "/health"])
async def test_liveness_is_open_and_says_little(path: str) -> None:
    """Whether this process answers may be asked by anybody, and nothing else is said (A17)."""
    world = await World().seed()
    response = await world.ask("GET", path, token=None)
    assert response.status_code == 200
    assert response.json() == {"status": "alive"}
    assert (await world.ask("POST", path, token=None)).status_code == 401


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        pytest.param(AdminSettings(), 200, id="loopback"),
        pytest.param(AdminSettings(host="::1"), 200, id="loopback-v6"),
        pytest.param(AdminSettings(open_metrics=False), 401, id="closed-by-choice"),
        pytest.param(
            AdminSettings(host="0.0.0.0"),
            401,
            id="on-every-interface",
        ),
    ],
)
async def test_metrics_are_open_on_loopback_only(settings: AdminSettings, status: int) -> None:
    """The metrics page needs a token unless the listener is on loopback and says so (A17)."""
    world = World(settings=settings)
    assert (await world.ask("GET", "/metrics", token=None)).status_code == status
    assert (await world.ask("GET", "/metrics", token=FORCER)).status_code in (200, 403)
    with_token = await world.ask("GET", "/metrics", token=READER)
    assert with_token.status_code == 200
    assert with_token.text == "tiltyard_up 1\n"
    assert with_token.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        pytest.param("127.0.0.1:8082", True, id="loopback"),
        pytest.param("localhost", True, id="name"),
        pytest.param("LocalHost:1", True, id="case"),
        pytest.param("[::1]:8082", True, id="v6"),
        pytest.param("gate.example", True, id="allowed"),
        pytest.param("10.0.0.7:8082", True, id="configured"),
        pytest.param("evil.example", False, id="other"),
        pytest.param("127.0.0.1.evil.example", False, id="suffix"),
        pytest.param("localhost.", False, id="dot"),
        pytest.param("localhost:8082@evil.example", False, id="at"),
        pytest.param("[::1]evil", False, id="after-brackets"),
        pytest.param("", False, id="empty"),
    ],
)
async def test_only_our_names_are_answered(host: str, allowed: bool) -> None:
    """A Host that someone else's DNS points here is refused, whatever token comes along (H27)."""
    world = World(settings=AdminSettings(host="10.0.0.7", allowed_hosts=("gate.example",)))
    for path in ("/admin/v1/status", "/", "/metrics"):
        response = await world.ask("GET", path, headers={"host": host})
        assert response.status_code == (200 if allowed else 403), path


async def test_one_host_only() -> None:
    """Of two Host headers none counts."""
    async with World().client() as client:
        headers = [("host", "localhost"), ("host", "localhost")]
        response = await client.get("/admin/v1/status", headers=headers)
    assert response.status_code == 403


@pytest.mark.parametrize(
    "media",
    [
        pytest.param(None, id="none"),
        pytest.param("text/plain", id="text"),
        pytest.param("application/x-www-form-urlencoded", id="form"),
        pytest.param("multipart/form-data; boundary=x", id="multipart"),
        pytest.param("application/json; charset=latin-1", id="charset"),
        pytest.param("text/plain; application/json", id="in-disguise"),
    ],
)
@pytest.mark.parametrize("row", [row for row in CLOSED if row.body is not None], ids=label_of)
async def test_what_a_browser_may_send_is_no_write(row: Operation, media: str | None) -> None:
    """A body that is not declared as JSON is 415, so no form of another site's writes (H27)."""
    world = await World().seed()
    headers = {} if media is None else {"content-type": media}
    async with world.client() as client:
        response = await client.request(
            row.method, path_of(row), content=b'{"version":2}', headers=headers
        )
    assert response.status_code == 415
    assert "accept-encoding" not in response.headers
    assert world.registry.snapshot.revision == 3


async def test_too_many_failures_are_throttled() -> None:
    """After twenty unknown tokens an address hears 429 to further ones for a minute (A5)."""
    world = World()
    for _ in range(MAX_FAILURES):
        assert (await world.ask("GET", "/admin/v1/status", token="x")).status_code == 401
    response = await world.ask("GET", "/admin/v1/status", token="x")
    assert response.status_code == 429
    assert response.headers["retry-after"] == "60"
    world.clock.at += WINDOW_S
    assert (await world.ask("GET", "/admin/v1/status", token="x")).status_code == 401


async def test_a_known_token_is_never_locked_out() -> None:
    """Whoever guesses from an address that others share keeps none of them from their work."""
    world = await World().seed()
    for _ in range(2 * MAX_FAILURES):
        await world.ask("GET", "/admin/v1/status", token="x")
    assert (await world.ask("GET", "/admin/v1/status", token=READER)).status_code == 200
    promoted = await world.ask("POST", f"/admin/v1/models/{MODEL}/promote", {"version": 2})
    assert promoted.status_code == 200
    assert (await world.ask("POST", f"/admin/v1/models/{MODEL}/rollback", {})).status_code == 200
    assert (await world.ask("GET", "/admin/v1/status", token="x")).status_code == 429
    assert (await world.ask("GET", "/admin/v1/status", token=None)).status_code == 401


async def test_a_missing_token_is_no_guess() -> None:
    """Who sends no token learns nothing and is not counted, so a probe locks nobody out."""
    world = World()
    for _ in range(MAX_FAILURES + 1):
        assert (await world.ask("GET", "/admin/v1/status", token=None)).status_code == 401
    assert (await world.ask("GET", "/admin/v1/status")).status_code == 200


def test_failures_are_counted_by_address() -> None:
    """One address that fails does not lock out another, and memory stays small (A5)."""
    failures = Failures(ManualClock())
    for _ in range(MAX_FAILURES):
        failures.note("10.0.0.1")
    failures.check("10.0.0.2")
    with pytest.raises(Throttled):
        failures.check("10.0.0.1")
    for number in range(MAX_PEERS):
        failures.note(f"peer {number}")
    failures.check("10.0.0.1")


def test_a_window_begins_anew() -> None:
    """Failures far apart never add up."""
    clock = ManualClock()
    failures = Failures(clock)
    for _ in range(2 * MAX_FAILURES):
        clock.at += WINDOW_S / (MAX_FAILURES - 2)
        failures.note("10.0.0.1")
        failures.check("10.0.0.1")


async def test_a_revoked_token_is_refused_at_once() -> None:
    """The tokens are asked for at each request, so none outlives its removal (A4)."""
    world = World()
    assert (await world.ask("GET", "/admin/v1/status")).status_code == 200
    world.tokens = ()
    assert (await world.ask("GET", "/admin/v1/status")).status_code == 401


async def test_every_token_costs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is the same for a known and an unknown token: two digests are compared (A3)."""
    compared: list[bytes] = []

    def note(stored: bytes, presented: bytes) -> bool:
        compared.append(stored)
        return stored == presented

    monkeypatch.setattr("gateway.core.access.compare_digest", note)
    world = World()
    for count, token in enumerate((READER, WRITER, "unknown", "tilt_r_wrong", "tilt_x_y"), 1):
        await world.ask("GET", "/admin/v1/models", token=token)
        assert len(compared) == 2 * count


async def test_secrets_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a good nor a bad token, nor a header's line breaks, reach the log (A11, A12)."""
    caplog.set_level(logging.DEBUG, logger="gateway")
    world = World()
    await world.ask("PUT", f"/admin/v1/endpoints/{MODEL}", {}, token=READER)
    await world.ask("GET", "/admin/v1/x%0aadmin: promoted", token="guess-the-secret")
    assert "'rules'" in caplog.text
    assert READER not in caplog.text
    assert "guess-the-secret" not in caplog.text
    assert "\nadmin" not in caplog.text


async def test_a_name_with_line_breaks_stays_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A strange name cannot forge a log line (A11)."""
    world = World()
    forged = Principal("x\nadmin: promoted", (Grant(Role.VIEWER),), fixed=True)
    world.tokens = (Token(id_of(b"tilt_odd_x"), digest_of(b"tilt_odd_x"), forged),)
    await world.ask("DELETE", f"/admin/v1/endpoints/{MODEL}", token="tilt_odd_x")
    assert "refused" in caplog.text
    assert "\nadmin" not in caplog.text


def test_what_changes_something_is_no_reading() -> None:
    """What replaces or drops a document is never the action `read`."""
    assert all(row.action is not Action.READ for row in OPERATIONS if row.method in CHANGING)
    assert {row.path for row in OPERATIONS if row.is_open} == {"/", "/health"}


def test_no_operation_stands_twice() -> None:
    """Method and path name one operation, and so does its name."""
    assert len({(row.method, row.path) for row in OPERATIONS}) == len(OPERATIONS)
    assert len({row.name for row in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_only_http_is_spoken(kind: str) -> None:
    """A websocket is closed before it opens, and a lifespan is let be."""
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return {"type": f"{kind}.connect"}

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message["type"])

    await World().app({"type": kind, "path": "/", "headers": []}, receive, send)
    assert sent == (["websocket.close"] if kind == "websocket" else [])


async def test_an_unforeseen_failure_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is 500 with one sentence; the log says more (A17)."""
    world = World()
    monkeypatch.setattr(type(world.parts.data_plane), "statistics", lambda *_: 1 / 0)
    response = await world.ask("GET", "/admin/v1/statistics")
    assert response.status_code == 500
    assert response.json() == {"error": "The gateway failed; its log says more."}
    assert "ZeroDivisionError" in caplog.text


async def test_answers_are_not_kept_by_browsers() -> None:
    """Every answer says that it is not to be cached or guessed at."""
    for path in ("/health", "/admin/v1/status", "/nowhere"):
        response = await World().ask("GET", path)
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
