"""How many outcomes one core accepts: all of Tiltyard on core 0, this script on core 1.

    python loadtests/outcomes.py [SECONDS]

Every outcome is about a prediction of its own within its body, and accepted means that it was
synced to disk. Prints a line for each size of a body: accepted a second, and the CPU of all
processes for one outcome, which does not depend on who else uses the machine.
"""

import asyncio
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import httpx
import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtests.servers import READY_S, ROOT, Server, free_port

CALLERS = {10: 8, 100: 8, 1_000: 4}
"""By the size of a body: how many callers report at the same time."""
INFER = "/v2/models/flight-delay/infer"
BODY = (ROOT / "models" / "flight-delay" / "request.json").read_bytes()


async def ready(client: httpx.AsyncClient, server: Server) -> None:
    """Wait until it serves."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        server.check()
        try:
            if (await client.get("/v2/health/ready")).is_success:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.1)
    raise SystemExit(server.last_words())


async def issued(client: httpx.AsyncClient, wanted: int) -> list[str]:
    """Ids of so many predictions."""
    answers = [await client.post(INFER, content=BODY) for _ in range(wanted)]
    return [answer.headers["x-prediction-id"] for answer in answers]


async def measure(
    client: httpx.AsyncClient, server: Server, ids: list[str], size: int, seconds: float
) -> None:
    """Report bodies of one size for so long."""
    sequence, accepted = count(), 0
    end = time.monotonic() + seconds

    async def report() -> None:
        nonlocal accepted
        while time.monotonic() < end:
            number = next(sequence)
            body = orjson.dumps(
                [
                    {"prediction_id": one, "metric": "arrival", "value": 1, "sequence": number}
                    for one in ids[:size]
                ]
            )
            answer = await client.post("/v1/outcomes", content=body)
            assert answer.status_code == 202, answer.text
            accepted += size

    began, cpu = time.monotonic(), server.cpu_seconds()
    await asyncio.gather(*(report() for _ in range(CALLERS[size])))
    took, used = time.monotonic() - began, server.cpu_seconds() - cpu
    print(
        f"{size:>6} a body {accepted / took:>10,.0f} accepted/s"
        f" {used / accepted * 1e6:>8.1f} us of CPU each"
    )


async def main(seconds: float) -> None:
    """Start a gateway, measure, end it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tiltyard-outcomes-") as folder:
        env = {
            "TILTYARD_STATE_DIR": f"{folder}/state",
            "TILTYARD_MODEL_STORE": str(ROOT / "models"),
            "TILTYARD_HTTP_PORT": str(port),
            "TILTYARD_ADMIN_PORT": str(free_port()),
            "TILTYARD_OUTCOMES_AUTH": "open",
        }
        words = [sys.executable, "-m", "gateway", "serve"]
        server = Server("outcomes", words, Path(folder), env).start()
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                await ready(client, server)
                ids = await issued(client, max(CALLERS))
                for size in CALLERS:
                    await measure(client, server, ids, size, seconds)
        finally:
            server.stop()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0))
