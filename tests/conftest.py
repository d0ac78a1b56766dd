"""What several rooms' tests share."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, settings

from gateway.adapters.redis import RedisStore
from gateway.adapters.valkey import EmbeddedValkey

_namespaces = itertools.count(1)

# No law depends on how fast the machine is, or on what else it does.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Compiled code is kept by the many processes that tests start, as it is where people run them,
# whatever the environment says: else each of them compiles the whole gateway again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests go first, in whatever order; short ones fill the gaps at the end.

    What is marked as a story is told in the order of its file.
    """
    long = {item.path for item in items if item.get_closest_marker("slow")}
    long |= {item.path for item in items if item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in long)
    places = [place for place, item in enumerate(items) if item.get_closest_marker("story")]
    told = sorted((items[place] for place in places), key=_place_in_file)
    for place, item in zip(places, told, strict=True):
        items[place] = item


def _place_in_file(item: pytest.Item) -> tuple[str, int]:
    """By which the tests of a story are put in order: each file in one piece."""
    return str(item.path), item.location[1] or 0


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let clients trust nobody but one authority of no use, unless told otherwise.

    `httpx.get` reads all that a client trusts each time: 30 ms for the usual ones, at every look
    of every test that waits for something.
    """
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real server, one for all tests of a process; take a namespace of your own."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"))
    asyncio.run(server.start())
    yield server.url
    asyncio.run(server.stop())


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"test{next(_namespaces)}"


@pytest.fixture
async def redis_store(valkey_url: str, namespace: str) -> AsyncIterator[RedisStore]:
    """A Store on the real server, empty."""
    store = RedisStore(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    yield store
    await store.close()


@pytest.fixture
def no_server_left(tmp_path: Path) -> Iterator[None]:
    """End the servers that a failed test left in its folder; they run in sessions of their own."""
    yield
    for process in Path("/proc").glob("[0-9]*"):
        try:
            folder = (process / "cwd").readlink()
        except OSError:
            continue
        if folder.is_relative_to(tmp_path):
            os.kill(int(process.name), signal.SIGKILL)
