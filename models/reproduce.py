"""Train every sample model again in a temporary folder and compare it with the committed files."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = sorted(HERE.glob("*/train.py"))


def content(path: Path) -> bytes:
    """Return what the file says; how it was compressed is left to the local zlib."""
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


def differences(again: Path) -> list[str]:
    """Name the files that came out otherwise than the committed ones."""
    made = sorted(path for path in again.rglob("*") if path.is_file())
    names = [path.relative_to(again) for path in made]
    return [
        str(name)
        for name, path in zip(names, made, strict=True)
        if not (HERE / name).is_file() or content(HERE / name) != content(path)
    ]


def main() -> int:
    """Train, compare, and say what differs."""
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS:
            subprocess.run([sys.executable, str(script), "--out", folder], check=True)
        changed = differences(Path(folder))
    for name in changed:
        print(f"differs: {name}")
    print("not reproduced" if changed else "reproduced: every file is the same")
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
