"""A store behind a password, an access list, TLS and a seal: only what is meant gets through."""

import hmac
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import trustme
from redis.commands import AsyncCoreCommands

from gateway.adapters.redis import RedisStore
from gateway.core.errors import StoreUnavailable
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import ROOT, Gateway, eventually, free_port
from tests.e2e.valkeys import ValkeyProcess
from tests.onnx_models import linear, save

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PASSWORD = "Pa55-that-nobody-may-see"
SEAL_KEY = "seal-key-that-nobody-may-see"
SNAPSHOT = "{tiltyard}:snapshot"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A store of the test's own."""
    server = ValkeyProcess(tmp_path / "valkey", free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture
def root(valkey: ValkeyProcess) -> Iterator[Any]:
    """A client that may do everything."""
    client: Any = redis.Redis.from_url(valkey.url)
    yield client
    client.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two versions of one model."""
    for number in (1, 2):
        version = tmp_path / "models" / "m" / str(number)
        version.mkdir(parents=True)
        save(linear(100.0 * number), version)
    (tmp_path / "models" / "m" / "model.toml").write_text("champion = 1")
    return tmp_path / "models"


def status(gateway: Gateway) -> dict[str, Any]:
    """What a gateway says of itself."""
    return gateway.told("GET", "/admin/v1/status")


def served(gateway: Gateway) -> str:
    """The version that answers."""
    answer = httpx.post(f"{gateway.url}/v2/models/m/infer", json=BODY)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-model-version"]


def access_line() -> str:
    """The user that the documentation asks for."""
    text = (ROOT / "docs" / "redis.md").read_text()
    (line,) = re.findall(r"(?m)^ACL SETUSER tiltyard .*$", text)
    return str(line)


def allow(root: Any, password: str = PASSWORD) -> None:
    """Make that user."""
    root.execute_command(*access_line().replace("PASSWORD", password).split())


def url_for(port: int, password: str = PASSWORD, scheme: str = "redis", query: str = "") -> str:
    """A URL with the user's password."""
    return f"{scheme}://tiltyard:{password}@127.0.0.1:{port}{query}"


def port_of(valkey: ValkeyProcess) -> int:
    """Where it listens."""
    return int(valkey.url.rpartition(":")[2])


def test_the_documented_user_is_enough(
    make_gateway: MakeGateway, models: Path, valkey: ValkeyProcess, root: Any
) -> None:
    """R17 A whole story runs under the documented user, which is refused nothing on its way."""
    allow(root)
    url = url_for(port_of(valkey))
    env = {"REDIS_URL": url, "INSPECTION_MODE": "short", "MLFLOW_URL": "http://127.0.0.1:1"}
    env = {f"TILTYARD_{name}": value for name, value in env.items()}
    gateway = make_gateway(models=models, env=env)
    split = {
        "exposure": 10_000,
        "variants": [
            {"name": "a", "version": 1, "weight": 5_000},
            {"name": "b", "version": 2, "weight": 5_000},
        ],
    }
    document = {"schema": 1, "model": "m", "rules": [{"name": "ab", "split": split}]}
    gateway.told("PUT", "/admin/v1/endpoints/e", document)
    gateway.settle()
    gateway.told("POST", "/admin/v1/models/m/promote", {"version": 2})
    gateway.settle()
    assert served(gateway) == "2"
    gateway.told("POST", "/admin/v1/models/m/rollback", {})
    eventually(lambda: served(gateway) == "1")
    asked = {"token": gateway.token, "model": "m", "version": "2"}
    root.xadd("{tiltyard}:promotions", asked)
    eventually(lambda: served(gateway) == "2")
    root.xadd("{tiltyard}:promotions", {"model": "m", "version": "1"})
    eventually(lambda: root.xlen("{tiltyard}:promotion-results") == 2)
    answers = root.xrange("{tiltyard}:promotion-results")
    assert [answer[b"status"] for _, answer in answers] == [b"accepted", b"refused"]
    assert len(gateway.audit()) == status(gateway)["revision"]
    govern(gateway)
    # A process that is gone is forgotten, and another one may lead for a while.
    root.sadd("{tiltyard}:processes", "gone")
    root.set("{tiltyard}:leader", "another", px=6_000)
    eventually(lambda: status(gateway) and not root.sismember("{tiltyard}:processes", "gone"))
    eventually(lambda: "cmdstat_unwatch" in root.info("commandstats"))
    assert root.acl_log() == []


def govern(gateway: Gateway) -> None:
    """What governance has of its own in the store: reports, webhooks, archives, what may go."""
    gateway.told("POST", "/admin/v1/models/m/versions/2/inspect", {"reason": "again"})
    gateway.told("GET", "/admin/v1/models/m/versions/2")
    gateway.told("PUT", "/admin/v1/webhooks/w", {"url": "https://hooks.example/"})
    gateway.told("GET", "/admin/v1/webhooks/w")
    gateway.told("DELETE", "/admin/v1/webhooks/w")
    retention = {"schema": 1, "models": ["*"], "keep": 1, "min_age_days": 0, "ledger_days": 0}
    gateway.told("PUT", "/admin/v1/retention/documents/r", retention)
    gateway.told("POST", "/admin/v1/retention/collect", {"reason": "all that may go"})
    gateway.told("GET", "/admin/v1/audit/head")
    gateway.told("POST", "/admin/v1/mlflow/sync")


def test_the_documented_user_may_do_nothing_else(valkey: ValkeyProcess, root: Any) -> None:
    """R17 No script, nothing dangerous, no other key and no other channel is open to it."""
    allow(root)
    words = access_line().split()
    allowed = {word[1:] for word in words if word.startswith("+")}
    dangerous = {*root.acl_cat("scripting"), *root.acl_cat("dangerous"), *root.acl_cat("blocking")}
    assert allowed & dangerous == set()
    assert not any("@" in word for word in words)
    client: Any = redis.Redis.from_url(url_for(port_of(valkey)))
    for command in (
        ("EVAL", "return 1", "0"),
        ("FUNCTION", "LIST"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("XREAD", "BLOCK", "1", "STREAMS", "{tiltyard}:audit", "$"),
        ("GET", "other"),
        ("PUBLISH", "other", "x"),
        ("DEL", SNAPSHOT),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)
    client.close()


def test_the_documented_user_may_do_no_more_than_is_used() -> None:
    """R17 The line holds no command that the adapter, or redis-py for it, does not send."""
    names = {word[1:] for word in access_line().split() if word.startswith("+")}
    pages = (ROOT / "gateway" / "adapters" / "redis").glob("*.py")
    source = "".join(page.read_text() for page in pages)
    # redis-py sends these by itself: for transactions, for its name and for what it is.
    by_itself = {"exec", "unwatch", "client|setname", "client|setinfo"}
    assert {name for name in names - by_itself if f".{name}(" not in source} == set()


def test_the_documented_user_may_do_all_that_is_used() -> None:
    """R17 Every command of redis-py that the adapter names is in the line."""
    names = {word[1:] for word in access_line().split() if word.startswith("+")}
    pages = (ROOT / "gateway" / "adapters" / "redis").glob("*.py")
    called = set(re.findall(r"\.(\w+)\(", "".join(page.read_text() for page in pages)))
    # Lists, mappings and hashes have these, too, and of those only they are called.
    of_python = {"append", "digest", "keys", "sort"}
    assert (called & set(dir(AsyncCoreCommands))) - names == of_python


class TlsDoor:
    """Speaks TLS in front of a plain port."""

    def __init__(self, authority: trustme.CA, host: str, behind: int) -> None:
        """Listen, and carry bytes both ways for whoever comes."""
        self.authority = authority
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host).configure_cert(self._context)
        self._behind = behind
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []
        self._threads[0].start()

    def close(self) -> None:
        """Let go of everybody."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listening.close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            try:
                outer = self._context.wrap_socket(plain, server_side=True)
            except OSError:
                plain.close()
                continue
            inner = socket.create_connection(("127.0.0.1", self._behind))
            self._sockets += [outer, inner]
            for pair in ((outer, inner), (inner, outer)):
                self._threads.append(threading.Thread(target=self._carry, args=pair))
                self._threads[-1].start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def tls(valkey: ValkeyProcess, root: Any) -> Iterator[Callable[[str], TlsDoor]]:
    """Makes TLS doors before the store, for a certificate's host; its user is made, too."""
    allow(root)
    doors: list[TlsDoor] = []

    def make(host: str) -> TlsDoor:
        doors.append(TlsDoor(trustme.CA(), host, port_of(valkey)))
        return doors[-1]

    yield make
    for door in doors:
        door.close()


def test_the_store_is_reached_over_tls(
    make_gateway: MakeGateway, models: Path, tls: Callable[[str], TlsDoor], tmp_path: Path
) -> None:
    """R18 With a certificate that is good and for that host, reads and commits go over TLS."""
    door = tls("127.0.0.1")
    door.authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    url = url_for(door.port, scheme="rediss", query=f"?ssl_ca_certs={tmp_path / 'ca.pem'}")
    gateway = make_gateway(models=models, env={"TILTYARD_REDIS_URL": url})
    assert served(gateway) == "1"
    gateway.told("POST", "/admin/v1/models/m/promote", {"version": 2})
    eventually(lambda: served(gateway) == "2")
    assert PASSWORD not in gateway.log + json.dumps(status(gateway))
    gateway.close()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(("redis.example", True, "rediss"), id="another-name"),
        pytest.param(("127.0.0.1", False, "rediss"), id="another-authority"),
        pytest.param(("127.0.0.1", True, "redis"), id="in-the-clear"),
    ],
)
async def test_a_certificate_is_checked(
    tls: Callable[[str], TlsDoor], root: Any, tmp_path: Path, case: tuple[str, bool, str]
) -> None:
    """R18 Any other certificate, or none asked for, ends in a sentence without the password."""
    host, trusted, scheme = case
    door = tls(host)
    authority = door.authority if trusted else trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    query = f"?ssl_ca_certs={tmp_path / 'ca.pem'}" if scheme == "rediss" else ""
    url = url_for(door.port, scheme=scheme, query=query)
    store = RedisStore(url, namespace="tiltyard", timeout_s=2.0, name="test")
    with pytest.raises(StoreUnavailable) as caught:
        await store.read()
    await store.close()
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    assert root.acl_log() == []
    assert not any(one["user"] == "tiltyard" for one in root.client_list())


def test_the_password_is_never_shown(
    make_gateway: MakeGateway, models: Path, valkey: ValkeyProcess, root: Any
) -> None:
    """R18 Neither logs, status, metrics, errors nor `tiltyard check` hold the URL's password."""
    allow(root)
    env = {"TILTYARD_REDIS_URL": url_for(port_of(valkey)), "TILTYARD_REDIS_SEAL_KEY": SEAL_KEY}
    gateway = make_gateway(models=models, env=env)
    checked = gateway.run_cli("check")
    assert "********" in checked
    allow(root, "changed")
    root.execute_command("CLIENT", "KILL", "USER", "tiltyard")
    reason = eventually(lambda: status(gateway)["store"]["reason"])
    assert "WRONGPASS" in reason
    refused = gateway.ask("POST", "/admin/v1/models/m/promote", {"version": 2})
    assert refused.status_code == 503
    seen = [
        checked,
        gateway.log,
        json.dumps(status(gateway)),
        refused.text,
        httpx.get(f"{gateway.admin_url}/metrics").text,
        httpx.get(f"{gateway.url}/v2").text,
    ]
    assert not any(PASSWORD in text or SEAL_KEY in text for text in seen)
    assert gateway.stop() == 0
    assert PASSWORD not in gateway.log


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"URL": f"http://u:{PASSWORD}@127.0.0.1"}, id="scheme"),
        pytest.param({"URL": f"redis://u:{PASSWORD}@127.0.0.1:1?x=y"}, id="option"),
        pytest.param({"SEAL_KEY": PASSWORD[:15]}, id="short-seal-key"),
    ],
)
def test_a_wrong_setting_is_told_without_its_secret(
    make_gateway: MakeGateway, models: Path, settings: dict[str, str]
) -> None:
    """R18 A URL or key that cannot be used ends the start in a sentence that does not repeat it."""
    env = {f"TILTYARD_REDIS_{name}": value for name, value in settings.items()}
    gateway = make_gateway(models=models, env=env, start=False)
    ran = subprocess.run(
        [sys.executable, "-m", "gateway", "serve"],
        cwd=ROOT,
        env=gateway.environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 1, said
    assert PASSWORD[:15] not in said
    assert "Traceback" not in said


def test_a_forged_promotion_is_not_served(
    make_gateway: MakeGateway, models: Path, valkey: ValkeyProcess, root: Any
) -> None:
    """R16 With a seal key, who can write to Redis but lacks the key cannot change what serves."""
    env = {"TILTYARD_REDIS_URL": valkey.url, "TILTYARD_REDIS_SEAL_KEY": SEAL_KEY}
    gateway = make_gateway(models=models, env=env)
    good = root.get(SNAPSHOT)
    forged = json.loads(good)
    forged["revision"] += 1
    forged["models"]["m"]["aliases"]["champion"] = 2
    raw = json.dumps(forged).encode()
    for seal in (None, hmac.digest(b"a guess of the key", raw, "sha256").hex()):
        root.set(SNAPSHOT, raw)
        if seal is not None:
            root.set("{tiltyard}:seal", seal)
        rejected = eventually(lambda: status(gateway)["rejected"])
        assert (rejected["revision"], "seal" in rejected["reason"]) == (forged["revision"], True)
        assert served(gateway) == "1"
    refused = gateway.ask("POST", "/admin/v1/models/m/promote", {"version": 2})
    assert refused.status_code == 503
    assert "seal" in refused.json()["error"]

    gateway.stop()
    gateway.start()
    assert served(gateway) == "1"
    eventually(lambda: status(gateway)["rejected"])

    root.set("{tiltyard}:seal", hmac.digest(SEAL_KEY.encode(), raw, "sha256").hex())
    eventually(lambda: served(gateway) == "2")
    assert status(gateway)["rejected"] is None
    gateway.told("POST", "/admin/v1/models/m/promote", {"version": 1})
    eventually(lambda: served(gateway) == "1")
    assert SEAL_KEY not in gateway.log
