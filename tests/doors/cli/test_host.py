"""Commands on this host: `serve`, what it announces, `check` and `demo`."""

import io
import shlex
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

import gateway.__main__ as front_door
from gateway.core.errors import Conflict
from gateway.doors.cli.chapters import chapters
from gateway.doors.cli.story import Move, Story, Told
from gateway.doors.cli.telling import show
from tests.doors.cli.desk import Desk, refused
from tests.doors.http.admin_world import MODEL, SPLIT

ROOT = Path(__file__).parents[3]


def test_the_demo_needs_nothing_but_the_sample_models(desk: Desk, tmp_path: Path) -> None:
    """Where the admin API is need not be said; without the models, the sentence says so."""
    desk.environ = {"TILTYARD_MODEL_STORE": str(tmp_path)}
    refused(desk.run("demo"), 1, "needs the sample models")


def test_the_story_fits_80_columns() -> None:
    """The demo's tables are whole in 80 columns, also with large numbers in them."""
    reading = {
        "name": "log_loss",
        "variant": "v2",
        "role": "goal",
        "verdict": "inconclusive",
        "control": 123456.789,
        "treatment": 123456.789,
        "estimate": -0.0123456,
        "interval": [-0.0123456, 0.0123456],
        "harm": {"e": 1.23456e280, "threshold": 20.0},
        "safe": {"e": 1.23456e-280, "threshold": 20.0},
    }
    report = {
        "state": "running",
        "reason": "",
        "readings": [reading],
        "variants": [{"assigned": 400_000}, {"assigned": 400_000}],
    }
    ramp, same, _ = chapters(39_000)
    claim = Move(1.0, "running", "", 10_000, {"log_loss/v2": "better"})
    told = [
        Told(ramp, report, [], [claim], 30.0, Counter(v1=20_000, v2=20_000)),
        Told(same, report, [], [claim], 30.0, Counter({"a": 20_000, "the-same": 20_000})),
    ]
    story = Story(chapters=told, outcomes=39_000, seconds=30.0)
    paper = io.StringIO()
    show(story, Console(file=paper, width=80))
    printed = paper.getvalue()
    for words in ("log_loss", "1.23e+280", "800000 units", "80000 answers and 39000 outcomes"):
        assert words in printed
    assert "…" not in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert [one.is_right for one in told] == [True, False]  # nothing may be claimed of the same


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
    desk.environ = {"TILTYARD_MODEL_STORE": str(store_with(tmp_path, 2))}
    result = desk.run("check", "--rules", str(file))
    assert result.exit_code == 1
    assert "flights/2" in result.stderr
    assert "Rules of 'b'" in result.stderr
    assert "Rules of 'a'" not in result.stderr


def store_with(tmp_path: Path, *numbers: int) -> Path:
    """A model store whose only model has these versions."""
    for number in numbers:
        (tmp_path / "store" / MODEL / str(number)).mkdir(parents=True)
    return tmp_path / "store"


def test_rules_name_what_the_model_store_has(desk: Desk, tmp_path: Path) -> None:
    """`check` tells of a version, an alias or a model of the rules that is not in the store."""
    desk.environ = {"TILTYARD_MODEL_STORE": str(store_with(tmp_path, 1))}
    other = {"schema": 1, "model": "trains", "default": {"version": 1}}
    named = {"schema": 1, "model": MODEL, "default": {"alias": "challenger"}}
    file = tmp_path / "rules.json"
    file.write_bytes(msgspec.json.encode({"a": SPLIT, "b": other, "c": named}))
    answer = desk.run("check", "--rules", str(file), "--json")
    assert answer.exit_code == 1
    told = msgspec.json.decode(answer.stdout)["problems"]
    assert [problem.split(";")[0] for problem in told] == [
        f"Rules of 'a': the model store has no version 2 of '{MODEL}'.",
        "Rules of 'b': the model store has no model 'trains'.",
        f"Rules of 'c': the model store gives '{MODEL}' no alias 'challenger'",
    ]


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
    desk.environ = {"TILTYARD_MODEL_STORE": str(store_with(tmp_path, 2))}
    assert desk.run("check", "--rules", str(file)).exit_code == code


def checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **environ: str
) -> tuple[object, str, str]:
    """What `tiltyard check` comes to: exit code, stdout and stderr."""
    for name, text in environ.items():
        monkeypatch.setenv(f"TILTYARD_{name}", text)
    monkeypatch.setattr("sys.argv", ["tiltyard", "check"])
    with pytest.raises(SystemExit) as left:
        front_door.main()
    return left.value.code, *capsys.readouterr()


def test_the_check_loads_every_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` names each version that it loaded, a line each."""
    code, out, err = checked(monkeypatch, capsys, MODEL_STORE=str(ROOT / "models"))
    assert (code, err) == (0, "")
    for version in ("digits/1", "digits/2", "flight-delay/1", "flight-delay/2"):
        assert f"{version} loads." in out.splitlines()


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        pytest.param({}, "The model store holds no version", id="empty"),
        pytest.param({"MODEL_STORE": "none"}, "The model store is no folder", id="no-folder"),
        pytest.param(
            {"HTTP_TLS_CERT": "none", "HTTP_TLS_KEY": "none"}, "http: A listener's", id="tls"
        ),
        pytest.param({"MODEL_STORE": "s3://models"}, "needs the extra 'objects'", id="objects"),
        pytest.param({"MODEL_STORE": "http://x/m"}, "begins with one of: abfs", id="scheme"),
        pytest.param({"ADMIN_HOST": "0.0.0.0"}, "TILTYARD_ADMIN_TOKEN", id="open-admin"),
        pytest.param({"REDIS_URL": "gopher://x"}, "redis: ", id="url"),
        pytest.param({"REDIS_EMBEDDED": "false"}, "TILTYARD_REDIS_URL", id="no-store"),
    ],
)
def test_the_check_finds_what_serve_would_refuse(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    environ: dict[str, str],
    told: str,
) -> None:
    """What would end `serve` at its start fails `check`, with a sentence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    code, _, err = checked(monkeypatch, capsys, **environ)
    assert code == 1
    assert told in err


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


def announced(desk: Desk, environ: dict[str, str]) -> list[list[str]]:
    """The commands that `serve` prints, as words."""
    desk.environ = environ
    lines = desk.run("serve").stdout.splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(" ")]


def test_what_is_announced_works_as_it_is_printed(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve` prints the program as it was started, and what else the commands need."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "bin/tiltyard",
        "models/flights/request.json",
        "models/flight-delay/traffic.csv.gz",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", ["bin/tiltyard", "serve"])
    body = "@models/flights/request.json"
    assert announced(desk, {}) == [
        ["curl", "-s", "http://127.0.0.1:8080/v2/models/flights/infer", "-d", body],
        ["bin/tiltyard", "status"],
        ["bin/tiltyard", "demo"],
    ]
    (tmp_path / "models/flight-delay/traffic.csv.gz").unlink()
    listener = {"TILTYARD_HTTP_TLS_CERT": "c", "TILTYARD_HTTP_TLS_KEY": "k"}
    assert announced(desk, listener) == [
        ["curl", "-sk", "https://127.0.0.1:8080/v2/models/flights/infer", "-d", body],
        ["bin/tiltyard", "status"],
    ]


def test_what_is_announced_finds_this_gateway(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ports, folders and certificates that are no defaults stand in the printed commands."""
    monkeypatch.setattr("sys.argv", [str(tmp_path / "tiltyard"), "serve"])
    traffic = tmp_path / "my models" / "flight-delay" / "traffic.csv.gz"
    traffic.parent.mkdir(parents=True)
    traffic.touch()
    environ = {"TILTYARD_HTTP_PORT": "1", "TILTYARD_ADMIN_PORT": "2", "TILTYARD_STATE_DIR": "s"}
    environ |= {"TILTYARD_ADMIN_TLS_CERT": "c", "TILTYARD_ADMIN_TLS_KEY": "k"}
    environ |= {"TILTYARD_MODEL_STORE": str(tmp_path / "my models")}
    place = ["--admin", "https://127.0.0.1:2", "--token-file", "s/admin.token"]
    more = ["--url", "http://127.0.0.1:1", "--model-store", str(tmp_path / "my models")]
    assert announced(desk, environ) == [
        ["SSL_CERT_FILE=c", "tiltyard", "status", *place],
        ["SSL_CERT_FILE=c", "tiltyard", "demo", *place, *more],
    ]


def test_what_cannot_be_served_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the gateway's start is one line."""

    def fail(*_: object) -> int:
        raise Conflict("Cannot listen on 127.0.0.1, port 8080.")

    monkeypatch.setattr(desk, "serve", fail)
    refused(desk.run("serve"), 5, "Cannot listen")


def test_an_address_of_a_model_store_stays_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no path: its slashes are not taken together."""
    monkeypatch.setattr("sys.argv", ["tiltyard", "check", "--model-store", "s3://models/a"])
    with pytest.raises(SystemExit):
        front_door.main()
    assert '"model_store": "s3://models/a"' in capsys.readouterr().out
