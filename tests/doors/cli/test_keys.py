"""Commands on the keys of prediction ids."""

from tests.doors.cli.desk import Desk, refused
from tests.doors.http.admin_world import KEYS, READER


def test_keys_are_rotated_and_listed(desk: Desk) -> None:
    """A rotation says which key signs and which are read; the list dates them."""
    assert "Key 8 signs now; still read: 7." in desk.run("keys", "rotate").stdout
    listed = desk.run("keys", "list").stdout
    old, new = (line.split() for line in listed.splitlines()[2:])
    assert old == ["7", "is", "read", "-", "1970-01-01", "00:16:40"]
    assert new == ["8", "signs", "1970-01-01", "00:16:40", "-"]


def test_keys_are_told_in_json_and_never_shown(desk: Desk) -> None:
    """Scripts get the ids; no output holds a key."""
    assert desk.json("keys", "rotate") == desk.json("keys", "list")
    output = desk.run("keys", "list", "--json").output + desk.run("keys", "list").output
    assert not any(secret in output for secret in (*KEYS.keys.values(), KEYS.unit_key))


def test_who_only_reads_rotates_nothing(desk: Desk) -> None:
    """A viewer is told so by exit code 4."""
    desk.environ = {"TILTYARD_TOKEN": READER}
    refused(desk.run("keys", "rotate"), 4, "'operate'")
    assert desk.world.rotated == []
