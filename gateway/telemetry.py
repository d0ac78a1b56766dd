"""Telemetry: every name that leaves the gateway, and the shapes that carry the facts.

Durations are in seconds, names hold no unit, and what semantic conventions already name keeps that
name; the rest is under `tiltyard.`. Instruments carry attributes of few values only (endpoint,
variant, version); units and ids stand on prediction records and spans. `docs/telemetry.md` says
what each name means to a reader of dashboards; a test keeps the two in step.

Source: OpenTelemetry semantic conventions 1.44 (http, feature flag, process).
"""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from gateway.core import errors
from gateway.core.assignment import HASH_VERSION, Reason
from gateway.core.experiments import Study

Attributes: TypeAlias = tuple[tuple[str, str | int | bool], ...]
"""Names and values of one series, without duplicates."""


class Instrument(Struct, frozen=True):
    """What is measured. `bounds` are upper bounds, inclusive, for histograms only.

    `across` says how the gauges of several processes become one; counters and histograms add.
    """

    name: str
    kind: Literal["counter", "updown", "gauge", "histogram"]
    unit: str
    description: str
    bounds: tuple[float, ...] = ()
    across: Literal["sum", "min", "max"] = "sum"


class Series(Struct, frozen=True):
    """One instrument under one set of attributes, at one moment, since the process started.

    A histogram has one more `counts` than bounds, the last for all that is above; `total` is the
    sum of what was observed. The others have `value`.
    """

    instrument: Instrument
    attributes: Attributes
    value: float = 0
    counts: tuple[int, ...] = ()
    total: float = 0.0


class Trace(Struct, frozen=True, gc=False):
    """Where a request stands in a trace: 16, 8 and 8 bytes. `span_id` is ours."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes | None
    sampled: bool
    state: str = ""


class Kind(Struct, frozen=True, eq=False, kw_only=True):
    """What many predictions have in common: who was asked, who answered, and why.

    Compared by identity, so that whoever counts or encodes keeps what belongs to a kind in a
    dictionary. `digest` is empty where no version was reached. `study` is what is noted of the
    units of this phase of its experiment. `failed_with` is the kind of the error for which the
    default answered in place of the variant that was intended.
    """

    endpoint: str
    model: str
    version: int
    digest: str
    variant: str
    reason: Reason
    revision: int
    rule: str | None = None
    intended: str | None = None
    propensity: float = 1.0
    salt: str | None = None
    hash_version: int = HASH_VERSION
    sticky: bool = False
    shadow: bool = False
    experiment: str | None = None
    phase: int = 0
    study: Study | None = None
    failed_with: str | None = None


class Record(Struct, gc=False):
    """One served prediction, as it will be told to the collector.

    Not tracked by the garbage collector, so that many of them cost it nothing: a record must not
    refer to itself. Times are nanoseconds; `at_ns` is Unix time at arrival. `trace` of a shadow
    is that of the request that it copies. `cached` says that a kept answer was given and nothing
    ran; `segment` is an index that its experiment knows; `invalid` says that outputs which are
    looked at hold NaN or an infinity.
    """

    kind: Kind
    at_ns: int
    prediction_id: str
    latency_ns: int
    queue_ns: int
    run_ns: int
    rows: int
    batch_rows: int
    unit_hash: bytes | None = None
    request_id: str | None = None
    error_type: str | None = None
    trace: Trace | None = None
    primary_id: str | None = None
    first_exposure: bool = False
    inputs: str | None = None
    outputs: str | None = None
    cached: bool = False
    segment: int = 0
    invalid: bool = False


class Delivery(Struct, frozen=True):
    """What a collector made of one request.

    `taken`, less the `rejected` records; `invalid`: these bytes will never be taken; `refused`:
    nothing from us is; `retry`: not now, and not before `retry_after_s` if it said so.
    """

    result: Literal["taken", "invalid", "refused", "retry"]
    rejected: int = 0
    retry_after_s: float | None = None


# Attributes of instruments, records and spans.
ENDPOINT: Final = "feature_flag.key"
VARIANT: Final = "feature_flag.result.variant"
REASON: Final = "feature_flag.result.reason"
REVISION: Final = "feature_flag.version"
UNIT: Final = "feature_flag.context.id"
PROVIDER: Final = "feature_flag.provider.name"
ERROR_TYPE: Final = "error.type"
OVERFLOW: Final = "otel.metric.overflow"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_SCHEME: Final = "url.scheme"
MODEL_NAME: Final = "tiltyard.model.name"
MODEL_VERSION: Final = "tiltyard.model.version"
MODEL_DIGEST: Final = "tiltyard.model.digest"
MODEL_STATE_NAME: Final = "tiltyard.model.state.name"
ASSIGNMENT_RULE: Final = "tiltyard.assignment.rule"
ASSIGNMENT_INTENDED: Final = "tiltyard.assignment.intended"
ASSIGNMENT_SALT: Final = "tiltyard.assignment.salt"
ASSIGNMENT_HASH_VERSION: Final = "tiltyard.assignment.hash_version"
ASSIGNMENT_PROPENSITY: Final = "tiltyard.assignment.propensity"
ASSIGNMENT_STICKY: Final = "tiltyard.assignment.sticky"
ASSIGNMENT_REASON: Final = "tiltyard.assignment.reason"
EXPERIMENT_NAME: Final = "tiltyard.experiment.name"
EXPERIMENT_PHASE: Final = "tiltyard.experiment.phase"
PREDICTION_ID: Final = "tiltyard.prediction.id"
PRIMARY_PREDICTION_ID: Final = "tiltyard.primary.prediction.id"
REQUEST_ID: Final = "tiltyard.request.id"
LATENCY: Final = "tiltyard.latency"
QUEUE_LATENCY: Final = "tiltyard.queue.latency"
BATCH_ROWS: Final = "tiltyard.batch.size"
ROWS: Final = "tiltyard.rows"
SHADOW: Final = "tiltyard.shadow"
INPUTS: Final = "tiltyard.inputs"
OUTPUTS: Final = "tiltyard.outputs"
DROP_REASON: Final = "tiltyard.drop.reason"
CACHE_HIT: Final = "tiltyard.cache.hit"
RESULT: Final = "tiltyard.result"

ATTRIBUTES: Final = frozenset(
    {
        ENDPOINT, VARIANT, REASON, REVISION, UNIT, PROVIDER, ERROR_TYPE, OVERFLOW, HTTP_METHOD,
        HTTP_ROUTE, HTTP_STATUS, URL_SCHEME, MODEL_NAME, MODEL_VERSION,
        MODEL_DIGEST, MODEL_STATE_NAME, ASSIGNMENT_RULE, ASSIGNMENT_INTENDED, ASSIGNMENT_SALT,
        ASSIGNMENT_HASH_VERSION, ASSIGNMENT_PROPENSITY, ASSIGNMENT_STICKY, ASSIGNMENT_REASON,
        PREDICTION_ID,
        PRIMARY_PREDICTION_ID, REQUEST_ID, LATENCY, QUEUE_LATENCY, BATCH_ROWS, ROWS, SHADOW,
        INPUTS, OUTPUTS, DROP_REASON, RESULT, CACHE_HIT, EXPERIMENT_NAME, EXPERIMENT_PHASE,
    }
)  # fmt: skip
"""Every attribute name above."""

PROVIDER_NAME: Final = "tiltyard"
DROP_REASONS: Final = (
    "queue_full", "spool_full", "process_lost", "rejected", "invalid", "refused", "disabled",
    "shutdown",
)  # fmt: skip
"""Values of `tiltyard.drop.reason` on records; a shadow has its own."""
STANDARD_REASONS: Final[Mapping[Reason, str]] = {
    Reason.STATIC: "static",
    Reason.SPLIT: "split",
    Reason.TARGETING_MATCH: "targeting_match",
    Reason.DEFAULT: "default",
    Reason.FORCED: "targeting_match",
    Reason.PINNED: "static",
    Reason.FALLBACK: "error",
}
"""Our reasons in the words of `feature_flag.result.reason`."""

CALLER_ERRORS: Final = frozenset(
    error.kind
    for error in (
        errors.InvalidRequest, errors.TooLarge, errors.UnsupportedMedia, errors.Unauthenticated,
        errors.Forbidden, errors.NotFound, errors.Conflict, errors.Unsupported, errors.Throttled,
        errors.ShareExceeded, errors.Cancelled,
    )
)  # fmt: skip
"""Values of `error.type` for what the caller did wrong; all others are ours or the model's."""

# Events and spans.
PREDICTION_EVENT: Final = "tiltyard.prediction"
EVALUATION_EVENT: Final = "feature_flag.evaluation"
EVENTS: Final = frozenset({PREDICTION_EVENT, EVALUATION_EVENT})
SERVER_ROUTE: Final = "/v2/models/{model_name}/infer"
SERVER_SPAN: Final = f"POST {SERVER_ROUTE}"
SHADOW_SPAN: Final = "tiltyard.shadow"
QUEUE_SPAN: Final = "tiltyard.queue"
INFERENCE_SPAN: Final = "tiltyard.inference"
SPANS: Final = frozenset({SERVER_SPAN, SHADOW_SPAN, QUEUE_SPAN, INFERENCE_SPAN})

DURATION_BOUNDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025,
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""The convention's bounds, which start at 5 ms, and finer ones before them."""
LOAD_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ROW_BOUNDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 4096.0, 16384.0)


def _counter(name: str, unit: str, description: str) -> Instrument:
    return Instrument(name, "counter", unit, description)


def _duration(
    name: str, description: str, bounds: tuple[float, ...] = DURATION_BOUNDS
) -> Instrument:
    return Instrument(name, "histogram", "s", description, bounds)


# Serving.
REQUEST_DURATION: Final = _duration(
    "http.server.request.duration", "From the head of a request to its answer."
)
ACTIVE_REQUESTS: Final = Instrument(
    "http.server.active_requests", "updown", "{request}", "Requests that wait for their answer."
)
PREDICTION_DURATION: Final = _duration(
    "tiltyard.prediction.duration", "From arrival to answer of one prediction, queue included."
)
INFERENCE_DURATION: Final = _duration(
    "tiltyard.inference.duration", "The model's run that answered a prediction."
)
QUEUE_DURATION: Final = _duration(
    "tiltyard.queue.duration", "Wait of a prediction for its run to begin."
)
BATCH_SIZE: Final = Instrument(
    "tiltyard.batch.size",
    "histogram",
    "{row}",
    "Rows in the run that answered a prediction.",
    ROW_BOUNDS,
)
ASSIGNMENT_COUNT: Final = _counter(
    "tiltyard.assignment.count", "{assignment}", "Requests that were given a variant."
)
PREDICTION_LOST: Final = _counter(
    "tiltyard.prediction.lost",
    "{request}",
    "Requests that were in flight in a process that was killed.",
)
SHADOW_COMPARED: Final = _counter(
    "tiltyard.shadow.compared", "{request}", "Shadow answers held against the primary ones."
)
SHADOW_SKIPPED: Final = _counter(
    "tiltyard.shadow.skipped", "{request}", "Copies that a shadow did not run."
)
SHADOW_DISAGREED: Final = _counter(
    "tiltyard.shadow.disagreed", "{request}", "Shadow answers beyond their tolerance."
)
ADMISSION_REJECTED: Final = _counter(
    "tiltyard.admission.rejected",
    "{request}",
    "Requests that overload or their deadline left without an answer.",
)
SIGHTING_DROPPED: Final = _counter(
    "tiltyard.sighting.dropped", "{sighting}", "Sightings of units that found no room."
)
CACHE_HITS: Final = _counter(
    "tiltyard.cache.hit", "{request}", "Requests that were given a kept answer."
)
CACHE_MISSES: Final = _counter(
    "tiltyard.cache.miss", "{request}", "Requests that were looked up and had to be run."
)
CACHE_COALESCED: Final = _counter(
    "tiltyard.cache.coalesced", "{request}", "Requests that were answered by an equal one's run."
)
CACHE_EVICTED: Final = _counter(
    "tiltyard.cache.evicted", "{answer}", "Kept answers that made room for others."
)
CACHE_SIZE: Final = Instrument(
    "tiltyard.cache.size", "updown", "By", "Memory that kept answers take."
)

# Configuration and models.
CONFIG_REVISION: Final = Instrument(
    "tiltyard.config.revision", "gauge", "{revision}", "Revision that is served.", across="min"
)
CONFIG_AGE: Final = Instrument(
    "tiltyard.config.age", "gauge", "s", "Since the store was last read.", across="max"
)
CONFIG_REJECTED: Final = _counter(
    "tiltyard.config.rejected", "{revision}", "Snapshots that were not taken."
)
MODEL_STATE: Final = Instrument(
    "tiltyard.model.state",
    "gauge",
    "{version}",
    "1 for the state that a version is in, 0 for others.",
)
MODEL_LOAD_DURATION: Final = _duration(
    "tiltyard.model.load.duration", "Loading, checking and warming a version.", LOAD_BOUNDS
)
MODEL_SWAP_COUNT: Final = _counter(
    "tiltyard.model.swap.count", "{swap}", "Endpoints that moved to another plan."
)

# Records on their way: emitted = delivered + dropped + pending, at every moment.
RECORD_EMITTED: Final = _counter(
    "tiltyard.record.emitted", "{record}", "Prediction records made, as far as control knows."
)
RECORD_DELIVERED: Final = _counter(
    "tiltyard.record.delivered",
    "{record}",
    "Prediction records that the collector took; without one, the record log.",
)
RECORD_DROPPED: Final = _counter(
    "tiltyard.record.dropped", "{record}", "Prediction records that were lost, by reason."
)
RECORD_QUEUE_SIZE: Final = Instrument(
    "tiltyard.record.queue.size", "updown", "{record}", "Prediction records that wait to be sent."
)
SPAN_DROPPED: Final = _counter(
    "tiltyard.span.dropped", "{span}", "Sampled spans that the collector did not take."
)

# Outcomes and what is seen of units, on their way to be folded.
OUTCOME_ACCEPTED: Final = _counter(
    "tiltyard.outcome.accepted", "{outcome}", "Outcomes that were written to the journal."
)
OUTCOME_REFUSED: Final = _counter(
    "tiltyard.outcome.refused", "{outcome}", "Outcomes that were not accepted, by cause."
)
EVIDENCE_SHIPPED: Final = _counter(
    "tiltyard.evidence.shipped", "{entry}", "Journal entries that the store took."
)
EVIDENCE_DROPPED: Final = _counter(
    "tiltyard.evidence.dropped", "{parcel}", "Parcels of sightings that found no room."
)
JOURNAL_SIZE: Final = Instrument(
    "tiltyard.journal.size", "updown", "By", "The journal of outcomes on disk."
)
JOURNAL_UNSHIPPED: Final = Instrument(
    "tiltyard.journal.unshipped", "updown", "By", "What of it the store has not taken yet."
)
EVIDENCE_FOLDED: Final = _counter(
    "tiltyard.evidence.folded", "{event}", "Outcomes and sightings that were folded, by result."
)
EVIDENCE_QUARANTINED: Final = _counter(
    "tiltyard.evidence.quarantined", "{event}", "Events that belong to no experiment, by cause."
)
EVIDENCE_FROZEN: Final = _counter(
    "tiltyard.evidence.frozen", "{unit}", "Units whose time for a metric was found to be over."
)

# The process.
PROCESS_MEMORY: Final = Instrument(
    "process.memory.usage", "updown", "By", "Physical memory in use."
)
PROCESS_CPU_TIME: Final = _counter("process.cpu.time", "s", "Processor time used.")

INSTRUMENTS: Final = (
    REQUEST_DURATION, ACTIVE_REQUESTS, PREDICTION_DURATION, INFERENCE_DURATION, QUEUE_DURATION,
    BATCH_SIZE, ASSIGNMENT_COUNT, PREDICTION_LOST, SHADOW_COMPARED, SHADOW_SKIPPED,
    SHADOW_DISAGREED, ADMISSION_REJECTED, CACHE_HITS, CACHE_MISSES, CACHE_COALESCED,
    CACHE_EVICTED, CACHE_SIZE, CONFIG_REVISION, CONFIG_AGE, CONFIG_REJECTED, MODEL_STATE,
    MODEL_LOAD_DURATION, MODEL_SWAP_COUNT, RECORD_EMITTED, RECORD_DELIVERED, RECORD_DROPPED,
    RECORD_QUEUE_SIZE, SPAN_DROPPED, OUTCOME_ACCEPTED, OUTCOME_REFUSED, EVIDENCE_SHIPPED,
    EVIDENCE_DROPPED, EVIDENCE_FOLDED, EVIDENCE_QUARANTINED, EVIDENCE_FROZEN, JOURNAL_SIZE,
    JOURNAL_UNSHIPPED, PROCESS_MEMORY, PROCESS_CPU_TIME, SIGHTING_DROPPED,
)  # fmt: skip
"""Every instrument above."""
