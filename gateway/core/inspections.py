"""Inspections: all that was found when a version was taken apart and run, before it may serve."""

import hashlib
from typing import Any, Final

from msgspec import Struct

from gateway.core.models import StoredFile
from gateway.core.reviews import REQUIRED, Check, CheckResult, Outcome
from gateway.core.snapshot import canonical
from gateway.core.tensors import Signature

SCHEMA: Final = 1


class BatchCost(Struct, frozen=True, forbid_unknown_fields=True):
    """What runs of so many rows took: median and 99th percentile in milliseconds."""

    rows: int
    p50_ms: float
    p99_ms: float
    runs: int


class GoldenRequest(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A request and the answer that is expected, both in the form of the Open Inference Protocol.

    `expected` holds output tensors by name, as JSON would. Numbers may differ by
    `absolute + relative * |expected|`.
    """

    request: dict[str, Any]
    expected: dict[str, Any]
    name: str = ""
    absolute: float = 1e-6
    relative: float = 1e-5


class GoldenAnswer(Struct, frozen=True, forbid_unknown_fields=True):
    """What a version answered to a golden request: SHA-256 of each output, and the first values."""

    name: str
    digests: dict[str, str]
    head: dict[str, tuple[Any, ...]]


class Inspection(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The report of one inspection. `at` is in UTC seconds, sizes are in bytes.

    `operators` counts nodes by `domain.Type`, `opsets` has the version of each domain. `tools` are
    the versions of what inspected. `signature` is None where the version did not load.
    """

    schema: int
    model: str
    number: int
    digest: str
    at: float
    took_s: float
    tools: dict[str, str]
    checks: dict[Check, CheckResult]
    signature: Signature | None = None
    producer: str = ""
    ir_version: int = 0
    opsets: dict[str, int] = {}
    operators: dict[str, int] = {}
    parameters: int = 0
    size: int = 0
    costs: tuple[BatchCost, ...] = ()
    peak_mb: float = 0.0
    golden: tuple[GoldenAnswer, ...] = ()


class InspectionOrder(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be inspected: the files in their private copy, and what to hold them against.

    `folder` is the copy's path on this host. `champion` is the folder of the version that serves,
    `inputs` are recent requests of its endpoint. `labels` and `allow_nonfinite` are the model's.
    """

    model: str
    number: int
    digest: str
    folder: str
    files: tuple[StoredFile, ...]
    golden: tuple[GoldenRequest, ...] = ()
    champion: str | None = None
    champion_signature: Signature | None = None
    inputs: tuple[dict[str, Any], ...] = ()
    allow_nonfinite: bool = False


def is_acceptable(checks: dict[Check, CheckResult]) -> bool:
    """Whether a version with these checks may be registered."""
    passed = all(name in checks and checks[name].outcome is Outcome.PASSED for name in REQUIRED)
    return passed and not any(result.forced for result in checks.values())


def report_digest(inspection: Inspection) -> str:
    """SHA-256 over the canonical JSON of a report, by which a Review names it."""
    return hashlib.sha256(canonical(inspection)).hexdigest()
