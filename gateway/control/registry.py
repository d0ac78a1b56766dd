"""The Registry: every change of what is served, as one commit each.

A change reads the newest document, applies a pure transition and writes it back if nothing moved
in between. When another document moved, it is tried again here; when the caller's own did, the
caller hears of it (Conflict).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec import Struct

from gateway.control.conditions import accepted_of, check_match, check_reason, etag_of
from gateway.control.gatekeeping import EvidenceOf, Gatekeeper, with_passage
from gateway.control.previews import Preview, preview_of
from gateway.core import transitions
from gateway.core.audit import AuditEntry, Commit, commit_of
from gateway.core.endpoints import Endpoint, check_endpoint
from gateway.core.entrances import without_aliases
from gateway.core.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from gateway.core.governing import without_overtaken
from gateway.core.models import CHAMPION, Key, Manifest, check_compatible
from gateway.core.reviews import Review
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot, decode, order_of, plan_of
from gateway.ports import Store

MAX_TRIES: Final = 16
MAX_JITTER_S: Final = 0.02
SALT_BYTES: Final = 4


class Request(Struct, frozen=True):
    """Who asks for a change, why, and under which conditions.

    `if_match` is the ETag that the document must have: `*` for any, empty for none yet, None to
    not ask. `answers` is the promotions stream's entry that the same transaction answers.
    `override` passes closed gates by force, for who may; it needs a reason. `groups` are the
    principals of the groups in which an issuer says that the actor is. `permit` refuses who may
    not make the change by the newest Snapshot.
    """

    actor: str
    reason: str = ""
    if_match: str | None = None
    allow_signature_change: bool = False
    answers: str | None = None
    override: bool = False
    groups: tuple[str, ...] = ()
    permit: Callable[[Snapshot], None] | None = None


class Change(Struct, frozen=True):
    """What a request came to: `entry` is None if nothing changed, `etag` None if it is deleted."""

    revision: int
    etag: str | None
    entry: AuditEntry | None


class Edit(Struct, frozen=True):
    """A change to one document: its name for the audit log, how to make it, and what from.

    What is only to be `noted` is committed though nothing changes. `write`, if any, writes the
    commit with more beside it, in the place of `Store.commit`.
    """

    action: str
    target: str
    make: Callable[[Snapshot], Awaitable[Snapshot]]
    evidence: Any = None
    noted: bool = False
    write: Callable[[Commit, Any], Awaitable[None]] | None = None


class Registry:
    """Commits changes to the store. Safe to use from several requests at once."""

    __slots__ = ("_entropy", "_held", "_manifests", "_now", "_snapshot", "_store", "gatekeeper")

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], float],
        entropy: Callable[[int], bytes],
        evidence_of: EvidenceOf | None = None,
    ) -> None:
        """Nothing is known until something is read or learnt.

        Args:
            store: where the Snapshot is.
            now: UTC seconds.
            entropy: fresh random bytes, for salts.
            evidence_of: the tallies of experiments, for gates; without, none of them counts.
        """
        self._store = store
        self._now = now
        self._entropy = entropy
        self._snapshot = EMPTY
        self._manifests: dict[tuple[str, int], Manifest] = {}
        self._held: str | None = None
        self.gatekeeper = Gatekeeper(self.manifest, evidence_of, now)

    @property
    def snapshot(self) -> Snapshot:
        """The newest Snapshot that this process has seen."""
        return self._snapshot

    def learn(self, snapshot: Snapshot) -> None:
        """Take note of a Snapshot that was read elsewhere, if it is newer."""
        if order_of(snapshot) > order_of(self._snapshot):
            self._snapshot = snapshot

    def hold(self, reason: str) -> None:
        """Begin nothing in an empty store: there was a Snapshot, though it is not known here."""
        self._held = reason

    def etag(self, target: str) -> str | None:
        """The ETag of a document, such as `models/<name>`; None where there is none."""
        return etag_of(self._snapshot, target)

    async def put_endpoint(self, name: str, document: Endpoint, request: Request) -> Change:
        """Replace an endpoint's document whole.

        Raises:
            InvalidRequest: the document contradicts itself or names what does not exist.
            Conflict: `if_match` does not hold, or its versions differ in signature from each other
                or from what the endpoint served before, and the request does not allow it.
            StoreUnavailable: nothing was changed, or that is not known.
        """
        salts = self._salts(name, document)

        async def make(base: Snapshot) -> Snapshot:
            changed = transitions.put_endpoint(base, name, document, salts)
            if not request.allow_signature_change:
                await self.check_alike(base, changed, name)
            return changed

        return await self.commit(Edit("endpoint.put", f"endpoints/{name}", make), request)

    async def preview_endpoint(self, name: str, document: Endpoint, actor: str = "") -> Preview:
        """Say what it would do if this actor put this document, without doing it.

        Raises:
            InvalidRequest: as `put_endpoint`.
        """
        base = await self.fresh()
        changed = transitions.put_endpoint(base, name, document, self._salts(name, document))
        refusal: str | None = None
        try:
            await self.check_alike(base, changed, name)
            await self.gatekeeper.check(base, changed, actor)
        except (Conflict, NotFound) as error:
            refusal = str(error)
        return preview_of(base, changed, name, refusal)

    async def delete_endpoint(self, name: str, request: Request) -> Change:
        """Drop an endpoint's document.

        Raises:
            NotFound: no such document.
            Conflict: `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return transitions.delete_endpoint(base, name)

        return await self.commit(Edit("endpoint.delete", f"endpoints/{name}", make), request)

    async def promote(
        self, model: str, number: int, request: Request, *, alias: str = CHAMPION
    ) -> Change:
        """Move an alias to another version.

        Raises:
            NotFound: no such model or version.
            Conflict: the alias names it already, `if_match` does not hold, or the signature differs
                from that of the version that serves and the request does not allow it.
            GateClosed: something that a gate asks for is missing.
        """

        async def make(base: Snapshot) -> Snapshot:
            return await self.promoted(base, (model, number), alias, request)

        return await self.commit(Edit("model.promote", f"models/{model}", make), request)

    async def promoted(self, base: Snapshot, key: Key, alias: str, request: Request) -> Snapshot:
        """What a promotion makes of a Snapshot, before any gate; see `promote`."""
        changed = transitions.promote(base, *key, alias)
        aliases = base.models[key[0]].aliases
        serving = aliases.get(alias, aliases.get(CHAMPION))
        if serving is not None and not request.allow_signature_change:
            await self.check_pair((key[0], serving), key)
        return changed

    async def rollback(self, model: str, request: Request, *, alias: str = CHAMPION) -> Change:
        """Move an alias back to the version it named before.

        Raises:
            NotFound: no such model or alias.
            Conflict: there is no earlier version, or `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return transitions.rollback(base, model, alias)

        return await self.commit(Edit("model.rollback", f"models/{model}", make), request)

    async def load(self, model: str, number: int | None, request: Request) -> Change:
        """Keep a version warm though nothing names it; None takes the highest.

        Raises:
            NotFound: no such model or version.
        """

        async def make(base: Snapshot) -> Snapshot:
            return transitions.load(base, model, number)

        return await self.commit(Edit("model.load", f"models/{model}", make), request)

    async def unload(self, model: str, number: int | None, request: Request) -> Change:
        """Let go of a version kept warm by hand; None lets go of all that nothing uses.

        Raises:
            NotFound: no such model or version.
            Conflict: an alias or an endpoint names it.
        """

        async def make(base: Snapshot) -> Snapshot:
            return transitions.unload(base, model, number)

        return await self.commit(Edit("model.unload", f"models/{model}", make), request)

    async def register(
        self,
        manifest: Manifest,
        request: Request,
        *,
        seed: ModelRecord | None = None,
        review: Review | None = None,
    ) -> Change:
        """Add a version whose manifest stands in the store; raises as the transition does.

        Where a gate means the model, what `seed` says of aliases is for a promotion to do.
        """
        model, number = manifest.model, manifest.number
        self._manifests[model, number] = manifest

        async def make(base: Snapshot) -> Snapshot:
            known = without_aliases(base, model, seed)
            return transitions.register(base, model, number, manifest.digest, known, review=review)

        return await self.commit(Edit("model.register", f"models/{model}", make), request)

    async def manifest(self, model: str, number: int) -> Manifest:
        """The manifest of a version, remembered once read.

        Raises:
            NotFound: there is none.
        """
        known = self._manifests.get((model, number))
        if known is None:
            known = await self._store.manifest(model, number)
            if known is None:
                message = f"The manifest of '{model}' version {number} is not in the store."
                raise NotFound(message)
            self._manifests[model, number] = known
        return known

    async def commit(self, edit: Edit, request: Request) -> Change:
        """Read, change and write until nothing moved in between.

        Raises:
            Conflict: the request's condition does not hold, or the change is not legal.
            GateClosed: it lets a version in for which a gate asks for more.
            Forbidden: a gate is to be passed by force, by who may not.
            StoreUnavailable: nothing was changed, or that is not known.
        """
        check_reason(request.reason)
        for _ in range(MAX_TRIES):
            base = await self.fresh()
            if request.permit is not None:
                request.permit(base)
            check_match(base, edit.target, request.if_match)
            changed = without_overtaken(base, await edit.make(base))
            if changed == base and not edit.noted:
                return Change(base.revision, etag_of(base, edit.target), None)
            passed = await self.gatekeeper.admit(base, changed, request)
            commit = commit_of(
                base,
                changed,
                at=self._now(),
                actor=request.actor,
                action=edit.action,
                target=edit.target,
                reason=request.reason,
                evidence=with_passage(edit.evidence, passed),
            )
            answer = None if request.answers is None else (request.answers, accepted_of(commit))
            try:
                await (edit.write or self._store.commit)(commit, answer)
            except Conflict:
                # Many hosts that start together would otherwise keep step with each other.
                await asyncio.sleep(MAX_JITTER_S * self._entropy(1)[0] / 255)
                continue
            self.learn(commit.snapshot)
            return Change(commit.snapshot.revision, commit.entry.after or None, commit.entry)
        message = "The store is too busy: other changes came in between each time; try again."
        raise StoreUnavailable(message)

    async def fresh(self) -> Snapshot:
        """The newest document, unless the store has lost what this process knows.

        Raises:
            StoreUnavailable: the store is away, holds no Snapshot, or an older one.
        """
        document = await self._store.read()
        if document is None and self._held is not None:
            raise StoreUnavailable(self._held)
        try:
            snapshot = EMPTY if document is None else decode(document)
        except InvalidRequest as error:
            message = f"The store holds no readable Snapshot. {error}"
            raise StoreUnavailable(message) from error
        if order_of(snapshot) < order_of(self._snapshot):
            message = (
                f"The store lost data: it holds revision {snapshot.revision}, and revision "
                f"{self._snapshot.revision} was served. Put its data back; docs/redis.md says how."
            )
            raise StoreUnavailable(message)
        self.learn(snapshot)
        return snapshot

    async def check_alike(self, base: Snapshot, changed: Snapshot, endpoint: str) -> None:
        """Every version that an endpoint may run answers like its default, now and before."""
        plan = plan_of(changed, endpoint)
        default = (plan.model, plan.default.version)
        before = _default_of(base, endpoint)
        if before is not None and before != default:
            await self.check_pair(before, default)
        for number in sorted(plan.versions - {plan.default.version}):
            await self.check_pair(default, (plan.model, number))

    async def check_pair(self, serving: Key, candidate: Key) -> None:
        """Refuse, with a Conflict, a version whose callers would see other tensors."""
        old = await self.manifest(*serving)
        new = await self.manifest(*candidate)
        try:
            check_compatible(old.signature, new.signature)
        except Conflict as error:
            message = (
                f"Version {candidate[1]} of '{candidate[0]}' is not like "
                f"version {serving[1]} of '{serving[0]}'. {error}"
            )
            raise Conflict(message) from error

    def _salts(self, name: str, document: Endpoint) -> dict[str, str]:
        """A fresh salt for each split, used where the split is new and names none."""
        check_endpoint(name, document)
        return {
            rule.name: f"{name}.{rule.name}"[:SALT_PREFIX] + f".{self._entropy(SALT_BYTES).hex()}"
            for rule in document.rules
            if rule.split is not None
        }


SALT_PREFIX: Final = 64 - 1 - 2 * SALT_BYTES
"""A salt holds at most 64 bytes; long names are cut, the random part keeps salts apart."""


def _default_of(snapshot: Snapshot, endpoint: str) -> Key | None:
    """The version that answers an endpoint's callers by default; None where none does yet."""
    try:
        plan = plan_of(snapshot, endpoint)
    except NotFound:
        return None
    return plan.model, plan.default.version
