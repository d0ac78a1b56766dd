"""Events from outside: a change reaches a webhook and a collector, also over a kill."""

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import Gateway, eventually
from tests.otlp_receiver import Receiver, log_records, plain
from tests.webhook_receiver import HookReceiver, verifies

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture
def collector() -> Iterator[Receiver]:
    """Who takes logs."""
    with Receiver() as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[HookReceiver]:
    """Who listens."""
    with HookReceiver() as running:
        yield running


def ask(gateway: Gateway, method: str, path: str, document: object = None) -> httpx.Response:
    """Ask the admin API once."""
    headers = {"authorization": f"Bearer {gateway.token}"}
    url = f"{gateway.admin_url}/admin/v1/{path}"
    response = httpx.request(method, url, json=document, headers=headers, timeout=30)
    assert response.status_code == 200, response.text
    return response


def told_actions(collector: Receiver) -> list[str]:
    """Actions of the audit entries that the collector has, in order."""
    logs = [one.message for one in collector.received if one.path == "/v1/logs"]
    return [
        plain(record.attributes)["tiltyard.audit.action"]
        for message in logs
        for record in log_records(message)
        if record.event_name == "tiltyard.admin.audit"
    ]


def test_changes_are_told_also_over_a_kill(
    make_gateway: MakeGateway, collector: Receiver, receiver: HookReceiver
) -> None:
    """Signed, in order, each at least once; the collector has the entries, status says how far."""
    gateway = make_gateway(
        env={
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "TILTYARD_WEBHOOKS_ALLOW_HTTP": "true",
            "TILTYARD_WEBHOOKS_ALLOW_HOSTS": "127.0.0.1",
        }
    )
    hook = {"url": receiver.url, "types": ["tiltyard.version.*"]}
    secret = ask(gateway, "PUT", "webhooks/ops", hook).json()["secret"]
    assert ask(gateway, "POST", "webhooks/ops/test", {}).json()["taken"]
    promotion = {"version": 2, "reason": "better"}
    ask(gateway, "POST", "models/flight-delay/promote", promotion)
    assert eventually(lambda: len(receiver.taken) == 2)
    receiver.stop()
    ask(gateway, "POST", "models/flight-delay/rollback", {"reason": "worse"})
    gateway.kill()
    receiver.start()
    gateway.start()
    assert eventually(lambda: len(receiver.taken) >= 3, within_s=60)
    ping, *events = receiver.taken
    assert ping["type"] == "tiltyard.webhook.ping"
    assert [event["type"] for event in events] == [
        "tiltyard.version.promoted",
        "tiltyard.version.rolled_back",
    ]
    assert [(one["data"]["from"], one["data"]["version"]) for one in events] == [(1, 2), (2, 1)]
    newest = receiver.received[-1]
    assert verifies(secret, newest, int(newest.headers["webhook-timestamp"]))
    assert eventually(lambda: "model.rollback" in told_actions(collector), within_s=30)
    announcements = ask(gateway, "GET", "status").json()["announcements"]
    assert announcements["webhooks"][0]["name"] == "ops"
    assert announcements["webhooks"][0]["delivered"] == 2
    assert secret not in gateway.log
