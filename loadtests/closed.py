"""Closed loop: so many connections, each sends its next request when the last was answered.

This finds the peak. It says nothing about latency under a given load: when the server is slow, a
closed loop asks less (see open_loop.py).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
SLACK_S: Final = 30.0
GENERATOR_CORE: Final = "1"


def on_core(core: str, words: list[str]) -> list[str]:
    """The command, kept on some cores where the system can."""
    return ["taskset", "-c", core, *words] if shutil.which("taskset") else words


def closed(plan: Path, port: int, connections: int, seconds: int) -> dict[str, Any]:
    """Run one slice; what came of it.

    Returns:
        requests, seconds, rps, refused (answers other than 2xx and 3xx), errors (connections and
        time-outs), and p50_us, p99_us, p999_us, max_us.

    Raises:
        RuntimeError: the generator itself failed.
    """
    if shutil.which("wrk"):
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        words += ["-s", str(HERE / "closed.lua"), f"http://127.0.0.1:{port}", "--", str(plan)]
    else:
        words = [sys.executable, str(HERE / "open_loop.py"), "--plan", str(plan)]
        words += ["--port", str(port), "--connections", str(connections)]
        words += ["--seconds", str(seconds), "--closed"]
    done = subprocess.run(
        on_core(GENERATOR_CORE, words),
        capture_output=True,
        text=True,
        timeout=seconds + SLACK_S,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        raise RuntimeError(f"The generator failed: {done.stderr[-500:]}{done.stdout[-500:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    good = found["requests"] - found["refused"]
    return {**found, "good": good, "rps": good / found["seconds"]}
