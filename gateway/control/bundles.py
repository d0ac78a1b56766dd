"""Bundles as the Registry commits them: any number of documents in one commit, or none at all."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.control.experiments import Experiments
from gateway.control.registry import Change, Edit, Registry, Request
from gateway.core.applying import Chance, DocumentChange, Right, applied, changes, needed, reading
from gateway.core.bundles import Bundle, exported, named_targets, tag_of, tags_of
from gateway.core.errors import Conflict, GatewayError
from gateway.core.models import CHAMPION
from gateway.core.principals import Action
from gateway.core.snapshot import Snapshot

TARGET: Final = "bundle"
"""What the audit entry is about; the documents that moved stand in its `also`."""
ID_BYTES: Final = 8
SALT_BYTES: Final = 4
MAX_SALT: Final = 64
MAX_TOLD: Final = 10

Permit = Callable[[Snapshot, Iterable[Right]], None]
"""Raises Forbidden where by a Snapshot one of the rights is not held."""


class BundlePlan(Struct, frozen=True):
    """What applying a Bundle would do. `refusal` says why it would be refused.

    `expected` holds a digest of what stands at each target that the Bundle names or deletes, empty
    where nothing does; who sends it back is told if one of them moved.
    """

    revision: int
    changes: tuple[DocumentChange, ...]
    expected: dict[str, str]
    refusal: str | None = None


class BundleOptions(Struct, frozen=True):
    """How a Bundle is applied; `expected` is that of the plan that was looked at, if one was."""

    prune: bool = False
    expected: Mapping[str, str] | None = None
    allow_signature_change: bool = False


class Applied(Struct, frozen=True):
    """What applying came to: the commit, if there was something to change, and what it changed."""

    change: Change
    changes: tuple[DocumentChange, ...]


class Bundles:
    """Plans and commits Bundles."""

    __slots__ = ("_entropy", "_experiments", "_registry")

    def __init__(
        self, registry: Registry, experiments: Experiments, *, entropy: Callable[[int], bytes]
    ) -> None:
        """On a registry; `entropy` gives fresh random bytes."""
        self._registry = registry
        self._experiments = experiments
        self._entropy = entropy

    def export(self, *, principals: bool) -> Bundle:
        """What stands, as this process knows it; with `principals`, if who asks may see them."""
        bundle = exported(self._registry.snapshot)
        return bundle if principals else replace(bundle, principals=None)

    async def plan(
        self, bundle: Bundle, permit: Permit, *, prune: bool, actor: str = ""
    ) -> BundlePlan:
        """Say what applying a Bundle would do, without doing it.

        Args:
            bundle: the documents.
            permit: asked for the right to read what is told of.
            prune: see `gateway.core.applying.applied`.
            actor: who would ask; their own approvals do not count then either.

        Raises:
            InvalidRequest, NotFound, Conflict: as `apply`.
            Forbidden: by `permit`.
        """
        base = await self._registry.fresh()
        draws = Draws(self._entropy)
        changed = applied(base, bundle, draws.chance(), prune=prune)
        told = changes(base, changed, bundle, draws.salts)
        named = () if bundle.principals is None else ((Action.ACCESS, None),)
        permit(base, (*reading(needed(base, changed, told)), *named))
        refusal: str | None = None
        try:
            await self._check_alike(base, changed, told)
            await self._registry.gatekeeper.check(base, changed, actor)
        except GatewayError as error:
            refusal = str(error)
        return BundlePlan(base.revision, told, _expected(base, bundle, told), refusal)

    async def apply(
        self, bundle: Bundle, options: BundleOptions, permit: Permit, request: Request
    ) -> Applied:
        """Make all that a Bundle says stand, in one commit; none if it stands already.

        Args:
            bundle: the documents.
            options: how.
            permit: asked for the rights that single changes would take.
            request: who asks and why; a Bundle has no ETag, so no `if_match` holds.

        Raises:
            InvalidRequest: a document contradicts itself, or names what does not exist.
            NotFound: an alias of a model or version that is not registered.
            Conflict: a target moved since it was looked at, a change is not legal now, or a
                signature differs and `options` do not allow it.
            Forbidden: by `permit`.
            StoreUnavailable: nothing was changed, or that is not known.
        """
        draws = Draws(self._entropy)
        told: tuple[DocumentChange, ...] = ()

        async def make(base: Snapshot) -> Snapshot:
            nonlocal told
            changed = applied(base, bundle, draws.chance(), prune=options.prune)
            told = changes(base, changed, bundle, draws.salts)
            permit(base, needed(base, changed, told))
            if options.expected is not None:
                _check_expected(base, options.expected, told)
            if not options.allow_signature_change:
                await self._check_alike(base, changed, told)
            return changed

        evidence = {"bundle": tag_of(bundle), "prune": options.prune}
        edit = Edit("apply", TARGET, make, evidence)
        return Applied(await self._registry.commit(edit, request), told)

    async def _check_alike(
        self, base: Snapshot, changed: Snapshot, told: Iterable[DocumentChange]
    ) -> None:
        """What changes answers in the tensors that callers know, as single changes must."""
        for change in told:
            kind, _, name = change.target.partition("/")
            if change.kind == "delete":
                continue
            if kind == "endpoints":
                await self._registry.check_alike(base, changed, name)
            elif kind == "experiments":
                await self._experiments.check_alike(changed, name)
            elif kind == "aliases":
                model, _, alias = name.partition("/")
                named = base.models[model].aliases
                serving = named.get(alias, named.get(CHAMPION))
                candidate = (model, changed.models[model].aliases[alias])
                if serving is not None:
                    await self._registry.check_pair((model, serving), candidate)


class Draws:
    """Fresh salts and ids, each drawn once however often the same Bundle is tried."""

    __slots__ = ("_drawn", "_entropy")

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        """Nothing is drawn until it is asked for."""
        self._entropy = entropy
        self._drawn: dict[str, str] = {}

    @property
    def salts(self) -> frozenset[str]:
        """All that were drawn."""
        return frozenset(self._drawn.values())

    def chance(self) -> Chance:
        """As `applied` asks for it."""
        return Chance(salt=self._salt, id=lambda _: self._entropy(ID_BYTES).hex())

    def _salt(self, name: str) -> str:
        """A name for people, cut to length, and a random part that keeps salts apart."""
        if name not in self._drawn:
            random = self._entropy(SALT_BYTES).hex()
            self._drawn[name] = f"{name[: MAX_SALT - 1 - len(random)]}.{random}"
        return self._drawn[name]


def _expected(base: Snapshot, bundle: Bundle, told: Iterable[DocumentChange]) -> dict[str, str]:
    deleted = (change.target for change in told)
    return tags_of(base, sorted({*named_targets(bundle), *deleted}))


def _check_expected(
    base: Snapshot, expected: Mapping[str, str], told: Iterable[DocumentChange]
) -> None:
    """Refuse to change what is not as it was when it was looked at."""
    targets = sorted({*expected, *(change.target for change in told)})
    stands = tags_of(base, targets)
    moved = [target for target in targets if stands[target] != expected.get(target)]
    if not moved:
        return
    listed = ", ".join(f"'{target}'" for target in moved[:MAX_TOLD])
    more = f" and {len(moved) - MAX_TOLD} more" if len(moved) > MAX_TOLD else ""
    message = (
        f"These moved since they were looked at: {listed}{more}; "
        f"revision {base.revision} stands. Look at the difference again."
    )
    raise Conflict(message)
