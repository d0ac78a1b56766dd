"""Bad requests to the admin API from outside (A rows): a real listener in front of a real store."""

import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import redis

from tests.e2e.gateways import ROOT, Gateway, eventually, free_port, processes, resident_mib
from tests.e2e.valkeys import ValkeyProcess
from tests.onnx_models import linear, save

pytestmark = [pytest.mark.e2e, pytest.mark.story, pytest.mark.timeout(120)]

MODEL: Final = "/admin/v1/models/m"
STATUS: Final = "/admin/v1/status"
SECRET: Final = "tilt_s_ecret-that-nobody-may-see"
PASSWORD: Final = "pass-that-nobody-may-see"
REVOKED_WITHIN_S: Final = 5.0
GUESSES: Final = 500
FREE_GUESSES: Final = 20


class World:
    """A gateway with a store of its own, and both within reach."""

    def __init__(self, folder: Path) -> None:
        for number in (1, 2):
            version = folder / "models" / "m" / str(number)
            version.mkdir(parents=True)
            save(linear(100.0 * number), version)
        (folder / "models" / "m" / "model.toml").write_text("champion = 1", encoding="ascii")
        self.valkey = ValkeyProcess(folder / "valkey", free_port())
        self.valkey.start()
        self.redis: Any = redis.Redis.from_url(self.valkey.url)
        self.redis.config_set("requirepass", PASSWORD)
        self.redis.close()
        url = self.valkey.url.replace("//", f"//:{PASSWORD}@")
        self.redis = redis.Redis.from_url(url)
        env = {"TILTYARD_REDIS_URL": url, "TILTYARD_ADMIN_TOKEN": SECRET, "COLUMNS": "250"}
        self.gateway = Gateway(folder / "state", folder / "models", env).start()
        self.gateway.settle()

    def close(self) -> None:
        """Leave nothing running."""
        self.gateway.close()
        self.redis.close()
        self.valkey.kill()

    def client(self, token: str | None = SECRET) -> httpx.Client:
        """A client of the admin listener."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.gateway.admin_url, headers=headers, timeout=30)

    def knock(self, raw: bytes) -> tuple[int, bytes]:
        """Send bytes to the admin listener; the status of the answer, and all of it."""
        with socket.create_connection(("127.0.0.1", self.gateway.admin_port), timeout=10) as peer:
            peer.sendall(raw)
            came = b""
            while part := peer.recv(65_536):
                came += part
        return int(came.split(b" ", 2)[1]), came

    def stands(self) -> tuple[list[str], dict[str, int]]:
        """What was changed so far and why, denials left out, and what the aliases name."""
        entries = self.gateway.audit()
        changes = [f"{entry['action']} {entry['reason']}" for entry in entries]
        aliases = self.gateway.told("GET", MODEL)["aliases"]
        return [change for change in changes if not change.startswith("access.denied")], aliases


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all rows; its token was given by the operator."""
    made = World(tmp_path_factory.mktemp("bad-admin"))
    yield made
    made.close()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Authorization:",
        "Authorization: Bearer",
        "Authorization: bearer x",
        f"Authorization: Basic {SECRET}",
        "Authorization: Bearer t\u00f6k",
        "Authorization: Bearer " + "x" * 100_000,
    ],
    ids=["none", "empty", "scheme", "unknown", "basic", "not ASCII", "100 KB"],
)
def test_nobody_enters_without_a_token(world: World, header: str) -> None:
    """A1 A2 Over a real connection: 401, or 431 where it is longer than any head may be."""
    line = f"{header}\r\n" if header else ""
    raw = f"GET {STATUS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{line}\r\n"
    status, came = world.knock(raw.encode())
    assert status == (431 if len(header) > 1_000 else 401), came


def test_a_token_in_the_address_is_not_logged(world: World) -> None:
    """A1 A12 It is refused there, though it is the right one."""
    with world.client(None) as client:
        assert client.get(STATUS, params={"token": SECRET}).status_code == 401
    assert SECRET not in world.gateway.log


def test_guessing_is_throttled_and_costs_little(world: World) -> None:
    """A5 Beyond a few guesses each is 429; who knows a token works on, and the log stays short."""
    (pid,) = processes(world.gateway)["control"]
    before, lines = resident_mib(pid), len(world.gateway.log.splitlines())
    counts: dict[int, int] = {}
    with world.client(None) as client, world.client() as known:
        for number in range(GUESSES):
            shown = {"Authorization": f"Bearer tilt_guess_{number}"}
            status = client.get(STATUS, headers=shown).status_code
            counts[status] = counts.get(status, 0) + 1
        assert known.get(STATUS).status_code == 200
    assert set(counts) == {401, 429}
    assert counts[401] <= FREE_GUESSES
    assert resident_mib(pid) < before + 32
    assert len(world.gateway.log.splitlines()) - lines < 2 * FREE_GUESSES
    assert "tilt_guess_7" not in world.gateway.log


def test_a_token_is_good_for_what_it_was_given_and_until_it_is_revoked(world: World) -> None:
    """A4 A viewer promotes nothing, a deployer of other models neither; revoked, both are gone."""
    grants = {
        "viewer": {"role": "viewer", "models": ["*"]},
        "other": {"role": "deployer", "models": ["other-*"]},
    }
    for name, grant in grants.items():
        path = f"/admin/v1/principals/{name}"
        world.gateway.told("PUT", path, {"schema": 1, "grants": [grant]})
        issued = world.gateway.told("POST", f"{path}/tokens", {"reason": "test"})
        with world.client(issued["token"]) as client:
            assert client.get(STATUS).status_code == 200
            asked = {"version": 2, "reason": "mine"}
            assert client.post(f"{MODEL}/promote", json=asked).status_code == 403
            world.gateway.told("DELETE", f"/admin/v1/tokens/{issued['id']}?reason=lost")
            revoked = eventually(
                lambda client=client: client.get(STATUS).status_code in (401, 429),  # type: ignore[misc]
                REVOKED_WITHIN_S,
            )
            assert revoked
        assert issued["token"] not in world.gateway.log


@pytest.mark.parametrize(
    ("spoil", "heal"),
    [
        pytest.param("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", id="READONLY"),
        pytest.param("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", id="OOM"),
    ],
)
def test_a_change_and_its_entry_are_both_or_neither(world: World, spoil: str, heal: str) -> None:
    """A10 A store that takes no writes leaves what stood, in the log too; healed, both are made."""
    before = world.stands()
    champion = before[1]["champion"]
    asked = {"version": 3 - champion, "reason": "A10"}
    with world.client() as client:
        world.redis.execute_command(*spoil.split())
        try:
            refused = client.post(f"{MODEL}/promote", json=asked)
            assert refused.status_code == 503, refused.text
            assert list(refused.json()) == ["error"]
            assert not [
                word for word in (PASSWORD, "127.0.0.1", "Traceback") if word in refused.text
            ]
            assert world.stands() == before
            live = httpx.get(f"{world.gateway.url}/v2/health/live", timeout=5)
            assert live.status_code == 200
        finally:
            world.redis.execute_command(*heal.split())
        done = eventually(
            lambda: client.post(f"{MODEL}/promote", json=asked).status_code in (200, 409)
        )
        assert done
    after = ([*before[0], "model.promote A10"], {"champion": asked["version"]})
    assert world.stands() == after


def test_nothing_of_admin_is_on_the_public_port(world: World) -> None:
    """A13 Whatever token comes along; and the admin listener is on loopback."""
    shown = {"Authorization": f"Bearer {SECRET}"}
    for path in (STATUS, MODEL, "/admin", "/admin/v1/openapi.json", "/metrics"):
        answer = httpx.get(world.gateway.url + path, headers=shown, timeout=10)
        assert answer.status_code == 404, path
    listening = Path(f"/proc/{processes(world.gateway)['control'][0]}/net/tcp").read_text()
    held = f"0100007F:{world.gateway.admin_port:04X}"
    assert held in listening
    assert f"00000000:{world.gateway.admin_port:04X}" not in listening


def test_an_open_listener_without_a_token_does_not_start(tmp_path: Path) -> None:
    """A13 It says which variable is missing, and leaves no token of its own making."""
    gateway = Gateway(tmp_path / "state", ROOT / "models", {"TILTYARD_ADMIN_HOST": "0.0.0.0"})
    gateway.start(wait=False, command=[sys.executable, "-m", "gateway", "serve"])
    assert gateway.process is not None
    assert gateway.process.wait(30) != 0
    assert "TILTYARD_ADMIN_TOKEN" in gateway.log
    assert not (gateway.state / "admin.token").exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://169.254.169.254/",
        "https://127.0.0.1:1/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/",
        "file:///etc/passwd",
        "gopher://example.org/",
        "https://user:word@example.org/",
    ],
)
def test_a_webhook_leads_to_the_open_internet_only(world: World, url: str) -> None:
    """A15 Whatever is written for this host, its neighbours, or a cloud's metadata."""
    before = world.stands()
    answer = world.gateway.ask("PUT", "/admin/v1/webhooks/w", {"url": url, "types": ["*"]})
    assert answer.status_code == 400, answer.text
    assert world.stands() == before


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1", "127.1"])
def test_a_name_of_this_host_is_not_connected_to(world: World, host: str) -> None:
    """A15 What a name leads to is looked at when something is to be sent, each time."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        url = f"https://{host}:{listening.getsockname()[1]}/"
        world.gateway.told("PUT", "/admin/v1/webhooks/w", {"url": url, "types": ["none"]})
        told = world.gateway.told("POST", "/admin/v1/webhooks/w/test", {})
        assert (told["taken"], told["status"]) == (False, None)
        with pytest.raises(TimeoutError):
            listening.accept()
    world.gateway.told("DELETE", "/admin/v1/webhooks/w")


@pytest.mark.parametrize(
    "line",
    [
        "HEAD {}",
        "OPTIONS {}",
        "TRACE {}",
        "PATCH {}",
        "CONNECT {}",
        "post {}",
        "POST {}/",
        "POST /{}",
        "POST /admin//v1/models/m/promote",
        "POST /ADMIN/v1/models/m/promote",
        "POST /admin/v1/../v1/models/m/promote",
        "POST /admin/v1/models/m%252Fpromote",
        "POST http://localhost{}x",
    ],
)
@pytest.mark.parametrize("token", [None, SECRET], ids=["stranger", "admin"])
def test_no_spelling_changes_anything(world: World, line: str, token: str | None) -> None:
    """A14 A16 Another method or another way to write a path: refused, whoever asks."""
    before = world.stands()
    body = json.dumps({"version": 2, "reason": "spelled"}).encode()
    head = [
        f"{line.format(f'{MODEL}/promote')} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        "X-HTTP-Method-Override: POST",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if token is not None:
        head.append(f"Authorization: Bearer {token}")
    status, came = world.knock("\r\n".join(head).encode() + b"\r\n\r\n" + body)
    allowed = {400, 401, 404, 405, 501} if token is None else {400, 404, 405, 501}
    assert status in allowed, came
    assert world.stands() == before


def test_what_is_far_too_large_is_refused_before_it_comes(world: World) -> None:
    """A9 By its stated length; nothing of it is read into memory."""
    (pid,) = processes(world.gateway)["control"]
    before = resident_mib(pid)
    for path in ("/admin/v1/endpoints/m", "/admin/v1/gates/g", "/admin/v1/principals/p"):
        raw = (
            f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\r\n"
            "Content-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n"
        )
        began = time.monotonic()
        status, _ = world.knock(raw.encode())
        assert status == 413
        assert time.monotonic() - began < 5
    assert resident_mib(pid) < before + 32


def test_a_reason_forges_no_line(world: World) -> None:
    """A11 Neither in the log nor in what the command line prints."""
    hostile = "x\r\nadmin: promoted\x1b[2J"
    world.gateway.told("POST", f"{MODEL}/load", {"version": 2, "reason": hostile})
    printed = world.gateway.run_cli("audit", "list")
    assert "admin: promoted" in printed
    for text in (world.gateway.log, printed):
        assert "\x1b[2J" not in text
        assert not [line for line in text.splitlines() if line.startswith("admin: promoted")]


def test_a_secret_is_kept_nowhere(world: World) -> None:
    """A12 After all of these, to the end: neither in the log nor in any file of the gateway."""
    world.gateway.stop()
    assert len(world.gateway.log) > 1_000
    for path in world.gateway.state.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path.name
            assert PASSWORD.encode() not in content, path.name
