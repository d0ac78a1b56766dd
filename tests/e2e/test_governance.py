"""Governance from outside: a newcomer's promotion, bad versions under load, races, tampering.

Two hosts on one Redis; everything is typed as a newcomer would type it, at 80 columns.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml

from gateway.adapters.redis_keys import keys_of
from tests import onnx_models
from tests.adapters.test_sandbox_trials import crashing
from tests.e2e.gateways import ROOT, Gateway, free_port, processes
from tests.e2e.gateways import eventually as until
from tests.e2e.loads import BODY, PATH
from tests.e2e.test_restored import Traffic
from tests.e2e.valkeys import ValkeyProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

CANDIDATE = "models/candidates/flight-delay"
EXAMPLE = ROOT / "docs" / "examples" / "flight-delay.yaml"
MODEL = "flight-delay"
OTHER = "late-flights"
"""The same versions under another name, for documents that would be in the way of the story."""
RACED = "races"
WITHIN_S = 30.0
"""What an inspection of a bad version may take here, with a second for a run."""
ENV = {"TILTYARD_INSPECTION_MODE": "full", "TILTYARD_INSPECTION_RUN_S": "1"}
RUNNER = [sys.executable, "-m", "gateway"]
ASKS = """
import sys, httpx
url, token, etag, document = sys.argv[1:]
with httpx.Client(headers={"authorization": "Bearer " + token}, timeout=30) as client:
    client.get(url.rpartition("/")[0]).raise_for_status()
    print("ready", flush=True)
    sys.stdin.readline()
    headers = {"if-match": etag, "content-type": "application/json"}
    print(client.post(url, content=document, headers=headers).status_code, flush=True)
"""
"""A promotion by a process of its own, connected before it is told to go."""


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A Redis that others can reach."""
    server = ValkeyProcess(tmp_path_factory.mktemp("store") / "valkey", free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store that may be written to."""
    folder = tmp_path_factory.mktemp("models")
    for name, like in ((MODEL, MODEL), (OTHER, MODEL), (RACED, "digits")):
        shutil.copytree(ROOT / "models" / like, folder / name)
    return folder


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, store: Path, valkey: ValkeyProcess
) -> Iterator[Gateway]:
    """A gateway with a worker that inspects all that comes."""
    env = {**ENV, "TILTYARD_REDIS_URL": valkey.url}
    made = Gateway(tmp_path_factory.mktemp("first"), store, env, workers=1)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def second(
    tmp_path_factory: pytest.TempPathFactory, store: Path, valkey: ValkeyProcess, gateway: Gateway
) -> Iterator[Gateway]:
    """Another host on the same Redis, which nobody in particular asks."""
    state = tmp_path_factory.mktemp("second")
    shutil.copy2(gateway.state / "admin.token", state)
    made = Gateway(state, store, {**ENV, "TILTYARD_REDIS_URL": valkey.url})
    try:
        yield made.start()
    finally:
        made.close()


def tiltyard(gateway: Gateway, *words: str, token: str | None = None, code: int = 0) -> str:
    """What a command printed, on a narrow terminal; with a token as its principal."""
    given = {} if token is None else {"TILTYARD_TOKEN": token}
    ran = subprocess.run(
        [*RUNNER, *words],
        cwd=ROOT,
        env={**gateway.environ(), **given, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = ran.stdout + ran.stderr
    assert ran.returncode == code, told
    return told


def rows_of(told: str) -> dict[str, list[str]]:
    """Rows of a table by their first word."""
    rows = (line.split() for line in told.splitlines())
    return {row[0]: row[1:] for row in rows if row}


def flat(told: str) -> str:
    """Words of an answer, wherever its lines end."""
    return " ".join(told.split())


def served(gateway: Gateway) -> str:
    """The version that answers."""
    answer = httpx.post(gateway.url + PATH, content=BODY)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-model-version"]


def entries(gateway: Gateway, **wanted: str) -> list[dict[str, Any]]:
    """Audit entries that have what is wanted, oldest first."""
    return [
        entry
        for entry in gateway.audit()
        if all(entry[name] == value for name, value in wanted.items())
    ]


def denials(gateway: Gateway) -> list[dict[str, Any]]:
    """What the audit log says was refused, and whom."""
    held = entries(gateway, action="access.denied")
    return [one for entry in held for one in entry["evidence"]["denials"]]


def stored(store: Path) -> list[str]:
    """Every path in the model store."""
    return sorted(str(path.relative_to(store)) for path in store.rglob("*"))


def test_a_newcomer_gets_a_version_to_traffic_and_back(gateway: Gateway) -> None:
    """Registered, told what is missing, approved by someone else, promoted, looked up, undone."""
    told = tiltyard(gateway, "register", MODEL, CANDIDATE, "--reason", "three more months")
    rows = rows_of(told)
    assert {rows[name][0] for name in ("files", "loads", "runs", "golden")} == {"passed"}
    assert "Version 3 of flight-delay is registered at revision" in told
    tiltyard(gateway, "gate", "put", "flights", "docs/examples/gate.json", "--reason", "from now")

    tiltyard(gateway, "principal", "put", "olga", "--role", "approver:flight-*")
    olga = tiltyard(gateway, "token", "issue", "olga", "--expires", "1d").strip()
    grants = [{"role": "deployer", "models": ["flight-*"]}]
    gateway.told("PUT", "/admin/v1/principals/dora", {"schema": 1, "grants": grants})
    dora = gateway.told("POST", "/admin/v1/principals/dora/tokens", {})["token"]

    refused = tiltyard(gateway, "promote", MODEL, "3", token=dora, code=5)
    assert "1 approval by an approver is missing: whoever asks ('dora')" in refused
    assert "`tiltyard approve flight-delay 3`" in refused
    assert served(gateway) == "1"
    assert "someone else" in tiltyard(gateway, "approve", MODEL, "3", code=4)
    tiltyard(gateway, "approve", MODEL, "3", "--reason", "looked at the residuals", token=olga)
    told = tiltyard(gateway, "promote", MODEL, "3", "--reason", "better log loss", token=dora)
    assert "promotion complete" in told
    assert served(gateway) == "3"

    denied = until(lambda: [one for one in denials(gateway) if one["action"] == "gate_closed"])
    assert [(one["principal"], one["model"]) for one in denied] == [("dora", MODEL)]
    told = tiltyard(gateway, "audit", "list", "--limit", "15")
    assert max(map(len, told.splitlines())) <= 80
    assert "DENIED" in told
    for entry in (
        {"action": "model.register", "actor": "admin", "reason": "three more months"},
        {"action": "model.approve", "actor": "olga", "target": "reviews/flight-delay/3"},
        {"action": "model.promote", "actor": "dora", "reason": "better log loss"},
    ):
        assert len(entries(gateway, **entry)) == 1, entry
        assert entry["action"] in told
    assert "The chain holds" in tiltyard(gateway, "audit", "verify")

    assert "back to version 1" in tiltyard(gateway, "rollback", MODEL, "--reason", "too late")
    assert served(gateway) == "1"
    card = tiltyard(gateway, "models", "card", MODEL, "3")
    for line in ("| olga | approver |", "| golden | passed |", "dora | model.promote | better"):
        assert line in card
    assert "admin | model.rollback | too late" in card


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Others give a result.")
def test_versions_that_crash_hang_or_bomb_are_refused_under_load(
    gateway: Gateway, store: Path, tmp_path: Path
) -> None:
    """Each says which check it failed; nobody who asks notices, and nothing of them stays."""
    bad = {
        "crash": (crashing(), "It crashed the sandbox (SIGFPE)."),
        "hang": (onnx_models.forever(), "took longer than 1 s and was ended."),
        "bomb": (onnx_models.folding_bomb(1 << 40), "needs more memory for a sample"),
    }
    before, record = stored(store), gateway.told("GET", f"/admin/v1/models/{MODEL}")
    pids = processes(gateway)
    with Traffic(gateway) as one, Traffic(gateway) as other:
        for name, (model, sentence) in bad.items():
            folder = tmp_path / name
            folder.mkdir()
            onnx_models.save(model, folder)
            began = time.monotonic()
            told = tiltyard(gateway, "register", MODEL, str(folder), "--reason", name, code=1)
            assert time.monotonic() - began < WITHIN_S
            assert rows_of(told)["runs"][0] == "failed"
            assert sentence in flat(told)
            go_on(one)
    assert set(one.statuses + other.statuses) == {200}
    assert processes(gateway) == pids

    assert stored(store) == before
    assert list((gateway.state / "uploads").iterdir()) == []
    now = gateway.told("GET", f"/admin/v1/models/{MODEL}")
    assert (now["versions"], now["aliases"]) == (record["versions"], record["aliases"])
    refusals = entries(gateway, action="model.refuse")
    assert [entry["reason"] for entry in refusals] == list(bad)
    assert all(set(entry["evidence"]["failed"]) == {"runs"} for entry in refusals)
    assert gateway.told("GET", "/admin/v1/status")["complete"]
    assert gateway.ask("GET", f"/admin/v1/models/{MODEL}/versions/1/card.html").status_code == 200


def go_on(traffic: Traffic) -> None:
    """Wait until some more requests were answered."""
    before = len(traffic.statuses)
    until(lambda: len(traffic.statuses) > before + 20)


def promoting(gateway: Gateway, version: int, etag: str) -> "subprocess.Popen[str]":
    """A process that is about to promote."""
    url = f"{gateway.admin_url}/admin/v1/models/{RACED}/promote"
    words = [sys.executable, "-c", ASKS, url, gateway.token, etag]
    made = subprocess.Popen(
        [*words, json.dumps({"version": version})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n"
    return made


@pytest.mark.parametrize("across", [False, True], ids=["one host", "two hosts"])
def test_of_two_promotions_at_once_one_wins(
    gateway: Gateway, second: Gateway, *, across: bool
) -> None:
    """The same ETag, two processes: 200 and 409, wherever they ask; one entry in the audit log."""
    path = f"/admin/v1/models/{RACED}"
    before = gateway.told("GET", path)
    until(lambda: second.told("GET", path)["etag"] == before["etag"])
    other = 3 - before["aliases"]["champion"]
    hosts = (gateway, second if across else gateway)
    racing = [promoting(host, other, f'"{before["etag"]}"') for host in hosts]
    for one in racing:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    assert sorted(one.communicate(timeout=30)[0].strip() for one in racing) == ["200", "409"]
    after = gateway.told("GET", path)
    assert after["aliases"]["champion"] == other
    promoted = entries(gateway, action="model.promote", target=f"models/{RACED}")
    assert sum(entry["revision"] > before["revision"] for entry in promoted) == 1


def change(client: redis.Redis, before: bytes, after: bytes) -> None:
    """Write the audit log anew, with other bytes in the entry of revision 2."""
    key = keys_of("tiltyard").audit

    def write(pipe: Any) -> None:
        held = pipe.xrange(key)
        pipe.multi()
        pipe.delete(key)
        for name, fields in held:
            if name == b"1-2":
                assert any(before in value for value in fields.values())
                fields = {field: value.replace(before, after) for field, value in fields.items()}  # noqa: PLW2901
            pipe.xadd(key, fields, id=name)

    client.transaction(write, key)


def test_a_changed_byte_in_redis_is_found(gateway: Gateway, valkey: ValkeyProcess) -> None:
    """By its revision, and with an exit code of its own."""
    client = redis.Redis.from_url(valkey.url)
    change(client, b"model-store", b"model-stare")
    try:
        told = tiltyard(gateway, "audit", "verify", code=6)
    finally:
        change(client, b"model-stare", b"model-store")
    assert "revision 2" in told
    assert "holds" not in told


def test_what_is_applied_exported_and_applied_again_changes_nothing(
    gateway: Gateway, tmp_path: Path
) -> None:
    """The documented file, under another name: once it does all, from then on nothing."""
    written, exported = tmp_path / "written.yaml", tmp_path / "exported.yaml"
    written.write_text(EXAMPLE.read_text().replace("flight-delay", OTHER))
    files = ("-f", str(written))
    assert f"+ create endpoints/{OTHER}" in tiltyard(gateway, "diff", *files, code=7)
    assert "Done: " in tiltyard(gateway, "apply", *files, "--reason", "as it is written")
    revision = gateway.told("GET", "/admin/v1/status")["revision"]
    assert "Nothing to change" in tiltyard(gateway, "diff", *files)
    tiltyard(gateway, "export", "-o", str(exported))
    assert "Nothing to change" in tiltyard(gateway, "apply", "-f", str(exported))
    made = [one for one in entries(gateway) if one["revision"] > revision]
    assert {one["action"] for one in made} <= {"access.denied"}
    document = yaml.safe_load(exported.read_text())
    wanted = yaml.safe_load(written.read_text())
    assert document["gates"][OTHER] == wanted["gates"][OTHER]
