import json
from pathlib import Path

import pytest

from gateway.doors.schemas import KINDS, schema_text
from tests.doors.cli.desk import Desk
from tests.doors.http.admin_world import MODEL

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "flight-delay.yaml"
BUNDLE = f"""
schema: 1
aliases: {{{MODEL}: {{next: 2}}}}
gates:
  g: {{schema: 1, models: [other]}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A bundle in YAML."""
    file = tmp_path / "served.yaml"
    file.write_text(BUNDLE)
    return file


def test_diff_tells_what_is_pending_by_its_exit_code(desk: Desk, file: Path) -> None:
    """7 before, 0 after; apply has 0 both times."""
    before = desk.run("diff", "-f", str(file))
    assert before.exit_code == 7
    assert f"+ create aliases/{MODEL}/next" in before.stdout
    applied = desk.run("apply", "-f", str(file), "--reason", "why not")
    assert applied.exit_code == 0, applied.stderr
    assert "Done: 2 created, 0 updated, 0 deleted" in applied.stdout
    for command in ("diff", "apply"):
        after = desk.run(command, "-f", str(file))
        assert after.exit_code == 0
        assert "Nothing to change" in after.stdout


def test_a_difference_is_shown_by_its_path(desk: Desk, file: Path) -> None:
    """With what stood there and what will."""
    desk.run("apply", "-f", str(file))
    file.write_text(BUNDLE.replace("next: 2", "next: 3").replace("[other]", "[other, more]"))
    shown = desk.run("diff", "-f", str(file)).stdout
    assert f"~ update aliases/{MODEL}/next\n    2 -> 3\n" in shown
    assert '    models: ["other"] -> ["other","more"]\n' in shown


def test_a_dry_run_changes_nothing(desk: Desk, file: Path) -> None:
    """Its exit code is 0; `diff` is for scripts that ask."""
    dry = desk.run("apply", "-f", str(file), "--dry-run", "--json")
    assert dry.exit_code == 0
    assert len(json.loads(dry.stdout)["changes"]) == 2
    assert desk.run("diff", "-f", str(file)).exit_code == 7


def test_prune_deletes_only_after_a_yes(desk: Desk, file: Path, tmp_path: Path) -> None:
    """There is no terminal here that could be asked."""
    desk.run("apply", "-f", str(file))
    empty = tmp_path / "empty.toml"
    empty.write_text("schema = 1\n[gates]\n")
    refused = desk.run("apply", "-f", str(empty), "--prune")
    assert refused.exit_code == 1
    assert "say --yes" in refused.stderr
    done = desk.run("apply", "-f", str(empty), "--prune", "--yes")
    assert (done.exit_code, "- delete gates/g" in done.stdout) == (0, True)


@pytest.mark.parametrize("form", ["yaml", "toml", "json"])
def test_what_is_exported_is_applied_without_a_change(
    desk: Desk, file: Path, tmp_path: Path, form: str
) -> None:
    """In every format, by the end of the file's name."""
    desk.run("apply", "-f", str(file))
    written = tmp_path / f"all.{form}"
    assert desk.run("export", "-o", str(written)).exit_code == 0
    assert desk.run("diff", "-f", str(written), "--prune").exit_code == 0
    assert desk.run("export", "--format", form).stdout == written.read_text()


def test_files_and_folders_add_up(desk: Desk, file: Path, tmp_path: Path) -> None:
    """A name that stands twice is told with both files."""
    more = tmp_path / "more"
    more.mkdir()
    (more / "a.json").write_text('{"schema": 1, "layers": {"l": {}}}')
    (more / "b.toml").write_text("schema = 1\n[layers.m]\n")
    done = desk.run("apply", "-f", str(file), "-f", str(more))
    assert "Done: 4 created" in done.stdout
    (more / "c.yaml").write_text(BUNDLE)
    twice = desk.run("apply", "-f", str(file), "-f", str(more))
    assert (twice.exit_code, twice.stdout) == (1, "")
    assert f"c.yaml: aliases.{MODEL}.next stands in served.yaml already." in twice.stderr


@pytest.mark.parametrize("text", [BUNDLE, '{"schema": 1,\t"layers": {"l": {}, "m": {}}}'])
def test_a_bundle_may_come_from_stdin(desk: Desk, text: str) -> None:
    """In YAML or JSON."""
    done = desk.run("apply", "-f", "-", stdin=text)
    assert "Done: 2 created" in done.stdout, done.stderr


def test_a_file_that_cannot_be_read_is_told(desk: Desk, tmp_path: Path) -> None:
    """By name and what is wrong with it."""
    missing = desk.run("diff", "-f", str(tmp_path / "no.yaml"))
    assert (missing.exit_code, "no.yaml" in missing.stderr) == (1, True)
    (tmp_path / "no.txt").write_text("schema: 1")
    other = desk.run("diff", "-f", str(tmp_path / "no.txt"))
    assert "none of .yaml" in other.stderr


def test_schemas_are_printed_and_written(desk: Desk, tmp_path: Path) -> None:
    """One, or all into a folder."""
    assert desk.run("schema", "bundle").stdout == schema_text("bundle")
    assert desk.run("schema", "--all", "--to", str(tmp_path / "s")).exit_code == 0
    assert {file.stem for file in (tmp_path / "s").iterdir()} == set(KINDS)
    for wrong in (("schema",), ("schema", "model"), ("schema", "--all")):
        assert desk.run(*wrong).exit_code == 1


def test_the_example_of_the_documentation_applies(desk: Desk, tmp_path: Path) -> None:
    """To a gateway with the sample model; what is exported then changes nothing."""
    here = tmp_path / "example.yaml"
    here.write_text(EXAMPLE.read_text().replace("flight-delay", MODEL))
    done = desk.run("apply", "-f", str(here))
    assert done.exit_code == 0, done.stderr
    assert desk.run("diff", "-f", str(here), "--prune").exit_code == 0
