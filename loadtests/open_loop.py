"""Open loop: requests leave at a constant rate, whatever the server does.

    python loadtests/open_loop.py --plan PLAN --port PORT --rate 5000 --seconds 3
    python loadtests/open_loop.py --limit

Latency counts from the moment at which a request was to be sent, so that a stall of the server (or
of this generator) is seen by every request that it delayed: there is no coordinated omission. A
request that no connection is free for waits, and its wait counts. `--limit` measures what this
generator itself can do, against a server that answers without looking.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from loadtests.generator import Generator, Load
from loadtests.requests import load
from loadtests.stats import percentiles

CANNED: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
LIMIT_RATES: Final = (10_000, 20_000, 30_000, 40_000, 50_000, 60_000, 80_000)
LIMIT_P50_US: Final = 20_000.0
LIMIT_SHARE: Final = 0.99
LIMIT_KEYS: Final = ("rps", "p50_us", "p99_us")


def report(load: Load, generator: Generator) -> dict[str, Any]:
    """What came of it, with the latency percentiles of the good answers."""
    told = generator.told()
    seconds = told["seconds"]
    return {
        **told,
        "offered_rps": load.rate,
        "rps": told["good"] / seconds if seconds else 0.0,
        **percentiles(generator.good_latencies()),
        **{f"probe_{key}": value for key, value in percentiles(generator.probe_latencies).items()},
        "probe_max_us": max(generator.probe_latencies, default=0.0) * 1e6,
        "probes": len(generator.probe_latencies),
    }


def limit() -> dict[str, float]:
    """The highest rate that the generator keeps against a server that does nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, __file__, "--trivial", str(port)]
    server = subprocess.Popen(["taskset", "-c", "0", *words])
    request = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 600\r\n\r\n" + bytes(
        600
    )
    reached = {"rate": 0.0}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        _await(port)
        for rate in LIMIT_RATES:
            load = Load(port=port, seconds=1.0, connections=32, rate=float(rate))
            generator = Generator(load, [request])
            generator.run()
            found = report(load, generator)
            if found["rps"] >= LIMIT_SHARE * rate and found["p50_us"] <= LIMIT_P50_US:
                reached = {"rate": float(rate), **{key: found[key] for key in LIMIT_KEYS}}
    finally:
        server.terminate()
        server.wait()
    return reached


def trivial(port: int) -> None:
    """Answer every read at once; for `limit`."""
    import asyncio  # noqa: PLC0415 - only the measured server needs them

    import uvloop  # noqa: PLC0415 - as above

    class Canned(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.write = transport.write

        def data_received(self, _: bytes) -> None:
            self.write(CANNED)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Canned, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(serve())


def _await(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("The server does not listen.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=64, help="at most")
    parser.add_argument("--deadline-s", type=float, default=10.0, help="later is no good answer")
    parser.add_argument("--probe", default="", help="path to ask for every 50 ms beside the load")
    parser.add_argument("--check", type=Path, help="what answers must hold (checking.py)")
    parser.add_argument("--times", type=Path, help="write when each left and how long it took")
    parser.add_argument("--closed", action="store_true", help="as fast as answers come instead")
    parser.add_argument("--limit", action="store_true", help="measure this generator")
    parser.add_argument("--trivial", type=int, metavar="PORT", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print one line of JSON."""
    arguments = _arguments()
    if arguments.trivial:
        trivial(arguments.trivial)
        return
    if arguments.limit:
        print(json.dumps(limit()))
        return
    check = None
    if arguments.check:
        from loadtests.checking import Check  # noqa: PLC0415 - few runs check every answer

        check = Check.read(arguments.check)
    load_ = Load(
        port=arguments.port,
        seconds=arguments.seconds,
        connections=arguments.connections,
        rate=0.0 if arguments.closed else arguments.rate,
        deadline_s=arguments.deadline_s,
        probe=arguments.probe,
    )
    generator = Generator(load_, load(arguments.plan), check)
    generator.run()
    if arguments.times:
        generator.save_times(arguments.times)
    print(json.dumps(report(load_, generator)))


if __name__ == "__main__":
    main()
