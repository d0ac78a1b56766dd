"""The door of outcomes: `POST /v1/outcomes`, from a head to an answer that something is on disk.

Ids are verified here, in the process that was asked, and what is true goes to the sink in one
piece: either the caller hears that it is kept, or nothing of it is. A body of some size is read in
a thread, so that inferences do not wait for it.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from gateway.core.access import require_right
from gateway.core.errors import GatewayError, NotReady
from gateway.core.outcomes import (
    CAUSES,
    MAX_BODY_BYTES,
    Checked,
    Checker,
    events_of,
    read_body,
)
from gateway.core.predictions import Signer
from gateway.core.principals import Right
from gateway.doors.http.desk import Desk
from gateway.doors.http.exchange import LARGE_BYTES
from gateway.doors.http.inference_head import Head
from gateway.doors.http.messages import Receive, Response, collect, inflate, json_response
from gateway.evidence_ports import OutcomeSink
from gateway.serving.cells import Cells
from gateway.settings import OutcomeSettings
from gateway.telemetry import ERROR_TYPE, OUTCOME_REFUSED

_T = TypeVar("_T")

QUICK_BYTES: Final = 8 * 1024
"""A body up to this size is read at once: dozens of outcomes, half a millisecond."""
LINES: Final = frozenset({b"application/x-ndjson", b"application/jsonl"})
"""Media types of newline-delimited JSON; a body of any other is taken for JSON."""


class OutcomeDesk:
    """Takes outcomes for one process."""

    def __init__(
        self, desk: Desk, sink: OutcomeSink, settings: OutcomeSettings, cells: Cells
    ) -> None:
        """Share the desk of inferences: its keys, its clock, its thread and its bounds.

        Args:
            desk: of this process.
            sink: where what is true goes.
            settings: who may report, and how late.
            cells: where it counts.
        """
        self._desk = desk
        self._sink = sink
        self._settings = settings
        self._cells = cells
        self._max_age_ms = int(settings.max_age_s * 1000)
        self._limit = min(MAX_BODY_BYTES, desk.limits.body_bytes)
        for cause in CAUSES:
            self._refused(cause, 0)

    async def take(self, head: Head, receive: Receive) -> Response:
        """Answer a request.

        Raises:
            GatewayError: nothing of it is accepted, whatever it holds.
        """
        if self._settings.auth == "token":
            self._authorise(head)
        signer = self._desk.pipeline.worker.signer
        if signer is None:
            message = "The gateway has no signing keys yet."
            raise NotReady(message)
        head.check_body(self._limit)
        held = self._hold(head.size)
        try:
            body = await collect(receive, self._limit)
            held = held or self._hold(len(body))
            checked, events = await self._judge(head, body, signer)
        finally:
            self._desk.admission.let_go(held)
        for one in checked.refused:
            self._refused(one.cause, 1)
        if checked.accepted:
            await self._hand_over(events, len(checked.accepted))
        return _answer(checked)

    def _authorise(self, head: Head) -> None:
        require_right(self._desk.principal(head), Right.OUTCOMES, None)

    def _hold(self, size: int) -> int:
        """Make room for a large body; how many bytes to let go of in the end."""
        if size < LARGE_BYTES:
            return 0
        self._desk.admission.hold(size)
        return size

    async def _judge(
        self, head: Head, body: bytes, signer: Signer
    ) -> tuple[Checked, tuple[bytes, ...]]:
        """What is true of a body, and the same as it travels."""
        coding, limit = head.coding, self._limit
        media = head.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        checker = Checker(signer, self._desk.clock.unix_ns() // 1_000_000, self._max_age_ms)

        def judge() -> tuple[Checked, tuple[bytes, ...]]:
            plain = body if coding is None else inflate(coding, body, limit)
            checked = checker.check(read_body(plain, lines=media in LINES))
            return checked, events_of(checked.accepted)

        if coding is None and len(body) <= QUICK_BYTES:
            return judge()
        return await self._aside(judge)

    async def _aside(self, work: Callable[[], _T]) -> _T:
        """Do it in a thread."""
        landed: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        def tried() -> Callable[[], None]:
            try:
                return partial(landed.set_result, work())
            except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
                return partial(landed.set_exception, error)

        def land(settle: Callable[[], None]) -> None:
            if not landed.done():
                settle()

        self._desk.aside.start(tried, land)
        return await landed

    async def _hand_over(self, events: tuple[bytes, ...], outcomes: int) -> None:
        try:
            await self._sink.accept(events, outcomes)
        except GatewayError as error:
            self._refused(error.kind, outcomes)
            raise

    def _refused(self, cause: str, count: int) -> None:
        self._cells.counter(OUTCOME_REFUSED, ((ERROR_TYPE, cause),)).value += count


def _answer(checked: Checked) -> Response:
    refused = [{"index": one.index, "error": one.error} for one in checked.refused]
    if not checked.accepted:
        return json_response({"error": checked.refused[0].error, "refused": refused}, 400)
    return json_response({"accepted": len(checked.accepted), "refused": refused}, 202)
