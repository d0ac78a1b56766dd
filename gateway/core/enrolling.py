"""Enrolling: the experiments of an endpoint, compiled into what takes units of its requests.

An experiment stands behind the endpoint's own rules and before its default. A request that its
conditions do not fit, that does not name the unit, whose unit is in the global hold-out, outside
the slots of its layer or beyond its exposure, goes on to the next one, and in the end to the
default. Enrolment, variant, layer and hold-out are drawn independently of each other, so a growing
exposure moves nobody who is enrolled.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from gateway.core.assignment import HASH_VERSION, SCALE, Drawer, Interval, Reason, SplitState
from gateway.core.experiments import (
    ENROLLING,
    ExperimentRecord,
    HoldOut,
    Layer,
    Phase,
    Segment,
    State,
    study_of,
)
from gateway.core.naming import Facts, checked_unit, unit_of
from gateway.core.plans import (
    Assignment,
    Plan,
    ShadowPlan,
    Variant,
    all_hold,
)
from gateway.core.targeting import Scalar

MAX_KNOWN_UNITS: Final = 16_384
"""Units of a process whose enrolment is not drawn again; units come back."""
OTHER_SEGMENT: Final = 0
"""The index of all values that the document does not list; value `i` of it has index `i + 1`."""

IN: Final = "in"
OUT: Final = "out"


class Enrolment:
    """One experiment that enrols units, compiled; immutable."""

    __slots__ = (
        "_gates",
        "drawer",
        "falls_back",
        "name",
        "phase",
        "salt",
        "segments",
        "study",
        "unit",
        "unit_header",
        "variants",
        "watches_outputs",
        "when",
    )

    def __init__(
        self,
        name: str,
        record: ExperimentRecord,
        layer: Layer | None,
        hold_out: HoldOut | None,
    ) -> None:
        """Compile a checked record; `layer` is the one that its document names."""
        document, phase = record.document, phase_of(record)
        header = None if document.unit is None else document.unit.header
        self.name = name
        self.phase = phase
        self.when = document.when
        self.salt = record.split.salt
        self.unit = document.unit
        self.unit_header = None if header is None else header.lower().encode("latin-1", "replace")
        self.drawer = Drawer(record.split, record.exposure)
        self.variants = {
            variant.name: (
                Variant(variant.name, record.versions[variant.name]),
                phase.propensity(variant.name),
            )
            for variant in document.variants
        }
        self.falls_back = document.on_error == "fallback"
        self.segments = None if document.segment is None else _Segments(document.segment)
        self.study = study_of(name, document, phase)
        self.watches_outputs = any(guard.event == "invalid_output" for guard in document.guards)
        self._gates = _Gates(layer, record.slots, hold_out)

    def take(self, facts: Facts, draw: bytes) -> Assignment | None:
        """The variant of a request's unit; None where the request goes on.

        Raises:
            InvalidRequest: a unit of more than 1,024 bytes.
        """
        if self.when and not all_hold(self.when, facts):
            return None
        segment = OTHER_SEGMENT if self.segments is None else self.segments.of(facts)
        if self.unit is None:
            return self._drawn(draw, segment, sticky=False)
        if self.unit_header is None:
            unit = unit_of(self.unit, facts)
        else:
            unit = facts.raw_header(self.unit_header)
        return None if unit is None else _known(self, unit, segment)

    def left_out(self, unit: bytes) -> str | None:
        """Why a unit is not enrolled: `hold_out`, `layer` or `exposure`; None if it is."""
        reason = self._gates.closed_to(unit)
        if reason is None and self.drawer.draw(unit) is None:
            reason = "exposure"
        return reason

    def of_named(self, unit: bytes, segment: int) -> Assignment | None:
        """What a unit that was named gets; None for one that is blank or not enrolled."""
        checked = checked_unit(unit)
        return None if checked is None else self._drawn(checked, segment, sticky=True)

    def _drawn(self, unit: bytes, segment: int, *, sticky: bool) -> Assignment | None:
        if self._gates.closed_to(unit) is not None:
            return None
        name = self.drawer.draw(unit)
        if name is None:
            return None
        variant, propensity = self.variants[name]
        return Assignment(
            variant,
            Reason.SPLIT,
            propensity,
            self.name,
            self.salt,
            unit,
            sticky,
            self.falls_back,
            segment=segment,
        )


@lru_cache(maxsize=MAX_KNOWN_UNITS)
def _known(enrolment: Enrolment, unit: bytes, segment: int) -> Assignment | None:
    return enrolment.of_named(unit, segment)


def with_experiments(
    plan: Plan,
    experiments: Mapping[str, ExperimentRecord],
    layers: Mapping[str, Layer],
    hold_out: HoldOut | None,
) -> Plan:
    """A plan with the experiments of its endpoint that enrol or shadow; the plan itself if none.

    A variant can be forced by its name; by `experiment/variant` where the name means another
    version.
    """
    here = {
        name: record
        for name, record in sorted(experiments.items())
        if record.document.endpoint == plan.endpoint
    }
    enrolments = tuple(
        Enrolment(name, record, layers.get(record.document.layer or ""), hold_out)
        for name, record in here.items()
        if record.state in ENROLLING
    )
    shadows = [
        shadow
        for name, record in here.items()
        if record.state is State.SHADOW
        for shadow in _shadows_of(name, record)
    ]
    if not enrolments and not shadows:
        return plan
    variants = dict(plan.variants)
    for enrolment in enrolments:
        for variant, _ in enrolment.variants.values():
            if variants.setdefault(variant.name, variant).version != variant.version:
                variants[f"{enrolment.name}/{variant.name}"] = variant
    return plan.including(enrolments, shadows, variants)


def phase_of(record: ExperimentRecord) -> Phase:
    """The phase of a checked record that is live.

    Raises:
        ValueError: it has none.
    """
    phase = record.phase
    if phase is None:
        raise ValueError("The experiment was never started.")
    return phase


def _shadows_of(name: str, record: ExperimentRecord) -> list[ShadowPlan]:
    """A shadow for each candidate, before any unit gets one."""
    document, stage = record.document, record.document.shadow
    if stage is None:
        return []
    study = study_of(name, document, phase_of(record))
    return [
        ShadowPlan(
            Variant(variant.name, record.versions[variant.name]),
            stage.share,
            stage.tolerance,
            study,
        )
        for variant in document.variants[1:]
    ]


class _Gates:
    """What closes an experiment to units that its own draw would let in."""

    __slots__ = ("_hold_out", "_layer")

    def __init__(
        self, layer: Layer | None, slots: tuple[Interval, ...], hold_out: HoldOut | None
    ) -> None:
        self._layer = None if layer is None else Drawer(layer_state(layer, slots), SCALE)
        self._hold_out: Drawer | None = None
        if hold_out is not None and hold_out.share:
            everybody = {IN: SCALE}
            state = SplitState.fresh(
                salt=hold_out.salt, hash_version=HASH_VERSION, weights=everybody
            )
            self._hold_out = Drawer(state, hold_out.share)

    def closed_to(self, unit: bytes) -> str | None:
        if self._hold_out is not None and self._hold_out.draw(unit) is not None:
            return "hold_out"
        if self._layer is not None and self._layer.draw(unit) != IN:
            return "layer"
        return None


def layer_state(layer: Layer, slots: tuple[Interval, ...]) -> SplitState:
    """A layer as a split between the slots of one experiment and the rest."""
    edges = [0, *(edge for slot in sorted(slots) for edge in slot), SCALE]
    rest = zip(edges[::2], edges[1::2], strict=True)
    outside = tuple((start, end) for start, end in rest if start < end)
    intervals = {IN: tuple(sorted(slots)), OUT: outside}
    return SplitState(salt=layer.salt, hash_version=HASH_VERSION, intervals=intervals)


class _Segments:
    """Where the segment is read, and the index of each value that is told apart."""

    __slots__ = ("_header", "_indexes", "_parameter")

    def __init__(self, segment: Segment) -> None:
        self._header = None if segment.header is None else segment.header.lower()
        self._parameter = segment.parameter or ""
        self._indexes = {value: index for index, value in enumerate(segment.values, 1)}

    def of(self, facts: Facts) -> int:
        value: Scalar | None
        if self._header is None:
            value = facts.parameters.get(self._parameter)
        else:
            value = facts.header(self._header)
        if value is None:
            return OTHER_SEGMENT
        return self._indexes.get(value if isinstance(value, str) else str(value), OTHER_SEGMENT)
