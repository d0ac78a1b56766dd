"""Accepting: from which of the host's listening sockets a worker takes connections.

The kernel spreads connections over all sockets of the port, whether or not anybody accepts there.
So a worker takes its own once it can serve, and the next worker takes those of one that cannot: one
that is starting again, stopped, stuck or draining. Nobody who connects waits for a dead process.
"""

import asyncio
from collections.abc import Mapping
from socket import socket

import uvicorn

from gateway.doors.http.listening import BACKLOG
from gateway.processes.roster import Roster


def sockets_to_hold(
    roster: Roster, slot: int, now_ns: int, *, is_serving: bool, may_wait: bool
) -> set[int]:
    """The slots whose sockets a worker should accept from now.

    Args:
        roster: how the others are.
        slot: the worker's own.
        now_ns: monotonic nanoseconds.
        is_serving: whether it can serve.
        may_wait: whether callers of its own socket had better wait than be told "not ready".
    """
    if not is_serving:
        return set() if may_wait else {slot}
    others = (other for other in range(1, roster.slots) if other != slot)
    return {slot, *(other for other in others if roster.deputy(other, now_ns) == slot)}


class Accepting:
    """The sockets that a worker holds open, on behalf of its server.

    Requires: the server is started with no sockets of its own; all calls from its event loop.
    """

    def __init__(self, server: uvicorn.Server, sockets: Mapping[int, socket]) -> None:
        """Accept from none.

        Args:
            server: gets what is accepted.
            sockets: the listening sockets of all slots, which stay ours.
        """
        self._server = server
        self._sockets = sockets
        self._held: dict[int, asyncio.Server] = {}

    async def hold(self, wanted: set[int]) -> None:
        """Accept from these slots' sockets and no others."""
        for slot in wanted - self._held.keys():
            self._held[slot] = await self._accept(self._sockets[slot])
        for slot in self._held.keys() - wanted:
            server = self._held.pop(slot)
            self._server.servers.remove(server)
            server.close()

    async def _accept(self, listening: socket) -> asyncio.Server:
        server, config = self._server, self._server.config
        accepting = await asyncio.get_running_loop().create_server(
            lambda: config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn has it
                config=config, server_state=server.server_state, app_state=server.lifespan.state
            ),
            sock=listening.dup(),
            ssl=config.ssl,
            backlog=BACKLOG,
        )
        server.servers.append(accepting)
        return accepting
