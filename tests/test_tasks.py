import asyncio

import pytest

from gateway.tasks import Tasks, forever


async def test_a_loop_that_fails_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    """A fault and an unexpected end are logged with the loop's name, and the loop goes on."""
    runs = 0
    done = asyncio.Event()

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            message = "a fault"
            raise ValueError(message)
        if runs == 2:
            return
        done.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(forever("watcher", loop, first_pause_s=0.001))
    async with asyncio.timeout(5):
        await done.wait()
    assert [record.message for record in caplog.records] == [
        "The loop 'watcher' failed; it starts again.",
        "The loop 'watcher' ended by itself; it starts again.",
    ]
    task.cancel()


async def test_closing_ends_every_task() -> None:
    """Tasks have names, and closing waits until each has cleaned up."""
    tasks = Tasks()
    ended: list[str] = []

    def loop_of(name: str) -> None:
        async def loop() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(name)

        assert tasks.start(name, loop).get_name() == name

    loop_of("first")
    loop_of("second")
    await asyncio.sleep(0)
    await tasks.close()
    assert ended == ["second", "first"]
    await tasks.close()
