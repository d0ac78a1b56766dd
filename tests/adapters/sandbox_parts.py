"""What the tests of the sandbox share: one that is real, and orders for it."""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec
from onnx import ModelProto

from gateway.adapters.sandbox import SandboxInspector
from gateway.core.inspections import Inspection, InspectionOrder
from gateway.core.models import StoredFile, bundle_digest
from gateway.core.reviews import Check, CheckResult, Outcome
from gateway.governance_settings import InspectionSettings
from tests import onnx_models

LIMITS = InspectionSettings(time_s=20.0, run_s=5.0, memory_mb=1024)


class Sandbox:
    """A real inspector with an event loop of its own, for tests that have none."""

    def __init__(self) -> None:
        self.loop = asyncio.Runner()
        self.inspector = SandboxInspector(LIMITS, now=time.time)

    def inspect(
        self, folder: Path, *, limits: dict[str, Any] | None = None, **order: Any
    ) -> Inspection:
        """The report on the files of a folder."""
        self.inspector._settings = msgspec.structs.replace(LIMITS, **(limits or {}))
        return self.loop.run(self.inspector.inspect(order_of(folder, **order)))

    def result(self, folder: Path, check: Check, **more: Any) -> CheckResult:
        """How one check of them ended."""
        return self.inspect(folder, **more).checks[check]

    def close(self) -> None:
        self.loop.run(self.inspector.close())
        self.loop.close()


def order_of(folder: Path, **more: Any) -> InspectionOrder:
    """An order for what lies in a folder; named files may be links."""
    files = tuple(
        StoredFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    )
    order = InspectionOrder("m", 1, bundle_digest(files), str(folder), files)
    return msgspec.structs.replace(order, **more)


def holding(folder: Path, model: ModelProto | bytes) -> Path:
    """The folder, with a model in it."""
    folder.mkdir(exist_ok=True)
    if isinstance(model, bytes):
        (folder / "model.onnx").write_bytes(model)
    else:
        onnx_models.save(model, folder)
    return folder


def failures(report: Inspection) -> dict[str, str]:
    """What each check that was not passed said."""
    return {
        str(check): result.summary
        for check, result in report.checks.items()
        if result.outcome is Outcome.FAILED
    }


def failed_by(report: Inspection) -> list[Check]:
    """The checks that failed."""
    return [check for check, result in report.checks.items() if result.outcome is Outcome.FAILED]
