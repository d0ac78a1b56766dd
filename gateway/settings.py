"""Settings: what a process needs to be born, read once.

Precedence, and nothing more: defaults < TOML file < environment. The environment variable of a
field is `TILTYARD_<SECTION>_<FIELD>`, or `TILTYARD_<FIELD>` at the top. Unknown keys are errors.
What the team changes while the gateway runs is in the Snapshot, not here.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Struct, field

from gateway.core.addresses import check_allowed
from gateway.core.errors import InvalidRequest
from gateway.governance_settings import InspectionSettings, UploadSettings, WebhookSettings
from gateway.mlflow_settings import MLFLOW_SECRETS, MlflowSettings
from gateway.oidc_settings import OidcSettings, check_oidc
from gateway.secret_settings import Masked

PREFIX: Final = "TILTYARD_"
OTHER_VARIABLES: Final = frozenset({"TILTYARD_CONFIG", "TILTYARD_TOKEN", "TILTYARD_ADMIN_URL"})
"""Variables with the prefix that are no settings: the file's place, and the CLI's own."""
MIN_SEAL_KEY_BYTES: Final = 16
MAX_WORKERS: Final = 256
MAX_NICENESS: Final = 19
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class HttpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The inference listener."""

    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: str | None = None
    """Certificate chain in PEM; with `tls_key` the listener speaks TLS."""
    tls_key: str | None = None
    max_body_bytes: int = 64 * 1024 * 1024
    """Largest body, after decompression."""
    max_json_bytes: int = 16 * 1024 * 1024
    """Largest JSON part of a body."""
    keep_alive_s: int = 75
    """Between an answer and the next request on a connection."""
    header_s: float = 5.0
    """For a request's head to arrive."""
    body_idle_s: float = 10.0
    """Between two parts of a body; a body that takes longer must also come at 1 KiB a second."""
    write_stall_s: float = 10.0
    """For a caller to read something of its answer."""
    door: Literal["fast", "asgi"] = "fast"
    """Whether connections answer inferences themselves, or the ASGI application does."""
    auth: Literal["open", "token"] = "open"
    """Whether anybody may infer, or only who shows a token with the right `infer`."""
    json_nonfinite: Literal["literal", "null", "error"] = "literal"
    """How NaN and the infinities are written in JSON answers."""


class GrpcSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The port that gRPC inference will take; nothing listens there yet."""

    port: int = 8081


class AdminSettings(Masked, frozen=True, forbid_unknown_fields=True):
    """The listener for the admin API and metrics."""

    hidden = frozenset({"token"})

    host: str = "127.0.0.1"
    port: int = 8082
    tls_cert: str | None = None
    tls_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    """Further names that a Host header may hold; loopback names and `host` always may."""
    token: str | None = None
    """The bearer token; without it one is made on first start in the state folder."""
    open_metrics: bool = True
    """Whether `/metrics` needs no token when the listener is on loopback."""


class RedisSettings(Masked, frozen=True, forbid_unknown_fields=True):
    """Where the Snapshot lives. No audit entry younger than `audit_days` is ever trimmed."""

    hidden = frozenset({"url", "seal_key"})

    url: str | None = None
    """`redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`."""
    embedded: bool = True
    """Start an embedded Valkey when no URL is given."""
    namespace: str = "tiltyard"
    seal_key: str | None = None
    """With it, a Snapshot is served only if a host that has this key wrote it; 16 bytes or more."""
    timeout_s: float = 1.0
    poll_s: float = 0.5
    """How often the revision is read; a published hint comes sooner."""
    audit_days: float = 90.0


class PoolSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How models are run."""

    intra_op_threads: int = 1
    """Threads of one run; never 0, which would take every core of the host."""
    executor_threads: int = 2
    """Runs at the same time, for models too slow to run on the event loop."""
    niceness: int = 5
    """By how much runs in threads give way to the event loop, 0 to 19; 0 is not at all."""
    arena_mb: int | None = None
    """MiB that all runs of one process may take, 0 for no cap; half of the memory if not set.

    Half of what the control group or the host allows is shared out between the workers, at least
    256 MiB for each. Weights that are not shared count too, so a cap below them holds nothing.
    """
    share_weights: Literal["auto", "always", "never"] = "auto"
    """Whether workers share the weights of large models: `auto` where it is not slower."""
    inline_ms: float = 0.5
    """A model runs on the event loop while a usual request takes it no longer than this."""
    stuck_s: float = 2.0
    """A run in a thread that takes longer, and much longer than expected, is stuck."""
    spare_threads: int = 4
    """Threads that take the place of stuck ones; a model may have half as many stuck runs."""
    drain_s: float = 30.0
    """How long a retired version waits for the requests that hold it."""


class BatchSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How requests share a run."""

    max_rows: int = 64
    """Rows in one run when several requests share it; a larger request runs alone."""
    max_request_rows: int = 100_000
    """Rows in one request."""
    max_queued_rows: int = 20_000
    """Rows that wait for one version; beyond it requests are refused with 503."""
    max_queued_mb: float = 256.0
    """Memory of the inputs that wait for one version."""
    max_wait_ms: float = 1_000.0
    """Requests are refused with 503 when they would wait longer for their run than this."""
    crowd_wait_ms: float = 100.0
    """The same where more requests wait already than share a run (`max_rows`)."""
    target_ms: float = 20.0
    """How long a run in a thread may take when several requests share it."""
    inline_target_ms: float = 2.0
    """The same on the event loop, where everybody else waits for it."""


class AdmissionSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How much one process takes on, before it reads a body."""

    max_in_flight: int = 1024
    """Requests of one endpoint; beyond it they are refused with 503."""
    min_in_flight: int = 16
    """Under overload the limit falls no lower than this."""
    max_held_mb: int = 512
    """Large bodies that are here or on their way, of all endpoints; in units of 1,048,576 bytes."""


class ShadowSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How shadows are kept from the answer's way."""

    max_queued: int = 256
    """Copies that wait for one shadow."""
    max_wait_s: float = 1.0
    """A copy is dropped when it waits longer, and a run of it is given up when it takes longer."""
    spare_threads: int = 4
    """Threads that take the place of those in which a shadow hangs."""
    max_busy: int = 32
    """Shadows run only while fewer primary requests than this are in flight."""
    samples: int = 20
    """Worst disagreements kept for each shadow."""


class OutcomeSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may report outcomes, and how they are kept on this host."""

    auth: Literal["token", "open"] = "token"
    """Whether reporting needs a bearer token with the right `outcomes`."""
    max_age_s: float = 90 * 86_400.0
    """Outcomes of predictions older than this are refused."""
    journal_mb: int = 512
    """Size of the journal on disk, in MiB; when what the store has not taken fills it, outcomes are
    refused with 503."""


class CacheSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on the answers that endpoints keep, where their documents ask for it."""

    max_mb: int = 256
    """All endpoints together, in each process; in units of 1,048,576 bytes."""


class RecordingSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of predictions: until it is sent, and on this host's disk."""

    max_records: int = 50_000
    """Records that wait in memory, in each process; beyond it the newest are lost and counted."""
    max_bytes: int = 32 * 1024 * 1024
    """Bytes of encoded records that wait in memory, in each process."""
    keep_mb: int = 256
    """Size of the record log on disk, in MiB, which outages of the collector fill; 0 for none."""
    max_units: int = 100_000
    """Units remembered over all splits, to tell a first exposure."""
    trace_ratio: float = 0.0
    """Share of requests without a caller's trace that start one."""


class ProcessSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How the supervisor looks after its processes."""

    heartbeat_s: float = 10.0
    """A process whose event loop has not turned for this long is replaced."""
    memory_mib: int = 0
    """A worker that holds more resident memory is drained and replaced; 0 is no limit."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole tree."""

    workers: int | Literal["auto"] = 1
    """Processes that serve, beside one for control; `auto` has one for each processor that this
    host or its quota gives, 0 has both halves in one process."""

    state_dir: str = ".tiltyard"
    """Last good Snapshot, artifact cache, tokens, keys and the embedded store's data."""
    model_store: str = "models"
    """`<store>/<model>/<version>/model.onnx`: a folder, or an address such as `s3://a/models`."""
    store_scan_s: float = 2.0
    """How often the model store is looked at for new versions."""
    drain_delay_s: float = 0.0
    """Between readiness going false and the listener closing."""
    stop_s: float = 15.0
    """Within this time after SIGTERM the process is gone."""
    http: HttpSettings = field(default_factory=HttpSettings)
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    batching: BatchSettings = field(default_factory=BatchSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    shadows: ShadowSettings = field(default_factory=ShadowSettings)
    recording: RecordingSettings = field(default_factory=RecordingSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    outcomes: OutcomeSettings = field(default_factory=OutcomeSettings)
    inspection: InspectionSettings = field(default_factory=InspectionSettings)
    uploads: UploadSettings = field(default_factory=UploadSettings)
    mlflow: MlflowSettings = field(default_factory=MlflowSettings)
    processes: ProcessSettings = field(default_factory=ProcessSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    oidc: OidcSettings = field(default_factory=OidcSettings)


SECRETS: Final = MLFLOW_SECRETS | {("admin", "token"), ("redis", "url"), ("redis", "seal_key")}
"""Fields that are masked wherever settings are shown."""


def load(environ: Mapping[str, str], toml: Path | None = None) -> Settings:
    """Read the settings; call it once.

    Args:
        environ: the process environment.
        toml: a settings file; `TILTYARD_CONFIG` names one when this is None.

    Raises:
        InvalidRequest: an unreadable file, an unknown key or a value of the wrong type.
    """
    named = environ.get("TILTYARD_CONFIG")
    path = toml or (Path(named) if named else None)
    tree = {} if path is None else _read_toml(path)
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and variable not in OTHER_VARIABLES:
            _place(tree, variable, text)
    try:
        settings = msgspec.convert(tree, Settings, strict=False)
    except msgspec.ValidationError as error:
        message = f"A setting is wrong: {error}."
        raise InvalidRequest(message) from error
    _check(settings)
    return settings


def shown(settings: Settings) -> dict[str, Any]:
    """The effective settings as plain data, secrets masked."""
    tree: dict[str, Any] = msgspec.to_builtins(settings)
    for section, name in SECRETS:
        if tree[section][name] is not None:
            tree[section][name] = "********"
    return tree


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"The settings file '{path.name}' cannot be read: {error}."
        raise InvalidRequest(message) from error


def _place(tree: dict[str, Any], variable: str, text: str) -> None:
    """Put an environment variable where it belongs in the tree."""
    name = variable.removeprefix(PREFIX).lower()
    if name in Settings.__struct_fields__ and name not in _SECTIONS:
        tree[name] = text
        return
    section, _, key = name.partition("_")
    if section not in _SECTIONS or key not in _SECTIONS[section].__struct_fields__:
        message = f"The environment variable {variable} is not a setting."
        raise InvalidRequest(message)
    tree.setdefault(section, {})[key] = tuple(text.split(",")) if key in _LISTS else text


def _check(settings: Settings) -> None:
    for name, section in (("http", settings.http), ("admin", settings.admin)):
        if (section.tls_cert is None) != (section.tls_key is None):
            message = f"Settings {name}.tls_cert and {name}.tls_key go together."
            raise InvalidRequest(message)
        if not 0 <= section.port <= _MAX_PORT:
            message = f"Setting {name}.port is {section.port}; it must be 0 to {_MAX_PORT}."
            raise InvalidRequest(message)
    seal_key = settings.redis.seal_key
    if seal_key is not None and len(seal_key.encode()) < MIN_SEAL_KEY_BYTES:
        raise InvalidRequest(f"Setting redis.seal_key needs at least {MIN_SEAL_KEY_BYTES} bytes.")
    if not 0 <= settings.drain_delay_s < settings.stop_s:
        raise InvalidRequest("Setting drain_delay_s must be at least 0 and below stop_s.")
    check_oidc(settings.oidc)
    _check_processes(settings)
    _check_numbers(settings)
    check_allowed("webhooks.allow_hosts", settings.webhooks.allow_hosts)


def _check_numbers(settings: Settings) -> None:
    if not 0 <= settings.pool.niceness <= MAX_NICENESS:
        raise InvalidRequest(f"Setting pool.niceness is {settings.pool.niceness}, not 0 to 19.")
    for name, size in (
        ("pool.arena_mb", settings.pool.arena_mb or 0),
        ("recording.keep_mb", settings.recording.keep_mb),
        ("processes.memory_mib", settings.processes.memory_mib),
    ):
        if size < 0:
            raise InvalidRequest(f"Setting {name} is {size}; it must be at least 0.")
    if settings.store_scan_s <= 0:
        raise InvalidRequest(
            f"Setting store_scan_s is {settings.store_scan_s}; it must be above 0."
        )
    for section, names in _POSITIVE.items():
        for name in names.split():
            value = getattr(getattr(settings, section), name)
            if value <= 0:
                message = f"Setting {section}.{name} is {value}; it must be above 0."
                raise InvalidRequest(message)


def _check_processes(settings: Settings) -> None:
    if isinstance(settings.workers, int) and not 0 <= settings.workers <= MAX_WORKERS:
        message = f"Setting workers is {settings.workers}; it must be 0 to {MAX_WORKERS}, or auto."
        raise InvalidRequest(message)


_MAX_PORT: Final = 65_535
_LISTS: Final = frozenset({"allowed_hosts", "allow_hosts", "models", "names", "aliases"})
_POSITIVE: Final[Mapping[str, str]] = {
    "http": "keep_alive_s header_s body_idle_s write_stall_s max_body_bytes max_json_bytes",
    "processes": "heartbeat_s",
    "pool": "intra_op_threads executor_threads stuck_s spare_threads drain_s",
    "batching": "max_rows max_request_rows max_queued_rows max_queued_mb max_wait_ms "
    "crowd_wait_ms target_ms inline_target_ms",
    "admission": "max_in_flight min_in_flight max_held_mb",
    "shadows": "max_queued max_wait_s",
    "recording": "max_records max_bytes max_units",
    "cache": "max_mb",
    "outcomes": "max_age_s journal_mb",
    "inspection": "time_s run_s memory_mb",
    "webhooks": "timeout_s give_up_s",
    "uploads": "max_mb quota_mb max_open expire_s",
    "mlflow": "max_mb poll_s timeout_s",
    "redis": "audit_days poll_s timeout_s",
}
"""Names of numbers above 0 in each section."""
_SECTIONS: Final[Mapping[str, type[Struct]]] = {
    name: kind
    for name, kind in get_type_hints(Settings).items()
    if isinstance(kind, type) and issubclass(kind, Struct)
}
