import msgspec
import pytest

from gateway.core.errors import InvalidRequest
from gateway.core.following import (
    FollowedData,
    FollowedRun,
    FollowedVersion,
    Following,
    Seen,
    bare_location,
    decode_following,
    encode_following,
    lineage_of,
    local_name,
    rules_of,
)

VERSION = FollowedVersion("m", 3, ready=True, created_ms=1795327314253, source="runs:/r/model")


def test_a_name_is_followed_by_its_pattern() -> None:
    """Patterns speak of names here; a pair follows in any case."""
    rules = rules_of(["flight-*"], ["Flight Delays=delays"], ["prod=champion"])
    assert local_name(rules, "flight-delay") == "flight-delay"
    assert local_name(rules, "digits") is None
    assert local_name(rules, "Flight Delays") == "delays"


@pytest.mark.parametrize(
    "name", ["../etc", "a/../b", "..", " ..", "/etc", "m/", "", "x" * 300, "%2e"]
)
def test_a_name_that_cannot_be_one_here_is_refused(name: str) -> None:
    """With what could be done about it (M20)."""
    with pytest.raises(InvalidRequest, match=r"mlflow\.names"):
        local_name(rules_of(["*"], [], []), name)


@pytest.mark.parametrize("pair", ["champion", "=x", "x=", "x=../y"])
def test_a_pair_that_is_none_is_refused(pair: str) -> None:
    """When settings are read."""
    with pytest.raises(InvalidRequest):
        rules_of(["*"], [], [pair])


def test_lineage_has_what_the_run_told() -> None:
    """Under the names that are asked for here."""
    run = FollowedRun(
        "r",
        user="tina",
        commit="abc",
        parameters={"depth": "3"},
        metrics={"auc": 0.7},
        tags={"team": "ops", "mlflow.runName": "r1", "odd key!": "x"},
        data=(FollowedData("flights", "d" * 64, "s3://b/f.csv", "training"),),
    )
    told = lineage_of(VERSION, run, "ab")
    assert (told["trainer"], told["commit"]) == ("tina", "abc")
    assert (told["parameters"], told["metrics"]) == ({"depth": "3"}, {"auc": 0.7})
    assert told["tags"] == {"team": "ops"}
    assert told["data"][0]["sha256"] == "d" * 64
    assert told["mlflow"]["version"] == 3
    assert told["created"] == "2026-11-22T06:01:54+00:00"


def test_lineage_is_bounded() -> None:
    """What is left out is counted."""
    many = {f"k{place:05}": "ü" * 10_000 for place in range(5_000)}
    run = FollowedRun("r", parameters=many, metrics=many, tags=many)
    told = lineage_of(VERSION, run, "ab")
    assert len(msgspec.json.encode(told)) < 64 * 1024
    assert told["parameters"]["left_out"] == 5_000 - len(told["parameters"]) + 1


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("https://u:secret@h/x?sig=secret#secret", "https://h/x"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("/data/x.csv", "/data/x.csv"),
        ("https://a@b:secret@h", "https://h"),
    ],
)
def test_a_location_loses_its_secrets(text: str, bare: str) -> None:
    """Login, query and fragment."""
    assert bare_location(text) == bare


def test_what_was_seen_comes_back() -> None:
    """As it was kept; what cannot be read is a fresh start."""
    following = Following(since=1.0, seen={"m": {"champion": Seen(3, 2.0, "no")}})
    assert decode_following(encode_following(following)) == following
    assert decode_following(b"{") == decode_following(None) == Following()
