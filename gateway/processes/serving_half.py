"""The serving half of a process: every room that an inference passes through, put together.

The one-process form and each worker build it here. Owns the clock and chance of its process.
"""

import asyncio
import random
import secrets
import time
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from gateway.adapters.onnx import OnnxLoader, trim_memory
from gateway.core.oip.messages import Limits
from gateway.doors.http.answers import Answers
from gateway.doors.http.aside import Aside
from gateway.doors.http.desk import Desk
from gateway.doors.http.fast import FastProtocol
from gateway.doors.http.guarded import GuardedProtocol
from gateway.doors.http.inference import DoorParts, InferenceDoor
from gateway.doors.http.outcomes import OutcomeDesk
from gateway.doors.http.readers import Readers
from gateway.doors.http.requests import Requests
from gateway.doors.http.watch import Watch
from gateway.evidence_ports import OutcomeSink
from gateway.ports import Repository
from gateway.serving.admission import Admission
from gateway.serving.afterwards import Afterwards
from gateway.serving.caching import ResponseCache
from gateway.serving.cells import Cells, watch_process
from gateway.serving.concluding import Concluder
from gateway.serving.lanes import Lanes
from gateway.serving.pipeline import Pipeline
from gateway.serving.pool import PoolParts
from gateway.serving.recording import Recorder
from gateway.serving.shadowing import Shadows
from gateway.serving.worker import Worker
from gateway.settings import Settings
from gateway.telemetry import ACTIVE_REQUESTS

SEED_BYTES: Final = 32
MIB: Final = 1024 * 1024


class SystemClock:
    """This machine's clocks."""

    monotonic_ns = staticmethod(time.perf_counter_ns)
    unix_ns = staticmethod(time.time_ns)


class ServingHalf:
    """Requires: built in the running event loop; `close` once nothing is in flight."""

    def __init__(
        self, settings: Settings, vitals: memoryview | None = None, workers: int = 1
    ) -> None:
        """Build every room; nothing is served yet.

        Args:
            settings: the whole tree; of it, what a worker may know.
            workers: how many processes load the same models on this host.
            vitals: this process's place in shared memory, private memory if None.
        """
        self._settings = settings
        loop, clock = asyncio.get_running_loop(), SystemClock()
        chance = random.Random(secrets.token_bytes(SEED_BYTES))  # noqa: S311 - unique, not secret
        self.cells = Cells()
        watch_process(self.cells)
        self.recorder = Recorder(self.cells, settings.recording, vitals)
        self.admission = Admission(settings.admission, clock.monotonic_ns)
        parts = PoolParts(
            loop=loop,
            load_engine=OnnxLoader.of(settings.pool, workers),
            trim_memory=trim_memory,
            now_ns=clock.monotonic_ns,
            pool=settings.pool,
            batching=settings.batching,
            cells=self.cells,
            lanes=Lanes(vitals),
            work_ns=time.thread_time_ns,
            after_flush=Afterwards(loop, self.recorder.has_many, self.recorder.encode_pending).soon,
        )
        shadows = Shadows(parts, settings.shadows, self.recorder, calm=lambda: self.admission.calm)
        cache = ResponseCache(parts, settings.cache.max_mb * MIB)
        self.worker = Worker(parts, shadows, cache)
        concluder = Concluder(self.worker, self.recorder, clock, chance.randbytes)
        self.pipeline = Pipeline(self.worker, concluder, settings.batching.max_request_rows)
        self.aside = Aside(loop)
        limits = Limits(
            body_bytes=settings.http.max_body_bytes, json_bytes=settings.http.max_json_bytes
        )
        self.desk = Desk(
            pipeline=self.pipeline,
            admission=self.admission,
            aside=self.aside,
            clock=clock,
            randbytes=chance.randbytes,
            limits=limits,
            readers=Readers(limits),
            answers=Answers(settings.http.json_nonfinite),
            trace_ratio=settings.recording.trace_ratio,
            plain_bytes=limits.body_bytes if settings.http.auth == "open" else -1,
        )
        self.requests = Requests(self.cells)
        active = self.cells.gauge(ACTIVE_REQUESTS)
        self.cells.watch(lambda: active.set(self.pipeline.in_flight))

    def door(self, repository: Repository, sink: OutcomeSink) -> InferenceDoor:
        """The application of the inference port."""
        rows = self._settings.batching.max_rows
        outcomes = OutcomeDesk(self.desk, sink, self._settings.outcomes, self.cells)
        return InferenceDoor(DoorParts(self.desk, repository, outcomes, self.requests, rows))

    def connect(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: Watch,
    ) -> GuardedProtocol:
        """A connection of the inference port, by the door that the settings choose."""
        of_server = (config, server_state, app_state, _loop)
        if self._settings.http.door == "asgi":
            return GuardedProtocol(*of_server, watch=watch)
        return FastProtocol(*of_server, watch=watch, desk=self.desk, requests=self.requests)

    def close(self) -> None:
        """Stop every thread. Blocks until they are idle; call it off the event loop."""
        self.worker.close()
        self.aside.close()
