"""Running: a process from its first signal handler to its exit code, and a dry check of it."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import uvloop

from gateway.adapters.objects import folder_of, open_store
from gateway.adapters.onnx import OnnxLoader, describe
from gateway.adapters.otel import read_config
from gateway.adapters.redis import RedisStore
from gateway.app import Application
from gateway.core.errors import GatewayError
from gateway.doors.http.listening import Listener, bind, configure
from gateway.processes.control_half import check_admin
from gateway.processes.interpreter import settle_down
from gateway.settings import Settings

ANNOUNCE_LOOK_S: Final = 0.05
FAILED_TO_STOP: Final = 1


def serve(settings: Settings, banner: str = "") -> int:
    """Serve in this one process until SIGINT or SIGTERM; its exit code.

    Args:
        settings: the whole tree.
        banner: written once the gateway is ready, to tell people what to try.

    Raises:
        InvalidRequest: a setting is wrong, or a port is taken.
    """
    application = Application(settings, os.environ)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(application, settings, banner))


def check(settings: Settings) -> tuple[list[str], list[str]]:
    """Which versions of the model store load, and what is wrong, a sentence each."""
    loaded: list[str] = []
    faults = _check_start(settings)
    with TemporaryDirectory(prefix="tiltyard-check-") as cache:
        try:
            models = open_store(settings.model_store, Path(cache), describe=describe, now=time.time)
        except GatewayError as error:
            return loaded, [*faults, str(error)]
        load_engine = OnnxLoader(settings.pool.intra_op_threads)
        found = models.scan()
        for model, number in found:
            try:
                load_engine(models.fetch(model, number))
            except GatewayError as error:
                faults.append(f"{model}/{number}: {error}")
            else:
                loaded.append(f"{model}/{number}")
    if not found:
        root = folder_of(settings.model_store)
        what = "is no folder" if root is not None and not root.is_dir() else "holds no version"
        faults.append(f"The model store {what}; see model_store.")
    return loaded, faults


async def _serve(application: Application, settings: Settings, banner: str) -> int:
    listening = bind(settings.http.host, settings.http.port)
    tls = (settings.http.tls_cert, settings.http.tls_key)
    server = Listener(
        configure(application, settings, tls, lifespan="on", protocol=application.connect)
    )
    settle_down()
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stopping.set)
    beside = [
        asyncio.create_task(_stop_gently(application, server, settings, stopping)),
        asyncio.create_task(_announce(application, banner)),
    ]
    try:
        await server.serve(sockets=[listening])
    except SystemExit:
        if application.failure is None:
            raise
        raise application.failure from None
    finally:
        for task in beside:
            task.cancel()
    return 0


async def _stop_gently(
    application: Application, server: Listener, settings: Settings, stopping: asyncio.Event
) -> None:
    """On a signal: say so in readiness, let balancers see it, then close.

    A model that hangs cannot keep the process: when the time to stop in is over, it ends as it is.
    The embedded store then stays, and the next start takes it over.
    """
    await stopping.wait()
    deadline = threading.Timer(settings.stop_s, os._exit, args=(FAILED_TO_STOP,))
    deadline.daemon = True
    deadline.start()
    if application.gateway is not None:
        application.gateway.worker.stopping = True
    await asyncio.sleep(settings.drain_delay_s)
    server.should_exit = True


async def _announce(application: Application, banner: str) -> None:
    while application.gateway is None or not application.gateway.worker.ready:  # noqa: ASYNC110 - threads make it so
        await asyncio.sleep(ANNOUNCE_LOOK_S)
    sys.stdout.write(banner)
    sys.stdout.flush()


def _check_start(settings: Settings) -> list[str]:
    """What would keep `serve` from starting, a sentence each; nothing is connected or bound."""
    application, redis, faults = Application(settings, {}), settings.redis, []

    def listen(tls: tuple[str | None, str | None]) -> None:
        configure(application, settings, tls, lifespan="off")

    steps: dict[str, Callable[[], object]] = {
        "http": lambda: listen((settings.http.tls_cert, settings.http.tls_key)),
        "admin": lambda: listen((settings.admin.tls_cert, settings.admin.tls_key)),
        "access": lambda: check_admin(settings),
        "telemetry": lambda: read_config(os.environ),
    }
    if redis.url is not None:
        url = redis.url
        steps["redis"] = lambda: RedisStore(
            url, namespace=redis.namespace, timeout_s=redis.timeout_s, name="check"
        )
    elif not redis.embedded:
        faults.append("redis: Set TILTYARD_REDIS_URL, or allow the embedded store.")
    for name, step in steps.items():
        try:
            step()
        except GatewayError as error:
            faults.append(f"{name}: {error}")
    return faults
