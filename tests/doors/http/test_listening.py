import asyncio
from pathlib import Path

import pytest

from gateway.core.errors import InvalidRequest
from gateway.doors.http import listening
from gateway.doors.http.listening import Listener, bind, configure
from gateway.doors.http.messages import Message, Receive, Send
from gateway.settings import Settings
from tests.planes import until


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """An application that nobody asks."""


def test_a_listener_in_the_clear_needs_no_certificate() -> None:
    """Without a certificate nothing is read, and the listener does not speak TLS."""
    assert not configure(app, Settings(), (None, None), lifespan="off").is_ssl


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "broken"])
def test_a_certificate_that_cannot_be_used_is_found_at_once(
    tmp_path: Path, content: str | None
) -> None:
    """Before anything listens, and without a path in the sentence."""
    place = tmp_path / "chain.pem"
    if content is not None:
        place.write_text(content, encoding="ascii")
    with pytest.raises(InvalidRequest, match="certificate") as refused:
        configure(app, Settings(), (str(place), str(place)), lifespan="off")
    assert str(tmp_path) not in str(refused.value)


async def test_a_listener_ends_when_it_is_told_and_not_at_its_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It wakes up for the date alone, however far off that is."""
    monkeypatch.setattr(listening, "DATE_S", 3600.0)
    listener = Listener(configure(app, Settings(), (None, None), lifespan="off"))
    serving = asyncio.create_task(listener.serve(sockets=[bind("127.0.0.1", 0)]))
    await until(lambda: listener.started)
    listener.should_exit = True
    async with asyncio.timeout(20):
        await serving
    assert listener.should_exit
