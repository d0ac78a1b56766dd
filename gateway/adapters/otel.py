"""OpenTelemetry: its environment variables, and the way to a collector over OTLP/HTTP.

Nothing is exported unless an endpoint, or an exporter by name, was asked for.

Source: OpenTelemetry specification, "OTLP Exporter", "SDK Environment Variables"; OTLP/HTTP 1.x.
"""

import asyncio
import gzip
import ssl
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from string import ascii_letters, digits
from typing import Final, Literal, TypeAlias
from urllib.parse import unquote
from uuid import NAMESPACE_URL, uuid5

import httpx
from google.protobuf.message import DecodeError
from msgspec import Struct
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from gateway import __version__
from gateway.adapters.posting import Poster
from gateway.core.errors import InvalidRequest
from gateway.telemetry import Attributes, Delivery

SignalName: TypeAlias = Literal["logs", "traces", "metrics"]

SERVICE_NAME: Final = "tiltyard"
DEFAULT_ENDPOINT: Final = "http://localhost:4318"
_PREFIX: Final = "OTEL_EXPORTER_OTLP_"
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_UNFIT: Final = frozenset({400, 413})
_GZIP_LEVEL: Final = 1
_OK: Final = range(200, 300)


class SignalConfig(Struct, frozen=True):
    """Where one signal goes, and how."""

    endpoint: str
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 5.0
    compressed: bool = False
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    def __repr__(self) -> str:
        """Leave the headers out: they hold keys."""
        return f"SignalConfig({self.endpoint!r})"


class OtelConfig(Struct, frozen=True):
    """What the `OTEL_*` variables say. A signal that is None is not exported."""

    logs: SignalConfig | None = None
    traces: SignalConfig | None = None
    metrics: SignalConfig | None = None
    service_name: str = SERVICE_NAME
    attributes: tuple[tuple[str, str], ...] = ()
    metric_interval_s: float = 60.0
    batch_records: int = 512
    linger_s: float = 0.2

    @property
    def exports_records(self) -> bool:
        """Whether prediction records have anywhere to go."""
        return self.logs is not None or self.traces is not None


def read_config(environ: Mapping[str, str]) -> OtelConfig:
    """Read the standard variables; an empty value is as good as none.

    Raises:
        InvalidRequest: a value that cannot be meant.
    """
    given = {name: value for name, value in environ.items() if value.strip()}
    attributes = dict(_pairs(given.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    named = attributes.pop("service.name", SERVICE_NAME)
    disabled = given.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return OtelConfig(
        logs=None if disabled else _signal("logs", given),
        traces=None if disabled else _signal("traces", given),
        metrics=None if disabled else _signal("metrics", given),
        service_name=given.get("OTEL_SERVICE_NAME", named),
        attributes=tuple(attributes.items()),
        metric_interval_s=_number(given, "OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000,
        batch_records=int(_number(given, "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", 512)),
        linger_s=_number(given, "OTEL_BLRP_SCHEDULE_DELAY", 200) / 1000,
    )


def resource_of(config: OtelConfig, host: str, pid: int, slot: int = 0) -> Attributes:
    """Say who this process is; what the environment says of it wins.

    Args:
        config: the environment's part.
        host: this machine's name.
        pid: of this process.
        slot: tells the processes of one host apart and survives their restarts, so that their
            series neither collide nor multiply.
    """
    place = f"tiltyard:{host}/{config.service_name}/{slot}"
    facts: dict[str, str | int | bool] = {
        "service.name": config.service_name,
        "service.version": __version__,
        "service.instance.id": str(uuid5(NAMESPACE_URL, place)),
        "host.name": host,
        "process.pid": pid,
        "telemetry.sdk.language": "python",
        # The convention asks for the entry point of what is not the official SDK.
        "telemetry.sdk.name": __name__,
        "telemetry.sdk.version": __version__,
        "telemetry.distro.name": "tiltyard",
        "telemetry.distro.version": __version__,
        **dict(config.attributes),
    }
    return tuple(facts.items())


def _signal(name: SignalName, environ: Mapping[str, str]) -> SignalConfig | None:
    exporter = environ.get(f"OTEL_{name.upper()}_EXPORTER")
    own = f"{_PREFIX}{name.upper()}_"

    def value(key: str) -> str | None:
        return environ.get(own + key, environ.get(_PREFIX + key))

    asked = exporter == "otlp" or value("ENDPOINT") is not None
    if not asked or exporter == "none":
        return None
    protocol = value("PROTOCOL")
    if protocol not in (None, "http/protobuf"):
        message = f"{_PREFIX}PROTOCOL is '{protocol}'; only 'http/protobuf' is spoken here."
        raise InvalidRequest(message)
    base = environ.get(f"{_PREFIX}ENDPOINT", DEFAULT_ENDPOINT)
    endpoint = environ.get(f"{own}ENDPOINT", f"{base.strip().rstrip('/')}/v1/{name}").strip()
    headers = _pairs(value("HEADERS") or "")
    _check(name, endpoint, headers)
    timeout = own + "TIMEOUT" if own + "TIMEOUT" in environ else _PREFIX + "TIMEOUT"
    return SignalConfig(
        endpoint=endpoint,
        headers=tuple(headers),
        timeout_s=_number(environ, timeout, 5_000) / 1000,
        compressed=_is_compressed(value("COMPRESSION")),
        certificate=value("CERTIFICATE"),
        client_certificate=value("CLIENT_CERTIFICATE"),
        client_key=value("CLIENT_KEY"),
    )


def _check(name: SignalName, endpoint: str, headers: list[tuple[str, str]]) -> None:
    """Find now what would fail with every request."""
    try:
        url = httpx.URL(endpoint)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        message = f"The OTLP endpoint for {name} must be an http:// or https:// address."
        raise InvalidRequest(message)
    if not all(_TOKEN.issuperset(key) and _is_plain(value) for key, value in headers):
        message = f"The OTLP headers for {name} hold a character that no header may hold."
        raise InvalidRequest(message)


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable()


_TOKEN: Final = frozenset(ascii_letters + digits + "!#$%&'*+-.^_`|~")


def _is_compressed(value: str | None) -> bool:
    if value not in (None, "none", "gzip"):
        message = f"{_PREFIX}COMPRESSION is '{value}'; it must be 'gzip' or 'none'."
        raise InvalidRequest(message)
    return value == "gzip"


def _pairs(text: str) -> list[tuple[str, str]]:
    """Comma-separated `name=value` pairs, percent-encoded."""
    pairs = [item.partition("=") for item in text.split(",") if item.strip()]
    if any(not name.strip() or not equals for name, equals, _ in pairs):
        message = "OTEL_* headers and attributes are 'name=value' pairs with commas between them."
        raise InvalidRequest(message)
    return [(unquote(name.strip()), unquote(value.strip())) for name, _, value in pairs]


def _number(environ: Mapping[str, str], variable: str, otherwise: float) -> float:
    text = environ.get(variable)
    if text is None:
        return otherwise
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number <= 0:
        message = f"{variable} must be a whole number above 0."
        raise InvalidRequest(message)
    return number


class OtlpSender:
    """Posts request bodies, each signal over a connection of its own. Never raises for the network.

    open → closed. Requires an event loop.
    """

    def __init__(self, config: OtelConfig, now: Callable[[], float]) -> None:
        """Open no connection yet.

        Args:
            config: where to.
            now: Unix time in seconds, to understand a date in `Retry-After`.
        """
        self._now = now
        self._signals: dict[SignalName, SignalConfig] = {}
        self._posters: dict[SignalName, Poster] = {}
        signals: tuple[tuple[SignalName, SignalConfig | None], ...] = (
            ("logs", config.logs),
            ("traces", config.traces),
            ("metrics", config.metrics),
        )
        for name, signal in signals:
            if signal is not None:
                self._signals[name] = signal
                self._posters[name] = _poster(signal)

    async def send(self, signal: SignalName, body: bytes) -> Delivery:
        """Post one body and say what became of it. Requires: the signal is configured.

        A request that timed out may have arrived: it counts as not delivered, and is sent again.
        """
        config, poster = self._signals[signal], self._posters[signal]
        headers = ""
        if config.compressed:
            headers = "content-encoding: gzip\r\n"
            body = await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL)
        try:
            # Longer than every single step may take: it ends an answer that drips.
            async with asyncio.timeout(4 * config.timeout_s):
                answered = await poster.post(body, headers)
        except OSError:
            return Delivery("retry")
        if answered.status in _OK:
            return Delivery("taken", rejected=_rejected(answered.content))
        if answered.status in _RETRYABLE:
            after = _seconds(answered.retry_after, self._now())
            return Delivery("retry", retry_after_s=after)
        return Delivery("invalid" if answered.status in _UNFIT else "refused")

    async def close(self) -> None:
        """Close every connection."""
        for poster in self._posters.values():
            poster.close()


def _poster(signal: SignalConfig) -> Poster:
    try:
        context = ssl.create_default_context(cafile=signal.certificate)
        if signal.client_certificate is not None:
            context.load_cert_chain(signal.client_certificate, signal.client_key)
    except OSError as error:
        message = "A certificate that an OTEL_EXPORTER_OTLP_* variable names cannot be read."
        raise InvalidRequest(message) from error
    url = httpx.URL(signal.endpoint)
    own = (
        ("content-type", "application/x-protobuf"),
        ("accept-encoding", "identity"),
        ("user-agent", f"OTel-OTLP-Exporter-Tiltyard/{__version__}"),
    )
    return Poster(
        url,
        {**dict(signal.headers), **dict(own)},
        signal.timeout_s,
        context if url.scheme == "https" else None,
    )


def _rejected(content: bytes) -> int:
    """Records that a partial success refused. The answers of all three signals have one shape."""
    try:
        answer = ExportLogsServiceResponse.FromString(content)
    except DecodeError:
        return 0
    return max(int(answer.partial_success.rejected_log_records), 0)


def _seconds(retry_after: str | None, now: float) -> float | None:
    """`Retry-After` in seconds from now, given in seconds or as a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - now, 0.0)
    except ValueError:
        return None
