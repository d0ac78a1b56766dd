"""Commands on experiments and the ledger."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from gateway.core.experiments import ExperimentRecord
from gateway.core.readings import Decision
from gateway.core.tallies import Evidence
from tests.doors.cli.desk import Desk, refused
from tests.doors.http.test_admin_experiments import DOCUMENT, judged
from tests.rollouts import evidence_of, judge_by_units


@pytest.fixture
def desk() -> Desk:
    """A command line with a gateway behind it."""
    return Desk()


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A document of an experiment, on disk."""
    path = tmp_path / "exp.json"
    path.write_bytes(msgspec.json.encode(DOCUMENT))
    return str(path)


def start(desk: Desk, file: str) -> None:
    """Put and start the experiment."""
    assert desk.run("experiment", "put", "exp", file).exit_code == 0
    assert desk.run("experiment", "start", "exp").exit_code == 0


def decide(desk: Desk, *units: int) -> None:
    """Let the steward decide on so many units of each variant, one after the other."""
    for count in units:
        asyncio.run(judged(desk.world, count))


def test_a_draft_is_put_started_and_listed(desk: Desk, file: str) -> None:
    """In the manners of `endpoints`: a sentence, a table, JSON for scripts."""
    put = desk.run("experiment", "put", "exp", file, "--reason", "new")
    assert "Experiment 'exp' is a draft: revision 4" in put.stdout
    assert "Experiment 'exp' is started" in desk.run("experiment", "start", "exp").stdout
    listed = desk.run("experiment", "list").stdout
    assert "running" in listed
    assert "ramp" in listed
    assert desk.json("experiment", "list")["experiments"][0]["name"] == "exp"


def test_a_dry_run_says_what_starting_would_do(desk: Desk, file: str) -> None:
    """And leaves nothing behind."""
    told = desk.run("experiment", "put", "exp", file, "--dry-run").stdout
    assert "would open with 10.00% of all units" in told
    assert "50.00%" in told
    assert "There is no experiment yet." in desk.run("experiment", "list").stdout


def test_what_is_shown_can_be_read_at_a_glance(desk: Desk, file: str) -> None:
    """Verdicts, intervals, what is still needed, and the units of each variant."""
    start(desk, file)
    record = desk.world.registry.snapshot.experiments["exp"]
    desk.world.evidence[record.id] = evidence_of(record, 100)
    shown = desk.run("experiment", "show", "exp").stdout
    assert "exp on flights is running" in shown
    for word in ("units left", "1,200", "equivalent", "-0.5 to 0.125", "1,500 duplicate"):
        assert word in shown
    assert desk.json("experiment", "show", "exp")["readings"][0]["verdict"] == "equivalent"
    document = msgspec.json.decode(desk.run("experiment", "show", "exp", "--document").stdout)
    assert document == DOCUMENT


@pytest.mark.parametrize(
    ("verb", "done"),
    [
        ("pause", "is paused"),
        ("stop", "is stopped"),
        ("rollback", "is rolled back"),
    ],
)
def test_it_is_moved_by_people(desk: Desk, file: str, verb: str, done: str) -> None:
    """Each says what it came to, and at which revision."""
    start(desk, file)
    assert f"Experiment 'exp' {done}" in desk.run("experiment", verb, "exp").stdout


def test_what_is_not_legal_now_is_a_conflict(desk: Desk, file: str) -> None:
    """Exit code 5, and a sentence."""
    start(desk, file)
    refused(desk.run("experiment", "resume", "exp"), 5, "cannot be resumed now")
    refused(desk.run("experiment", "approve", "exp"), 5, "does not wait for it")
    refused(desk.run("experiment", "delete", "exp"), 5, "stop it first")
    refused(desk.run("experiment", "pause", "exp", "--if-match", "abc"), 5, "moved")
    refused(desk.run("experiment", "show", "none"), 1, "There is no experiment 'none'")


def test_a_draft_is_deleted(desk: Desk, file: str) -> None:
    """And gone."""
    desk.run("experiment", "put", "exp", file)
    assert "is deleted" in desk.run("experiment", "delete", "exp").stdout
    assert desk.json("experiment", "list")["experiments"] == []


def test_decisions_are_listed_and_shown(desk: Desk, file: str) -> None:
    """A line each; one of them whole."""
    start(desk, file)
    decide(desk, 50, 500)
    rows = desk.json("ledger", "list")
    assert [(row["experiment"], row["state"]) for row in rows] == [
        ("exp", "held"),
        ("exp", "running"),
    ]
    assert "1000 units" in desk.run("ledger", "list").stdout
    shown = desk.run("ledger", "show", str(rows[1]["revision"]))
    assert msgspec.json.decode(shown.stdout)["entry"]["evidence"]["champion"] == 1
    refused(desk.run("ledger", "show", "1"), 1, "is no decision")


def test_a_whole_chain_is_verified(desk: Desk, file: str) -> None:
    """From the first entry to the head, decisions and all."""
    start(desk, file)
    decide(desk, 50, 500)
    told = desk.run("ledger", "verify")
    assert told.exit_code == 0
    assert "The chain holds: 7 entries, 2 of them decisions" in told.stdout
    assert desk.json("ledger", "verify")["broken_at"] is None


def test_a_forged_entry_breaks_the_chain(desk: Desk, file: str) -> None:
    """Whatever hash the server tells: it is worked out here."""
    start(desk, file)
    decide(desk, 50)
    entries = desk.world.memory.entries
    entries[-2] = replace(entries[-2], actor="nobody")
    told = desk.run("ledger", "verify", "--json")
    assert told.exit_code == 6
    assert msgspec.json.decode(told.stdout)["broken_at"] == entries[-2].revision


def test_every_decision_is_replayed(desk: Desk, file: str) -> None:
    """Bit for bit where it was made on the same versions and CPU."""
    start(desk, file)
    decide(desk, 50, 500, 1_000)
    told = desk.run("ledger", "replay")
    assert told.exit_code == 0
    assert "3 decisions were made again: 3 bit for bit" in told.stdout
    revision = desk.json("ledger", "list")[0]["revision"]
    assert len(desk.json("ledger", "replay", "--revision", str(revision))) == 1
    refused(desk.run("ledger", "replay", "--revision", "1"), 1, "is no decision")


def test_a_decision_that_comes_out_otherwise_is_told(desk: Desk, file: str) -> None:
    """Exit code 6 and the first difference, so that CI stops there."""
    start(desk, file)
    decide(desk, 50)

    def other(record: ExperimentRecord, evidence: Evidence, now: float) -> Decision:
        return replace(judge_by_units(record, evidence, now), step=7)

    desk.decide = other
    told = desk.run("ledger", "replay")
    assert told.exit_code == 6
    assert "decision.step is in the replay only" in told.stdout
