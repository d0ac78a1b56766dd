"""A command line with an admin door behind it, shared by the tests of the commands."""

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import uvicorn
from typer.testing import CliRunner, Result

from gateway.core.deciding import Decide
from gateway.core.experiments import ExperimentRecord
from gateway.core.readings import Decision
from gateway.core.tallies import Evidence
from gateway.doors.cli.app import create_cli
from gateway.doors.cli.front import FrontStep
from gateway.ports import SegmentInfo
from gateway.settings import Settings
from tests.doors.http.admin_world import WRITER, Waiting, World
from tests.fakes import ManualClock
from tests.rollouts import HERE, judge_by_units


class Records:
    """A record log in memory: the requests of each segment."""

    def __init__(self) -> None:
        self.kept: dict[int, list[bytes]] = {}

    def segments(self) -> list[SegmentInfo]:
        return [SegmentInfo(number, sum(map(len, kept))) for number, kept in self.kept.items()]

    def requests(self, segment: int) -> Iterator[bytes]:
        yield from self.kept[segment]


class Desk:
    """A command line with everything behind it."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        asyncio.run(self.world.seed())
        self.admin_token: str | None = None
        self.records = Records()
        self.served: list[Settings] = []
        self.problems: list[str] = []
        self.clock = ManualClock()
        self.decide: Decide = judge_by_units
        self.on_sleep: Callable[[], None] = lambda: None
        self.environ = {"TILTYARD_TOKEN": WRITER}
        self.transport: httpx.BaseTransport | None = Waiting(self.world.app)

    def reach(self, world: World) -> None:
        """Have another world behind the admin door."""
        self.world = world
        self.transport = Waiting(world.app)

    def run(self, *arguments: str, stdin: str | None = None) -> Result:
        front = FrontStep(
            serve=self.serve,
            check=lambda _: (["flights/1"], list(self.problems)),
            admin_token=lambda _: self.admin_token,
            record_store=lambda _: self.records,
            decide=self.judge,
            circumstances=lambda: HERE,
            environ=self.environ,
            transport=self.transport,
            sleep=self.sleep,
            now=self.clock,
            unix_time=lambda: 1_700_000_100.0,
        )
        env = {"COLUMNS": "200", "TILTYARD_ADMIN_URL": None, "NO_COLOR": "1"}
        return CliRunner().invoke(create_cli(front), arguments, input=stdin, env=env)

    def judge(self, record: ExperimentRecord, evidence: Evidence, now: float) -> Decision:
        return self.decide(record, evidence, now)

    def json(self, *arguments: str) -> Any:
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return msgspec.json.decode(result.stdout)

    def serve(self, settings: Settings, banner: str = "") -> int:
        self.served.append(settings)
        sys.stdout.write(banner)
        return 0

    def sleep(self, seconds: float) -> None:
        self.clock.at += seconds
        self.on_sleep()


def refused(result: Result, code: int, told: str) -> None:
    """A failure: its exit code, one line on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@contextmanager
def listening(desk: Desk, **tls: str) -> Iterator[int]:
    """The admin door of a desk behind a real socket; its port."""
    config = uvicorn.Config(
        desk.world.app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        ssl_certfile=tls.get("chain"),
        ssl_keyfile=tls.get("key"),
    )
    server = uvicorn.Server(config)
    taken = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([taken],))
    thread.start()
    desk.transport = None
    try:
        yield taken.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        taken.close()
