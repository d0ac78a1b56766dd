import os
from pathlib import Path

import numpy as np
import pytest

from gateway.adapters.onnx.engine import large_bytes
from gateway.adapters.onnx.memory import (
    LARGE_BYTES,
    LARGE_ROWS,
    MIB,
    MIN_ARENA_BYTES,
    arena_bytes,
    memory_bytes,
)
from gateway.core.errors import InvalidRequest
from gateway.core.tensors import Signature, TensorSpec
from gateway.settings import load
from tests import onnx_models as models
from tests.adapters.onnx_parts import output_of

PREAMBLE = """
import re, sys
import numpy as np
from gateway.adapters.onnx import OnnxLoader, describe
from gateway.core.errors import GatewayError
from gateway.ports import Artifact, Stop
from tests.fakes import manifest_of

def load(path, cap_mib):
    loader = OnnxLoader(1, arena_cap_bytes=cap_mib * 1024 * 1024)
    return loader(Artifact(manifest_of(signature=describe(path)), path))

def resident_mib():
    with open("/proc/self/smaps_rollup") as file:
        return int(re.search(r"Rss:\\s+(\\d+)", file.read())[1]) // 1024

def ask(engine, mib, stoppable=False):
    tensors = {"x": np.array([mib * 1024, 256])}
    try:
        if stoppable:
            outputs = engine.run_until(tensors, ["y"], Stop())
        else:
            outputs = engine.run(tensors, ["y"])
        return outputs[0].nbytes // 1024 // 1024
    except GatewayError as error:
        return f"{type(error).__name__}: {error}"
"""
TOO_LARGE = "TooLarge: The model needs more memory for this input than there is."


def test_a_run_beyond_the_cap_is_refused_and_takes_nothing(tmp_path: Path) -> None:
    """M8 A few bytes that ask for more than runs may take get a sentence, not the memory."""
    script = """
engine = load(sys.argv[1], 64)
before = resident_mib()
print(ask(engine, 100))
print(ask(engine, 100, stoppable=True))
print(resident_mib() - before < 16)
print(ask(engine, 1))
"""
    path = models.save(models.swelling(), tmp_path)
    assert output_of(PREAMBLE + script, path).splitlines() == [TOO_LARGE, TOO_LARGE, "True", "1"]


def test_sizes_that_no_number_holds_are_too_large_like_others(tmp_path: Path) -> None:
    """M8 Whether their product overflows or only the bytes that it would take."""
    script = """
for sizes in ([2**62, 2**62], [2**31, 2**31]):
    try:
        engine = load(sys.argv[1], 64)
        engine.run({"x": np.array(sizes)}, ["y"])
    except GatewayError as error:
        print(f"{type(error).__name__}: {error}")
"""
    path = models.save(models.swelling(), tmp_path)
    assert output_of(PREAMBLE + script, path).splitlines() == [TOO_LARGE, TOO_LARGE]


@pytest.mark.parametrize("stoppable", [False, True])
def test_unused_parts_of_the_arena_make_room_for_a_run_that_needs_them(
    stoppable: bool, tmp_path: Path
) -> None:
    """The cap counts what was taken once, so a larger run is tried again on a smaller arena."""
    script = f"""
engine = load(sys.argv[1], 64)
print([ask(engine, mib, stoppable={stoppable}) for mib in (30, 36, 42, 1, 50)])
"""
    path = models.save(models.swelling(), tmp_path)
    assert output_of(PREAMBLE + script, path).strip() == "[30, 36, 42, 1, 50]"


def test_all_sessions_of_a_process_have_one_cap(tmp_path: Path) -> None:
    """What one answers with is not there for another; the first cap stands."""
    script = """
one, other = load(sys.argv[1], 64), load(sys.argv[1], 1000)
held = one.run({"x": np.array([40 * 1024, 256])}, ["y"])
print(ask(other, 40))
del held
print(ask(other, 40))
"""
    path = models.save(models.swelling(), tmp_path)
    assert output_of(PREAMBLE + script, path).splitlines() == [TOO_LARGE, "40"]


@pytest.mark.parametrize("cap_mib", [0, 1000], ids=["own arena", "one arena"])
def test_a_large_batch_gives_its_memory_back(cap_mib: int, tmp_path: Path) -> None:
    """Many narrow rows take a hundred MiB inside, and leave next to nothing of it."""
    script = """
engine = load(sys.argv[1], int(sys.argv[2]))
engine.run({"x": np.ones((64, 4), np.float32)}, ["y"])
before = resident_mib()
engine.run({"x": np.ones((25_000, 4), np.float32)}, ["y"])
print(resident_mib() - before)
"""
    path = models.save(models.wide(1024), tmp_path)
    assert int(output_of(PREAMBLE + script, path, str(cap_mib))) < 24


def test_a_large_answer_gives_its_memory_back(tmp_path: Path) -> None:
    """It is held until it is written, so the run after it makes the arena smaller."""
    script = """
engine = load(sys.argv[1], 0)
ask(engine, 1)
before = resident_mib()
ask(engine, 100)
ask(engine, 1)
print(resident_mib() - before)
"""
    path = models.save(models.swelling(), tmp_path)
    assert int(output_of(PREAMBLE + script, path)) < 24


@pytest.mark.parametrize(
    ("shape", "batched", "expected"),
    [
        pytest.param((-1, 4), True, LARGE_ROWS * 16, id="narrow rows"),
        pytest.param((-1, 3, 224, 224), True, LARGE_BYTES, id="images"),
        pytest.param((-1, -1), True, LARGE_BYTES, id="rows of any width"),
        pytest.param((4, 4), False, LARGE_BYTES, id="no rows"),
    ],
)
def test_what_is_large_follows_from_the_signature(
    shape: tuple[int, ...], batched: bool, expected: int
) -> None:
    """A thousand rows are, and so are two MiB."""
    spec = TensorSpec(name="x", datatype="FP32", shape=shape)
    assert large_bytes(Signature(inputs=(spec,), outputs=(spec,), batched=batched)) == expected


def test_the_cap_follows_from_the_setting_or_the_memory() -> None:
    """Not set, the workers have half of the memory together, and each of them enough."""
    assert arena_bytes(100, workers=4) == 100 * MIB
    assert arena_bytes(0, workers=4) == 0
    assert arena_bytes(None, workers=1) == max(MIN_ARENA_BYTES, memory_bytes() // 2)
    assert arena_bytes(None, workers=100_000) == MIN_ARENA_BYTES
    with pytest.raises(InvalidRequest, match="at least 0"):
        load({"TILTYARD_POOL_ARENA_MB": "-1"})


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        pytest.param("0::/", {"memory.max": "max"}, None, id="no limit"),
        pytest.param("0::/", {"memory.max": f"{512 * MIB}"}, 512, id="version 2"),
        pytest.param("0::/a/b", {"a/memory.max": f"{300 * MIB}"}, 300, id="a group above"),
        pytest.param(
            "0::/a",
            {"memory.max": f"{200 * MIB}", "a/memory.max": f"{300 * MIB}"},
            200,
            id="the least",
        ),
        pytest.param("0::/elsewhere", {"memory.max": f"{100 * MIB}"}, 100, id="in a container"),
        pytest.param(
            "3:memory:/x", {"memory/x/memory.limit_in_bytes": f"{64 * MIB}"}, 64, id="version 1"
        ),
        pytest.param("", {}, None, id="none"),
    ],
)
def test_memory_is_what_the_control_group_leaves(
    membership: str, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    """In a container the host's memory is not ours."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = memory_bytes(tmp_path, tmp_path / "membership")
    assert found == (host if expected is None else expected * MIB)
    assert np.iinfo(np.int64).max > found
