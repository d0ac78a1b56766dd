"""Previews: what putting an endpoint's document would do, said before it is done."""

from collections.abc import Mapping

from msgspec import Struct

from gateway.core.assignment import SCALE, Interval
from gateway.core.endpoints import DEFAULT_VARIANT, Rule
from gateway.core.experiments import ExperimentRecord
from gateway.core.plans import Enrols, Plan, shares
from gateway.core.snapshot import Snapshot, document_digest, endpoint_record, plan_of
from gateway.core.transitions import moved_share


class VariantPreview(Struct, frozen=True):
    """A branch: the version it runs, its share of the rule's units, and where its units lie."""

    name: str
    version: int
    share: float
    intervals: tuple[Interval, ...] = ()


class RulePreview(Struct, frozen=True):
    """A rule: its variants, the default's share under it, and the share of units that move.

    `salt` is None where it would be drawn when the document is put.
    """

    name: str
    conditions: int
    kind: str
    variants: tuple[VariantPreview, ...]
    left_out: float
    moved_share: float
    salt: str | None


class ShadowPreview(Struct, frozen=True):
    """A shadow: the version it runs and its share of requests."""

    name: str
    version: int
    share: float


class ExperimentPreview(Struct, frozen=True):
    """An experiment behind the rules: its state, the share of units it enrols, and its variants."""

    name: str
    state: str
    phase: int
    exposure: float
    variants: tuple[VariantPreview, ...]


class Preview(Struct, frozen=True):
    """The compiled plan of a document.

    `revision` is the one it was made from; `etag` is that of the document that stands; `refusal`
    says why putting it would be refused for its signatures.
    """

    endpoint: str
    model: str
    revision: int
    etag: str | None
    changes: bool
    default_version: int
    rules: tuple[RulePreview, ...]
    shadows: tuple[ShadowPreview, ...]
    refusal: str | None
    experiments: tuple[ExperimentPreview, ...] = ()


def preview_of(base: Snapshot, changed: Snapshot, endpoint: str, refusal: str | None) -> Preview:
    """Compare an endpoint in two Snapshots."""
    plan = plan_of(changed, endpoint)
    document = changed.endpoints[endpoint].document
    stored = base.endpoints.get(endpoint)
    return Preview(
        endpoint=endpoint,
        model=plan.model,
        revision=base.revision,
        etag=None if stored is None else document_digest(stored),
        changes=stored != changed.endpoints[endpoint],
        default_version=plan.default.version,
        rules=tuple(_rule(base, changed, plan, rule) for rule in document.rules),
        shadows=tuple(
            ShadowPreview(shadow.variant.name, shadow.variant.version, shadow.share / SCALE)
            for shadow in plan.shadows
        ),
        refusal=refusal,
        experiments=tuple(
            _experiment(changed.experiments[one.name], one) for one in plan.experiments
        ),
    )


def _experiment(record: ExperimentRecord, enrols: Enrols) -> ExperimentPreview:
    return ExperimentPreview(
        name=enrols.name,
        state=record.state,
        phase=enrols.study.phase,
        exposure=record.exposure / SCALE,
        variants=tuple(
            VariantPreview(name, variant.version, share, record.split.intervals.get(name, ()))
            for name, (variant, share) in enrols.variants.items()
        ),
    )


def _rule(base: Snapshot, changed: Snapshot, plan: Plan, rule: Rule) -> RulePreview:
    after = changed.endpoints[plan.endpoint]
    state = after.splits.get(rule.name)
    drawn = dict(shares(plan).get(rule.name, {}))
    intervals: Mapping[str, tuple[Interval, ...]] = {} if state is None else state.intervals
    return RulePreview(
        name=rule.name,
        conditions=len(rule.when),
        kind="serve" if rule.split is None else "split",
        left_out=0.0 if rule.split is None else drawn.pop(DEFAULT_VARIANT),
        variants=tuple(
            VariantPreview(name, plan.variants[name].version, share, intervals.get(name, ()))
            for name, share in drawn.items()
        ),
        moved_share=_moved(base, changed, plan, rule),
        salt=None if state is None or not _keeps_salt(base, plan, rule) else state.salt,
    )


def _moved(base: Snapshot, changed: Snapshot, plan: Plan, rule: Rule) -> float:
    if rule.split is None:
        return 0.0
    after = changed.endpoints[plan.endpoint]
    if plan.endpoint not in base.endpoints and plan.endpoint not in base.models:
        return rule.split.exposure / SCALE
    return moved_share(endpoint_record(base, plan.endpoint), after)[rule.name]


def _keeps_salt(base: Snapshot, plan: Plan, rule: Rule) -> bool:
    if rule.split is not None and rule.split.salt is not None:
        return True
    stored = base.endpoints.get(plan.endpoint)
    return stored is not None and rule.name in stored.splits
