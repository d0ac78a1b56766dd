"""What the numbers were measured on: machine, kernel, and the versions that matter."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

OURS: Final = (
    "tiltyard",
    "onnxruntime",
    "numpy",
    "uvicorn",
    "uvloop",
    "httptools",
    "orjson",
    "msgspec",
)


def machine() -> dict[str, object]:
    """Processor, cores, memory, kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "load_before": os.getloadavg()[0],
    }


def versions(environments: Path, peers: Iterable[str]) -> dict[str, str]:
    """Versions here, and of each peer in the environment that is its own."""
    found = {"python": platform.python_version(), "generator": generator()}
    for name in OURS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    for peer in peers:
        for package in (peer, "onnxruntime"):
            pattern = f"{package}-*.dist-info"
            for folder in (environments / peer).glob(f"lib/python*/site-packages/{pattern}"):
                version = folder.name.removesuffix(".dist-info").partition("-")[2]
                found[peer if package == peer else f"{peer}/{package}"] = version
    return found


def generator() -> str:
    """What drives the closed loop."""
    if shutil.which("wrk") is None:
        return "open_loop.py --closed"
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return " ".join(said.split()[:2])
