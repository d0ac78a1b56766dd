"""Reviews: what stands for and against a version, as gates read it.

The whole report of an inspection is kept in the store; a Review in the Snapshot holds of it what
gates decide by, and the approvals, so that a promotion and what allowed it are one commit.
"""

from enum import StrEnum
from typing import Final

from msgspec import Struct

SCHEMA: Final = 1


class Check(StrEnum):
    """What an inspection looks at, in its order. No version is taken without those `REQUIRED`."""

    FILES = "files"
    """Regular files with one name each, within bounds, the digests those that were copied."""
    FORMAT = "format"
    """It parses as ONNX, of an IR version and opsets that are known here."""
    DOMAINS = "domains"
    """Operators of allowed domains only."""
    EXTERNAL_DATA = "external_data"
    """Weights in other files lie within the version's own."""
    NAMES = "names"
    """Inputs and outputs are few enough and properly named."""
    LOADS = "loads"
    """onnxruntime opens it within the bounds of memory and time."""
    RUNS = "runs"
    """It answers made-up inputs."""
    FINITE = "finite"
    """No NaN or infinity where the inputs have none."""
    DETERMINISM = "determinism"
    """The same answer to the same input; the measure is the greatest relative difference."""
    BATCHING = "batching"
    """A row's answer does not depend on the rows beside it; measured likewise."""
    GOLDEN = "golden"
    """It answers the golden requests as expected; the measure is the greatest difference."""
    SIGNATURE = "signature"
    """Callers of the champion would not notice another set of tensors."""
    LATENCY = "latency"
    """The measure is the 99th percentile of a run of one row, in milliseconds."""
    MEMORY = "memory"
    """The measure is the peak of memory beyond an empty process, in MiB."""
    AGREEMENT = "agreement"
    """On recent inputs, the share on which it says the same as the champion (0 to 1)."""


REQUIRED: Final = frozenset(
    {Check.FILES, Check.FORMAT, Check.DOMAINS, Check.EXTERNAL_DATA, Check.NAMES, Check.LOADS}
)
"""What a version must pass to be registered at all; and none may end the sandbox by force."""


class Outcome(StrEnum):
    """How a check ended. What is skipped says nothing: neither a pass nor a failure."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class CheckResult(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one check found: a sentence, and the number that thresholds are held to, if any.

    `forced` says that the sandbox came to a violent end in it: a crash, a hang, too much memory.
    """

    outcome: Outcome
    summary: str = ""
    measure: float | None = None
    forced: bool = False


class Approval(Struct, frozen=True, forbid_unknown_fields=True):
    """That a principal stands for a version; `roles` are those it held for the model then.

    `groups` are the principals of the groups in which an issuer said that it is. `at` is in UTC
    seconds.
    """

    principal: str
    roles: tuple[str, ...]
    at: float
    reason: str
    groups: tuple[str, ...] = ()


class Review(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What stands for and against a version. Times are in UTC seconds.

    `digest` is the version's own. `report` is the SHA-256 of the report in the store; without an
    inspection it is empty, and so is `checks`.
    """

    digest: str
    registered_by: str
    registered_at: float
    inspected_at: float = 0.0
    report: str = ""
    checks: dict[Check, CheckResult] = {}
    approvals: tuple[Approval, ...] = ()


class PromotionWish(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """That an alias is to move to a version once its gates allow it. `at` is in UTC seconds.

    `asked_by` is who wants it, `source` where that was said: `admin`, `mlflow`. `over` is what the
    alias named then: once it names something else, the wish is out of date.
    """

    version: int
    asked_by: str
    at: float
    reason: str = ""
    source: str = "admin"
    over: int | None = None
    groups: tuple[str, ...] = ()
    allow_signature_change: bool = False


def review_name(model: str, number: int) -> str:
    """The name of a version's Review in the Snapshot."""
    return f"{model}/{number}"


def wish_name(model: str, alias: str) -> str:
    """The name of the wish for an alias in the Snapshot."""
    return f"{model}/{alias}"
