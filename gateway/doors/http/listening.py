"""Listening: sockets, and uvicorn as it suits this gateway."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, Literal

import uvicorn
from msgspec.structs import replace

from gateway.core.errors import Conflict, InvalidRequest
from gateway.doors.http.guarded import GuardedProtocol
from gateway.doors.http.messages import ASGIApplication
from gateway.doors.http.watch import Bounds, Watch
from gateway.settings import HttpSettings, Settings

BACKLOG: Final = 2048
DATE_S: Final = 1.0
"""How often the date that answers state is set anew."""


class Listener(uvicorn.Server):
    """A uvicorn server that leaves the process's signals to the front step.

    It ends as soon as `should_exit` is set, and wakes up for nothing else but the date.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        """Not serving yet."""
        self._ending = asyncio.Event()
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        """Whether it is to end; set it on the event loop."""
        return self._ending.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._ending.set()
        else:
            self._ending.clear()

    async def main_loop(self) -> None:
        """Serve until it is to end."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(DATE_S):
                    await self._ending.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """Listen on a port.

    Raises:
        Conflict: somebody else does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        message = f"Cannot listen on {host}, port {port}: {error.strerror}."
        raise Conflict(message) from error


def bounds_of(settings: HttpSettings) -> Bounds:
    """What the settings allow callers."""
    return Bounds(
        header_s=settings.header_s,
        body_idle_s=settings.body_idle_s,
        write_stall_s=settings.write_stall_s,
        keep_alive_s=settings.keep_alive_s,
        max_body_bytes=settings.max_body_bytes,
    )


def for_admin(settings: Settings) -> Settings:
    """The settings of the admin listener: a body there may be a version's file."""
    bound = max(settings.http.max_body_bytes, settings.uploads.max_mb << 20)
    return replace(settings, http=replace(settings.http, max_body_bytes=bound))


def configure(
    app: ASGIApplication,
    settings: Settings,
    tls: tuple[str | None, str | None],
    lifespan: Literal["on", "off"],
    protocol: Callable[..., GuardedProtocol] = GuardedProtocol,
) -> uvicorn.Config:
    """Uvicorn as it suits us: no proxies trusted, no contexts shared between requests.

    Args:
        app: what answers.
        settings: the whole tree.
        tls: the files of the certificate chain and its key.
        lifespan: whether the application is told of start and stop.
        protocol: makes a connection, as `GuardedProtocol` does; it gets the listener's `watch`.

    Raises:
        InvalidRequest: the certificate or its key cannot be used.
    """
    http: Any = partial(protocol, watch=Watch(bounds_of(settings.http)))
    config = uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        reset_contextvars=True,
        backlog=BACKLOG,
        timeout_keep_alive=settings.http.keep_alive_s,
        timeout_graceful_shutdown=max(int(settings.stop_s / 2), 1),
        ssl_certfile=tls[0],
        ssl_keyfile=tls[1],
    )
    try:
        config.load()
    except OSError as error:
        message = "A listener's certificate or key cannot be used; see tls_cert and tls_key."
        raise InvalidRequest(message) from error
    return config
