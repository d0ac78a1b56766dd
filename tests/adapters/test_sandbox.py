"""The life of the sandbox: what holds it in, how it ends, and what becomes of its words."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway.adapters.sandbox import SandboxInspector
from gateway.adapters.sandbox.nursery import Account, Nursery, _listen, scrubbed
from gateway.adapters.sandbox.verdict import Times, report
from gateway.adapters.sandbox.wire import (
    MAX_TOLD_BYTES,
    Anatomy,
    Begun,
    Behaviour,
    Checked,
    Ended,
    Errand,
    Told,
)
from gateway.core.errors import NotReady
from gateway.core.inspections import Inspection, InspectionOrder, is_acceptable
from gateway.core.reviews import Check, CheckResult, Outcome
from gateway.core.tensors import Signature, TensorSpec
from tests import onnx_models as models
from tests.adapters.onnx_parts import output_of
from tests.adapters.sandbox_parts import LIMITS, Sandbox, failed_by, failures, holding, order_of

SECRET = "nobody-may-see-this"
PASSED = CheckResult(Outcome.PASSED, "Good.")


def children_of(pid: int | None) -> list[int]:
    """Processes that one has started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text(encoding="ascii").split()]


async def child_of(inspector: SandboxInspector) -> int:
    """The child of an inspection, once there is one."""
    await eventually(lambda: inspector.pid is not None and bool(children_of(inspector.pid)))
    return children_of(inspector.pid)[0]


async def hanging(sandbox: Sandbox, folder: Path) -> tuple[asyncio.Task[Inspection], int]:
    """An inspection that hangs in a run, and its child."""
    order = order_of(holding(folder, models.forever()))
    task = asyncio.create_task(sandbox.inspector.inspect(order))
    child = await child_of(sandbox.inspector)
    await eventually(lambda: ticks_of(child) > 20)  # a fifth of a second: it is in the loop
    return task, child


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something has come true."""
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never came true")


def ticks_of(pid: int) -> int:
    """Hundredths of a second that a process has computed."""
    return int(stat_of(pid)[11])


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though perhaps nobody has asked for its exit code yet."""
    try:
        return stat_of(pid)[0] == "Z"
    except OSError:
        return True


def stat_of(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    return text.rpartition(")")[2].split()


def folder_of(pid: int | None) -> Path:
    """Where a process works."""
    return Path(f"/proc/{pid}/cwd").readlink()


def environment_of(pid: int | None) -> bytes:
    """What a process was started with."""
    return Path(f"/proc/{pid}/environ").read_bytes()


async def test_no_secret_gets_into_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the environment, of which only what libraries need is handed on."""
    for name in ("TILTYARD_ADMIN_TOKEN", "TILTYARD_REDIS_URL", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    inspector = SandboxInspector(LIMITS, now=time.time)
    try:
        await inspector.inspect(order_of(holding(tmp_path, models.linear())))
        environ = environment_of(inspector.pid)
        assert SECRET.encode() not in environ
        names = {one.partition(b"=")[0] for one in environ.split(b"\0")}
        assert not [name for name in names if name.startswith((b"TILTYARD", b"OTEL", b"AWS"))]
        assert names >= {b"ORT_DISABLE_TELEMETRY", b"OMP_NUM_THREADS", b"MALLOC_ARENA_MAX"}
        assert b"ORT_LOAD_CONFIG_FROM_MODEL" not in names
    finally:
        await inspector.close()
    assert scrubbed({"PATH": "/bin", "PASSWORD": SECRET}, "/home")["HOME"] == "/home"


CONFINED = """
import os, socket, sys
from gateway.adapters.sandbox.confining import confine, follow
from gateway.adapters.sandbox.wire import Errand
from gateway.core.inspections import InspectionOrder
import gateway.adapters.onnx.runtime

version, outside, work = sys.argv[1:]
if (pid := os.fork()) == 0:
    follow(os.getppid())
    os.chdir(work)
    order = InspectionOrder("m", 1, "", version, ())
    held = confine(Errand(order, short=False, time_s=5, run_s=5, memory_mb=512))

    def says(what):
        try:
            what()
        except (OSError, MemoryError) as error:
            return type(error).__name__
        return "done"

    tries = {
        "read version": lambda: open(version + "/model.onnx").close(),
        "write work": lambda: open("new", "w").close(),
        "write version": lambda: open(version + "/new", "w").close(),
        "read outside": lambda: open(outside).close(),
        "read process": lambda: open("/proc/self/environ").close(),
        "list root": lambda: os.listdir("/"),
        "connect": lambda: socket.create_connection(("127.0.0.1", 9), 1),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "fork": os.fork,
        "program": lambda: os.execv("/bin/true", ["true"]),
        "signal": lambda: os.kill(os.getppid(), 0),
        "memory": lambda: bytearray(1 << 30),
        "large file": lambda: os.write(os.open("big", os.O_CREAT | os.O_WRONLY), bytes(3 << 20)),
    }
    print(held, flush=True)
    for name, what in tries.items():
        print(name, says(what), sep=": ", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_what_the_sandbox_gave_up_is_refused(tmp_path: Path) -> None:
    """Files, network, processes, signals and memory, as far as this kernel lets it."""
    version, work = holding(tmp_path / "version", models.linear()), tmp_path / "work"
    work.mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    lines = output_of(CONFINED, str(version), str(outside), str(work)).splitlines()
    found = dict(line.split(": ") for line in lines[1:])
    assert (found["read version"], found["write work"]) == ("done", "done")
    assert found["memory"] == "MemoryError"
    if "Landlock" in lines[0]:
        files = ("write version", "read outside", "read process", "list root")
        assert {found[name] for name in files} == {"PermissionError"}
    if "filtered" in lines[0]:
        calls = ("connect", "unix socket", "fork", "program", "signal")
        assert {found[name] for name in calls} == {"PermissionError"}
    assert (work / "big").stat().st_size <= 1 << 20


def test_a_report_says_what_held(sandbox: Sandbox, tmp_path: Path) -> None:
    """And which versions of the libraries it was."""
    tools = sandbox.inspect(holding(tmp_path, models.linear())).tools
    assert set(tools) == {"onnx", "onnxruntime", "network", "files", "calls"}


def test_a_child_that_is_killed_is_a_failed_check(sandbox: Sandbox, tmp_path: Path) -> None:
    """By whoever it was; the next inspection is another child's, and nothing is left behind."""

    async def story() -> Inspection:
        task, child = await hanging(sandbox, tmp_path / "hangs")
        os.kill(child, signal.SIGKILL)
        return await task

    good = holding(tmp_path / "good", models.linear())
    sandbox.inspect(good)
    nursery = sandbox.inspector.pid
    killed = sandbox.loop.run(story())
    said = "It was ended from outside, perhaps because the host ran out of memory."
    assert failures(killed) == {"runs": said}
    assert not is_acceptable(killed.checks)
    assert failures(sandbox.inspect(good)) == {}
    assert sandbox.inspector.pid == nursery
    assert list(folder_of(nursery).iterdir()) == []


def test_an_inspection_ends_when_its_time_is_up(sandbox: Sandbox, tmp_path: Path) -> None:
    """Whatever it does then."""
    limits = {"time_s": 1.0, "run_s": 60.0}
    found = sandbox.inspect(holding(tmp_path, models.forever()), limits=limits)
    assert failures(found) == {"runs": "It was not done within 1 s and was ended."}


def test_the_process_that_forks_may_be_lost(sandbox: Sandbox, tmp_path: Path) -> None:
    """While it waits, nobody notices; with a child under way that is the child's failure."""

    async def story() -> tuple[Inspection, int]:
        task, child = await hanging(sandbox, tmp_path / "hangs")
        os.kill(sandbox.inspector.pid or 0, signal.SIGKILL)
        return await task, child

    good = holding(tmp_path / "good", models.linear())
    sandbox.inspect(good)
    first = sandbox.inspector.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert failures(sandbox.inspect(good)) == {}
    assert sandbox.inspector.pid not in (None, first)
    lost, child = sandbox.loop.run(story())
    assert failures(lost) == {"runs": "The sandbox was lost."}
    sandbox.loop.run(eventually(lambda: is_gone(child)))


def test_a_cancelled_inspection_leaves_no_child(sandbox: Sandbox, tmp_path: Path) -> None:
    """And another can be made."""

    async def story() -> int:
        task, child = await hanging(sandbox, tmp_path / "hangs")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return child

    assert is_gone(sandbox.loop.run(story()))
    good = holding(tmp_path / "good", models.linear())
    assert failures(sandbox.inspect(good)) == {}


def test_closing_ends_a_start_under_way(tmp_path: Path) -> None:
    """It does not wait for the libraries, nor start again."""
    closing = Sandbox()

    async def story() -> None:
        order = order_of(holding(tmp_path, models.forever()))
        task = asyncio.create_task(closing.inspector.inspect(order))
        await eventually(lambda: closing.inspector.pid is not None)
        await closing.inspector.close()
        with pytest.raises(NotReady):
            await task

    closing.loop.run(story())
    closing.close()
    assert closing.inspector.pid is None


def test_closing_ends_an_inspection_under_way(tmp_path: Path) -> None:
    """It is told as one that could not be made, as is every later one; nothing is left."""
    closing = Sandbox()

    async def story() -> tuple[int, Path]:
        task, child = await hanging(closing, tmp_path)
        folder = folder_of(closing.inspector.pid)
        await closing.inspector.close()
        for inspection in (task, closing.inspector.inspect(order_of(tmp_path))):
            with pytest.raises(NotReady, match="stopping"):
                await inspection
        return child, folder

    child, folder = closing.loop.run(story())
    closing.close()
    assert is_gone(child)
    assert not folder.exists()


async def test_the_process_that_forks_does_not_outlive_its_use(tmp_path: Path) -> None:
    """After a while without an order it is gone; the next order starts another."""
    inspector = SandboxInspector(LIMITS, now=time.time, idle_s=0.05)
    order = order_of(holding(tmp_path, models.linear()))
    try:
        await inspector.inspect(order)
        await eventually(lambda: inspector.pid is None)
        assert failures(await inspector.inspect(order)) == {}
    finally:
        await inspector.close()


async def test_folders_may_be_named_from_where_the_gateway_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state folder is `.tiltyard` by default, and the sandbox works in a folder of its own."""
    order = order_of(holding(tmp_path / "m", models.linear()))
    order = msgspec.structs.replace(order, folder="m", champion="m")
    monkeypatch.chdir(tmp_path)
    inspector = SandboxInspector(LIMITS, now=time.time)
    try:
        assert failures(await inspector.inspect(order)) == {}
    finally:
        await inspector.close()


async def test_a_host_on_which_nothing_starts_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inspection that cannot be made is no verdict on the version."""
    monkeypatch.setattr("sys.executable", "/bin/false")
    inspector = SandboxInspector(LIMITS, now=time.time)
    with pytest.raises(NotReady, match="does not start"):
        await inspector.inspect(order_of(holding(tmp_path, models.linear())))
    await inspector.close()


def test_ending_what_never_started_does_nothing() -> None:
    """Nor ending it twice."""
    nursery = Nursery()
    nursery.end()
    nursery.interrupt()
    nursery.end()
    assert nursery.pid is None


def told(*lines: Told | bytes, **ended: object) -> Inspection:
    """The report on a child that told these lines and ended so."""
    text = b"\n".join(one if isinstance(one, bytes) else msgspec.json.encode(one) for one in lines)
    end = msgspec.convert(ended, Ended)
    return report(ERRAND, Account(text, end, flooded=len(text) > MAX_TOLD_BYTES), Times(1.0, 2.0))


ERRAND = Errand(
    InspectionOrder("m", 1, "d", "", ()),
    short=False,
    time_s=60,
    run_s=10,
    memory_mb=1,
)
ALL = tuple(Checked(check, PASSED) for check in Check)


def test_what_was_told_of_every_check_is_believed() -> None:
    """In the order of checks."""
    found = told(*reversed(ALL), Anatomy(producer="p"))
    assert list(found.checks) == list(Check)
    assert is_acceptable(found.checks)
    assert (found.producer, found.at, found.took_s) == ("p", 1.0, 2.0)


ODD = Signature((TensorSpec("a\nb", "FP32", (1,)),), (), batched=False)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"type":"checked","check":"loads","result":{"outcome":"splendid"}}',
        b'{"type":"checked","check":"other","result":{"outcome":"passed"}}',
        b'{"type":"behaviour","peak_mb":"x"}',
        msgspec.json.encode(Behaviour(signature=ODD)),
    ],
)
def test_words_that_are_none_fail_the_check_under_way(line: bytes) -> None:
    """As a child speaks that does not do what ours do."""
    found = told(*ALL[:3], Begun(Check.EXTERNAL_DATA), line, *ALL[3:])
    assert failed_by(found) == [Check.EXTERNAL_DATA]
    assert found.checks[Check.EXTERNAL_DATA].forced


def test_what_was_not_told_is_not_believed() -> None:
    """A child that ends well before it is done has failed what is missing."""
    assert failed_by(told(*ALL[:-1])) == [Check.AGREEMENT]
    assert failed_by(told()) == [Check.FILES]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ({"signal": int(signal.SIGSEGV)}, "SIGSEGV"),
        ({"signal": 99}, "99"),
        ({"signal": int(signal.SIGXCPU)}, "processor"),
        ({"code": 1}, "code 1"),
        ({"signal": 9, "late": True}, "not done within 60 s"),
    ],
)
def test_the_way_it_ended_is_said(ended: dict[str, object], words: str) -> None:
    """Of the check that was under way, even if all others were told."""
    found = told(*ALL[:-1], Begun(Check.AGREEMENT), **ended)
    assert words in failures(found)["agreement"]
    assert not is_acceptable(found.checks)


def test_words_are_cut_and_cleaned() -> None:
    """They are shown to people."""
    summary = "\x1b[31m" + "x" * 10_000
    found = told(Checked(Check.FILES, CheckResult(Outcome.PASSED, summary)), *ALL[1:])
    assert found.checks[Check.FILES].summary.isprintable()
    assert len(found.checks[Check.FILES].summary) <= 400


def test_a_flood_of_words_is_stopped() -> None:
    """What is kept of it is bounded, and it fails the version."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    child = os.fork()
    if child == 0:
        os.set_blocking(writing, True)
        while True:
            os.write(writing, b"x" * 65_536)
    os.close(writing)
    text, flooded = _listen(reading, time.monotonic() + 20)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    assert (len(text), flooded) == (MAX_TOLD_BYTES, True)
    found = report(ERRAND, Account(text, Ended(signal=9), flooded=True), Times(0, 0))
    assert "more than" in failures(found)["files"]
