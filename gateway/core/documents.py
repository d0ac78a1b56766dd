"""Documents: the parts of a Snapshot that have a name, a digest and an author of their own.

Each is known to the audit log and in ETags by its target: `models/<name>`, `endpoints/<name>`,
`experiments/<name>`, `layers/<name>`, `gates/<name>`, `principals/<name>`, `tokens/<id>`,
`reviews/<model>/<number>`, `wishes/<model>/<alias>`,
`retentions/<name>` or `holdout`. A commit is meant for one of them
and may move others with it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from gateway.core.endpoints import EndpointRecord
from gateway.core.experiments import ExperimentRecord, HoldOut, Layer
from gateway.core.gates import Gate
from gateway.core.principals import PrincipalDocument, TokenRecord
from gateway.core.retentions import Retention
from gateway.core.reviews import PromotionWish, Review
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot, canonical

TABLES: Final[Mapping[str, type]] = {
    "models": ModelRecord,
    "endpoints": EndpointRecord,
    "experiments": ExperimentRecord,
    "layers": Layer,
    "gates": Gate,
    "principals": PrincipalDocument,
    "tokens": TokenRecord,
    "reviews": Review,
    "wishes": PromotionWish,
    "retentions": Retention,
}
"""Fields of a Snapshot that hold documents by name; a target begins with one of them."""
HOLD_OUT: Final = "holdout"


def document_at(snapshot: Snapshot, target: str) -> object | None:
    """What a target names, None where there is nothing."""
    if target == HOLD_OUT:
        return snapshot.hold_out
    kind, _, name = target.partition("/")
    table: Mapping[str, object] = getattr(snapshot, kind) if kind in TABLES else {}
    return table.get(name)


def moved_targets(base: Snapshot, changed: Snapshot) -> Iterator[str]:
    """The targets whose documents differ, in a fixed order."""
    for kind in TABLES:
        before, after = getattr(base, kind), getattr(changed, kind)
        if before is after:
            continue
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                yield f"{kind}/{name}"
    if base.hold_out != changed.hold_out:
        yield HOLD_OUT


def placed_of(snapshot: Snapshot) -> dict[str, Any]:
    """Every document of a Snapshot by its target, as audit entries hold them."""
    read = msgspec.json.decode(canonical(snapshot))
    placed = {
        f"{kind}/{name}": document
        for kind in TABLES
        for name, document in read.get(kind, {}).items()
    }
    return {**placed, HOLD_OUT: read.get("hold_out")}


def assembled(placed: Iterable[tuple[str, object]]) -> Snapshot:
    """The Snapshot that a sequence of (target, document) leads to; a later one replaces earlier.

    Documents are as audit entries hold them, None where one was deleted. Neither revision nor
    audit head are set, and nothing is checked.

    Raises:
        msgspec.ValidationError: one is no document of its kind.
    """
    standing = dict(placed)
    tables: dict[str, dict[str, Any]] = {kind: {} for kind in TABLES}
    for target, document in standing.items():
        kind, _, name = target.partition("/")
        if kind in TABLES and document is not None:
            tables[kind][name] = msgspec.convert(document, TABLES[kind], str_keys=True)
    hold_out = msgspec.convert(standing.get(HOLD_OUT), HoldOut | None)
    return replace(EMPTY, **tables, hold_out=hold_out)
