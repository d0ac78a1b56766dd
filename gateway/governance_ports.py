"""Ports of governance: what registering, checking, recognising and telling others ask."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from gateway.core.announcements import Aliases
from gateway.core.audit import AuditEntry, Commit
from gateway.core.chain import Line, LogEnd
from gateway.core.checkpoints import Signed
from gateway.core.inspections import Inspection, InspectionOrder
from gateway.core.models import Manifest
from gateway.core.predictions import SigningKeys
from gateway.core.snapshot import Snapshot
from gateway.core.webhooks import DeadLetter, Posted, Progress, Webhook


class Identity(Struct, frozen=True):
    """Whom an issuer's token names: a principal's name, and the groups that it is in."""

    name: str
    groups: tuple[str, ...] = ()


class Issuer(Protocol):
    """Verifies bearer tokens that are not ours."""

    async def identify(self, token: bytes) -> Identity:
        """Whom a token names.

        Raises:
            Unauthenticated: it is not the issuer's, not for us, or not good now.
            NotReady: the issuer's keys are not known, and it is away.
        """

    async def close(self) -> None:
        """Let go of the connections."""


class Inspector(Protocol):
    """Takes a version apart and runs it, where nothing that it does can reach this process."""

    async def inspect(self, order: InspectionOrder) -> Inspection:
        """The report. A version that crashes, hangs or takes too much has failed a check.

        Raises:
            NotReady: no inspection can be made on this host now, with a sentence that says why.
        """

    async def close(self) -> None:
        """End what runs."""


class GovernanceStore(Protocol):
    """What the shared store keeps beside the Snapshot for governance.

    Every method raises StoreUnavailable when the store cannot be reached in time.
    """

    async def put_inspection(self, inspection: Inspection) -> None:
        """Keep a version's report in the place of an earlier one."""

    async def inspection(self, model: str, number: int) -> Inspection | None:
        """The newest report of a version."""

    async def inspections(self, model: str) -> Mapping[int, Inspection]:
        """The newest reports of a model's versions."""

    async def drop_inspections(self, model: str, numbers: Sequence[int]) -> None:
        """Forget the reports of versions that are gone."""

    async def close(self) -> None:
        """Let go of the connections."""


class VersionFiles(Protocol):
    """The files of versions that nobody needs any more. Blocking; raises OSError."""

    def remove(self, model: str, number: int, digest: str) -> bool:
        """Delete a version from the model store, if what lies there still has this digest.

        NotReady where nothing can be deleted from it.
        """

    def sweep(self, known: frozenset[str], before: float) -> int:
        """Delete this host's copies of unknown digests, untouched since then; how many went.

        `before` is in UTC seconds.
        """


class Overview(Struct, frozen=True):
    """What announcing goes by, all of one moment.

    Attributes:
        newest: Id of the newest audit entry, `0-0` where there is none.
        newest_alert: The same of alerts.
        webhooks: By name; None for one that cannot be read.
        progress: By listener.
    """

    newest: str
    newest_alert: str
    webhooks: Mapping[str, Webhook | None]
    progress: Mapping[str, Progress]


class AlarmEdge(Struct, frozen=True):
    """An alarm that came up or is over: its key in `alarms`, since when it is up, its event."""

    key: str
    since: float | None
    event: bytes


class AnnouncementStore(Protocol):
    """The side of the shared store on which it is kept who has heard what.

    Every method raises StoreUnavailable when the store cannot be reached in time.
    """

    async def overview(self) -> Overview:
        """Who listens, how far each is, and how far there is to go."""

    async def entries(self, after: str, limit: int) -> list[tuple[str, AuditEntry | None]]:
        """Ids and entries of the audit log behind an id, oldest first; None for what is none."""

    async def aliases_before(self, before: str, target: str, digest: str) -> Aliases | None:
        """What the aliases of a model named when its document had this digest, if it is found.

        Looked for in the last thousands of entries before this id.
        """

    async def alerts(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Ids and encoded events behind an id, oldest first."""

    async def save_progress(self, listener: str, progress: Progress) -> None:
        """Write down how far a listener is."""

    async def bury(self, webhook: str, letter: DeadLetter, progress: Progress) -> None:
        """Keep an event that was given up, and how far its listener is by that, at once."""

    async def put_webhook(self, name: str, webhook: Webhook, progress: Progress | None) -> None:
        """Write a subscription and, unless that stays as it is, how far it is, at once."""

    async def drop_webhook(self, name: str) -> None:
        """Forget a subscription, its secrets, its progress and its dead letters."""

    async def dead_letters(self, webhook: str, limit: int) -> list[tuple[str, DeadLetter]]:
        """Ids and letters, oldest first; what cannot be read is left out."""

    async def count_dead_letters(self, webhooks: Sequence[str]) -> Mapping[str, int]:
        """How many there are of each."""

    async def drop_dead_letter(self, webhook: str, letter_id: str) -> None:
        """Forget one that was delivered after all."""

    async def alarms(self) -> Mapping[str, float]:
        """Alarms that were told as raised and not as cleared, and since when."""

    async def tell_alarms(self, edges: Sequence[AlarmEdge]) -> None:
        """Write events of alarms behind the others, and what is known of them now, at once."""

    async def close(self) -> None:
        """Let go of the connections."""


class Courier(Protocol):
    """Carries a signed event to a receiver."""

    def check(self, url: str) -> None:
        """Refuse an address to which nothing would ever be sent.

        Raises:
            InvalidRequest: with a sentence that says why; no part of it is repeated.
        """

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Posted:
        """Post once and say what became of it; takes bounded time and never raises for the net."""

    async def close(self) -> None:
        """Close every connection."""


class StagedFile(Struct, frozen=True):
    """A file of an upload that is whole; `size` in bytes."""

    name: str
    size: int
    sha256: str


class Staged(Struct, frozen=True):
    """An upload: whose it is, for which model, and what came of it so far.

    `folder` is its path on this host; `expires_at` is in UTC seconds.
    """

    id: str
    model: str
    owner: str
    folder: str
    expires_at: float
    files: tuple[StagedFile, ...] = ()


class Incoming(Protocol):
    """A file of an upload while it comes. Blocking; requires: `finish` or `abandon` ends it."""

    def write(self, part: bytes) -> None:
        """Take the next part.

        Raises:
            TooLarge: the upload would hold more than it may. NotReady: the disk is full.
        """

    def finish(self, sha256: str | None) -> StagedFile:
        """Give the file its name, in the place of an earlier one.

        Raises:
            InvalidRequest: it does not have the digest that it should have.
        """

    def abandon(self) -> None:
        """Leave nothing of it."""


class Uploads(Protocol):
    """Files on their way to become versions, on this host. Blocking; called off the event loop."""

    def begin(self, model: str, owner: str) -> Staged:
        """Open an upload.

        Raises:
            Overloaded: too many are open, or they hold too much. NotReady: the disk fails.
        """

    def find(self, upload: str) -> Staged:
        """An upload by its id.

        Raises:
            NotFound: there is none, or it expired.
        """

    def receive(self, upload: str, name: str) -> Incoming:
        """Begin to take a file of an upload.

        Raises:
            NotFound: no such upload. InvalidRequest: the name is none, or there are too many files.
        """

    def discard(self, upload: str) -> None:
        """Forget an upload and its files, if it is there."""


class KeptBase(Struct, frozen=True):
    """Documents that the audit log is built upon: the Snapshot after the last entry that is gone.

    `signed` is the checkpoint of a trim, None where a restore put the Snapshot back.
    """

    snapshot: Snapshot
    signed: Signed | None = None


class Reseeding(Struct, frozen=True):
    """All that one restore writes; `found` and `log_ends` are what the store must still hold.

    The commit's base counts for nothing: it stands in no store.
    """

    commit: Commit
    found: bytes | None
    log_ends: LogEnd | None
    base: KeptBase
    manifests: Sequence[Manifest]
    keys: SigningKeys | None


class AuditLog(Protocol):
    """The audit log as it lies in the shared store, byte by byte; and what may shorten it.

    Revisions grow over all epochs. Every method raises StoreUnavailable when the store cannot be
    reached in time.
    """

    async def lines(self, after: int, limit: int) -> list[Line]:
        """The first entries with a greater revision, oldest first."""

    async def lines_before(self, before: int | None, limit: int) -> list[Line]:
        """The last entries with a lower revision, or the last of all, newest first."""

    async def bases(self) -> Mapping[int, KeptBase]:
        """What the log is built upon, by revision.

        Raises:
            InvalidRequest: one cannot be read.
        """

    async def trim(self, commit: Commit, base: KeptBase) -> None:
        """Commit, and drop all entries up to the base's revision and all earlier bases, at once.

        Raises:
            Conflict: the stored document is not the one the commit was made from, or the log is
                not the one that the base was made from.
        """

    async def found(self) -> tuple[bytes | None, LogEnd | None]:
        """The Snapshot document, whatever it is, and the newest entry of the log."""

    async def reseed(self, seed: Reseeding) -> None:
        """Write a Snapshot over what was found, under a new epoch, with all that it needs, at once.

        Raises:
            Conflict: the store holds something else by now.
        """

    async def close(self) -> None:
        """Let go of the connections."""
