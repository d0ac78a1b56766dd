"""Commands on webhooks."""

from pathlib import Path

import msgspec

from gateway.core.webhooks import DeadLetter, Posted
from tests.doors.cli.desk import Desk, refused

URL = "https://hooks.example/"


def test_a_webhook_is_written_and_listed(desk: Desk) -> None:
    """The secret is shown when it is made; no later command shows it."""
    written = desk.run("webhook", "put", "ops", URL, "--type", "tiltyard.version.*").stdout
    secret = next(word for word in written.split() if word.startswith("whsec_"))
    outputs = [
        desk.run("webhook", *words).output
        for words in (("list",), ("show", "ops"), ("list", "--json"), ("put", "ops", URL))
    ]
    assert "tiltyard.version.*" in outputs[0]
    assert "well" in outputs[0]
    assert "hooks.example" in outputs[1]
    assert not any(secret in output for output in outputs)


def test_a_secret_is_read_from_a_file(desk: Desk, tmp_path: Path) -> None:
    """It is never an argument."""
    file = tmp_path / "secret"
    file.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    written = desk.run("webhook", "put", "ops", URL, "--secret-file", str(file))
    assert written.exit_code == 0
    assert "whsec_" not in written.output
    refused(desk.run("webhook", "put", "ops", URL, "--secret-file", "nowhere"), 1, "'nowhere'")


def test_a_webhook_is_tried_out(desk: Desk) -> None:
    """Exit code 1 where it was not taken."""
    desk.run("webhook", "put", "ops", URL)
    assert "took it: 204" in desk.run("webhook", "test", "ops").stdout
    desk.world.courier.posted = Posted(problem="The receiver did not answer in time.")
    failed = desk.run("webhook", "test", "ops")
    assert (failed.exit_code, failed.stdout) == (1, "The receiver did not answer in time.\n")


def test_dead_letters_are_shown_and_sent_again(desk: Desk) -> None:
    """Exit code 1 while some are left."""
    desk.run("webhook", "put", "ops", URL)
    assert "It took everything." in desk.run("webhook", "dead-letters", "ops").stdout
    event = msgspec.Raw(b'{"id":"1-1","type":"tiltyard.access.denied","subject":"models/m"}')
    desk.world.announcements.letters["ops"] = {"1-0": DeadLetter(event, 5.0, 6, "no")}
    listed = desk.run("webhook", "dead-letters", "ops").stdout
    assert "tiltyard.access.denied" in listed
    desk.world.courier.posted = Posted(status=500)
    assert desk.run("webhook", "redeliver", "ops").exit_code == 1
    desk.world.courier.posted = Posted(status=200)
    assert "1 taken, 0 left." in desk.run("webhook", "redeliver", "ops").stdout


def test_a_webhook_is_deleted(desk: Desk) -> None:
    """And asked for again it is not there."""
    desk.run("webhook", "put", "ops", URL)
    assert "is gone" in desk.run("webhook", "delete", "ops", "--reason", "over").stdout
    refused(desk.run("webhook", "show", "ops"), 1, "'ops'")
    assert desk.json("webhook", "list") == {"webhooks": []}
