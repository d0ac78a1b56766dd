"""Repeats: a promotion that is sent twice under one Idempotency-Key is done once.

A caller who never saw the answer sends the request again and gets it. Answers are remembered by
this process for ten minutes; over a restart or another process, `If-Match` tells a repeat. What an
answer shows once, such as a token, is left out when it is given again.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from gateway.core.errors import Conflict, InvalidRequest
from gateway.doors.http.admin_calls import Call
from gateway.doors.http.messages import Response, header_values

KEPT_S: Final = 600.0
MAX_KEPT: Final = 1024
MAX_KEY: Final = 128


@dataclass(slots=True)
class _Kept:
    """One request's answer; others with its key wait for the lock."""

    request: bytes
    at: float
    lock: asyncio.Lock
    response: Response | None = None


class Repeats:
    """Remembers answers by caller and key, the newest 1,024."""

    __slots__ = ("_clock", "_kept")

    def __init__(self, clock: Callable[[], float]) -> None:
        """Nothing is remembered; the clock is in monotonic seconds."""
        self._clock = clock
        self._kept: OrderedDict[tuple[str, bytes], _Kept] = OrderedDict()

    async def once(
        self,
        call: Call,
        request: tuple[str, bytes],
        handle: Callable[[Call], Awaitable[Response]],
    ) -> Response:
        """Handle a call, unless it was handled before: then answer the same.

        Raises:
            Conflict: the key came with another request.
            InvalidRequest: a key that is none.
        """
        keys = header_values(call.headers, b"idempotency-key")
        if not keys:
            return await handle(call)
        if len(keys) > 1 or not 0 < len(keys[0]) <= MAX_KEY:
            message = f"Send one Idempotency-Key of 1 to {MAX_KEY} characters."
            raise InvalidRequest(message)
        kept = self._find(call, keys[0], _fingerprint(*request))
        async with kept.lock:
            if kept.response is None:
                response = await handle(call)
                # What was refused or failed changed nothing, so it may be tried again.
                if response.status in _DONE:
                    kept.response = _without(response, call.operation.shown_once)
                return response
            headers = [*kept.response.headers, (b"idempotency-replayed", b"true")]
            return Response(kept.response.status, kept.response.body, headers)

    def _find(self, call: Call, key: bytes, request: bytes) -> _Kept:
        now = self._clock()
        while self._kept and next(iter(self._kept.values())).at <= now - KEPT_S:
            self._kept.popitem(last=False)
        caller = "" if call.principal is None else call.principal.name
        kept = self._kept.get((caller, key))
        if kept is None:
            kept = self._kept[caller, key] = _Kept(request, now, asyncio.Lock())
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        if kept.request != request:
            message = "This Idempotency-Key came with another request; take a fresh one."
            raise Conflict(message)
        return kept


def _without(response: Response, names: tuple[str, ...]) -> Response:
    """The same answer with nothing for these members."""
    if not names:
        return response
    document = msgspec.json.decode(response.body)
    document.update(dict.fromkeys(names))
    return Response(response.status, msgspec.json.encode(document), response.headers)


def _fingerprint(path: str, body: bytes) -> bytes:
    return hashlib.sha256(path.encode() + b"\0" + body).digest()


_DONE: Final = (200, 201)
