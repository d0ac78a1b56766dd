"""Exports and archives on disk: whatever happens to a byte of them is found."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.checkpoints import SCHEMA, Checkpoint, key_id, sign
from gateway.core.errors import InvalidRequest
from gateway.core.sought import Sought
from gateway.doors.cli.audit_files import (
    CHECKPOINT_SUFFIX,
    check_archives,
    check_export,
    name_of,
    sha256_of,
    write_export,
)
from tests.chains import committed, facts

LINES, HEAD = committed(5)
KEY = bytes(range(32))
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export of the whole log."""
    path = tmp_path / "audit.jsonl"
    with path.open("wb") as file:
        write_export(iter(LINES), file, after=0, before="")
    return path


def put_archive(folder: Path, first: int, last: int) -> Checkpoint:
    """An archive of some of the entries, signed."""
    before = LINES[first - 2].hash if first > 1 else ""
    work = folder / "work"
    with work.open("wb") as file:
        write_export(iter(LINES[first - 1 : last]), file, after=first - 1, before=before)
    checkpoint = Checkpoint(
        schema=SCHEMA,
        namespace="tiltyard",
        epoch=1,
        after=first - 1,
        first=first,
        last=last,
        entries=last - first + 1,
        before=before,
        head=LINES[last - 1].hash,
        sha256=sha256_of(work),
        base_sha256="b" * 64,
        at=1.0,
        key=key_id(KEY),
    )
    path = work.rename(folder / name_of(checkpoint))
    signed = sign(checkpoint, KEY)
    path.with_suffix(CHECKPOINT_SUFFIX).write_bytes(msgspec.json.encode(signed) + b"\n")
    return checkpoint


def test_an_export_leads_to_the_head(export: Path) -> None:
    """Whole, without a gateway."""
    chain, partial = check_export(export)
    assert (chain.faults, chain.entries, chain.head, partial) == ([], 5, HEAD.head, False)


@QUICK
@given(at=st.integers(0, 100_000), to=st.integers(0, 255))
def test_one_changed_byte_of_an_export_is_found(export: Path, at: int, to: int) -> None:
    """In entries, hashes, places, line breaks and the last line alike."""
    whole = export.read_bytes()
    at %= len(whole)
    if whole[at] == to:
        return
    try:
        export.write_bytes(whole[:at] + bytes([to]) + whole[at + 1 :])
        chain, _ = check_export(export)
    finally:
        export.write_bytes(whole)
    assert chain.faults


@QUICK
@given(kept=st.integers(0, 100_000))
def test_a_cut_export_is_found(export: Path, kept: int) -> None:
    """Wherever it ends."""
    whole = export.read_bytes()
    try:
        export.write_bytes(whole[: kept % len(whole)])
        chain, _ = check_export(export)
    finally:
        export.write_bytes(whole)
    assert chain.faults


def test_a_selection_is_told_as_one(tmp_path: Path) -> None:
    """Each entry is whole, though they make no chain; one that is left out later is missed."""
    path = tmp_path / "some.jsonl"
    with path.open("wb") as file:
        write_export(iter(LINES), file, after=0, before="", sought=Sought(actor="ana"))
    chain, partial = check_export(path)
    assert (facts(chain.faults), chain.entries, partial) == ([], 2, True)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    assert check_export(path)[0].faults


def test_archives_join_to_one_chain(tmp_path: Path) -> None:
    """In their order, each with its signature."""
    put_archive(tmp_path, 4, 5)
    put_archive(tmp_path, 1, 3)
    chain, states = check_archives(tmp_path, KEY)
    assert (chain.faults, chain.entries, chain.head) == ([], 5, HEAD.head)
    assert states == ["good", "good"]
    assert check_archives(tmp_path, None)[1] == ["unknown", "unknown"]


def test_a_missing_archive_is_found(tmp_path: Path) -> None:
    """What it held is named."""
    put_archive(tmp_path, 1, 2)
    put_archive(tmp_path, 4, 5)
    assert facts(check_archives(tmp_path, KEY)[0].faults)[0] == (3, "missing")


@QUICK
@given(at=st.integers(0, 100_000), to=st.integers(0, 255))
def test_one_changed_byte_of_a_checkpoint_is_found(tmp_path: Path, at: int, to: int) -> None:
    """Whatever a checkpoint says is signed."""
    put_archive(tmp_path, 1, 5)
    (path,) = tmp_path.glob(f"*{CHECKPOINT_SUFFIX}")
    whole = path.read_bytes()
    at %= len(whole)
    if whole[at] == to:
        return
    path.write_bytes(whole[:at] + bytes([to]) + whole[at + 1 :])
    try:
        chain, states = check_archives(tmp_path, KEY)
    except InvalidRequest:
        return
    assert chain.faults or states == ["unknown"]


def test_a_folder_without_archives_is_refused(tmp_path: Path) -> None:
    """It proves nothing."""
    with pytest.raises(InvalidRequest, match="holds no archive"):
        check_archives(tmp_path, KEY)
