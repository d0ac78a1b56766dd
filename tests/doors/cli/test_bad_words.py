"""What is typed is one part of a path and one line of output, whatever it holds."""

import pytest

from tests.doors.cli.desk import Desk
from tests.doors.http.admin_world import MODEL

NAMES = ["..", "../models", "%2e%2e", "", "m\r\nX: y"]
NUMBERS = ["-1", "007", "1_0", str(2**63), "\u0662"]


@pytest.mark.parametrize(
    "words",
    [
        ("promote", "{}", "2"),
        ("models", "show", "{}"),
        ("models", "card", "{}", "1"),
        ("endpoints", "delete", "{}"),
        ("approve", "{}", "2"),
        ("register", "{}", "--source", "candidates/x"),
    ],
    ids=" ".join,
)
def test_a_name_leads_nowhere_else(desk: Desk, words: tuple[str, ...]) -> None:
    """M20 On every command that takes one: refused as a name, or as one that nobody has."""
    for name in NAMES:
        result = desk.run(*(word.format(name) for word in words))
        assert result.exit_code in (1, 2), result.output
        assert len(result.stderr.strip().splitlines()) == 1
    assert desk.world.registry.snapshot.revision == 3


@pytest.mark.parametrize(
    "words",
    [
        ("promote", MODEL, "--", "{}"),
        ("models", "diff", MODEL, "--", "1", "{}"),
        ("approve", MODEL, "--", "{}"),
    ],
    ids=" ".join,
)
def test_a_version_is_a_plain_number(desk: Desk, words: tuple[str, ...]) -> None:
    """M21 On every command that takes one, as in the admin API."""
    for number in NUMBERS:
        result = desk.run(*(word.format(number) for word in words))
        assert result.exit_code == 2, result.output
        assert "version" in result.stderr
    assert desk.world.registry.snapshot.revision == 3


def test_what_people_wrote_moves_no_cursor(desk: Desk) -> None:
    """A11 A reason in the tables and sentences of the command line is text in its line."""
    hostile = "x\r\nadmin: promoted\x1b[2J\u202e"
    assert desk.run("promote", MODEL, "2", "--reason", hostile).exit_code == 0
    for words in (("audit", "list"), ("audit", "show", "4"), ("models", "card", MODEL, "2")):
        result = desk.run(*words)
        assert result.exit_code == 0, result.output
        assert "promoted" in result.stdout
        for sign in ("\x1b[2J", "\u202e", "\nadmin: promoted"):
            assert sign not in result.stdout
