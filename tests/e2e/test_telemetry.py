"""Telemetry from outside: a real receiver gets every record, or every loss is counted."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.doors.cli.traffic import infer_body, read_flights
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import Gateway, eventually, processes
from tests.e2e.loads import Load
from tests.e2e.test_flights import PATH, TRAFFIC, put_rules, replay, split_document
from tests.otlp_receiver import Answer, Receiver, plain

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A collector."""
    with Receiver() as running:
        yield running


def total(gateway: Gateway, name: str) -> int:
    """A counter's sum over all its attributes, from `/metrics`."""
    text = httpx.get(f"{gateway.admin_url}/metrics").text
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        )
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_sent_equals_received_plus_dropped(
    make_gateway: MakeGateway, receiver: Receiver, workers: int
) -> None:
    """A collector that refuses, rejects and goes away: each lost record is in the counters."""
    receiver.script.extend(
        [Answer(status=400), Answer(status=400), Answer(rejected=5), Answer(status=503)]
    )
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    gateway = make_gateway(env=env, workers=workers)
    put_rules(gateway, split_document())
    flights = list(read_flights(TRAFFIC, 2_000))

    asyncio.run(replay(gateway.url, flights[:1_000]))
    receiver.stop()
    asyncio.run(replay(gateway.url, flights[1_000:]))
    receiver.start()

    def settled() -> bool:
        delivered = total(gateway, "tiltyard_record_delivered_total")
        dropped = total(gateway, "tiltyard_record_dropped_total")
        return delivered + dropped == total(gateway, "tiltyard_record_emitted_total") == 2_000

    assert eventually(settled, within_s=60)
    assert total(gateway, "tiltyard_record_delivered_total") == receiver.taken
    assert total(gateway, "tiltyard_record_dropped_total") > 0


def test_records_outlive_a_kill(make_gateway: MakeGateway, receiver: Receiver) -> None:
    """What the collector missed is on disk, readable here, and the next process delivers it."""
    gateway = make_gateway(env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url})
    put_rules(gateway, split_document())
    receiver.stop()
    asyncio.run(replay(gateway.url, list(read_flights(TRAFFIC, 300))))

    def kept() -> list[str]:
        shown = gateway.run_cli("records", "show", "--limit", "1000", "--json")
        return [json.loads(line)["attributes"]["tiltyard.prediction.id"] for line in shown.split()]

    eventually(lambda: len(kept()) == 300)
    gateway.kill()
    receiver.start()
    gateway.start()

    def arrived() -> set[str]:
        told = [plain(entry.attributes) for entry in receiver.predictions]
        return {one["tiltyard.prediction.id"] for one in told}

    eventually(lambda: len(arrived()) == 300)
    assert arrived() == set(kept())
    assert total(gateway, "tiltyard_record_delivered_total") == 300


def test_what_a_killed_worker_took_with_it_is_counted(
    make_gateway: MakeGateway, receiver: Receiver
) -> None:
    """Records that were made and never handed over are dropped ones: nothing is unaccounted for."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    gateway = make_gateway(env=env, workers=2)

    with Load(gateway, 8) as load:
        for _ in range(2):
            os.kill(processes(gateway)["worker"][0], signal.SIGKILL)
            load.go_on(200)

    def settled() -> bool:
        delivered = total(gateway, "tiltyard_record_delivered_total")
        dropped = total(gateway, "tiltyard_record_dropped_total")
        emitted = total(gateway, "tiltyard_record_emitted_total")
        return load.answered <= delivered + dropped == emitted and delivered == receiver.taken

    assert eventually(settled, within_s=30)
    assert total(gateway, "tiltyard_record_dropped_total") > 0


def test_a_sampled_caller_gets_spans_and_others_do_not(
    make_gateway: MakeGateway, receiver: Receiver
) -> None:
    """The caller's trace is continued if its sampled flag is set, and only then."""
    gateway = make_gateway(env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url})
    body = infer_body(next(iter(read_flights(TRAFFIC, 1))))
    trace = "0af7651916cd43dd8448eb211c80319c"
    for flag, trace_id in (("01", trace), ("00", trace[::-1])):
        parent = f"00-{trace_id}-b7ad6b7169203331-{flag}"
        answer = httpx.post(gateway.url + PATH, content=body, headers={"traceparent": parent})
        assert answer.status_code == 200

    eventually(lambda: len(receiver.predictions) == 2)
    eventually(lambda: receiver.spans)

    assert {span.trace_id.hex() for span in receiver.spans} == {trace}
    roots = [span for span in receiver.spans if span.parent_span_id.hex() == "b7ad6b7169203331"]
    assert len(roots) == 1


def test_a_unit_is_exposed_once(make_gateway: MakeGateway, receiver: Receiver) -> None:
    """A unit's evaluation event comes with its first prediction only."""
    gateway = make_gateway(env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url})
    put_rules(gateway, split_document())
    body = infer_body(next(iter(read_flights(TRAFFIC, 1))))
    for _ in range(3):
        httpx.post(gateway.url + PATH, content=body, headers={"X-Unit-Id": "N1"})

    eventually(lambda: len(receiver.predictions) == 3)

    assert len(receiver.evaluations) == 1
    assert plain(receiver.evaluations[0].attributes)["feature_flag.key"] == "flight-delay"


def test_promtool_is_content(make_gateway: MakeGateway) -> None:
    """`promtool check metrics` finds nothing to say of a gateway that has served."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    gateway = make_gateway()
    put_rules(
        gateway, {**split_document(), "shadows": [{"name": "s", "version": 2, "share": 10_000}]}
    )
    asyncio.run(replay(gateway.url, list(read_flights(TRAFFIC, 200))))
    text = httpx.get(f"{gateway.admin_url}/metrics").content

    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    assert b"tiltyard_shadow_compared_total" in text
