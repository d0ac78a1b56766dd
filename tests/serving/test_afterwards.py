"""Afterwards: a little work at a time, and no turn of the loop for nothing."""

import asyncio

from gateway.serving.afterwards import Afterwards


class Work:
    """Pieces of work; 2 of them are worth a turn of the loop."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.steps = 0

    def due(self) -> bool:
        return self.pieces > 1

    def step(self) -> int:
        self.steps += 1
        self.pieces -= 1
        return self.pieces


async def turns(count: int) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_work_is_done_a_step_in_each_turn_while_it_is_due() -> None:
    """However often it is asked for; what is left waits for more."""
    work = Work(4)
    afterwards = Afterwards(asyncio.get_running_loop(), work.due, work.step)
    afterwards.soon()
    afterwards.soon()
    assert work.steps == 0
    await turns(10)
    assert (work.steps, work.pieces) == (3, 1)


async def test_what_is_not_worth_a_turn_waits() -> None:
    """Until there is more of it."""
    work = Work(1)
    afterwards = Afterwards(asyncio.get_running_loop(), work.due, work.step)
    afterwards.soon()
    await turns(3)
    assert work.steps == 0
    work.pieces = 2
    afterwards.soon()
    await turns(3)
    assert work.pieces == 1
