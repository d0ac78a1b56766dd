"""The commands on the audit log, over an admin door."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.control.registry import Edit
from gateway.core.snapshot import Snapshot
from tests.control.building import ASKED
from tests.doors.cli.desk import Desk, refused


def note(desk: Desk, evidence: Any) -> None:
    """Write an entry with this evidence."""

    async def make(base: Snapshot) -> Snapshot:
        return base

    edit = Edit("model.promote", "models/flights", make, evidence=evidence, noted=True)
    asyncio.run(desk.world.registry.commit(edit, ASKED))


def test_the_newest_entries_are_listed_first(desk: Desk) -> None:
    """So many as were asked for, of what was asked for."""
    told = desk.json("audit", "list", "--limit", "2")
    assert [one["entry"]["revision"] for one in told] == [3, 2]
    told = desk.json("audit", "list", "--oldest", "--after", "1", "--actor", "seed")
    assert [one["entry"]["revision"] for one in told] == [2, 3]
    assert desk.json("audit", "list", "--since", "5m", "--action", "gate.") == []
    assert len(desk.json("audit", "list", "--model", "flights", "--until", "1s")) == 3


def test_overrides_and_denials_stand_out(desk: Desk) -> None:
    """By a word, whatever the terminal can do."""
    note(desk, {"override": True, "missing": []})
    desk.world.denials.note("eve", "promote", "flights")
    desk.world.denials.note("eve", "promote", "flights")
    asyncio.run(desk.world.denials.flush())
    rows = desk.run("audit", "list").stdout.splitlines()
    found = {row.split()[4]: row for row in rows if row[:1].isdigit()}
    assert "OVERRIDE: " in found["model.promote"]
    assert "DENIED 2: eve promote flights" in found["access.denied"]
    assert len(desk.json("audit", "list", "--overrides")) == 1
    assert len(desk.json("audit", "list", "--denials")) == 1


def test_entries_say_which_version_they_are_about(desk: Desk) -> None:
    """Where the target names only the model."""
    row = desk.run("audit", "list", "--action", "model.promote").stdout
    assert "models/flights (champion: 2)" not in row
    assert desk.run("promote", "flights", "2", "--no-wait").exit_code == 0
    row = desk.run("audit", "list", "--action", "model.promote").stdout
    assert "models/flights (champion: 2)" in row


def test_one_entry_is_shown_whole(desk: Desk) -> None:
    """With its hash; one that is not there is refused."""
    told = msgspec.json.decode(desk.run("audit", "show", "2").stdout)
    assert (told["entry"]["revision"], len(told["hash"])) == (2, 64)
    refused(desk.run("audit", "show", "9"), 1, "does not hold revision 9")


def test_the_chain_is_verified_against_the_head(desk: Desk) -> None:
    """And what is wrong with it is named, with an exit code of its own."""
    told = desk.json("audit", "verify")
    assert (told["entries"], told["broken_at"], told["faults"]) == (3, None, [])
    assert "3 entries, 0 of them decisions, lead from nothing" in desk.run("audit", "verify").stdout
    entries = desk.world.memory.entries
    entries[1] = replace(entries[1], actor="mallory")
    result = desk.run("audit", "verify")
    assert result.exit_code == 6
    assert "broken at revision 2" in result.stdout
    entries.pop()
    told = msgspec.json.decode(desk.run("audit", "verify", "--json").stdout)
    assert [fault["revision"] for fault in told["faults"]] == [3]


def test_an_export_is_verified_without_a_gateway(desk: Desk, tmp_path: Path) -> None:
    """By itself, and against a head that was noted elsewhere."""
    path = tmp_path / "audit.jsonl"
    head = desk.world.registry.snapshot.audit_head
    assert head in desk.run("audit", "export", str(path)).stdout
    assert desk.run("audit", "export").stdout_bytes == path.read_bytes()
    assert desk.run("audit", "verify", "--file", str(path), "--head", head).exit_code == 0
    assert desk.run("audit", "verify", "--file", str(path), "--head", "0" * 64).exit_code == 6
    path.write_bytes(path.read_bytes().replace(b'"seed"', b'"send"', 1))
    assert desk.run("audit", "verify", "--file", str(path)).exit_code == 6
    refused(desk.run("audit", "verify", "--file", str(tmp_path / "no")), 1, "cannot be read")


def test_a_selection_is_exported_as_one(desk: Desk, tmp_path: Path) -> None:
    """Verifying says what it cannot know."""
    path = tmp_path / "some.jsonl"
    desk.run("audit", "export", str(path), "--action", "gate.")
    assert "holds a selection" in desk.run("audit", "verify", "--file", str(path)).stdout


def test_old_entries_are_archived_and_trimmed(desk: Desk, tmp_path: Path) -> None:
    """File, checkpoint, then the trim; log and archives verify alone and together."""
    folder, key = tmp_path / "archives", tmp_path / "audit.key"
    key.write_text("00" * 32)
    desk.world.clock.at += 10.0
    assert (
        "--no-trim" not in desk.run("audit", "archive", "--to", str(folder), "--before", "3").stdout
    )
    assert [entry.revision for entry in desk.world.memory.entries] == [3, 4]
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "audit-000000000001-000000000002.checkpoint.json",
        "audit-000000000001-000000000002.jsonl",
    ]
    assert "the checkpoint of revision 2" in desk.run("audit", "verify").stdout
    words = ("--archives", str(folder), "--key", str(key))
    assert desk.json("audit", "verify", *words)["entries"] == 4
    assert desk.json("audit", "verify", *words, "--offline")["entries"] == 2
    archive = folder / names[1]
    archive.write_bytes(archive.read_bytes().replace(b'"seed"', b'"send"', 1))
    assert desk.run("audit", "verify", *words).exit_code == 6


def test_an_archive_may_leave_the_store_as_it_is(desk: Desk, tmp_path: Path) -> None:
    """The checkpoint is there, and no entry is gone."""
    told = desk.json("audit", "archive", "--to", str(tmp_path), "--older-than", "0s", "--no-trim")
    assert told["trimmed"] is False
    assert len(desk.world.memory.entries) == 3


def test_a_restore_tells_what_is_lost(desk: Desk) -> None:
    """Nothing of it is left out."""
    told = desk.run("restore", "--reason", "flushed", "--dry-run").stdout
    assert "would be at revision 43 of epoch 2" in told
    for part in ("revision 1 to 42", "flights/9", "Experiment 'ramp'", "Inspection reports"):
        assert part in told
    assert "stop it and start another" in " ".join(told.split())
    assert "Webhooks are not on any host either" in told
    assert desk.json("restore", "--reason", "flushed")["done"] is True
    assert [(asked.actor, asked.reason, dry) for asked, dry in desk.world.restores] == [
        ("wim", "flushed", True),
        ("wim", "flushed", False),
    ]
    assert desk.run("restore").exit_code == 2
