"""Operations on the keys of prediction ids."""

import msgspec

from gateway.core.predictions import SigningKeys
from gateway.core.signing_keys import with_next
from gateway.doors.http.admin_documents import KeyList
from tests.doors.http.admin_world import KEYS, READER, World

KEYS_PATH = "/admin/v1/keys"
ROTATE = "/admin/v1/keys/rotate"
NEW = {"id": 8, "signs": True, "waiting": False, "since": 1_000.0, "until": None}
OLD = {"id": 7, "signs": False, "waiting": False, "since": None, "until": 1_000.0}


async def test_a_rotation_answers_ids_and_says_who_asked() -> None:
    """The new key signs, the old one is still read; the list says the same afterwards."""
    world = World()
    answer = await world.ask("POST", ROTATE)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"current": 8, "keys": [OLD, NEW]}
    assert world.rotated == ["wim"]
    assert (await world.ask("GET", KEYS_PATH, token=READER)).json() == answer.json()


async def test_a_key_that_waits_is_told() -> None:
    """A rotation that is under way, or was left half done, can be seen."""
    world = World()
    world.keys = with_next(KEYS, 8, "08" * 32)
    keys = (await world.ask("GET", KEYS_PATH)).json()["keys"]
    assert [(key["id"], key["signs"], key["waiting"]) for key in keys] == [
        (7, True, False),
        (8, False, True),
    ]


async def test_no_key_leaves_through_the_door() -> None:
    """Neither signing keys nor the key of units stand in an answer."""
    world = World()
    answers = [await world.ask("POST", ROTATE), await world.ask("GET", KEYS_PATH)]
    assert isinstance(world.keys, SigningKeys)
    for secret in (*world.keys.keys.values(), world.keys.unit_key):
        assert not any(secret in answer.text for answer in answers)


async def test_who_only_reads_rotates_nothing() -> None:
    """It takes a token that may write."""
    world = World()
    assert (await world.ask("POST", ROTATE, token=READER)).status_code == 403
    assert world.rotated == []


async def test_without_the_store_keys_are_listed_and_not_rotated() -> None:
    """503 says that nothing was changed; what this host signs with can still be read."""
    world = World()
    world.memory.away = True
    assert (await world.ask("POST", ROTATE)).status_code == 503
    assert (await world.ask("GET", KEYS_PATH)).json()["current"] == 7


async def test_a_rotation_sent_twice_is_made_once() -> None:
    """Under one Idempotency-Key the second request gets the first one's answer."""
    world = World()
    headers = {"Idempotency-Key": "k1"}
    first = await world.ask("POST", ROTATE, headers=headers)
    second = await world.ask("POST", ROTATE, headers=headers)
    assert second.json() == first.json()
    assert second.headers["idempotency-replayed"] == "true"
    assert len(world.rotated) == 1


async def test_before_the_first_key_the_door_says_so() -> None:
    """A gateway that has only begun to start is not ready, which is no failure of the caller."""
    world = World()
    world.keys = None
    answer = await world.ask("GET", KEYS_PATH)
    assert answer.status_code == 503
    assert "no signing keys yet" in answer.json()["error"]


async def test_the_answer_is_what_the_document_describes() -> None:
    """The declared type reads it."""
    answer = await World().ask("GET", KEYS_PATH)
    assert msgspec.json.decode(answer.content, type=KeyList).current == 7
