"""Together: the responses to plain inferences that one run answered, each in one write.

What responses of one kind share is put together once for the run.
"""

import logging
from typing import Final

from gateway.core.oip.writing import Rows
from gateway.doors.http.exchange import Exchange
from gateway.serving.calls import Ran
from gateway.telemetry import Kind

log: Final = logging.getLogger(__name__)


def answer_together(exchanges: list[Exchange], ran: Ran) -> None:
    """Respond to inferences of one row each; each of them has a line.

    Args:
        exchanges: in the order of the rows.
        ran: the run, with its records.
    """
    line, told, left = exchanges[0].line, [], []
    start = b"" if line is None else line.start()
    kinds: dict[Kind, tuple[bytes, Rows | None]] = {}
    for index, exchange in enumerate(exchanges):
        try:
            kind = ran.records[index].kind
            known = kinds.get(kind)
            if known is None:
                style = exchange.style(kind)
                known = kinds[kind] = (start + style.block, style.rows(ran))
            if exchange.answer_row(ran, index, *known):
                told.append(exchange.arrived_ns)
        except Exception:
            log.exception("an answer out of a run is given by itself")
            left.append(index)
    if told and line is not None:
        line.counted(told)
    for index in left:
        try:
            exchanges[index](ran.answer(index))
        except Exception:
            log.exception("a caller could not take its answer")
