from pathlib import Path

import pytest

from gateway.core.errors import InvalidRequest
from gateway.doors.http.listening import configure
from gateway.doors.http.messages import Message, Receive, Send
from gateway.settings import Settings


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
