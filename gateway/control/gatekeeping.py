"""The gatekeeper: every commit is held to the gates here, whatever way it came.

It looks at what a commit makes of the Snapshot, not at what was asked for. So promotions, rules,
experiments, loads and documents applied whole meet the same gates, and a way that is added later
meets them too.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from gateway.core.entrances import Stage, compare, concerns, entrances, places_of, stage_of
from gateway.core.errors import Forbidden, GateClosed, InvalidRequest, Missing, NotFound
from gateway.core.experiments import State
from gateway.core.gates import Gate
from gateway.core.gating import Facts, Finding, counted, examine, facts_of, missing_of
from gateway.core.models import Key, Manifest
from gateway.core.people import may_now
from gateway.core.principals import Action
from gateway.core.snapshot import Snapshot, canonical, document_digest
from gateway.core.tallies import Evidence

EvidenceOf = Callable[[Sequence[str]], Awaitable[Mapping[str, Evidence]]]
"""The tallies of experiments by id, in one round trip; raises StoreUnavailable."""
ManifestOf = Callable[[str, int], Awaitable[Manifest]]
"""The manifest of a version; raises NotFound, StoreUnavailable."""


class Asking(Protocol):
    """Of a request, what gates ask for."""

    @property
    def actor(self) -> str:
        """Who asks."""

    @property
    def reason(self) -> str:
        """Why."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The principals of the groups in which an issuer says that who asks is."""

    @property
    def override(self) -> bool:
        """Whether closed gates are to be passed by force."""


class Passage(Struct, frozen=True):
    """That a version met a gate, for the audit log: digests of what was read, and who approved."""

    gate: str
    digest: str
    model: str
    version: int
    stage: Stage
    review: str
    approvals: tuple[str, ...]
    met: tuple[str, ...]


class Look(Struct, frozen=True):
    """What the gates say to a change: what is missing, of which versions; and what was met."""

    missing: tuple[Missing, ...] = ()
    closed: tuple[Key, ...] = ()
    passages: tuple[Passage, ...] = ()


class Gatekeeper:
    """Holds changes to the gates of the Snapshot that they are made from."""

    __slots__ = ("_evidence_of", "_manifest_of", "_now")

    def __init__(
        self, manifest_of: ManifestOf, evidence_of: EvidenceOf | None, now: Callable[[], float]
    ) -> None:
        """Read through the given calls; `now` is in UTC seconds."""
        self._manifest_of = manifest_of
        self._evidence_of = evidence_of
        self._now = now

    async def look(self, base: Snapshot, changed: Snapshot, actor: str) -> Look:
        """What gates say to a change that an actor asks for: those that stood, and those it brings.

        Raises:
            StoreUnavailable: what they ask for cannot be read.
        """
        gates = _gates(base, changed)
        if not gates:
            return Look()
        compared = compare(base, changed)
        missing: list[Missing] = []
        closed: dict[Key, None] = {}
        passages: list[Passage] = []
        known: dict[Key, Facts] = {}
        for name, gate in gates:
            for key, stage in sorted(entrances(compared, gate).items()):
                if key not in known:
                    known[key] = await self._facts(base, changed, key, actor)
                found = examine(name, gate, stage, known[key], self._now())
                lacking = missing_of(found)
                if lacking:
                    missing += lacking
                    closed[key] = None
                else:
                    passages.append(_passage(name, gate, stage, known[key], found))
        return Look(tuple(dict.fromkeys(missing)), tuple(closed), tuple(passages))

    async def check(self, base: Snapshot, changed: Snapshot, actor: str) -> None:
        """Refuse a change that lets a version in for which something is missing.

        Raises:
            GateClosed: with all that is missing.
            StoreUnavailable: what the gates ask for cannot be read.
        """
        _refuse(await self.look(base, changed, actor))

    async def admit(self, base: Snapshot, changed: Snapshot, request: Asking) -> Any:  # noqa: ANN401
        """What the audit log should hold of a change that may pass; None where no gate is met.

        Raises:
            GateClosed: something is missing, and it is not to be passed by force.
            Forbidden: it is, by who may not.
            InvalidRequest: it is, without a reason.
            StoreUnavailable: what the gates ask for cannot be read.
        """
        look = await self.look(base, changed, request.actor)
        if not look.missing:
            return _document({"gates": look.passages}) if look.passages else None
        if not request.override:
            _refuse(look)
        for model, _ in look.closed:
            _check_force(base, request, model)
        return _document({"override": True, "missing": look.missing})

    async def findings(
        self, snapshot: Snapshot, key: Key, alias: str, actor: str
    ) -> tuple[Finding, ...]:
        """Every requirement for an alias to name a version, met or not.

        Raises:
            StoreUnavailable: what the gates ask for cannot be read.
        """
        facts: Facts | None = None
        found: list[Finding] = []
        places = places_of(snapshot)
        for name, gate in sorted(snapshot.gates.items()):
            if concerns(gate, key[0], alias, places):
                facts = facts or await self._facts(snapshot, snapshot, key, actor)
                stage = stage_of(snapshot, key[0], alias, gate)
                found += examine(name, gate, stage, facts, self._now())
        return tuple(found)

    async def _facts(self, base: Snapshot, changed: Snapshot, key: Key, actor: str) -> Facts:
        try:
            lineage: Mapping[str, Any] | None = (await self._manifest_of(*key)).lineage
        except NotFound:
            lineage = None
        evidence = await self._evidence(changed, key)
        return facts_of(base, changed, key, asked_by=actor, lineage=lineage, evidence=evidence)

    async def _evidence(self, snapshot: Snapshot, key: Key) -> Mapping[str, Evidence]:
        """The tallies of the experiments that run a version."""
        ids = [
            record.id
            for record in snapshot.experiments.values()
            if record.state is not State.DRAFT and key[1] in record.versions.values()
        ]
        if self._evidence_of is None or not ids:
            return {}
        return await self._evidence_of(ids)


def with_passage(evidence: Any, passed: Any) -> Any:  # noqa: ANN401 - JSON documents
    """The evidence of an entry: an edit's own, with what the gates add to it.

    A decision keeps its form, so that it can be made again; see `gateway.core.ledger.Basis`.
    """
    if passed is None or evidence is None:
        return passed if evidence is None else evidence
    return {**evidence, **({"passed": passed} if "decision" in evidence else passed)}


def _gates(base: Snapshot, changed: Snapshot) -> list[tuple[str, Gate]]:
    """Every gate that stood, so that no change opens its own, and every one that comes with it.

    What is put into an empty store stood elsewhere before, gates and all.
    """
    stood = sorted(base.gates.items())
    if base.gates is changed.gates or base.revision == 0:
        return stood
    brought = sorted(changed.gates.items())
    return stood + [(name, gate) for name, gate in brought if base.gates.get(name) != gate]


def _document(evidence: object) -> Any:  # noqa: ANN401 - a JSON document
    """Evidence as an audit entry holds it."""
    return msgspec.json.decode(canonical(evidence))


def _refuse(look: Look) -> None:
    if not look.missing:
        return
    told = ", ".join(f"version {number} of '{model}'" for model, number in look.closed)
    sentences = dict.fromkeys(one.sentence for one in look.missing)
    message = f"A gate is closed for {told}. {' '.join(sentences)}"
    raise GateClosed(message, look.missing)


def _check_force(base: Snapshot, request: Asking, model: str) -> None:
    if not may_now(base.principals, request.actor, request.groups, Action.OVERRIDE, model):
        message = (
            f"'{request.actor}' may not pass the gates of '{model}' by force; that takes the role "
            "'emergency'."
        )
        raise Forbidden(message)
    if not request.reason.strip():
        message = "Who passes a gate by force gives a reason."
        raise InvalidRequest(message)


def _passage(
    name: str, gate: Gate, stage: Stage, facts: Facts, found: Sequence[Finding]
) -> Passage:
    rules = gate.trial.approvals
    if stage is Stage.PROMOTION:
        rules += gate.promotion.approvals
    names = {approval.principal for rule in rules for approval in counted(rule, facts)}
    return Passage(
        gate=name,
        digest=document_digest(gate),
        model=facts.model,
        version=facts.number,
        stage=stage,
        review="" if facts.review is None else document_digest(facts.review),
        approvals=tuple(sorted(names)),
        met=tuple(one.sentence for one in found),
    )
