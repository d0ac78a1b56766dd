"""The command line against a real admin door; what scripts see: output and exit codes."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from typer.testing import CliRunner, Result

import gateway.__main__ as front_door
from gateway import __version__
from gateway.core.access import Token, digest_of
from gateway.core.errors import Conflict, InvalidRequest
from gateway.doors.cli.app import create_cli
from gateway.doors.cli.front import FrontStep
from gateway.settings import Settings
from tests.doors.http.admin_world import MODEL, READER, SPLIT, WRITER, Waiting, World
from tests.fakes import ManualClock, manifest_of, signature_of


class Tokens:
    """The tokens of a state folder, in memory."""

    def __init__(self) -> None:
        self.kept: tuple[Token, ...] = ()
        self.admin: str | None = None

    def fresh(self) -> str:
        return "tilt_new_secret"

    def read(self) -> tuple[Token, ...]:
        return self.kept

    def write(self, tokens: tuple[Token, ...]) -> None:
        self.kept = tokens

    def admin_token(self) -> str | None:
        return self.admin


class Desk:
    """A command line with everything behind it."""

    def __init__(self) -> None:
        self.world = World()
        asyncio.run(self.world.seed())
        self.tokens = Tokens()
        self.served: list[Settings] = []
        self.problems: list[str] = []
        self.clock = ManualClock()
        self.on_sleep: Callable[[], None] = lambda: None
        self.environ = {"TILTYARD_TOKEN": WRITER}
        self.transport: httpx.BaseTransport | None = Waiting(self.world.app)

    def run(self, *arguments: str) -> Result:
        front = FrontStep(
            serve=self.serve,
            check=lambda _: list(self.problems),
            token_folder=lambda _: self.tokens,
            environ=self.environ,
            transport=self.transport,
            sleep=self.sleep,
            now=self.clock,
        )
        env = {"COLUMNS": "200", "TILTYARD_ADMIN_URL": None, "NO_COLOR": "1"}
        return CliRunner().invoke(create_cli(front), arguments, env=env)

    def json(self, *arguments: str) -> Any:
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return msgspec.json.decode(result.stdout)

    def serve(self, settings: Settings, announce: Callable[[Settings], None] | None = None) -> int:
        self.served.append(settings)
        assert announce is not None
        announce(settings)
        return 0

    def sleep(self, seconds: float) -> None:
        self.clock.at += seconds
        self.on_sleep()


@pytest.fixture
def desk() -> Desk:
    """A fresh command line over a fresh world."""
    return Desk()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A file with an endpoint's document."""
    file = tmp_path / "rules.json"
    file.write_bytes(msgspec.json.encode(SPLIT))
    return file


def refused(result: Result, code: int, told: str) -> None:
    """A failure: its exit code, one line on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


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


def test_nobody_has_to_wait(desk: Desk) -> None:
    """With `--no-wait` a commit is enough."""
    desk.world.behind = 1
    result = desk.run("promote", MODEL, "2", "--no-wait")
    assert result.stdout.strip() == "Revision 4 is committed."
    assert desk.json("rollback", MODEL, "--no-wait")["revision"] == 5


def test_a_rollback_is_told_in_json(desk: Desk) -> None:
    """Scripts read the revision and how far it is served."""
    desk.run("promote", MODEL, "2")
    answer = desk.json("rollback", MODEL)
    assert (answer["revision"], answer["promotion"]["complete"]) == (5, 1)


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
        pytest.param(["token", "add", "x", "--scope", "all"], 1, "no scope", id="scope"),
        pytest.param(["token", "add", "a b"], 1, "cannot name", id="holder"),
        pytest.param(["token", "add", "admin"], 5, "holds a token already", id="admin"),
        pytest.param(["token", "remove", "x"], 1, "holds no token", id="no-token"),
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
    refused(desk.run("endpoints", "set", MODEL, str(rules)), 4, "'write'")
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
    desk.tokens.admin = WRITER
    assert desk.run("status").exit_code == 0


def test_a_gateway_that_is_not_there_is_exit_code_3(desk: Desk) -> None:
    """Who cannot be reached is exit code 3."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    desk.transport = None
    refused(desk.run("status", "--admin", f"http://127.0.0.1:{port}"), 3, "cannot be reached")


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


def test_tokens_are_added_once_shown_once_and_removed(desk: Desk) -> None:
    """A token is printed when it is made; what is kept is its digest."""
    added = desk.run("token", "add", "ci", "--scope", "write", "--scope", "read")
    assert added.stdout.strip() == "tilt_new_secret"
    expected = Token(name="ci", sha256=digest_of(b"tilt_new_secret"), scopes=("read", "write"))
    assert desk.tokens.read() == (expected,)
    refused(desk.run("token", "add", "ci"), 5, "remove it first")
    listed = desk.run("token", "list").stdout
    assert "read, write" in listed
    assert "tilt_new_secret" not in listed
    assert desk.json("token", "list") == [{"name": "ci", "scopes": ["read", "write"]}]
    assert "no longer good" in desk.run("token", "remove", "ci").stdout
    assert desk.tokens.read() == ()
    assert desk.json("token", "add", "ro")["scopes"] == ["read"]


def test_tokens_are_kept_in_the_state_folder(tmp_path: Path) -> None:
    """The file that the gateway reads is written for its owner only, and read back."""
    folder = front_door.StoredTokens(tmp_path / "state")
    assert folder.read() == ()
    assert folder.admin_token() is None
    tokens = (Token(name="ci", sha256="0" * 64, scopes=("read",)),)
    folder.write(tokens)
    assert folder.read() == tokens
    assert (tmp_path / "state" / "tokens.json").stat().st_mode & 0o077 == 0
    assert folder.fresh() != folder.fresh()
    (tmp_path / "state" / "admin.token").write_text("secret\n")
    assert folder.admin_token() == "secret"


def test_a_state_folder_that_is_no_use_is_told(tmp_path: Path) -> None:
    """What cannot be read or written there is an error of ours, not a traceback."""
    (tmp_path / "tokens.json").write_text("{")
    (tmp_path / "admin.token").mkdir()
    folder = front_door.StoredTokens(tmp_path)
    with pytest.raises(InvalidRequest, match=r"tokens.json .* cannot be read"):
        folder.read()
    with pytest.raises(InvalidRequest, match=r"admin.token .* cannot be read"):
        folder.admin_token()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        front_door.StoredTokens(tmp_path / "tokens.json").write(())


def test_settings_are_shown_without_secrets(desk: Desk) -> None:
    """`check` prints the effective settings; a secret among them is masked."""
    desk.environ = {"TILTYARD_ADMIN_TOKEN": "hush-hush", "TILTYARD_HTTP_PORT": "9"}
    result = desk.run("check")
    assert result.exit_code == 0
    assert "hush-hush" not in result.output
    assert desk.json("check")["settings"]["http"]["port"] == 9


def test_a_wrong_setting_is_one_line(desk: Desk) -> None:
    """An unknown variable is refused before anything runs."""
    desk.environ = {"TILTYARD_NONSENSE": "1"}
    refused(desk.run("check"), 1, "TILTYARD_NONSENSE")


def test_trouble_with_models_or_rules_fails_the_check(desk: Desk, tmp_path: Path) -> None:
    """`check` is exit code 1 for a model that cannot be loaded and for rules that are wrong."""
    desk.problems = ["flights/2: it cannot be loaded."]
    file = tmp_path / "rules.json"
    file.write_bytes(msgspec.json.encode({"a": SPLIT, "b": {"schema": 1, "model": "../x"}}))
    result = desk.run("check", "--rules", str(file))
    assert result.exit_code == 1
    assert "flights/2" in result.stderr
    assert "Rules of 'b'" in result.stderr
    assert "Rules of 'a'" not in result.stderr


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param(msgspec.json.encode(SPLIT), 0, id="one-document"),
        pytest.param(msgspec.json.encode({"a": SPLIT}), 0, id="by-name"),
        pytest.param(b'{"schema":1,"model":"m","extra":"m"}', 1, id="unknown-field"),
        pytest.param(b'{"a":{"schema":1,"model":"m"},"a":{}}', 1, id="duplicate"),
        pytest.param(b"[]", 1, id="array"),
        pytest.param(b"", 1, id="empty"),
    ],
)
def test_rules_are_checked_strictly(desk: Desk, tmp_path: Path, text: bytes, code: int) -> None:
    """A rules file holds one endpoint's document, or several by name."""
    file = tmp_path / "rules.json"
    file.write_bytes(text)
    assert desk.run("check", "--rules", str(file)).exit_code == code


def test_serve_hands_the_settings_on(desk: Desk, tmp_path: Path) -> None:
    """Options come before the environment, and that before the file."""
    file = tmp_path / "tiltyard.toml"
    file.write_text('[http]\nport = 1\nhost = "a"\n[admin]\nport = 7\n')
    desk.environ = {"TILTYARD_HTTP_HOST": "b"}
    result = desk.run("serve", "--config", str(file), "--port", "2", "--state-dir", "s")
    assert result.exit_code == 0, result.output
    (settings,) = desk.served
    assert (settings.http.host, settings.http.port, settings.admin.port) == ("b", 2, 7)
    assert settings.state_dir == "s"
    assert "Ready: inference on http://b:2, admin on http://127.0.0.1:7." in result.stdout


def test_what_cannot_be_served_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the gateway's start is one line."""

    def fail(*_: object) -> int:
        raise Conflict("Cannot listen on 127.0.0.1, port 8080.")

    monkeypatch.setattr(desk, "serve", fail)
    refused(desk.run("serve"), 5, "Cannot listen")


def test_the_version_is_printed(desk: Desk) -> None:
    """`--version` says which one this is."""
    assert desk.run("--version").stdout.strip() == __version__


def test_every_command_explains_itself(desk: Desk) -> None:
    """Help is there for each command, and `--json` wherever something is answered."""
    silent = {"serve", "remove"}
    for words in commands():
        result = desk.run(*words, "--help")
        assert result.exit_code == 0, words
        assert ("--json" in result.stdout) == (words[-1] not in silent), words


def commands() -> Iterator[tuple[str, ...]]:
    """Every command as it is written."""
    for name in ("serve", "check", "status", "promote", "rollback"):
        yield (name,)
    for name in ("list", "show"):
        yield ("models", name)
    for name in ("list", "show", "set", "delete", "explain", "shadows"):
        yield ("endpoints", name)
    for name in ("add", "list", "remove"):
        yield ("token", name)


def test_the_front_door_hands_everything_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`tiltyard` runs the commands, with tokens kept in the state folder of the settings."""
    monkeypatch.setenv("TILTYARD_STATE_DIR", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["tiltyard", "token", "add", "ci"])
    with pytest.raises(SystemExit) as left:
        front_door.main()
    assert left.value.code == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("tilt_")
    (token,) = front_door.StoredTokens(tmp_path).read()
    assert token.sha256 == digest_of(secret.encode())


def test_commands_speak_to_a_real_server(desk: Desk, rules: Path) -> None:
    """Over a socket and uvicorn's parser it is the same."""
    config = uvicorn.Config(
        desk.world.app, lifespan="off", ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    desk.transport = None
    admin = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        assert desk.run("status", "--admin", admin).exit_code == 0
        changed = desk.run("endpoints", "set", MODEL, str(rules), "--admin", admin)
        assert changed.exit_code == 0, changed.output
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
    assert desk.world.registry.snapshot.revision == 4
