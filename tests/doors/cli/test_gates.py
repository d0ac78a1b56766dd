"""Commands on gates, approvals and wishes."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from gateway.core.gate_checks import check_gate
from gateway.core.gates import Gate
from tests.doors.cli.desk import Desk, refused
from tests.doors.http.admin_world import MODEL
from tests.doors.http.test_admin_gates import APPROVER, DOCUMENT, governed

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "gate.json"


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A gate's document, on disk."""
    path = tmp_path / "gate.json"
    path.write_bytes(msgspec.json.encode(DOCUMENT))
    return str(path)


@pytest.fixture
def gated() -> Desk:
    """A command line with a gate and people behind it."""
    desk = Desk()
    desk.reach(asyncio.run(governed()))
    return desk


def as_approver(desk: Desk, *arguments: str) -> str:
    """Run a command as ada; what it says."""
    mine, desk.environ["TILTYARD_TOKEN"] = desk.environ["TILTYARD_TOKEN"], APPROVER
    result = desk.run(*arguments)
    desk.environ["TILTYARD_TOKEN"] = mine
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_gate_is_put_shown_listed_and_deleted(desk: Desk, file: str) -> None:
    """In the manners of the others: a sentence, a table, JSON for scripts."""
    assert "There is no gate" in desk.run("gate", "list").stdout
    dry = desk.run("gate", "put", "flights", file, "--dry-run").stdout
    assert f"would mean: {MODEL}" in dry
    assert "1 approval by an approver is missing" in dry
    assert "Gate 'flights' stands: revision 4" in desk.run("gate", "put", "flights", file).stdout
    assert "stood like that already" in desk.run("gate", "put", "flights", file).stdout
    assert "1 approver" in desk.run("gate", "list").stdout
    assert desk.json("gate", "list")["gates"][0]["name"] == "flights"
    shown = desk.run("gate", "show", "flights", "--document")
    assert msgspec.json.decode(shown.stdout)["models"] == ["fl*"]
    assert "Gate 'flights' is deleted: revision 5" in desk.run("gate", "delete", "flights").stdout


def test_what_is_missing_is_listed_line_by_line(gated: Desk) -> None:
    """On stderr, with the code of a conflict; then it is approved by another, and passes."""
    closed = gated.run("promote", MODEL, "2", "--no-wait")
    assert closed.exit_code == 5
    head, item = closed.stderr.strip().splitlines()
    assert head == f"A gate is closed for version 2 of '{MODEL}'."
    assert item.startswith("  - flights: 1 approval by an approver is missing")
    told = as_approver(gated, "approve", MODEL, "2", "--reason", "fine")
    assert f"Version 2 of '{MODEL}' has your approval" in told
    assert "It was like that already" in as_approver(gated, "approve", MODEL, "2")
    assert gated.run("promote", MODEL, "2", "--no-wait").exit_code == 0


def test_a_check_says_what_stands_in_the_way(gated: Desk) -> None:
    """As a table, and in one sentence."""
    closed = gated.run("gate", "check", MODEL, "2")
    assert closed.exit_code == 1
    assert "approvals.approver" in closed.stdout
    assert "may not be promoted to 'champion' yet: 1 missing" in closed.stdout
    as_approver(gated, "approve", MODEL, "2")
    assert "may be promoted to 'champion'" in gated.run("gate", "check", MODEL, "2").stdout
    assert gated.json("gate", "check", MODEL, "2")["open"]
    as_approver(gated, "unapprove", MODEL, "2")
    closed = gated.run("gate", "check", MODEL, "2", "--json")
    assert (closed.exit_code, msgspec.json.decode(closed.stdout)["open"]) == (1, False)


def test_a_promotion_is_asked_for(gated: Desk) -> None:
    """It waits, and says for what; where nothing is missing it is made."""
    told = gated.run("promote", MODEL, "2", "--request", "--reason", "better")
    assert told.exit_code == 0
    assert f"Asked for: 'champion' of '{MODEL}' moves to version 2" in told.stdout
    assert "  - flights: 1 approval" in told.stdout
    assert not gated.json("promote", MODEL, "2", "--request")["granted"]
    as_approver(gated, "approve", MODEL, "2")
    assert "committed" in gated.run("promote", MODEL, "2", "--request", "--no-wait").stdout


def test_what_was_asked_for_is_listed_and_withdrawn(gated: Desk) -> None:
    """With what it waits for."""
    assert "Nobody waits for a gate." in gated.run("gate", "wishes").stdout
    gated.run("promote", MODEL, "2", "--request")
    told = gated.run("gate", "wishes").stdout
    assert "wim" in told
    assert "1 approval by an approver is missing" in told
    gone = gated.run("gate", "withdraw", MODEL, "--reason", "no").stdout
    assert f"'champion' of '{MODEL}' stays where it is" in gone
    assert gated.json("gate", "wishes")["wishes"] == []


def test_force_takes_its_role(gated: Desk) -> None:
    """And cannot be asked for."""
    forced = gated.run("promote", MODEL, "2", "--override", "--reason", "down", "--no-wait")
    refused(forced, 4, "takes the role 'emergency'")
    refused(gated.run("promote", MODEL, "2", "--override", "--request"), 1, "exclude each other")


def test_the_example_is_a_gate() -> None:
    """`docs/examples/gate.json` is taken as it stands."""
    gate = msgspec.json.decode(EXAMPLE.read_bytes(), type=Gate)
    check_gate("flights", gate)
    assert gate.models == ("flight-*",)
    assert gate.promotion.approvals[0].count == 1
