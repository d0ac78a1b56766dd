"""Promotions under load: nothing fails, nothing is mixed, memory comes back."""

import asyncio
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest

from gateway.adapters.onnx import OnnxLoader, describe
from gateway.core.models import Manifest
from gateway.doors.cli.traffic import Flight, infer_body, read_flights
from gateway.ports import Artifact
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import ROOT, Gateway, processes, resident_mib
from tests.e2e.test_flights import PATH, TRAFFIC

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

PROMOTIONS = 50
FLAT_MIB = 32.0


def expected(version: int, flights: list[Flight]) -> list[float]:
    """What a version says of each flight, computed beside the gateway."""
    path = str(ROOT / "models" / "flight-delay" / str(version) / "model.onnx")
    manifest = Manifest(
        schema=1,
        model="flight-delay",
        number=version,
        digest="0" * 64,
        files=(),
        signature=describe(path),
        lineage={},
        created_at=0.0,
    )
    engine = OnnxLoader(1)(Artifact(manifest, path))
    answers = []
    for flight in flights:
        words = (("carrier", flight.carrier), ("origin", flight.origin), ("dest", flight.dest))
        tensors: dict[str, Any] = {
            name: np.array([[word.encode()]], dtype=object) for name, word in words
        }
        tensors["features"] = np.array([flight.features], dtype="<f4")
        answers.append(float(engine.run(tensors, ["probabilities"])[0][0, 1]))
    return answers


@pytest.mark.parametrize("workers", [0, 2])
def test_fifty_promotions_under_load_lose_and_mix_nothing(
    make_gateway: MakeGateway, workers: int
) -> None:
    """Every answer under 50 promotions is exactly that of the version it names."""
    flights = list(read_flights(TRAFFIC, 400))
    truth = {str(version): expected(version, flights) for version in (1, 2)}
    gateway = make_gateway(workers=workers)
    servers = processes(gateway)["worker"]

    asyncio.run(promote_under_load(gateway, flights, truth, rounds=4))
    before = max(map(resident_mib, servers))
    served = asyncio.run(promote_under_load(gateway, flights, truth, rounds=PROMOTIONS))
    after = max(map(resident_mib, servers))

    assert served.keys() == {"1", "2"}
    assert after - before <= FLAT_MIB


async def promote_under_load(
    gateway: Gateway, flights: list[Flight], truth: dict[str, list[float]], rounds: int
) -> dict[str, int]:
    """Promote back and forth while flights are asked about; answers by version."""
    served: dict[str, int] = {}
    over = asyncio.Event()

    async def ask(client: aiohttp.ClientSession, first: int) -> None:
        index = first
        while not over.is_set():
            flight = flights[index % len(flights)]
            async with client.post(PATH, data=infer_body(flight)) as response:
                assert response.status == 200, await response.text()
                version = response.headers["X-Model-Version"]
                answer = await response.json()
            assert answer["model_version"] == version
            late = answer["outputs"][1]["data"][1]
            assert late == pytest.approx(truth[version][index % len(flights)], abs=1e-5)
            served[version] = served.get(version, 0) + 1
            index += 8

    async with aiohttp.ClientSession(gateway.url) as client:
        askers = [asyncio.create_task(ask(client, first)) for first in range(8)]
        await promote_to_and_fro(gateway, rounds)
        over.set()
        await asyncio.gather(*askers)
    return served


async def promote_to_and_fro(gateway: Gateway, rounds: int) -> None:
    """Alternate the champion between versions 1 and 2, waiting each time until it is served."""
    headers = {"Authorization": f"Bearer {gateway.token}"}
    model = "/admin/v1/models/flight-delay"
    async with httpx.AsyncClient(base_url=gateway.admin_url, headers=headers, timeout=30) as admin:
        now = (await admin.get(model)).json()["aliases"]["champion"]
        for _ in range(rounds):
            now = 3 - now
            asked = await admin.post(f"{model}/promote", json={"version": now})
            assert asked.is_success, asked.text
            revision = int(asked.headers["x-revision"])
            while True:
                status = (await admin.get("/admin/v1/status")).json()
                promotion = status["promotion"]
                done = promotion["complete"] == promotion["of"]
                if status["revision"] >= revision and done:
                    break
                await asyncio.sleep(0.01)
