import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.adapters.redis import RedisStore
from gateway.adapters.valkey import EmbeddedValkey
from gateway.core.audit import Commit, commit_of
from gateway.core.errors import Conflict, InvalidRequest, StoreUnavailable
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot
from gateway.core.transitions import register

DIGEST = "d" * 64

pytestmark = pytest.mark.usefixtures("no_server_left")


def registering(base: Snapshot, number: int) -> Commit:
    """A commit that adds a version."""
    seed = ModelRecord(versions={}, aliases={"champion": number})
    changed = register(base, "m", number, DIGEST, seed)
    return commit_of(
        base, changed, at=1.0, actor="t", action="model.register", target="models/m", reason="t"
    )


def store_on(server: EmbeddedValkey) -> RedisStore:
    """A store on this server."""
    return RedisStore(server.url, namespace="t", timeout_s=1.0, name="test")


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_killed_server_loses_no_acknowledged_commit(tmp_path: Path) -> None:
    """Whatever was acknowledged is there after each kill -9, and the server comes back."""
    server = EmbeddedValkey(tmp_path)
    await server.start()
    watching = asyncio.create_task(server.watch())
    store = store_on(server)
    base, acknowledged, kills = EMPTY, 0, 0
    while kills < 3:
        commit = registering(base, base.revision + 1)
        if base.revision in {20, 50, 90} and server.pid is not None and acknowledged:
            kills += 1
            os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while True:
                try:
                    await store.commit(commit)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.02)
        base, acknowledged = commit.snapshot, acknowledged + 1
    assert [entry.revision for entry in await store.audit()] == list(range(1, acknowledged + 1))
    watching.cancel()
    await store.close()
    await server.stop()


async def test_the_data_outlives_the_server(tmp_path: Path) -> None:
    """A stopped server leaves no process, and the next one finds what was written."""
    first = EmbeddedValkey(tmp_path)
    await first.start()
    store = store_on(first)
    await store.commit(registering(EMPTY, 1))
    await store.close()
    pid = first.pid
    await first.stop()
    assert pid is not None
    assert not is_running(pid)
    second = EmbeddedValkey(tmp_path)
    await second.start()
    store = store_on(second)
    assert len(await store.audit()) == 1
    await store.close()
    await second.stop()


async def test_one_state_folder_serves_one_gateway(tmp_path: Path) -> None:
    """A second gateway is told, and the first one's server is left alone."""
    first, second = EmbeddedValkey(tmp_path), EmbeddedValkey(tmp_path)
    await first.start()
    with pytest.raises(Conflict, match="state folder"):
        await second.start()
    store = store_on(first)
    assert await store.read() is None
    await store.close()
    await first.stop()
    await second.start()
    await second.stop()


async def test_a_server_left_behind_is_taken_over(tmp_path: Path) -> None:
    """After a gateway was killed, the next one goes on with its server, watches and stops it."""
    code = (
        "import asyncio, os, pathlib, sys\n"
        "from gateway.adapters.valkey import EmbeddedValkey\n"
        "server = EmbeddedValkey(pathlib.Path(sys.argv[1]))\n"
        "asyncio.run(server.start())\n"
        "print(server.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdout=subprocess.PIPE
    )
    output, _ = await gateway.communicate()
    left = int(output)
    assert is_running(left)
    server = EmbeddedValkey(tmp_path)
    await server.start()
    assert server.pid == left
    store = store_on(server)
    await store.commit(registering(EMPTY, 1))
    # It is watched as one of our own would be.
    watching = asyncio.create_task(server.watch())
    os.kill(left, signal.SIGKILL)
    async with asyncio.timeout(10):
        while server.pid == left:  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.01)
        while True:
            try:
                assert len(await store.audit()) == 1
                break
            except StoreUnavailable:
                await asyncio.sleep(0.02)
    watching.cancel()
    await store.close()
    await server.stop()


async def test_a_server_left_behind_is_stopped(tmp_path: Path) -> None:
    """A server that was taken over ends with the gateway that took it over."""
    first = EmbeddedValkey(tmp_path)
    await first.start()
    # What the death of the first gateway's process would do.
    first._free_folder()
    second = EmbeddedValkey(tmp_path)
    await second.start()
    assert second.pid == first.pid
    pid = second.pid
    assert pid is not None
    stopping = asyncio.create_task(second.stop())
    assert first._child is not None
    await asyncio.to_thread(first._child.wait)
    await stopping
    assert not is_running(pid)


async def test_a_long_path_moves_the_socket(tmp_path: Path) -> None:
    """A state folder too deep for a socket's path gets a private folder elsewhere, the same again.

    The data stays in the state folder.
    """
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    server = EmbeddedValkey(deep)
    await server.start()
    socket = Path(server.url.removeprefix("unix://"))
    assert len(os.fsencode(socket)) <= 100
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert EmbeddedValkey(deep).url == server.url
    store = store_on(server)
    await store.commit(registering(EMPTY, 1))
    await store.close()
    await server.stop()
    assert any((deep / "valkey").rglob("*.aof"))
    socket.parent.rmdir()


async def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    """Where somebody else could put a socket in our place, nothing is started."""
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    server = EmbeddedValkey(deep)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = Path(server.url.removeprefix("unix://")).parent
    place.symlink_to(elsewhere)
    with pytest.raises(InvalidRequest, match="folder"):
        await server.start()
    place.unlink()


async def test_only_the_owner_may_look(tmp_path: Path) -> None:
    """Folder and socket are closed to others, and there is no TCP port."""
    server = EmbeddedValkey(tmp_path)
    await server.start()
    socket = Path(server.url.removeprefix("unix://"))
    assert stat.S_IMODE(os.lstat(socket).st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "valkey").stat().st_mode) == 0o700
    assert b"port\r\n$1\r\n0" in await server._ask(b"CONFIG GET port\r\n")
    assert os.getsid(server.pid or 0) == server.pid
    await server.stop()


async def test_a_server_that_cannot_start_is_told(tmp_path: Path) -> None:
    """A log that cannot be read is an error in words, without a path, and frees the folder."""
    server = EmbeddedValkey(tmp_path)
    await server.start()
    await server.stop()
    for log in (tmp_path / "valkey").rglob("*.manifest"):
        log.write_text("nonsense")
    with pytest.raises(StoreUnavailable, match=r"valkey\.log") as caught:
        await server.start()
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        await EmbeddedValkey(tmp_path).start()
