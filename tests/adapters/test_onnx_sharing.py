import hashlib
import logging
import os
import shutil
import sys
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Literal

import msgspec
import numpy as np
import pytest
from onnx import ModelProto

from gateway.adapters.onnx import OnnxEngine, OnnxLoader, describe
from gateway.adapters.onnx.forming import LONG_NS, measure
from gateway.adapters.onnx.sharing import (
    CHOICE,
    MIN_SHARED_BYTES,
    MODEL,
    TRY_AGAIN,
    WEIGHTS,
    Choice,
)
from gateway.core.models import Manifest, StoredFile
from gateway.ports import Artifact
from tests import onnx_models as models
from tests.adapters.onnx_parts import one, rows

LAYERS = 3


def cached(model: ModelProto, cache: Path) -> Artifact:
    """A version in the content-addressed cache, as `FolderStore` leaves it."""
    content = model.SerializeToString()
    sha256 = hashlib.sha256(content).hexdigest()
    folder = cache / sha256
    folder.mkdir(parents=True)
    path = models.save(model, folder)
    folder.chmod(0o500)
    manifest = Manifest(
        schema=1,
        model="m",
        number=1,
        digest=sha256,
        files=(StoredFile(path=MODEL, size=len(content), sha256=sha256),),
        signature=describe(path),
        lineage={},
        created_at=0.0,
    )
    return Artifact(manifest, path)


def load(
    artifact: Artifact, share: Literal["auto", "always", "never"] = "always", workers: int = 2
) -> OnnxEngine:
    """Load as one of several workers."""
    return OnnxLoader(1, share_weights=share, workers=workers)(artifact)


def form_of(artifact: Artifact) -> Path:
    """The only folder with a shared form of a version."""
    (folder,) = Path(artifact.path).parent.parent.glob(f"{artifact.manifest.digest}-*")
    return folder


def choice_of(artifact: Artifact) -> Choice:
    """What was found of a version's form."""
    return msgspec.json.decode((form_of(artifact) / CHOICE).read_bytes(), type=Choice)


def write_choice(artifact: Artifact, plain_ns: dict[int, int], shared_ns: dict[int, int]) -> None:
    """Put other times where the measured ones stand."""
    path = form_of(artifact) / CHOICE
    told = msgspec.structs.replace(choice_of(artifact), plain_ns=plain_ns, shared_ns=shared_ns)
    path.chmod(0o600)
    path.write_bytes(msgspec.json.encode(told))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A version large enough to be shared by itself."""
    artifact = cached(models.wide(1500, LAYERS), tmp_path_factory.mktemp("cache"))
    assert artifact.manifest.files[0].size > MIN_SHARED_BYTES
    load(artifact)
    write_choice(artifact, {1: 100, 32: 100}, {1: 100, 32: 100})
    return artifact


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(models.wide(64, LAYERS), id="perceptron"),
        pytest.param(models.wide(333, LAYERS), id="weights that end at odd places"),
        pytest.param(models.linear(bias=2.0), id="nothing worth a file"),
        pytest.param(models.two_outputs(), id="no weights"),
        pytest.param(models.slow(3), id="loop"),
    ],
)
def test_a_shared_form_answers_as_the_model(model: ModelProto, tmp_path: Path) -> None:
    """Packed weights and a graph optimised before change no answer."""
    artifact = cached(model, tmp_path)
    plain, shared = load(artifact, "never"), load(artifact)
    assert (plain.shares_weights, shared.shares_weights) == (False, True)
    names = [spec.name for spec in plain.signature.outputs]
    for count in (1, 3, 64):
        tensors = {"x": np.linspace(-1, 1, count * 4, dtype=np.float32).reshape(count, 4)}
        for one_way, other_way in zip(
            plain.run(tensors, names), shared.run(tensors, names), strict=True
        ):
            np.testing.assert_allclose(one_way, other_way, rtol=1e-5)


@pytest.mark.parametrize(
    ("share", "workers", "expected"),
    [
        pytest.param("auto", 2, True, id="auto"),
        pytest.param("auto", 1, False, id="alone"),
        pytest.param("never", 2, False, id="never"),
        pytest.param("always", 1, True, id="always"),
    ],
)
def test_large_weights_are_shared_as_set(
    share: Literal["auto", "always", "never"], workers: int, expected: bool, large: Artifact
) -> None:
    """By itself only where several workers would hold them."""
    assert load(large, share, workers=workers).shares_weights is expected


def test_small_weights_are_not_shared_by_themselves(tmp_path: Path) -> None:
    """A file and its measuring would cost more than they save."""
    artifact = cached(models.wide(64), tmp_path)
    assert not load(artifact, "auto").shares_weights
    assert [path.name for path in tmp_path.iterdir()] == [artifact.manifest.digest]


@pytest.mark.parametrize(
    ("shared_ns", "share", "expected"),
    [
        pytest.param({1: 100, 32: 100}, "auto", True, id="as fast"),
        pytest.param({1: 110, 32: 50}, "auto", True, id="a tenth slower"),
        pytest.param({1: 50, 32: 120}, "auto", False, id="slower"),
        pytest.param({1: 50, 32: 120}, "always", True, id="slower but wanted"),
    ],
)
def test_a_form_that_was_slower_is_not_used(
    shared_ns: dict[int, int], share: Literal["auto", "always"], expected: bool, large: Artifact
) -> None:
    """What was found once decides at each start."""
    write_choice(large, {1: 100, 32: 100}, shared_ns)
    try:
        assert load(large, share).shares_weights is expected
    finally:
        write_choice(large, {1: 100, 32: 100}, {1: 100, 32: 100})


def test_both_forms_are_timed_in_turn(tmp_path: Path) -> None:
    """The fastest run of each counts, at one row and at thirty-two."""
    artifact = cached(models.wide(64), tmp_path)
    plain, shared = load(artifact, "never"), load(artifact)
    files = choice_of(artifact).files
    # A size: its start, begin and end of a run of each in turn, then what was spent.
    long = [0, 0, 900, 900, 1_000, 1_000]
    short = [0, 100, 100, 170, 2 * LONG_NS]
    choice = measure(plain, shared, files, iter([*long, *short, 0, *short]).__next__)
    assert choice == Choice(
        equal=True, plain_ns={1: 100, 32: 100}, shared_ns={1: 70, 32: 70}, files=files
    )


def test_a_form_that_answers_otherwise_is_found_out(tmp_path: Path) -> None:
    """It is not even timed."""
    plain = load(cached(models.linear(), tmp_path / "plain"), "never")
    other = load(cached(models.linear(bias=1.0), tmp_path / "other"), "never")
    assert measure(plain, other, (), iter(()).__next__) == Choice(equal=False)


def test_a_version_whose_form_was_of_no_use_is_not_formed_again(tmp_path: Path) -> None:
    """The finding is kept, without the files."""
    artifact = cached(models.wide(64), tmp_path)
    load(artifact)
    folder = form_of(artifact)
    (folder / CHOICE).unlink()
    (folder / CHOICE).write_bytes(msgspec.json.encode(Choice(equal=False)))
    before = (folder / CHOICE).stat()
    assert not load(artifact).shares_weights
    assert (folder / CHOICE).stat() == before


def instead_of_python(folder: Path, *, ends: str) -> str:
    """A program that ends as a shell command does."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{ends}\n")
    program.chmod(0o700)
    return str(program)


@pytest.mark.parametrize("ends", ["exit 1", "kill -SEGV $$", "kill -KILL $$"])
def test_a_process_that_crashes_over_a_form_costs_only_the_sharing(
    ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are foreign code; the finding is kept, so that it is not tried at each start."""
    artifact = cached(models.wide(64), tmp_path)
    monkeypatch.setattr(sys, "executable", instead_of_python(tmp_path, ends=ends))
    assert not load(artifact).shares_weights
    assert choice_of(artifact) == Choice(equal=False)


@pytest.mark.parametrize("ends", [f"exit {TRY_AGAIN}", "kill -TERM $$"])
def test_a_full_disk_or_a_stop_says_nothing_of_the_model(
    ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing is kept, and the next start tries again."""
    artifact = cached(models.wide(64), tmp_path)
    monkeypatch.setattr(sys, "executable", instead_of_python(tmp_path, ends=ends))
    assert not load(artifact).shares_weights
    assert not list(tmp_path.glob(f"{artifact.manifest.digest}-*"))
    monkeypatch.undo()
    assert load(artifact).shares_weights


def test_the_form_is_private_and_the_copy_is_untouched(tmp_path: Path) -> None:
    """It lies beside the verified copy, for the eyes of this user only."""
    artifact = cached(models.wide(64), tmp_path)
    before = {path.name: path.stat() for path in Path(artifact.path).parent.iterdir()}
    load(artifact)
    folder = form_of(artifact)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == {CHOICE, MODEL, WEIGHTS}
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in folder.iterdir())
    assert {path.name: path.stat() for path in Path(artifact.path).parent.iterdir()} == before
    assert not list(tmp_path.glob(".share-*"))


@pytest.mark.parametrize(
    ("file", "how"), [(CHOICE, "cut"), (MODEL, "changed"), (WEIGHTS, "cut"), (WEIGHTS, "gone")]
)
def test_a_damaged_form_is_not_used_and_written_again(
    file: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model itself is served until then."""
    artifact = cached(models.wide(64), tmp_path)
    load(artifact)
    path = form_of(artifact) / file
    path.chmod(0o600)
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"#" if how == "changed" else b""))
    engine = load(artifact)
    assert not engine.shares_weights
    assert one(engine, x=rows(1.0)).shape == (1, 4)
    assert "damaged" in caplog.text
    assert load(artifact).shares_weights


def test_a_form_that_others_may_touch_is_not_used(tmp_path: Path) -> None:
    """Only this user's process can have written it."""
    artifact = cached(models.wide(64), tmp_path)
    load(artifact)
    form_of(artifact).chmod(0o777)
    assert not load(artifact).shares_weights


def test_only_a_copy_that_is_named_by_its_content_has_a_form(tmp_path: Path) -> None:
    """A folder whose content may change is not the place to keep one for."""
    artifact = cached(models.wide(64), tmp_path)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(Path(artifact.path).parent, elsewhere)
    moved = Artifact(artifact.manifest, str(elsewhere / MODEL))
    assert not load(moved).shares_weights
    assert not list(tmp_path.glob(f"{artifact.manifest.digest}-*"))


def test_a_cache_that_cannot_be_written_to_does_not_keep_a_model_from_being_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sharing is given up, and said so without a path."""
    artifact = cached(models.wide(64), tmp_path)
    (tmp_path / "share.lock").mkdir()
    with caplog.at_level(logging.WARNING):
        assert not load(artifact).shares_weights
    assert "not shared" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    """The next writer holds the lock, so nobody else is at it."""
    left = tmp_path / ".share-left"
    left.mkdir()
    (left / WEIGHTS).write_bytes(b"half")
    load(cached(models.wide(64), tmp_path))
    assert not left.exists()


WORKER = """
import logging, re, sys
import msgspec
import numpy as np
from gateway.adapters.onnx import OnnxLoader
from gateway.core.models import Manifest
from gateway.ports import Artifact

logging.basicConfig(level=logging.INFO, stream=sys.stderr)

def private_mib():
    with open("/proc/self/smaps_rollup") as file:
        return int(re.search(r"Private_Dirty:\\s+(\\d+)", file.read())[1]) // 1024

share, path, manifest = sys.argv[1:]
artifact = Artifact(msgspec.json.decode(manifest, type=Manifest), path)
print("ready", flush=True)
sys.stdin.readline()
before = private_mib()
engine = OnnxLoader(1, share_weights=share, workers=2)(artifact)
outputs = engine.run({"x": np.ones((1, 4), np.float32)}, ["y"])
print(engine.shares_weights, private_mib() - before, float(outputs[0][0, 0]), flush=True)
sys.stdin.readline()
"""


def two_workers(share: str, artifact: Artifact) -> tuple[list[list[str]], str]:
    """What two processes tell that load a version at the same time, and their logs."""
    manifest = msgspec.json.encode(artifact.manifest).decode()
    command = [sys.executable, "-c", WORKER, share, artifact.path, manifest]
    workers = [
        Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    told, logs = [], ""
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        for worker in workers:
            assert worker.stdout is not None
            told.append(worker.stdout.readline().split())
    finally:
        for worker in workers:
            logs += worker.communicate()[1]
    return told, logs


@pytest.mark.slow
def test_two_workers_hold_one_copy_of_large_weights(tmp_path: Path) -> None:
    """They may start at once: one writes the form, and both hold a few MiB instead of all."""
    artifact = cached(models.wide(1500, LAYERS), tmp_path)
    weights_mib = artifact.manifest.files[0].size // 2**20
    plain, _ = two_workers("never", artifact)
    shared, logs = two_workers("always", artifact)
    assert [worker[0] for worker in plain + shared] == ["False", "False", "True", "True"]
    assert all(int(worker[1]) > weights_mib for worker in plain)
    assert all(int(worker[1]) < weights_mib // 2 for worker in shared)
    assert len({worker[2] for worker in plain + shared}) == 1
    assert logs.count("was measured") == 1
