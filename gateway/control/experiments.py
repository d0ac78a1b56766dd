"""Experiments as the Registry commits them: every change by people, and every step of the steward.

The rules are in `gateway.core.experimenting` and `gateway.core.stepping`; here they become one
commit each, under the conditions that the caller states.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from gateway.control.registry import Change, Edit, Registry, Request
from gateway.core import experimenting
from gateway.core.assignment import SCALE, Interval
from gateway.core.documents import HOLD_OUT
from gateway.core.errors import GatewayError
from gateway.core.experiments import Experiment, HoldOut
from gateway.core.principals import STEWARD
from gateway.core.readings import Decision
from gateway.core.snapshot import Snapshot, document_digest, endpoint_record, plan_of
from gateway.core.stepping import step
from gateway.core.strategies import opening

ID_BYTES: Final = 8
SALT_BYTES: Final = 4
MAX_REASON: Final = 1000
MAX_SALT: Final = 64


class Judgement(Struct, frozen=True):
    """A decision on a record that had this ETag, with what it was made from.

    `champion` is the version that the experiment's alias named, None where it named none; `closed`
    is what gates miss of the winner, a sentence each.
    """

    name: str
    etag: str
    decision: Decision
    at: float
    champion: int | None
    basis: Any
    closed: tuple[str, ...] = ()


class ExperimentPreview(Struct, frozen=True):
    """What starting a document would do. `refusal` says why it would be refused.

    `etag` is that of the draft that stands; shares are out of 10,000.
    """

    name: str
    revision: int
    etag: str | None
    changes: bool
    versions: dict[str, int]
    exposure: int
    weights: dict[str, int]
    shadowed: bool
    free_slots: tuple[Interval, ...]
    refusal: str | None


class Experiments:
    """Commits changes of experiments, layers and the global hold-out."""

    __slots__ = ("_entropy", "_now", "_registry")

    def __init__(
        self, registry: Registry, *, now: Callable[[], float], entropy: Callable[[int], bytes]
    ) -> None:
        """On a registry; `now` is in UTC seconds, `entropy` gives fresh random bytes."""
        self._registry = registry
        self._now = now
        self._entropy = entropy

    async def put(self, name: str, document: Experiment, request: Request) -> Change:
        """Write a draft, or replace one whole.

        Raises:
            InvalidRequest: the document contradicts itself or names what does not exist.
            Conflict: it was started, `if_match` does not hold, or a version differs in signature
                from what the endpoint serves and the request does not allow it.
        """
        drawn = self._drawn(name)

        async def make(base: Snapshot) -> Snapshot:
            changed = experimenting.put_experiment(base, name, document, drawn)
            if not request.allow_signature_change:
                await self.check_alike(changed, name)
            return changed

        return await self._commit("put", name, make, request)

    async def preview(self, name: str, document: Experiment, actor: str = "") -> ExperimentPreview:
        """Say what it would do if this actor started this document, without doing it.

        Raises:
            InvalidRequest: as `put`.
            Conflict: it was started.
        """
        base = await self._registry.fresh()
        drafted = experimenting.put_experiment(base, name, document, self._drawn(name))
        refusal: str | None = None
        started = drafted
        try:
            await self.check_alike(drafted, name)
            started = experimenting.start_experiment(drafted, name, self._now(), by=actor)
            await self._registry.gatekeeper.check(base, started, actor)
        except GatewayError as error:
            refusal = str(error)
        stored = base.experiments.get(name)
        endpoint = endpoint_record(base, document.endpoint).document
        first = opening(document)
        free = () if document.layer is None else experimenting.free_slots(base, document.layer)
        return ExperimentPreview(
            name=name,
            revision=base.revision,
            etag=None if stored is None else document_digest(stored),
            changes=stored != drafted.experiments[name],
            versions=started.experiments[name].versions
            or experimenting.resolved(document, base.models[endpoint.model]),
            exposure=first.exposure,
            weights=first.weights,
            shadowed=document.shadow is not None,
            free_slots=tuple(free),
            refusal=refusal,
        )

    async def delete(self, name: str, request: Request) -> Change:
        """Drop a draft or one that has ended.

        Raises:
            NotFound: no such experiment.
            Conflict: it runs, or `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return experimenting.delete_experiment(base, name)

        return await self._commit("delete", name, make, request)

    async def start(self, name: str, request: Request, *, supersedes: str | None = None) -> Change:
        """Start a draft, in place of another experiment if one is named.

        Raises:
            NotFound: no such experiment.
            Conflict: it is no draft, `if_match` does not hold, its layer has no room, its control
                is not what it would replace, or a version differs in signature.
            InvalidRequest: it cannot run beside what is there.
            GateClosed: something that a gate asks of a variant's version is missing.
        """

        async def make(base: Snapshot) -> Snapshot:
            changed = experimenting.start_experiment(
                base, name, self._now(), supersedes, by=request.actor
            )
            if not request.allow_signature_change:
                await self.check_alike(changed, name)
            return changed

        return await self._commit("start", name, make, request)

    async def pause(self, name: str, request: Request) -> Change:
        """Leave traffic as it is and take no step; harm still rolls back.

        Raises:
            NotFound: no such experiment.
            Conflict: it takes no steps now, or `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return experimenting.pause_experiment(base, name, self._now(), request.reason)

        return await self._commit("pause", name, make, request)

    async def resume(self, name: str, request: Request) -> Change:
        """Take steps again.

        Raises:
            NotFound: no such experiment.
            Conflict: it is neither paused nor held, or `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return experimenting.resume_experiment(base, name, self._now())

        return await self._commit("resume", name, make, request)

    async def approve(self, name: str, request: Request) -> Change:
        """Let it promote once its evidence says so.

        Raises:
            NotFound: no such experiment.
            Conflict: it does not wait for approval, or `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return experimenting.approve_experiment(base, name)

        return await self._commit("approve", name, make, request)

    async def stop(self, name: str, request: Request) -> Change:
        """End it without a verdict: everybody gets the endpoint's default.

        Raises:
            NotFound: no such experiment.
            Conflict: it does not run, or `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return experimenting.stop_experiment(base, name, self._now(), request.reason)

        return await self._commit("stop", name, make, request)

    async def roll_back(self, name: str, request: Request) -> Change:
        """End it as harmful, taking back a promotion that it made.

        Raises:
            NotFound: no such experiment.
            Conflict: it does not run, or `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return experimenting.roll_back_experiment(base, name, self._now(), request.reason)

        return await self._commit("rollback", name, make, request)

    async def step(self, judged: Judgement) -> Change:
        """Do what was decided, if the record is still the one that was judged.

        Raises:
            Conflict: it moved; judge again.
            NotFound: it is gone.
            InvalidRequest: the result does not go with what else is there.
            StoreUnavailable: nothing was changed, or that is not known; the next look tells.
        """

        async def make(base: Snapshot) -> Snapshot:
            return step(
                base,
                judged.name,
                judged.decision,
                at=judged.at,
                champion=judged.champion,
                closed=judged.closed,
            )

        words = " ".join((judged.decision.detail or _words(judged.decision), *judged.closed))
        request = Request(actor=STEWARD, reason=words[:MAX_REASON], if_match=judged.etag)
        return await self._commit("step", judged.name, make, request, judged.basis)

    async def put_layer(self, name: str, salt: str | None, request: Request) -> Change:
        """Add a layer; without a salt it keeps the one that it has, or gets a fresh one.

        Raises:
            InvalidRequest: no name, or no salt.
            Conflict: `if_match` does not hold, or experiments run by its salt.
        """
        drawn = self._salt(f"layer.{name}")

        async def make(base: Snapshot) -> Snapshot:
            stored = base.layers.get(name)
            kept = drawn if stored is None else stored.salt
            return experimenting.put_layer(base, name, salt or kept)

        return await self._registry.commit(Edit("layer.put", f"layers/{name}", make), request)

    async def delete_layer(self, name: str, request: Request) -> Change:
        """Drop a layer.

        Raises:
            NotFound: no such layer.
            Conflict: an experiment names it, or `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return experimenting.delete_layer(base, name)

        return await self._registry.commit(Edit("layer.delete", f"layers/{name}", make), request)

    async def put_hold_out(self, share: int, request: Request) -> Change:
        """Keep this share of units, out of 10,000, away from every experiment.

        Raises:
            InvalidRequest: a share that may not be.
            Conflict: `if_match` does not hold.
        """
        drawn = self._salt("holdout")

        async def make(base: Snapshot) -> Snapshot:
            salt = drawn if base.hold_out is None else base.hold_out.salt
            return experimenting.put_hold_out(base, HoldOut(salt=salt, share=share))

        return await self._registry.commit(Edit("holdout.put", HOLD_OUT, make), request)

    async def delete_hold_out(self, request: Request) -> Change:
        """Keep nobody away.

        Raises:
            NotFound: nobody is.
            Conflict: `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return experimenting.delete_hold_out(base)

        return await self._registry.commit(Edit("holdout.delete", HOLD_OUT, make), request)

    async def _commit(
        self,
        verb: str,
        name: str,
        make: Any,  # noqa: ANN401 - as `Edit` has it
        request: Request,
        evidence: Any = None,  # noqa: ANN401 - a JSON document
    ) -> Change:
        edit = Edit(f"experiment.{verb}", f"experiments/{name}", make, evidence)
        return await self._registry.commit(edit, request)

    async def check_alike(self, snapshot: Snapshot, name: str) -> None:
        """Every variant answers like the endpoint's default, as those of splits do."""
        record = experimenting.experiment_of(snapshot, name)
        plan = plan_of(snapshot, record.document.endpoint)
        model = snapshot.models[plan.model]
        versions = record.versions or experimenting.resolved(record.document, model)
        for number in sorted(set(versions.values()) - {plan.default.version}):
            await self._registry.check_pair(
                (plan.model, plan.default.version), (plan.model, number)
            )

    def _drawn(self, name: str) -> experimenting.Drawn:
        return experimenting.Drawn(id=self._entropy(ID_BYTES).hex(), salt=self._salt(name))

    def _salt(self, name: str) -> str:
        """A name for people, cut to length, and a random part that keeps salts apart."""
        random = self._entropy(SALT_BYTES).hex()
        return f"{name[: MAX_SALT - 1 - len(random)]}.{random}"


def _words(decision: Decision) -> str:
    """What a decision does that has no sentence of its own: it moves traffic on."""
    share = decision.exposure / SCALE
    weights = ", ".join(f"{name} {weight / SCALE:.2%}" for name, weight in decision.weights.items())
    return f"Step {decision.step}: {share:.2%} of all units are enrolled, of them {weights}."
