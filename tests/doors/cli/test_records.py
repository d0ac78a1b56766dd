"""Commands on the record log."""

import msgspec
import pytest

from gateway.core.otlp.requests import request, resource_field, scope_field
from gateway.serving.otlp_records import RecordEncoder
from gateway.telemetry import Trace
from tests.doors.cli.desk import Desk, refused
from tests.records import AT, make_record

SECOND = 1_000_000_000
RESOURCE = resource_field((("service.instance.id", "w0"),))


def kept(*numbers: int, **changes: object) -> bytes:
    """A request of records a second apart."""
    told = [make_record(prediction_id=f"p{n}", at_ns=AT + n * SECOND, **changes) for n in numbers]
    return request(RESOURCE, scope_field("tiltyard", "1"), RecordEncoder().logs(told))


def shown(desk: Desk, *arguments: str) -> list[str]:
    """Prediction ids in the order in which they are shown."""
    result = desk.run("records", "show", "--json", *arguments)
    assert result.exit_code == 0, result.output
    lines = [msgspec.json.decode(line) for line in result.stdout.splitlines()]
    return [line["attributes"]["tiltyard.prediction.id"] for line in lines]


def test_records_are_shown_whole(desk: Desk) -> None:
    """One JSON object a line, with everything that the record tells."""
    trace = Trace(b"t" * 16, b"s" * 8, None, sampled=True)
    desk.records.kept = {1: [kept(1, trace=trace, request_id="né", first_exposure=True)]}
    (line,) = desk.run("records", "show", "--json").stdout.splitlines()
    record = msgspec.json.decode(line)
    assert record["time_unix_nano"] == AT + SECOND
    assert (record["event"], record["severity"]) == ("tiltyard.prediction", "INFO")
    assert record["trace_id"] == (b"t" * 16).hex()
    assert record["resource"] == {"service.instance.id": "w0"}
    told = record["attributes"]
    assert told["tiltyard.request.id"] == "né"
    assert told["tiltyard.latency"] == 0.002
    assert (told["tiltyard.rows"], told["tiltyard.shadow"]) == (2, False)


def test_the_newest_are_shown_first(desk: Desk) -> None:
    """Over all segments, as many as asked for."""
    desk.records.kept = {1: [kept(1, 2), kept(3)], 2: [kept(4)]}
    assert shown(desk) == ["p4", "p3", "p2", "p1"]
    assert shown(desk, "--limit", "2") == ["p4", "p3"]


def test_records_are_chosen_by_endpoint_and_time(desk: Desk) -> None:
    """It is a hundred seconds later than the first of them."""
    desk.records.kept = {1: [kept(1, 40), kept(60, endpoint="other")]}
    assert shown(desk, "--endpoint", "other") == ["p60"]
    assert shown(desk, "--since", "61s") == ["p60", "p40"]
    assert shown(desk, "--since", "1m", "--endpoint", "digits") == ["p40"]
    assert shown(desk, "--since", "2023-11-14T22:14:00") == ["p60", "p40"]
    refused(desk.run("records", "show", "--since", "yesterday"), 1, "is no time")


def test_segments_are_listed(desk: Desk) -> None:
    """Their number, their size and when they begin."""
    desk.records.kept = {3: [kept(1)], 4: []}
    first, second = desk.json("records", "list")
    assert first == {"segment": 3, "bytes": len(kept(1)), "first": "2023-11-14T22:13:21.000+00:00"}
    assert second["first"] is None
    assert "22:13:21" in desk.run("records", "list").stdout


@pytest.mark.parametrize("command", ["list", "show"])
def test_there_may_be_none(desk: Desk, command: str) -> None:
    """A fresh host says so."""
    result = desk.run("records", command)
    assert result.exit_code == 0
    assert "There is no" in result.stdout


def test_a_table_is_for_people(desk: Desk) -> None:
    """What matters of each record, in columns."""
    desk.records.kept = {1: [kept(1, error_type="model_error")]}
    printed = desk.run("records", "show").stdout
    assert "challenger" in printed
    assert "model_error" in printed


def test_damage_costs_what_is_damaged(desk: Desk) -> None:
    """A request that cannot be read is passed over."""
    desk.records.kept = {1: [kept(1), b"\x0a\x7f", kept(2)]}
    assert shown(desk) == ["p2", "p1"]
