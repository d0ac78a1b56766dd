"""Following an MLflow registry: its versions come here, and moves of its aliases become wishes.

Only the leader looks. A webhook is a hint to look now, never a source of facts. What an alias
names there is compared with what was seen last: only a move asks for anything here, so an alias
that stands still never fights a rollback that was made here. Nothing is written back.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from msgspec.structs import replace

from gateway.control.arrivals import ACTOR, Arrivals
from gateway.control.registry import Registry, Request
from gateway.core.errors import (
    Conflict,
    GatewayError,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
    VersionRefused,
    excerpt,
)
from gateway.core.following import (
    FollowedModel,
    FollowedVersion,
    Following,
    Rules,
    Seen,
    decode_following,
    encode_following,
    local_name,
)
from gateway.core.models import CHAMPION, MAX_VERSION
from gateway.core.reviews import wish_name
from gateway.core.snapshot import ModelRecord
from gateway.following_ports import FollowedRegistry, FollowMemory

log: Final = logging.getLogger(__name__)

TICK_S: Final = 1.0
"""Looks are at least this far apart, whatever asks for them."""
MAX_ARRIVALS: Final = 8
"""Versions fetched in one look; the next look goes on."""


SOURCE: Final = "mlflow"
"""Of the wishes that are put here."""


class Wishing(Protocol):
    """Promotions that are asked for, subject to the gates."""

    async def put(
        self, model: str, number: int, request: Request, *, alias: str, source: str
    ) -> object:
        """Promote now if the gates allow it, else as soon as they do.

        Raises:
            GatewayError: it is refused, with a sentence; StoreUnavailable: that is not known.
        """

    async def drop(self, model: str, alias: str, request: Request) -> object:
        """Let a wish go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerParts:
    """What following works with. `now` is in UTC seconds; `poll_s` is between two looks."""

    there: FollowedRegistry
    memory: FollowMemory
    registry: Registry
    arrivals: Arrivals
    wishes: Wishing
    leads: Callable[[], bool]
    now: Callable[[], float]
    rules: Rules
    poll_s: float


class Follower:
    """Requires: `run` for ever, in one task; `status` and `ask` may be called beside it."""

    __slots__ = ("_again", "_awaited", "_document", "_looked_at", "_parts")

    def __init__(self, parts: FollowerParts) -> None:
        """Nothing was looked at yet."""
        self._parts = parts
        self._document: bytes | None = None
        self._looked_at = float("-inf")
        self._again = False
        # The revision at which an alias began to wait for its version to be registered.
        self._awaited: int | None = None

    async def run(self) -> None:
        """Look when it is time or somebody asked, for ever."""
        while True:
            try:
                await self.tick()
            except StoreUnavailable as error:
                log.debug("MLflow is not followed now. %s", error)
            await asyncio.sleep(TICK_S)

    async def tick(self) -> bool:
        """Look if this process leads and it is time; whether it did.

        Raises:
            StoreUnavailable: what was seen is not known, so nothing is asked for.
        """
        parts = self._parts
        if not parts.leads():
            return False
        asked = await parts.memory.asked()
        self._document = await parts.memory.read()
        state = decode_following(self._document)
        due = asyncio.get_running_loop().time() - self._looked_at >= parts.poll_s
        awaited = self._awaited not in (None, parts.registry.snapshot.revision)
        if not (due or self._again or awaited or asked != state.asked):
            return False
        self._looked_at = asyncio.get_running_loop().time()
        self._again = False
        await self._look(replace(state, asked=asked, looked_at=parts.now()))
        return True

    async def ask(self) -> int:
        """Have the leader look soon, on whichever host it is; how often that was asked.

        Raises:
            StoreUnavailable: nobody heard it.
        """
        return await self._parts.memory.ask()

    async def status(self) -> dict[str, Any]:
        """How far following is, on whichever host it is asked.

        Raises:
            StoreUnavailable: the store is away.
        """
        parts = self._parts
        state = decode_following(await parts.memory.read())
        wishes = {
            name: wish
            for name, wish in parts.registry.snapshot.wishes.items()
            if wish.source == SOURCE
        }
        return {
            "looked_at": state.looked_at or None,
            "answered_at": state.answered_at or None,
            "asked": await parts.memory.asked(),
            "served": state.asked,
            "error": state.error,
            "aliases": [
                {"model": model, "alias": alias, "version": seen.version or None}
                | ({"refused": seen.refused} if seen.refused else {})
                for model, aliases in sorted(state.seen.items())
                for alias, seen in sorted(aliases.items())
            ],
            "pending": [
                {"model": name.rpartition("/")[0], "alias": name.rpartition("/")[2]}
                | {"version": wish.version, "since": wish.at}
                for name, wish in sorted(wishes.items())
            ],
            "waiting": state.waiting,
            "refused": state.refused,
            "skipped": state.skipped,
        }

    async def _look(self, state: Following) -> None:
        """Follow every model once, and keep what was seen."""
        parts = self._parts
        try:
            models = await parts.there.models()
        except GatewayError as error:
            if state.error != str(error):
                log.warning("MLflow cannot be followed now. %s", error)
            await self._keep(replace(state, error=str(error)))
            return
        revision = (await parts.registry.fresh()).revision
        now = parts.now()
        state = replace(state, error=None, answered_at=now, since=state.since or now)
        state = replace(state, waiting={}, skipped={})
        for here, model in self._chosen(state, models):
            await self._follow(state, here, model)
        waits = any("@" in name for name in state.waiting)
        self._awaited = revision if waits else None
        await self._keep(state)

    def _chosen(
        self, state: Following, models: Sequence[FollowedModel]
    ) -> list[tuple[str, FollowedModel]]:
        """Those that are followed, by their names here; why others cannot be is kept."""
        chosen: dict[str, FollowedModel] = {}
        for model in models:
            try:
                here = local_name(self._parts.rules, model.name)
            except InvalidRequest as error:
                state.skipped[excerpt(model.name)] = str(error)
                continue
            if here is None:
                continue
            if chosen.setdefault(here, model) is not model:
                message = f"Another model there is called '{here}' here already."
                state.skipped[excerpt(model.name)] = message
        return list(chosen.items())

    async def _follow(self, state: Following, here: str, model: FollowedModel) -> None:
        """One model; what is wrong with it leaves the others alone."""
        stood = here not in state.seen and model.created_ms / 1000 <= state.since
        stood = stood and here in self._parts.registry.snapshot.models
        state.seen.setdefault(here, {})
        try:
            versions = await self._parts.there.versions(model.name)
            self._again |= await self._arrive(state, here, model, versions)
        except StoreUnavailable:
            raise
        except GatewayError as error:
            state.waiting[here] = str(error)
        for there, alias in self._parts.rules.aliases.items():
            number = model.aliases.get(there, 0)
            if stood:
                # It stood so before anybody followed it: that is no move.
                await self._see(state, here, alias, number)
            else:
                await self._compare(state, here, alias, number)

    async def _arrive(
        self,
        state: Following,
        here: str,
        model: FollowedModel,
        versions: Sequence[FollowedVersion],
    ) -> bool:
        """Have versions come that are not here; whether some are left for the next look."""
        aliases = self._parts.rules.aliases.items()
        champion = next(
            (model.aliases.get(there, 0) for there, own in aliases if own == CHAMPION), 0
        )
        _forget_gone(state, here, versions)
        fetched = 0
        for version in sorted(versions, key=lambda one: (one.number != champion, -one.number)):
            if fetched >= MAX_ARRIVALS:
                return True
            fetched += await self._take(state, here, version)
        return False

    async def _take(self, state: Following, here: str, version: FollowedVersion) -> bool:
        """Have one version here, or keep why not; whether it was fetched."""
        name = f"{here}/{version.number}"
        if not version.ready or not 1 <= version.number <= MAX_VERSION:
            state.waiting[name] = "MLflow has not finished it, or its number is none here."
            return False
        try:
            fetched = await self._parts.arrivals.take(here, version)
        except (InvalidRequest, Conflict) as error:
            known = state.refused.get(name) == str(error)
            # What a check forbids was written down by who checked.
            if not known and not isinstance(error, VersionRefused):
                await self._parts.arrivals.refuse(here, version, str(error))
            state.refused[name] = str(error)
            return False
        except StoreUnavailable:
            raise
        except GatewayError as error:
            state.waiting[name] = str(error)
            return False
        state.refused.pop(name, None)
        return fetched

    async def _compare(self, state: Following, here: str, alias: str, number: int) -> None:
        """Wish for what an alias was moved to since it was last seen."""
        registry = self._parts.registry
        record = registry.snapshot.models.get(here)
        before = state.seen[here].get(alias)
        if before is not None and before.version == number:
            return
        stands = record is not None and record.aliases.get(alias) == number
        if number == 0 or stands:
            if stands:
                await self._withdraw(here, alias)
            await self._see(state, here, alias, number)
            return
        version = f"{here}/{number}"
        missing = state.refused.get(version) or state.waiting.get(version)
        missing = missing or self._missing(record, here, number)
        if missing is not None:
            state.waiting[f"{here}@{alias}"] = missing
            return
        reason = f"MLflow moved '{alias}' to version {number}"
        refused = ""
        try:
            request = Request(actor=ACTOR, reason=reason)
            await self._parts.wishes.put(here, number, request, alias=alias, source=SOURCE)
        except StoreUnavailable:
            raise
        except GatewayError as error:
            refused = str(error)
        log.info("%s of '%s'. %s", reason, here, refused)
        await self._see(state, here, alias, number, refused)

    def _missing(self, record: ModelRecord | None, here: str, number: int) -> str | None:
        """Why a version cannot be asked for yet: it must be the one that MLflow means."""
        if record is not None and number in record.retired:
            return f"Version {number} was retired here."
        registered = record is not None and number in record.versions
        if not registered or not self._parts.arrivals.is_here(here, number):
            return f"Version {number} is not registered here yet."
        return None

    async def _withdraw(self, here: str, alias: str) -> None:
        """Let an earlier wish go: the alias there came back to what it names here."""
        wish = self._parts.registry.snapshot.wishes.get(wish_name(here, alias))
        if wish is not None and wish.source == SOURCE:
            request = Request(actor=ACTOR, reason=f"MLflow moved '{alias}' back")
            with suppress(NotFound, Conflict):
                await self._parts.wishes.drop(here, alias, request)

    async def _see(
        self, state: Following, here: str, alias: str, number: int, refused: str = ""
    ) -> None:
        """Keep at once what was seen, so that it is asked for only once."""
        state.seen[here][alias] = Seen(number, self._parts.now(), refused)
        await self._keep(state)

    async def _keep(self, state: Following) -> None:
        document = encode_following(state)
        if not await self._parts.memory.swap(self._document, document):
            message = "Another process follows MLflow now."
            raise StoreUnavailable(message)
        self._document = document


def _forget_gone(state: Following, here: str, versions: Sequence[FollowedVersion]) -> None:
    """Nothing speaks against versions that are no longer there."""
    listed = {f"{here}/{version.number}" for version in versions}
    for name in [*state.refused]:
        if name.rpartition("/")[0] == here and name not in listed:
            del state.refused[name]
