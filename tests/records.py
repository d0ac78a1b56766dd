"""Records of predictions for the tests, with facts that may be changed by name."""

from typing import Any

from gateway.core.assignment import Reason
from gateway.telemetry import Kind, Record

AT = 1_700_000_000_000_000_000
_KIND: dict[str, Any] = {
    "endpoint": "digits",
    "model": "digits",
    "version": 3,
    "digest": "sha256:ab",
    "variant": "challenger",
    "reason": Reason.SPLIT,
    "revision": 7,
}
_RECORD: dict[str, Any] = {
    "at_ns": AT,
    "prediction_id": "p1",
    "latency_ns": 2_000_000,
    "queue_ns": 200_000,
    "run_ns": 300_000,
    "rows": 2,
    "batch_rows": 5,
}


def make_record(**changes: Any) -> Record:
    """A record of a good prediction; fields of its kind may be changed too."""
    of_kind = {name: changes.pop(name) for name in Kind.__struct_fields__ if name in changes}
    return Record(kind=Kind(**{**_KIND, **of_kind}), **{**_RECORD, **changes})
