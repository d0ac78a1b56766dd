"""The process's log."""

import io
import logging

import pytest

from gateway.adapters.logs import BURST, SPAN_S, NoFlood, OneLine


def log_of(clock: list[float]) -> tuple[logging.Logger, io.StringIO]:
    """A logger of its own on a stream, with the time taken from the last element."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine("%(levelname)s %(message)s"))
    handler.addFilter(NoFlood(lambda: clock[-1]))
    logger = logging.Logger("test")  # noqa: LOG001 - one that no other test knows
    logger.addHandler(handler)
    return logger, stream


def test_what_repeats_is_written_a_few_times_and_then_counted() -> None:
    """A flood leaves a few lines, and the next span says how many were left out."""
    clock = [0.0]
    logger, stream = log_of(clock)
    for number in range(100):
        logger.warning("bad request %d", number)
    clock.append(SPAN_S)
    logger.warning("bad request %d", 100)

    lines = stream.getvalue().splitlines()

    assert lines[:BURST] == [f"WARNING bad request {number}" for number in range(BURST)]
    left_out = 100 - BURST
    assert lines[BURST:] == [f"WARNING bad request 100 ({left_out} more like it were left out)"]


def test_other_kinds_are_not_held_back() -> None:
    """A flood of one kind hides no other message, level or logger."""
    logger, stream = log_of([0.0])
    for _ in range(50):
        logger.warning("one")
    logger.error("one")
    logger.warning("two")

    assert stream.getvalue().splitlines()[BURST:] == ["ERROR one", "WARNING two"]


@pytest.mark.parametrize("text", ["a\nadmin: promoted", "a\rb", "a\x1b[2Jb", "a\0b"])
def test_a_caller_cannot_forge_a_line(text: str) -> None:
    """Control characters in a message stay on its line, as escapes."""
    logger, stream = log_of([0.0])
    logger.warning("name %s", text)

    written = stream.getvalue()

    assert written.count("\n") == 1
    assert written.rstrip("\n").isprintable()


def test_a_traceback_keeps_its_lines() -> None:
    """What went wrong inside is readable."""
    logger, stream = log_of([0.0])
    try:
        message = "inside"
        raise ValueError(message)
    except ValueError:
        logger.exception("outside")

    lines = stream.getvalue().splitlines()

    assert lines[0] == "ERROR outside"
    assert lines[-1] == "ValueError: inside"
