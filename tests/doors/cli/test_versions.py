from pathlib import Path

import pytest

from gateway.core.reviews import Check, CheckResult, Outcome
from tests.doors.cli.desk import Desk, listening, refused
from tests.doors.http.admin_world import MODEL, World


@pytest.fixture
def seeded(tmp_path: Path) -> Desk:
    """A desk whose model store is a folder."""
    (tmp_path / "models").mkdir()
    return Desk(World(folder=tmp_path))


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version's folder."""
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"onnx")
    (folder / "version.toml").write_text('commit = "c0ffee"\nparent = 3\ncreated = 2026-01-02\n')
    (folder / ".litter").write_bytes(b"x")
    return folder


def test_a_folder_is_registered_with_one_command(seeded: Desk, version: Path) -> None:
    """Each check is a row; tags and parameters join the lineage."""
    told = ("--tag", "team=delays", "--parameter", "depth=3", "--reason", "new")
    result = seeded.run("register", MODEL, str(version), *told)
    assert result.exit_code == 0, result.output
    for word in ("loads", "passed", "Version 4 of", "is registered at revision 4"):
        assert word in result.stdout
    shown = seeded.json("models", "version", MODEL, "4")
    assert shown["lineage"]["tags"] == {"team": "delays"}
    assert shown["lineage"]["parameters"] == {"depth": "3"}
    assert f"`tiltyard gate check {MODEL} 4`" in result.stdout
    again = seeded.run("register", MODEL, str(version), *told)
    assert again.exit_code == 0
    assert "was known" in again.stdout


def test_a_large_file_alone_is_sent_in_parts(
    seeded: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is the model; it is never read whole."""
    monkeypatch.setattr("gateway.doors.cli.versions.CHUNK", 1000)
    model = tmp_path / "some.onnx"
    model.write_bytes(b"onnx" * 1000)
    with listening(seeded) as port:
        where = ("--admin", f"http://127.0.0.1:{port}")
        answer = seeded.json("register", MODEL, str(model), "--version", "9", *where)
    assert (answer["version"], answer["changed"]) == (9, True)
    assert seeded.world.memory.manifests[MODEL, 9].files[0].size == 4000


def test_a_refusal_shows_every_check_and_fails(seeded: Desk, version: Path) -> None:
    """The table, a sentence on stderr, and an exit code for scripts."""
    failed = CheckResult(Outcome.FAILED, "It hangs.")
    seeded.world.inspector.changes = {Check.LOADS: failed}
    result = seeded.run("register", MODEL, str(version))
    assert result.exit_code == 1
    assert "It hangs." in result.stdout
    assert "signature" in result.stdout
    assert "refused" in result.stderr
    as_json = seeded.run("register", MODEL, str(version), "--json")
    assert as_json.exit_code == 1
    assert '"outcome": "failed"' in as_json.stdout


def test_what_is_not_registered_leaves_no_upload(
    seeded: Desk, tmp_path: Path, version: Path
) -> None:
    """A number that was given keeps its bytes; the next try sends its files anew."""
    seeded.run("register", MODEL, str(version))
    (version / "model.onnx").write_bytes(b"other")
    refused(seeded.run("register", MODEL, str(version), "--version", "4"), 5, "other bytes")
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_check_that_only_gates_ask_about_is_named(seeded: Desk, version: Path) -> None:
    """The version is registered, and who did it sees what it did not pass."""
    seeded.world.inspector.changes = {Check.GOLDEN: CheckResult(Outcome.FAILED, "Off.")}
    assert "It did not pass: golden." in seeded.run("register", MODEL, str(version)).stdout


def test_a_source_needs_no_upload(seeded: Desk, tmp_path: Path, version: Path) -> None:
    """A folder in the model store is registered from where it lies."""
    version.rename(tmp_path / "models" / "candidate")
    answer = seeded.json("register", MODEL, "--source", "candidate", "--version", "5")
    assert answer["version"] == 5


def test_what_cannot_be_sent_is_refused_here(seeded: Desk, tmp_path: Path, version: Path) -> None:
    """A missing folder, one without a model, one with a folder in it; neither or both wishes."""
    refused(seeded.run("register", MODEL, str(tmp_path / "nowhere")), 1, "no folder")
    refused(seeded.run("register", MODEL), 1, "Name the version's folder")
    refused(seeded.run("register", MODEL, str(version), "--source", "x"), 1, "Name the version's")
    refused(seeded.run("register", MODEL, str(version), "--tag", "x"), 1, "KEY=VALUE")
    (version / "sub").mkdir()
    refused(seeded.run("register", MODEL, str(version)), 1, "no file with a proper name")
    (version / "sub").rmdir()
    (version / "model.onnx").unlink()
    refused(seeded.run("register", MODEL, str(version)), 1, "has no model.onnx")


def test_a_model_shows_its_checks_in_short(seeded: Desk, version: Path) -> None:
    """How many passed, which failed; dashes where none were made."""
    slow = CheckResult(Outcome.FAILED, "Slow.", 99.0)
    seeded.world.inspector.changes = {Check.LATENCY: slow}
    seeded.run("register", MODEL, str(version))
    shown = seeded.run("models", "show", MODEL).stdout
    assert f"{len(Check) - 1} passed; failed: latency" in shown


def test_versions_are_compared_and_traced(seeded: Desk, version: Path) -> None:
    """The tables of differences and of the lineage, and a new inspection."""
    seeded.run("register", MODEL, str(version))
    assert "c0ffee" in seeded.run("models", "diff", MODEL, "3", "4").stdout
    lineage = seeded.run("models", "lineage", MODEL).stdout
    assert f"{MODEL}/3" in lineage
    assert "c0ffee" in seeded.run("models", "version", MODEL, "4").stdout
    again = seeded.run("models", "inspect", MODEL, "4")
    assert again.exit_code == 0
    seeded.world.inspector.changes = {Check.LOADS: CheckResult(Outcome.FAILED, "It hangs.")}
    again = seeded.run("models", "inspect", MODEL, "4")
    assert again.exit_code == 1
    assert "It hangs." in again.stdout
