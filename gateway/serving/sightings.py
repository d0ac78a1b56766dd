"""Sightings: what this process saw of the units of experiments and has not handed over.

Fed off the answers' way, with the records of a phase. A unit is told once, and again whenever
something new happened to it; where each request is a unit of its own and nothing needs their names
they are counted. What is told and what is known of units is bounded: a sighting for which there is
no room is dropped and counted, and told the next time that the unit is seen.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final, TypeAlias

from gateway.core.evidence import SERVED, SIGHTING, Compared, Counts, Sightings, encode_sightings
from gateway.core.experiments import Guard, Study
from gateway.serving.cells import Cells
from gateway.telemetry import CALLER_ERRORS, SIGHTING_DROPPED, Kind, Record

Observe: TypeAlias = Callable[[Sightings], None]
"""Takes in what a worker saw; never waits and never raises."""
MAX_WAITING: Final = 65_536
"""Sightings that wait to be handed over: 2 MiB."""
MAX_AT_ONCE: Final = 8_192
"""Sightings that are handed over at a time."""
MAX_SERIES: Final = 4_096
"""Counts that are kept apart until they are handed over."""
_MAX_CACHED: Final = 4_096
_NS_PER_MS: Final = 1_000_000
_TIMEOUT: Final = "deadline_exceeded"
_INVALID: Final = "invalid_output"


class _Face:
    """What all records of one kind and error have in common."""

    __slots__ = ("bits", "guards", "if_invalid", "phase", "slow", "study", "variant")

    def __init__(self, kind: Kind, study: Study, error_type: str | None) -> None:
        failed = error_type is not None and error_type not in CALLER_ERRORS
        # The default answered in its place: the variant that was meant has failed all the same.
        failed = failed or kind.intended is not None
        causes = {error_type, kind.failed_with}
        self.study = study
        self.guards = len(study.guards)
        self.phase = study.phase
        self.variant = study.variants[kind.intended or kind.variant]
        self.bits = SERVED if error_type is None else 0
        self.if_invalid = 0
        self.slow: list[tuple[int, int]] = []
        for place, guard in enumerate(study.guards):
            bit = 2 << place
            if guard.event == "slow" and error_type is None and not failed:
                self.slow.append((round((guard.over_ms or 0.0) * _NS_PER_MS), bit))
            elif guard.event == _INVALID and error_type is None and not failed:
                self.if_invalid |= bit
            elif failed and _is_hit(guard, causes):
                self.bits |= bit

    def bits_of(self, record: Record) -> int:
        """The events of one record."""
        bits = self.bits
        if record.invalid:
            bits |= self.if_invalid
        for over_ns, bit in self.slow:
            if record.latency_ns > over_ns:
                bits |= bit
        return bits


class Watchman:
    """Notes units; one for each process. All calls come from the event loop's thread."""

    def __init__(self, cells: Cells, max_units: int) -> None:
        """Have seen nobody.

        Args:
            cells: of this process, for what is dropped.
            max_units: units of which is remembered what was told, and up to as many more.
        """
        self._dropped = cells.counter(SIGHTING_DROPPED)
        self._max_units = max_units
        # Change with the configuration.
        self._faces: dict[tuple[Kind, str | None], _Face] = {}
        # Change with every new unit, and with every event that is new of one.
        self._known: dict[int, int] = {}
        self._known_before: dict[int, int] = {}
        self._rows: list[bytes] = []
        # Change with every record, until they are handed over.
        self._counts: dict[tuple[int, int, int], list[int]] = {}
        self._compared: dict[tuple[int, int], list[int]] = {}

    @property
    def has_news(self) -> bool:
        """Whether something waits to be handed over."""
        return bool(self._rows or self._counts or self._compared)

    def note(self, records: Iterable[Record]) -> None:
        """Take note of those records that belong to a phase."""
        for record in records:
            kind = record.kind
            study, unit = kind.study, record.unit_hash
            if study is None or unit is None:
                continue
            face = self._faces.get((kind, record.error_type))
            if face is None:
                face = self._face_of(kind, study, record.error_type)
            if study.is_counted:
                self._count(face, record)
            else:
                self._see(face, record, unit)

    def compared(self, study: Study, variant: str, *, agrees: bool | None) -> None:
        """Take note of what a shadow of an experiment found; None if it failed."""
        key = (study.phase, study.variants[variant])
        counted = self._compared.get(key)
        if counted is None:
            if len(self._compared) >= MAX_SERIES:
                self._dropped.add()
                return
            counted = self._compared[key] = [0, 0, 0]
        counted[0] += agrees is not None
        counted[1] += agrees is False
        counted[2] += agrees is None

    def forget(self) -> None:
        """Tell units again when they are seen again: what was handed over may be lost."""
        self._known, self._known_before = {}, {}

    def take(self) -> bytes:
        """Hand over what waits, the oldest first and a bounded part of it; empty if nothing."""
        if not self.has_news:
            return b""
        told = Sightings(
            units=b"".join(self._rows[:MAX_AT_ONCE]),
            counts=tuple(
                Counts(*key, counted[0], counted[1], tuple(counted[2:]))
                for key, counted in self._counts.items()
            ),
            compared=tuple(Compared(*key, *counted) for key, counted in self._compared.items()),
        )
        del self._rows[:MAX_AT_ONCE]
        self._counts, self._compared = {}, {}
        return encode_sightings(told)

    def _face_of(self, kind: Kind, study: Study, error_type: str | None) -> _Face:
        if len(self._faces) >= _MAX_CACHED:
            self._faces.clear()
        face = self._faces[kind, error_type] = _Face(kind, study, error_type)
        return face

    def _see(self, face: _Face, record: Record, unit: bytes) -> None:
        mark = hash((face.phase, face.variant, unit))
        bits = face.bits_of(record)
        known = self._known.get(mark)
        if known is not None and known | bits == known:
            return
        if known is None:
            known = self._known_before.get(mark)
        told = bits if known is None else known | bits
        if told == known:
            self._remember(mark, told)
            return
        if len(self._rows) >= MAX_WAITING:
            self._dropped.add()
            return
        self._remember(mark, told)
        at_ms = record.at_ns // _NS_PER_MS
        self._rows.append(
            SIGHTING.pack(face.phase, unit, face.variant, record.segment, told, at_ms)
        )

    def _remember(self, mark: int, bits: int) -> None:
        if len(self._known) >= self._max_units and mark not in self._known:
            self._known_before, self._known = self._known, {}
        self._known[mark] = bits

    def _count(self, face: _Face, record: Record) -> None:
        key = (face.phase, face.variant, record.segment)
        counted = self._counts.get(key)
        if counted is None:
            if len(self._counts) >= MAX_SERIES:
                self._dropped.add()
                return
            counted = self._counts[key] = [0] * (2 + face.guards)
        bits = face.bits_of(record)
        counted[0] += 1
        counted[1] += bits & SERVED
        bits >>= 1
        place = 2
        while bits:
            counted[place] += bits & 1
            bits >>= 1
            place += 1


def drop_into(cells: Cells) -> Observe:
    """Where sightings go while nobody keeps evidence: nowhere, and counted."""

    def observe(sightings: Sightings) -> None:
        counted = sum(counts.assigned for counts in sightings.counts)
        cells.counter(SIGHTING_DROPPED).add(len(sightings.units) // SIGHTING.size + counted)

    return observe


def _is_hit(guard: Guard, causes: Collection[str | None]) -> bool:
    """Whether a failure is an event of this guard."""
    if guard.event == "timeout":
        return _TIMEOUT in causes
    if guard.event == _INVALID:
        return _INVALID in causes
    return True
