"""Every key that this gateway keeps in Redis, under one hash tag, so that they share one slot.

All names are built from constants and the namespace; what callers choose stands in hash fields,
stream fields and values, never in a pattern.

key                        type     writer         TTL      meaning
{ns}:snapshot              string   any control    none     the Snapshot, canonical JSON
{ns}:seal                  string   any control    none     HMAC-SHA256 of the Snapshot, if sealed
{ns}:audit                 stream   any control    none     one entry a commit, id `epoch-revision`
{ns}:audit-bases           hash     any control    none     revision -> KeptBase of trim or restore
{ns}:events                channel  any control    -        the new revision; only ever a hint
{ns}:manifests             hash     any control    none     `model:number` -> Manifest, write-once
{ns}:inspections           hash     any control    none     `model:number` -> Inspection, newest
{ns}:signing-keys          string   any control    none     SigningKeys; secret
{ns}:leader                string   the leader     seconds  name of the process that leads
{ns}:processes             set      any control    none     names of processes that have reported
{ns}:process:<name>        string   that process   seconds  what it serves; gone when it is gone
{ns}:evidence              stream   any control    none     entries of the hosts' journals
{ns}:shipped               hash     any control    none     host -> `sequence:through_ms`
{ns}:fold                  hash     the leader     none     how far it is: cursor, mark, through_ms
{ns}:units:<id>            hash     the leader     none     unit hash or slot -> its state
{ns}:due:<id>              zset     the leader     none     the same, by when it is due
{ns}:tally:<id>            hash     the leader     none     `phase:variant:segment` -> its Cell
{ns}:folding               hash     the leader     none     `id:result` -> how often it was so
{ns}:late:<id>             stream   the leader     none     outcomes after their time; some kept
{ns}:quarantine            stream   the leader     none     what belongs nowhere; some are kept
{ns}:history:<id>          stream   the leader     none     points for reports; the newest are kept
{ns}:following             string   the leader     none     how far following MLflow is
{ns}:following-asked       string   any control    none     how often a look at it was asked for
{ns}:promotions            stream   CI, operators  none     requests to promote or roll back
{ns}:promotion-results     stream   the leader     none     one answer a request; about 10,000 kept
{ns}:webhooks              hash     any control    none     name -> Webhook; secret
{ns}:listeners             hash     the leader     none     `audit-logs`, `webhook:name` -> Progress
{ns}:dead-letters:<name>   stream   the leader     none     events a webhook did not take; some kept
{ns}:alarms                hash     the leader     none     `process kind` -> since when it is up
{ns}:alerts                stream   the leader     none     events of alarms; the newest are kept

CI asks for a promotion with

    XADD {tiltyard}:promotions * token <token> model <name> version <number>
         [alias champion] [action promote|rollback] [reason <words>]

A rollback needs no version. The request is taken off the stream by the transaction that answers it,
so the token does not stay in Redis. The answer is an entry of `{tiltyard}:promotion-results` with
the fields `request` (the id that XADD returned), `status` (`accepted` or `refused`), `reason`, and
when accepted `action`, `model`, `version`, `alias`, `revision` and `actor`.
"""

from typing import Final

from msgspec import Struct

from gateway.core.models import check_name

ENTRY_FIELD: Final = "e"
"""Of the evidence stream: the entry."""
MAX_LATE: Final = 1_000
"""Late outcomes kept of an experiment, about."""
MAX_POINTS: Final = 20_000
"""Points of history kept of an experiment, about: more than a day at one in five seconds."""
MAX_QUARANTINED: Final = 1_000
"""Entries kept in quarantine, about."""
MAX_RESULTS: Final = 10_000
"""Answers kept on the results stream, about."""
MAX_DEAD_LETTERS: Final = 1_000
"""Events kept that a webhook did not take, about."""
MAX_ALERTS: Final = 1_000
"""Events of alarms kept, about."""


class Keys(Struct, frozen=True):
    """The keys of one namespace."""

    snapshot: str
    seal: str
    audit: str
    audit_bases: str
    events: str
    manifests: str
    inspections: str
    signing_keys: str
    leader: str
    processes: str
    promotions: str
    promotion_results: str
    evidence: str
    shipped: str
    fold: str
    folding: str
    quarantine: str
    webhooks: str
    listeners: str
    alarms: str
    alerts: str
    following: str
    following_asked: str

    def process(self, name: str) -> str:
        """The key of what one process serves."""
        return f"{self.processes.removesuffix('es')}:{name}"

    def dead_letters(self, webhook: str) -> str:
        """The key of what a webhook did not take; a webhook's name holds no colon."""
        return f"{self.fold.removesuffix(':fold')}:dead-letters:{webhook}"

    def study(self, experiment_id: str) -> "StudyKeys":
        """The keys of what is known of one experiment's units."""
        tag = self.fold.removesuffix(":fold")
        return StudyKeys(
            units=f"{tag}:units:{experiment_id}",
            due=f"{tag}:due:{experiment_id}",
            tally=f"{tag}:tally:{experiment_id}",
            late=f"{tag}:late:{experiment_id}",
            history=f"{tag}:history:{experiment_id}",
        )


class StudyKeys(Struct, frozen=True):
    """The keys of one experiment; an id is made by us and holds no colon."""

    units: str
    due: str
    tally: str
    late: str
    history: str


def keys_of(namespace: str) -> Keys:
    """Name the keys of a namespace.

    Raises:
        InvalidRequest: a namespace that is no name.
    """
    tag = f"{{{check_name('a namespace', namespace)}}}"
    return Keys(
        snapshot=f"{tag}:snapshot",
        seal=f"{tag}:seal",
        audit=f"{tag}:audit",
        audit_bases=f"{tag}:audit-bases",
        events=f"{tag}:events",
        manifests=f"{tag}:manifests",
        inspections=f"{tag}:inspections",
        signing_keys=f"{tag}:signing-keys",
        leader=f"{tag}:leader",
        processes=f"{tag}:processes",
        promotions=f"{tag}:promotions",
        promotion_results=f"{tag}:promotion-results",
        evidence=f"{tag}:evidence",
        shipped=f"{tag}:shipped",
        fold=f"{tag}:fold",
        folding=f"{tag}:folding",
        quarantine=f"{tag}:quarantine",
        webhooks=f"{tag}:webhooks",
        listeners=f"{tag}:listeners",
        alarms=f"{tag}:alarms",
        alerts=f"{tag}:alerts",
        following=f"{tag}:following",
        following_asked=f"{tag}:following-asked",
    )


def shipped_value(sequence: int, through_ms: int) -> str:
    """What the hash of shipped journals says of a host."""
    return f"{sequence}:{through_ms}"


def read_shipped(value: bytes) -> tuple[int, int]:
    """Sequence and Unix milliseconds of such a value.

    Raises:
        ValueError: it is none.
    """
    sequence, _, through_ms = value.partition(b":")
    return int(sequence), int(through_ms)


def manifest_field(model: str, number: int) -> str:
    """The field of a version's manifest or inspection; a model's name holds no colon."""
    return f"{model}:{number}"


def audit_id(epoch: int, revision: int) -> str:
    """The stream id of a commit's audit entry, which makes a second append impossible."""
    return f"{epoch}-{revision}"
