"""The command line against a real admin door; what scripts see: output and exit codes."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trustme
from typer.testing import Result

import gateway.__main__ as front_door
from gateway import __version__
from tests.doors.cli.desk import Desk, listening, refused
from tests.doors.http.admin_world import MODEL, READER, SPLIT, WRITER
from tests.fakes import manifest_of, signature_of


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["status"], "promotion complete on 1 of 1", id="status"),
        pytest.param(["models"], "champion: 1", id="models"),
        pytest.param(["models", "list"], "1, 2, 3", id="models-list"),
        pytest.param(["models", "show", MODEL], "ready", id="models-show"),
        pytest.param(["endpoints", "list"], "follows its champion", id="endpoints-list"),
        pytest.param(["endpoints", "show", MODEL], "none: implicit", id="endpoints-show"),
        pytest.param(["endpoints", "shadows", MODEL], "overload: 1", id="shadows"),
        pytest.param(
            ["endpoints", "explain", MODEL, "--unit", "ada"], "gets variant 'default'", id="explain"
        ),
    ],
)
def test_what_is_read_is_shown_twofold(desk: Desk, arguments: list[str], told: str) -> None:
    """Each reading command prints a table for people and JSON for scripts."""
    result = desk.run(*arguments)
    assert result.exit_code == 0, result.output
    assert told in result.stdout
    assert desk.json(*arguments)


def test_an_endpoint_is_set_shown_and_deleted(desk: Desk, rules: Path) -> None:
    """A document goes in from a file, comes out as it was, and goes."""
    dry = desk.run("endpoints", "set", MODEL, str(rules), "--dry-run")
    assert "units that move" in dry.stdout
    assert "50.00%" in dry.stdout
    assert desk.world.registry.snapshot.revision == 3
    assert "is changed: revision 4" in desk.run("endpoints", "set", MODEL, str(rules)).stdout
    assert "like that already" in desk.run("endpoints", "set", MODEL, str(rules)).stdout
    shown = desk.run("endpoints", "show", MODEL, "--document")
    assert msgspec.json.decode(shown.stdout) == SPLIT
    plan = desk.run("endpoints", "show", MODEL).stdout
    assert "treatment" in plan
    explained = desk.run("endpoints", "explain", MODEL, "--unit", "ada", "--attribute", "plan=gold")
    assert "gets variant 'gold' (version 2)" in explained.stdout
    assert "is changed" in desk.run("endpoints", "delete", MODEL, "--reason", "over").stdout
    assert desk.world.memory.entries[-1].reason == "over"
    earlier = desk.json("endpoints", "explain", MODEL, "--unit", "ada", "--revision", "4")
    assert earlier["reason"] == "split"


def test_shadows_of_a_plan_are_shown(desk: Desk, tmp_path: Path) -> None:
    """The plan lists its shadows too."""
    file = tmp_path / "shadow.json"
    shadow = {"name": "next", "version": 2, "share": 2_500}
    file.write_bytes(msgspec.json.encode({"schema": 1, "model": MODEL, "shadows": [shadow]}))
    result = desk.run("endpoints", "set", MODEL, str(file), "--dry-run")
    assert "next" in result.stdout
    assert "25.00%" in result.stdout


def test_a_plan_that_would_be_refused_says_so(desk: Desk, rules: Path) -> None:
    """A dry run of versions with other tensors tells why they would be refused."""
    manifest = manifest_of(MODEL, 2, signature=signature_of(columns=9))
    desk.world.registry._manifests[MODEL, 2] = manifest
    result = desk.run("endpoints", "set", MODEL, str(rules), "--dry-run")
    assert "This would be refused" in result.stdout
    refused(desk.run("endpoints", "set", MODEL, str(rules)), 5, "signature")
    allowed = desk.run("endpoints", "set", MODEL, str(rules), "--allow-signature-change")
    assert allowed.exit_code == 0


def test_a_conflict_has_an_exit_code(desk: Desk, rules: Path) -> None:
    """What moved since it was read is exit code 5, and the sentence holds the ETag that stands."""
    assert desk.json("endpoints", "set", MODEL, str(rules))["revision"] == 4
    etag = desk.json("endpoints", "show", MODEL)["etag"]
    refused(desk.run("endpoints", "set", MODEL, str(rules), "--if-match", "00"), 5, etag)
    refused(desk.run("endpoints", "delete", MODEL, "--if-match", "00"), 5, etag)
    assert desk.json("endpoints", "delete", MODEL, "--if-match", f'"{etag}"')["etag"] is None
    refused(desk.run("endpoints", "set", MODEL, str(rules), "--if-match", "*"), 5, "no document")


def test_a_promotion_waits_until_it_is_complete(desk: Desk) -> None:
    """`promote` looks until every process serves the new revision, and says how many do."""
    desk.world.behind = 1
    looks: list[float] = []

    def catch_up() -> None:
        looks.append(desk.clock())
        desk.world.behind = 0 if len(looks) == 3 else 1

    desk.on_sleep = catch_up
    result = desk.run("promote", MODEL, "2", "--reason", "better")
    assert result.exit_code == 0, result.output
    assert "Revision 4: promotion complete on 1 of 1." in result.stdout
    assert len(looks) == 3
    assert desk.world.memory.entries[-1].reason == "better"


def test_a_promotion_that_lags_says_why(desk: Desk) -> None:
    """What is not complete in time is exit code 1, with the reason of each process that lags."""
    desk.world.lagging = {MODEL: "version 2: its file is damaged"}
    result = desk.run("promote", MODEL, "2", "--timeout", "5")
    refused(result, 1, "its file is damaged")
    assert "0 of 1" in result.stderr
    assert desk.clock() == pytest.approx(1_005, abs=0.3)
    status = desk.run("status")
    assert "its file is damaged" in status.stdout
    desk.world.alarms = {"data_loss": "the store holds less than it did"}
    assert "Alarm data_loss" in desk.run("status").stdout


def test_a_process_that_stays_behind_is_named(desk: Desk) -> None:
    """A process that does not even know the revision is said to serve an older one."""
    desk.world.behind = 1
    refused(desk.run("rollback", MODEL, "--timeout", "1"), 5, "no earlier version")
    refused(desk.run("promote", MODEL, "2", "--timeout", "1"), 1, "one: serves revision 3")


def status_with(desk: Desk, **fields: Any) -> Result:
    """What `status` prints when the gateway answers its status with these fields changed."""
    document = {**desk.json("status"), **fields}
    desk.transport = httpx.MockTransport(lambda _: httpx.Response(200, json=document))
    return desk.run("status")


def test_a_rejected_snapshot_is_told_first(desk: Desk) -> None:
    """While the store's Snapshot is rejected, `status` says since when and why, not "complete"."""
    rejected = {"sha256": "ab" * 32, "reason": "It is torn.", "at": 0.0, "revision": None}
    shown = status_with(desk, rejected=rejected).stdout
    assert shown.startswith("Revision 3 serves on; the Snapshot in the store is rejected.")
    assert "Snapshot abababababab, since 1970-01-01 00:00:00 UTC: It is torn." in shown
    assert "promotion complete" not in shown


def test_nothing_served_is_not_called_complete(desk: Desk) -> None:
    """Before the first Snapshot, `status` says that nothing is served."""
    shown = status_with(desk, revision=0, newest=0).stdout
    assert shown.startswith("No Snapshot yet, so nothing is served.")
    assert "promotion complete" not in shown


def test_an_alarm_of_any_process_is_told(desk: Desk) -> None:
    """An alarm of another process is told with its name, and the headline speaks of it."""
    other = {**desk.json("status")["processes"][0], "name": "two", "alarms": {"secrets": "Gone."}}
    shown = status_with(desk, processes=[other]).stdout
    assert shown.startswith("Revision 3 serves, with alarms.")
    assert "Alarm secrets of two: Gone." in shown


def test_nobody_has_to_wait(desk: Desk) -> None:
    """With `--no-wait` a commit is enough."""
    desk.world.behind = 1
    result = desk.run("promote", MODEL, "2", "--no-wait")
    assert result.stdout.strip() == "Revision 4 is committed."
    result = desk.run("rollback", MODEL, "--no-wait")
    assert result.stdout.strip() == "Revision 5 is committed, back to version 1."


def test_a_rollback_says_where_it_went(desk: Desk) -> None:
    """`rollback` names the version that serves again."""
    desk.run("promote", MODEL, "3")
    told = desk.run("rollback", MODEL).stdout
    assert told.strip() == "Revision 5, back to version 1: promotion complete on 1 of 1."


def test_a_rollback_is_told_in_json(desk: Desk) -> None:
    """Scripts read the revision and how far it is served."""
    desk.run("promote", MODEL, "2")
    answer = desk.json("rollback", MODEL)
    assert (answer["revision"], answer["version"]) == (5, 1)
    assert answer["promotion"]["complete"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        pytest.param(["models", "show", "nobody"], 1, "no model", id="unknown-model"),
        pytest.param(["promote", MODEL, "9"], 1, "no version", id="unknown-version"),
        pytest.param(["promote", MODEL, "1"], 5, "already", id="same-version"),
        pytest.param(["status", "--admin", "gopher://x"], 1, "no address", id="scheme"),
        pytest.param(["status", "--admin", "http://a:port"], 1, "no address", id="url"),
        pytest.param(["endpoints", "set", MODEL, "/nowhere"], 1, "cannot be read", id="no-file"),
        pytest.param(["status", "--token-file", "/nowhere"], 1, "cannot be read", id="no-tokens"),
        pytest.param(
            ["endpoints", "explain", MODEL, "--unit", ""], 1, "'unit' is missing", id="unit"
        ),
        pytest.param(["principal", "put", "x", "--role", "king"], 1, "is none of", id="role"),
        pytest.param(["principal", "put", "a b"], 1, "cannot name", id="holder"),
        pytest.param(["principal", "put", "admin"], 1, "the gateway's own", id="admin"),
        pytest.param(["principal", "show", "x"], 1, "no principal", id="no-principal"),
        pytest.param(["token", "issue", "x"], 1, "no principal", id="nobody"),
        pytest.param(["token", "issue", "x", "--expires", "soon"], 1, "length of time", id="time"),
        pytest.param(["token", "revoke", "x"], 1, "no token", id="no-token"),
    ],
)
def test_a_failure_is_one_line(desk: Desk, arguments: list[str], code: int, told: str) -> None:
    """A failure is one clear line and a documented exit code."""
    refused(desk.run(*arguments), code, told)


@pytest.mark.parametrize(
    "arguments",
    [["promote", MODEL], ["promote", MODEL, "two"], ["nonsense"], ["status", "--nonsense"]],
)
def test_misuse_is_exit_code_2(desk: Desk, arguments: list[str]) -> None:
    """A command that is written wrongly is exit code 2."""
    assert desk.run(*arguments).exit_code == 2


def test_who_may_not_is_exit_code_4(desk: Desk, rules: Path) -> None:
    """No token, an unknown one and one that may only read are exit code 4."""
    desk.environ = {"TILTYARD_TOKEN": READER}
    assert desk.run("status").exit_code == 0
    refused(desk.run("endpoints", "set", MODEL, str(rules)), 4, "'rules'")
    desk.environ = {"TILTYARD_TOKEN": "unknown"}
    refused(desk.run("status"), 4, "not known")
    desk.environ = {"TILTYARD_TOKEN": "tök"}
    refused(desk.run("status"), 4, "no token has")
    desk.environ = {}
    refused(desk.run("status"), 4, "Give a token")


def test_the_token_is_looked_for_in_order(desk: Desk, tmp_path: Path) -> None:
    """A file comes before the environment, that before the settings and the state folder."""
    file = tmp_path / "token"
    file.write_text(f"{WRITER}\n")
    desk.environ = {"TILTYARD_TOKEN": "unknown"}
    assert desk.run("status", "--token-file", str(file)).exit_code == 0
    desk.environ = {"TILTYARD_ADMIN_TOKEN": WRITER}
    assert desk.run("status").exit_code == 0
    desk.environ = {}
    desk.admin_token = WRITER
    assert desk.run("status").exit_code == 0


def test_a_gateway_that_is_not_there_is_exit_code_3(desk: Desk) -> None:
    """Who cannot be reached is exit code 3; the sentence says what was tried and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    desk.transport = None
    result = desk.run("status", "--admin", f"http://me:secret@127.0.0.1:{port}")
    refused(result, 3, f"cannot be reached at http://127.0.0.1:{port} (ConnectError)")
    for word in ("tiltyard serve", "--admin", "TILTYARD_ADMIN_URL"):
        assert word in result.stderr
    assert "secret" not in result.stderr


def test_a_certificate_is_trusted_by_file(desk: Desk, tmp_path: Path) -> None:
    """An unknown CA is exit code 3; SSL_CERT_FILE names it or the certificate, also on loopback."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain, key, ca = (str(tmp_path / name) for name in ("chain.pem", "key.pem", "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    with listening(desk, chain=chain, key=key) as port:
        place = f"https://127.0.0.1:{port}"
        refused(desk.run("status", "--admin", place), 3, f"certificate of {place} is not trusted")
        for trusted in (ca, chain):
            desk.environ["SSL_CERT_FILE"] = trusted
            assert desk.run("status", "--admin", place).exit_code == 0
        desk.environ["SSL_CERT_FILE"] = str(tmp_path / "none")
        refused(desk.run("status", "--admin", place), 1, "SSL_CERT_FILE")


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        pytest.param({}, "http://127.0.0.1:8082", id="defaults"),
        pytest.param({"TILTYARD_ADMIN_PORT": "9"}, "http://127.0.0.1:9", id="port"),
        pytest.param({"TILTYARD_ADMIN_HOST": "::"}, "http://[::1]:8082", id="every-address"),
        pytest.param(
            {"TILTYARD_ADMIN_TLS_CERT": "c", "TILTYARD_ADMIN_TLS_KEY": "k"},
            "https://127.0.0.1:8082",
            id="tls",
        ),
    ],
)
def test_the_admin_api_is_looked_for_where_the_settings_put_it(
    desk: Desk, environ: dict[str, str], place: str
) -> None:
    """Without `--admin`, commands ask the gateway that the same environment would start."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(404, json={"error": "No."})

    desk.environ |= environ
    desk.transport = httpx.MockTransport(answer)
    desk.run("status")
    assert asked == [f"{place}/admin/v1/status"]


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        pytest.param(200, b"<html>", "no admin API", id="another-server"),
        pytest.param(418, b"[]", "status 418", id="another-shape"),
        pytest.param(503, b'{"error":"The store is away."}', "store is away", id="store"),
    ],
)
def test_another_answer_is_no_traceback(desk: Desk, status: int, body: bytes, told: str) -> None:
    """What answers something else is one line too."""
    desk.transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    refused(desk.run("status"), 1, told)


def test_what_comes_over_the_wire_is_no_markup(desk: Desk) -> None:
    """An answer cannot move the cursor, nor colour or hide what is printed."""
    body = msgspec.json.encode({"error": "[red]\x1b[2Jgone[/red]\nsecond"})
    desk.transport = httpx.MockTransport(lambda _: httpx.Response(400, content=body))
    refused(desk.run("status"), 1, "[red]?[2Jgone[/red]?second")


def test_a_token_is_issued_shown_once_rotated_and_revoked(desk: Desk) -> None:
    """A token is printed when it is made, and never again; its principal says what it may do."""
    rights = ("--role", f"deployer:{MODEL}", "--role", "viewer", "--right", "infer:fl*")
    assert "is written" in desk.run("principal", "put", "ci", *rights).stdout
    secret = desk.run("token", "issue", "ci", "--expires", "90d").stdout.strip()
    desk.environ = {"TILTYARD_TOKEN": secret}
    assert desk.run("promote", MODEL, "2").exit_code == 0
    refused(desk.run("token", "list"), 4, "'access'")
    desk.environ = {"TILTYARD_TOKEN": WRITER}
    (row,) = desk.json("token", "list")["tokens"]
    assert secret.startswith(f"tilt_{row['id']}_")
    assert secret not in desk.run("token", "list").stdout
    told = desk.run("principal", "list").stdout
    assert f"deployer:{MODEL} viewer" in told
    assert "infer:fl*" in told
    second = desk.json("token", "rotate", row["id"], "--overlap", "0s")
    refused(desk.run("token", "revoke", row["id"]), 1, "no token")
    assert "is revoked" in desk.run("token", "revoke", second["id"]).stdout
    shown = msgspec.json.decode(desk.run("principal", "show", "ci").stdout)
    assert shown["inference"] == [{"right": "infer", "models": ["fl*"]}]
    assert "are gone" in desk.run("principal", "delete", "ci").stdout


def test_the_version_is_printed(desk: Desk) -> None:
    """`--version` says which one this is."""
    assert desk.run("--version").stdout.strip() == __version__


def test_every_command_explains_itself(desk: Desk) -> None:
    """Help is there for each command, and `--json` wherever something is answered."""
    silent = {("serve",), ("principal", "show")}
    for words in commands():
        result = desk.run(*words, "--help")
        assert result.exit_code == 0, words
        assert ("--json" in result.stdout) == (words not in silent), words


def commands() -> Iterator[tuple[str, ...]]:
    """Every command as it is written."""
    for name in ("serve", "check", "status", "promote", "rollback", "demo"):
        yield (name,)
    for name in ("list", "show"):
        yield ("models", name)
    for name in ("list", "show", "set", "delete", "explain", "shadows"):
        yield ("endpoints", name)
    for name in ("put", "list", "show", "delete"):
        yield ("principal", name)
    for name in ("issue", "list", "rotate", "revoke"):
        yield ("token", name)


def test_the_front_door_hands_everything_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`tiltyard` runs the commands, with the admin's token of the settings' state folder."""
    monkeypatch.setenv("TILTYARD_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("TILTYARD_ADMIN_PORT", "1")
    (tmp_path / "admin.token").write_text("tilt_a_b")
    monkeypatch.setattr("sys.argv", ["tiltyard", "token", "list"])
    with pytest.raises(SystemExit) as left:
        front_door.main()
    assert left.value.code == 3
    assert "cannot be reached" in capsys.readouterr().err


def test_commands_speak_to_a_real_server(desk: Desk, rules: Path) -> None:
    """Over a socket and uvicorn's parser it is the same."""
    with listening(desk) as port:
        admin = f"http://127.0.0.1:{port}"
        assert desk.run("status", "--admin", admin).exit_code == 0
        changed = desk.run("endpoints", "set", MODEL, str(rules), "--admin", admin)
        assert changed.exit_code == 0, changed.output
    assert desk.world.registry.snapshot.revision == 4
