"""Webhooks as operators see them: written, listed, tried out, and what they did not take.

A webhook lies beside the Snapshot, because its secret must not be in it: the audit log holds that
it was changed, by whom, and its digest without the secret. The entry is written first, so that no
change is made that is not written down.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.control.audit_export import LISTENER, order_of
from gateway.control.delivering import WEBHOOK, deliver
from gateway.control.registry import Edit, Registry, Request
from gateway.core.announcements import encode_event, ping_event, source_of
from gateway.core.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable, excerpt
from gateway.core.models import check_name
from gateway.core.snapshot import Snapshot, document_digest
from gateway.core.webhooks import (
    OVERLAP_S,
    SECRET_BYTES,
    DeadLetter,
    Posted,
    Progress,
    Webhook,
    check_secret,
    check_types,
    fresh_secret,
)
from gateway.governance_ports import AnnouncementStore, Courier, Overview

MAX_WEBHOOKS: Final = 32
MAX_LETTERS: Final = 100
"""Dead letters shown, or sent again, at once."""
MARK_BYTES: Final = 12


class WebhookDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """What is wanted: where events go, and patterns of types, such as `tiltyard.version.*`.

    Without a `secret` the one that stands is kept, or one is made; `rotate` makes a new one. One
    that is replaced signs on beside the new one for a day.
    """

    url: str
    types: tuple[str, ...] = ("*",)
    secret: str | None = None
    rotate: bool = False


class WebhookStanding(Struct, frozen=True):
    """A webhook and how far it is. Times are in UTC seconds, None where there is none.

    `waiting` counts audit entries that it has not heard, None where another epoch began.
    """

    name: str
    url: str
    types: tuple[str, ...]
    made_at: float
    made_by: str
    old_secret_until: float | None
    waiting: int | None
    delivered: int
    failed: int
    dead: int
    dead_letters: int
    missed: int
    tries: int
    next_at: float | None
    problem: str
    problem_at: float | None
    disabled: str


class Redelivered(Struct, frozen=True):
    """How many dead letters were taken after all, how many are left, and what stopped it."""

    delivered: int
    left: int
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookParts:
    """What webhooks work with. `now` is in UTC seconds, `entropy` gives random bytes."""

    store: AnnouncementStore
    courier: Courier
    registry: Registry
    namespace: str
    now: Callable[[], float]
    entropy: Callable[[int], bytes]


class Webhooks:
    """Every method raises StoreUnavailable while the store is away."""

    __slots__ = ("_parts",)

    def __init__(self, parts: WebhookParts) -> None:
        """Nothing is asked yet."""
        self._parts = parts

    async def put(self, name: str, document: WebhookDocument, request: Request) -> str | None:
        """Write a webhook; its secret, if it is a new one that was made here.

        A new webhook hears of what comes from now on; one that stands goes on where it is, also
        after it was disabled.

        Raises:
            InvalidRequest: the name, the URL, a pattern or the secret is none.
            Conflict: there are too many.
        """
        check_name("a webhook", name)
        check_types(document.types)
        self._parts.courier.check(document.url)
        if document.secret is not None:
            check_secret(document.secret)
        overview = await self._parts.store.overview()
        if len(overview.webhooks.keys() | {name}) > MAX_WEBHOOKS:
            message = f"There are {MAX_WEBHOOKS} webhooks already; delete one first."
            raise Conflict(message)
        stood, made = overview.webhooks.get(name), None
        secret = document.secret
        if secret is None and (stood is None or document.rotate):
            secret = made = fresh_secret(self._parts.entropy(SECRET_BYTES))
        webhook = self._changed(stood, document, secret, request.actor)
        told = "kept" if secret is None else "given" if made is None else "made"
        await self._note("put", name, (stood, webhook, told), request)
        if stood is None:
            # A leader that was telling it when it was deleted may have left something.
            await self._parts.store.drop_webhook(name)
        await self._parts.store.put_webhook(name, webhook, await self._anew(name))
        return made

    async def delete(self, name: str, request: Request) -> None:
        """Forget a webhook and what it did not take.

        Raises:
            NotFound: there is none of that name.
        """
        overview = await self._parts.store.overview()
        if name not in overview.webhooks:
            raise NotFound(_missing(name))
        stood = overview.webhooks[name]
        await self._note("delete", name, (stood, None, "dropped"), request)
        await self._parts.store.drop_webhook(name)

    async def everything(self) -> list[WebhookStanding]:
        """Every webhook that can be read."""
        overview = await self._parts.store.overview()
        return await self._standings(overview)

    async def show(self, name: str) -> WebhookStanding:
        """One of them.

        Raises:
            NotFound: there is none of that name.
        """
        for standing in await self.everything():
            if standing.name == name:
                return standing
        raise NotFound(_missing(name))

    async def test(self, name: str, actor: str) -> Posted:
        """Send an event that says nothing, at once; what became of it.

        Raises:
            NotFound: there is none of that name.
        """
        webhook, now = await self._find(name), self._parts.now()
        source, mark = source_of(self._parts.namespace), self._parts.entropy(MARK_BYTES).hex()
        event = ping_event(source, name, actor, now, mark)
        return await deliver(self._parts.courier, webhook, (event.id, encode_event(event)), now)

    async def dead_letters(self, name: str) -> list[tuple[str, DeadLetter]]:
        """Ids and letters, the oldest first.

        Raises:
            NotFound: there is none of that name.
        """
        await self._find(name)
        return await self._parts.store.dead_letters(name, MAX_LETTERS)

    async def redeliver(self, name: str) -> Redelivered:
        """Send dead letters again, the oldest first, until one is not taken.

        Raises:
            NotFound: there is none of that name.
        """
        parts = self._parts
        webhook, delivered, problem = await self._find(name), 0, ""
        for letter_id, letter in await parts.store.dead_letters(name, MAX_LETTERS):
            body = bytes(letter.event)
            posted = await deliver(parts.courier, webhook, (_id_of(body), body), parts.now())
            if posted.status is None or not _OK[0] <= posted.status < _OK[1]:
                problem = posted.problem or f"The receiver answered {posted.status}."
                break
            await parts.store.drop_dead_letter(name, letter_id)
            delivered += 1
        left = (await parts.store.count_dead_letters([name]))[name]
        return Redelivered(delivered, left, problem)

    async def standing(self) -> dict[str, Any] | None:
        """For the status: how far each listener is, without addresses; None while not known."""
        try:
            overview = await self._parts.store.overview()
            webhooks = await self._standings(overview)
        except StoreUnavailable:
            return None
        logs = overview.progress.get(LISTENER)
        private = ("url", "types", "made_at", "made_by", "old_secret_until")
        return {
            "audit_logs": None if logs is None else _logs_of(overview, logs),
            "webhooks": [
                {
                    key: value
                    for key, value in msgspec.to_builtins(one).items()
                    if key not in private
                }
                for one in webhooks
            ],
        }

    def _changed(
        self, stood: Webhook | None, document: WebhookDocument, secret: str | None, actor: str
    ) -> Webhook:
        now = self._parts.now()
        if stood is None:
            return Webhook(document.url, document.types, secret or "", now, actor)
        webhook = replace(stood, url=document.url, types=document.types)
        if secret is None or secret == stood.secret:
            return webhook
        until = now + OVERLAP_S
        return replace(webhook, secret=secret, previous=stood.secret, previous_until=until)

    async def _anew(self, name: str) -> Progress | None:
        """How far a webhook is that is new or was disabled; None if it goes on as it is."""
        overview = await self._parts.store.overview()
        known = overview.progress.get(f"{WEBHOOK}{name}")
        if known is None or name not in overview.webhooks:
            return Progress(cursor=overview.newest, alerts=overview.newest_alert)
        if not known.disabled:
            return None
        return replace(known, disabled="", tries=0, trying="", next_at=0.0)

    async def _note(
        self,
        verb: str,
        name: str,
        change: tuple[Webhook | None, Webhook | None, str],
        request: Request,
    ) -> None:
        """Write the change down, with digests in which no secret is."""

        async def make(base: Snapshot) -> Snapshot:
            return base

        stood, webhook, secret = change
        evidence = {"before": _digest(stood), "after": _digest(webhook), "secret": secret}
        edit = Edit(f"webhook.{verb}", f"webhooks/{name}", make, evidence, noted=True)
        await self._parts.registry.commit(edit, request)

    async def _find(self, name: str) -> Webhook:
        overview = await self._parts.store.overview()
        if name not in overview.webhooks:
            raise NotFound(_missing(name))
        webhook = overview.webhooks[name]
        if webhook is None:
            message = f"The webhook '{excerpt(name)}' cannot be read; put it again."
            raise InvalidRequest(message)
        return webhook

    async def _standings(self, overview: Overview) -> list[WebhookStanding]:
        names = sorted(name for name, webhook in overview.webhooks.items() if webhook is not None)
        letters = await self._parts.store.count_dead_letters(names)
        return [
            _standing_of(name, webhook, overview, letters)
            for name in names
            if (webhook := overview.webhooks[name]) is not None
        ]


_OK: Final = (200, 300)


def _standing_of(
    name: str, webhook: Webhook, overview: Overview, letters: Mapping[str, int]
) -> WebhookStanding:
    newest = Progress(cursor=overview.newest, alerts=overview.newest_alert)
    progress = overview.progress.get(f"{WEBHOOK}{name}", newest)
    return WebhookStanding(
        name=name,
        url=webhook.url,
        types=webhook.types,
        made_at=webhook.made_at,
        made_by=webhook.made_by,
        old_secret_until=webhook.previous_until or None,
        waiting=_waiting(overview, progress),
        delivered=progress.delivered,
        failed=progress.failed,
        dead=progress.dead,
        dead_letters=letters[name],
        missed=progress.missed,
        tries=progress.tries,
        next_at=progress.next_at or None,
        problem=progress.problem,
        problem_at=progress.problem_at or None,
        disabled=progress.disabled,
    )


def _logs_of(overview: Overview, progress: Progress) -> dict[str, Any]:
    return {
        "waiting": _waiting(overview, progress),
        "exported": progress.delivered,
        "dropped": progress.dead + progress.missed,
        "problem": progress.problem,
        "problem_at": progress.problem_at or None,
    }


def _waiting(overview: Overview, progress: Progress) -> int | None:
    (epoch, revision), (last_epoch, last) = order_of(progress.cursor), order_of(overview.newest)
    if progress.cursor == overview.newest:
        return 0
    return last - revision if epoch in (last_epoch, 0) else None


def _digest(webhook: Webhook | None) -> str:
    return "" if webhook is None else document_digest({"url": webhook.url, "types": webhook.types})


def _id_of(event: bytes) -> str:
    return str(msgspec.json.decode(event)["id"])


def _missing(name: str) -> str:
    return f"There is no webhook '{excerpt(name)}'."
