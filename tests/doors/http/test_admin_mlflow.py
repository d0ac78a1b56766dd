import dataclasses
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from gateway.control.following import MlflowDesk
from gateway.core.errors import StoreUnavailable
from gateway.core.signed_hooks import signature_of
from gateway.doors.http.admin import create_admin
from gateway.doors.http.admin_mlflow import HOOK_PATH, MAX_HOOK_BYTES
from tests.doors.http.admin_world import World

SECRET = b"of-the-webhook"
BODY = b'{"entity": "model_version_alias", "action": "created"}'


class Hooked(World):
    """An admin door that follows an MLflow."""

    def __init__(self, secret: bytes | None = SECRET) -> None:
        super().__init__()
        self.asks = 0
        self.away = False
        desk = MlflowDesk(status=self.told, ask=self.look, secret=secret, now=lambda: 1000.0)
        self.app = create_admin(dataclasses.replace(self.parts, mlflow=desk))

    async def told(self) -> Mapping[str, Any]:
        return {"served": self.asks}

    async def look(self) -> int:
        if self.away:
            raise StoreUnavailable("The store cannot be reached.")
        self.asks += 1
        return self.asks

    async def send(
        self, delivery: bytes = b"d1", body: bytes = BODY, **given: bytes
    ) -> httpx.Response:
        """A webhook, signed unless told otherwise; without a token, and to any Host."""
        timestamp = given.get("timestamp", b"1000")
        signature = given.get("signature", signature_of(SECRET, delivery, timestamp, body))
        headers = [
            (b"content-type", b"application/json"),
            (b"x-mlflow-delivery-id", delivery),
            (b"x-mlflow-timestamp", timestamp),
            (b"x-mlflow-signature", signature),
        ]
        async with self.client(token=None, host="gateway.example") as client:
            return await client.post(HOOK_PATH, content=body, headers=headers)


async def test_a_signed_webhook_has_mlflow_looked_at() -> None:
    """It needs no token."""
    world = Hooked()
    response = await world.send()
    assert (response.status_code, world.asks) == (202, 1)


async def test_a_delivery_that_comes_again_does_nothing() -> None:
    """MLflow sends it again under the same id when it saw no answer."""
    world = Hooked()
    await world.send()
    again = await world.send()
    await world.send(b"d2")
    assert (again.status_code, world.asks) == (202, 2)


async def test_a_delivery_that_nobody_heard_may_come_again() -> None:
    """It is answered with 503, upon which MLflow tries again."""
    world = Hooked()
    world.away = True
    assert (await world.send()).status_code == 503
    world.away = False
    assert (await world.send()).status_code == 202
    assert world.asks == 1


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"signature": b"v1,AAAA"}, id="forged"),
        pytest.param({"signature": b""}, id="unsigned"),
        pytest.param({"timestamp": b"699"}, id="old"),
        pytest.param({"timestamp": b"1301"}, id="future"),
        pytest.param({"delivery": b""}, id="no-delivery"),
    ],
)
async def test_what_is_not_signed_well_and_lately_is_refused(given: dict[str, Any]) -> None:
    """With one sentence for all."""
    world = Hooked()
    response = await world.send(**given)
    assert (response.status_code, world.asks) == (401, 0)


async def test_a_large_body_is_not_read() -> None:
    """Whoever signed it."""
    world = Hooked()
    response = await world.send(body=b" " * (MAX_HOOK_BYTES + 1))
    assert (response.status_code, world.asks) == (413, 0)


@pytest.mark.parametrize("world", [World(), Hooked(secret=None)], ids=["off", "no-secret"])
async def test_without_a_secret_no_webhook_is_taken(world: World) -> None:
    """Not even an unsigned one."""
    async with world.client(token=None) as client:
        response = await client.post(HOOK_PATH, content=BODY)
    assert response.status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
async def test_the_path_of_webhooks_opens_nothing_else(method: str) -> None:
    """Any other method needs a token like everything."""
    async with Hooked().client(token=None) as client:
        response = await client.request(method, HOOK_PATH)
    assert response.status_code == 401


async def test_status_and_sync_are_for_holders_of_tokens() -> None:
    """Sync tells how often a look was asked for."""
    world = Hooked()
    synced = await world.ask("POST", "/admin/v1/mlflow/sync", {})
    told = await world.ask("GET", "/admin/v1/mlflow")
    assert (synced.json(), told.json()) == ({"asked": 1}, {"served": 1})


async def test_where_nothing_is_followed_that_is_said() -> None:
    """With the setting that would change it."""
    response = await World().ask("GET", "/admin/v1/mlflow")
    assert response.status_code == 404
    assert "mlflow.url" in response.json()["error"]
