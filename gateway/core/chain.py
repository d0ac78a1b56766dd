"""The chain of the audit log, looked at entry by entry as it lies in the store or in a file.

What is hashed are the bytes that lie there, not what they mean, so that no byte can change. Each
entry holds the hash of the one before, and the Snapshot that of the newest: what leads to the head
without a gap is what was committed, in that order.
"""

import hashlib
from typing import Final

import msgspec
from msgspec import Raw, Struct

from gateway.core.audit import AuditEntry, decode_entry
from gateway.core.checkpoints import Signed
from gateway.core.errors import InvalidRequest
from gateway.core.snapshot import canonical

STEP: Final = "experiment.step"
"""The action of the steward's decisions; see `gateway.core.ledger`."""
RESTORE: Final = "store.restore"
TRIM: Final = "audit.trim"
MAX_FAULTS: Final = 20
"""Faults told of one chain; the first ones say where to look."""


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """An entry as it lies in the log: its place `epoch-revision`, the stated hash, its bytes."""

    id: str
    hash: str
    entry: Raw


class LogEnd(Struct, frozen=True):
    """The newest entry of a log."""

    revision: int
    hash: str


class Loss(Struct, frozen=True):
    """Evidence of a restore: what was served and is put back, and what the store still had.

    `epoch`, `revision` and `audit_head` are of the Snapshot that this `process` served;
    `documents_sha256` is over its documents as they were put back. `log_ends` is None where the
    audit log was empty.
    """

    epoch: int
    revision: int
    audit_head: str
    documents_sha256: str
    process: str
    source: str
    store: str
    log_ends: LogEnd | None


class Fault(Struct, frozen=True):
    """Something that is wrong with a chain: what, at which revision, and a sentence."""

    revision: int
    what: str
    sentence: str


class Gap(Struct, frozen=True):
    """Revisions that the store had lost when it was restored, as the restore's own entry says."""

    first: int
    last: int
    restored_at: int


class Base(Struct, frozen=True):
    """Documents that the log is built upon: those after the last trimmed or lost revision.

    `signed` is the checkpoint of a trim, None for a restore. `signature` is `good`, `bad`, or
    `unknown` where this host does not have the key.
    """

    revision: int
    sha256: str
    signed: Signed | None = None
    signature: str = "unknown"


class Head(Struct, frozen=True):
    """Where a log must lead: the Snapshot's revision and audit head; and what it is built upon."""

    revision: int
    epoch: int
    head: str
    bases: tuple[Base, ...] = ()


class End(Struct, frozen=True, forbid_unknown_fields=True):
    """The last line of an exported file: which entries it holds, and what they lead to.

    Only some of them where it is `filtered`, so that they make no chain.
    """

    after: int
    before: str
    revision: int
    head: str
    entries: int
    filtered: bool = False


class LastLine(Struct, frozen=True, forbid_unknown_fields=True):
    """How that line is written."""

    end: End


def encode_line(line: Line | LastLine) -> bytes:
    """A line of an export, with its line break; there is one way to write it."""
    return msgspec.json.encode(line) + b"\n"


def _decode_line(content: bytes) -> Line | LastLine:
    if content.startswith(b'{"end":'):
        return msgspec.json.decode(content, type=LastLine)
    return msgspec.json.decode(content, type=Line)


def decode_line(content: bytes) -> Line | LastLine:
    """Read one line of an export.

    Raises:
        InvalidRequest: it is none, or is not written as `encode_line` does.
    """
    try:
        line = _decode_line(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = "The line cannot be read."
        raise InvalidRequest(message) from error
    if encode_line(line) != content:
        message = "The line is not written as an export writes it."
        raise InvalidRequest(message)
    return line


def place_of(stream_id: str) -> tuple[int, int]:
    """Epoch and revision of a place in the log; zeros for what is none."""
    epoch, _, revision = stream_id.partition("-")
    if not (epoch.isdecimal() and revision.isdecimal()):
        return 0, 0
    return int(epoch), int(revision)


class Chain:
    """Looks at one entry after the other; holds none of them.

    `faults` are what is wrong so far, `gaps` what restores say was lost, `entries` and `decisions`
    what was counted.
    """

    def __init__(self, revision: int = 0, head: str = "") -> None:
        """Begin behind this revision, whose entry has this hash."""
        self.revision = revision
        self.head = head
        self.origin = (revision, head)
        self.began = revision
        self.entries = 0
        self._before_file = 0
        self.decisions = 0
        self.faults: list[Fault] = []
        self.gaps: list[Gap] = []
        self.trims: list[Signed] = []
        self.restored: dict[int, Loss] = {}
        self._epoch = 0
        # Whether the entry before is known to be wrong, so that its follower is not to blame.
        self._doubted = False
        # The link before the newest entry was torn; if the next is too, that entry is to blame.
        self._torn = False
        self._log_is_empty = True

    def begin_file(self) -> None:
        """Another file begins, whose last line speaks of its own entries."""
        self.origin = (self.revision, self.head)
        self._before_file = self.entries

    def enter_log(self) -> None:
        """What came until now were archives; the log itself begins."""
        self._log_is_empty = True

    def add(self, line: Line) -> AuditEntry | None:
        """Look at the next entry; None if it cannot be read."""
        content = bytes(line.entry)
        actual = hashlib.sha256(content).hexdigest()
        epoch, revision = place_of(line.id)
        revision = revision or self.revision + 1
        entry = _read(content)
        sound = self._check_content(line, actual, entry, revision)
        if revision <= self.revision:
            self._fault(revision, "order", f"Revision {revision} stands behind {self.revision}.")
        else:
            self._check_link(entry if sound else None, epoch, revision)
        self.entries += 1
        self._doubted = not sound
        self._log_is_empty = False
        self._epoch = max(epoch, self._epoch)
        self.revision, self.head = max(revision, self.revision), actual
        if entry is not None:
            self._note(entry)
        return entry

    def finish(self, head: Head) -> None:
        """Hold what was seen against where it must lead, and what it is built upon."""
        if self.revision < head.revision:
            told = _through(self.revision + 1, head.revision)
            self._fault(self.revision + 1, "cut", f"{told} missing at the end.")
        elif self.revision > head.revision:
            sentence = f"The log goes on behind revision {head.revision}, which is the newest."
            self._fault(head.revision + 1, "ahead", sentence)
        elif self.head != head.head and not self._doubted:
            sentence = f"Revision {self.revision} is not the one that the Snapshot was made with."
            self._fault(self.revision, "changed", sentence)
        for base in head.bases:
            self._check_base(base)

    def end(self) -> LastLine:
        """The last line of a file of what was seen."""
        after, before = self.origin
        entries = self.entries - self._before_file
        return LastLine(End(after, before, self.revision, self.head, entries))

    def _check_content(
        self, line: Line, actual: str, entry: AuditEntry | None, revision: int
    ) -> bool:
        if actual != line.hash:
            self._fault(revision, "changed", f"Revision {revision} was changed.")
        elif entry is None:
            self._fault(revision, "changed", f"Revision {revision} cannot be read.")
        elif f"{entry.epoch}-{entry.revision}" != line.id:
            sentence = f"At revision {revision} stands the entry of revision {entry.revision}."
            self._fault(revision, "order", sentence)
        else:
            return True
        return False

    def _check_link(self, entry: AuditEntry | None, epoch: int, revision: int) -> None:
        """How this entry follows from the one before; `entry` is None if it is known as wrong."""
        torn, self._torn = self._torn, False
        loss = None if entry is None or epoch <= self._epoch else loss_of(entry)
        if loss is not None and self._explains(loss):
            if revision > self.revision + 1:
                self.gaps.append(Gap(self.revision + 1, revision - 1, revision))
            return
        if revision > self.revision + 1:
            told = _through(self.revision + 1, revision - 1)
            begins = self.entries == 0 and self.revision == 0
            hint = " at the beginning, and no checkpoint has them" if begins else ""
            self._fault(self.revision + 1, "missing", f"{told} missing{hint}.")
        elif entry is not None and entry.previous != self.head and not self._doubted:
            if torn and self.faults:
                self.faults.pop()
            sentence = (
                f"Revision {revision} does not follow from what stands as revision "
                f"{self.revision}, which was changed."
            )
            self._fault(self.revision or revision, "changed", sentence)
            self._torn = True

    def _explains(self, loss: Loss) -> bool:
        """Whether a restore found the log as it is now before the restore."""
        if loss.log_ends is None:
            return self._log_is_empty
        return loss.log_ends == LogEnd(self.revision, self.head)

    def _note(self, entry: AuditEntry) -> None:
        loss = loss_of(entry)
        if loss is not None:
            self.restored[entry.revision - 1] = loss
        elif entry.action == TRIM:
            signed = signed_of(entry)
            if signed is not None:
                self.trims.append(signed)
        self.decisions += entry.action == STEP and entry.evidence is not None

    def _check_base(self, base: Base) -> None:
        told = f"The documents kept of revision {base.revision}"
        if base.signed is None:
            loss = self.restored.get(base.revision)
            known = loss is not None and loss.documents_sha256 == base.sha256
        else:
            known = base.signed in self.trims
            known &= base.signed.checkpoint.base_sha256 == base.sha256
        if not known:
            self._fault(base.revision, "base", f"{told} are not those that the log speaks of.")
        elif base.signature == "bad":
            self._fault(base.revision, "signature", f"{told} have a checkpoint with no signature.")

    def blame(self, what: str, sentence: str) -> None:
        """Tell a fault that a file has behind the newest entry."""
        self._fault(self.revision + 1, what, sentence)

    def _fault(self, revision: int, what: str, sentence: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(revision, what, sentence))


def begin(head: Head) -> Chain:
    """A chain that begins where the newest checkpoint of a log says that it was trimmed."""
    trimmed = [base.signed.checkpoint for base in head.bases if base.signed is not None]
    if not trimmed:
        return Chain()
    newest = max(trimmed, key=lambda checkpoint: checkpoint.last)
    return Chain(newest.last, newest.head)


def loss_of(entry: AuditEntry) -> Loss | None:
    """What a restore says was lost; None for every other entry."""
    if entry.action != RESTORE:
        return None
    try:
        return msgspec.convert(entry.evidence, Loss)
    except msgspec.ValidationError:
        return None


def signed_of(entry: AuditEntry) -> Signed | None:
    """The checkpoint behind which a trim trimmed; None if the entry holds none."""
    try:
        return msgspec.convert(entry.evidence, Signed)
    except msgspec.ValidationError:
        return None


def digest_of_documents(snapshot: object) -> str:
    """SHA-256 over the canonical JSON of a Snapshot that a log is built upon."""
    return hashlib.sha256(canonical(snapshot)).hexdigest()


def _read(content: bytes) -> AuditEntry | None:
    try:
        return decode_entry(content)
    except InvalidRequest:
        return None


def _through(first: int, last: int) -> str:
    return f"Revision {first} is" if first == last else f"Revisions {first} to {last} are"
