"""A collector for tests: real OTLP over HTTP, decoded with the official messages.

It answers as it is told: each request takes the next of `script`, or 200 when that is empty.
"""

import gzip
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

MESSAGES: dict[str, Any] = {
    "/v1/logs": ExportLogsServiceRequest,
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}


@dataclass(frozen=True)
class Answer:
    """What to say to one request.

    `hangs` holds the request until the receiver stops; `content` stands in for the message.
    """

    status: int = 200
    rejected: int = 0
    retry_after: str | None = None
    hangs: bool = False
    content: bytes | None = None


@dataclass(frozen=True)
class Received:
    """One request as it came, and how it was answered."""

    path: str
    headers: dict[str, str]
    message: Any
    answer: Answer


@dataclass
class Receiver:
    """The collector; a context manager. `stop` and `start` make it go down and come back."""

    script: deque[Answer] = field(default_factory=deque)
    received: list[Received] = field(default_factory=list)
    _port: int = 0
    _released: Event = field(default_factory=Event)
    _server: ThreadingHTTPServer | None = None
    _thread: Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base address, as `OTEL_EXPORTER_OTLP_ENDPOINT` takes it."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def taken(self) -> int:
        """Prediction records that were answered for as taken."""
        logs = [one for one in self.received if one.path == "/v1/logs" and one.answer.status == 200]
        counts = [sum(map(is_prediction, log_records(one.message))) for one in logs]
        # What is rejected of the audit log is none.
        told = zip(counts, logs, strict=True)
        return sum(count - one.answer.rejected for count, one in told if count)

    @property
    def predictions(self) -> list[LogRecord]:
        """Every prediction record that came, taken or not."""
        return [entry for entry in self._log_records() if is_prediction(entry)]

    @property
    def evaluations(self) -> list[LogRecord]:
        """Every evaluation event that came."""
        return [e for e in self._log_records() if e.event_name == "feature_flag.evaluation"]

    @property
    def spans(self) -> list[Span]:
        """Every span that came."""
        messages = [one.message for one in self.received if one.path == "/v1/traces"]
        return [
            span
            for message in messages
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics of the newest request, by name."""
        messages = [one.message for one in self.received if one.path == "/v1/metrics"]
        if not messages:
            return {}
        return {
            metric.name: metric
            for resource in messages[-1].resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._released.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._request_class())
        self._server.daemon_threads = False
        self._port = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is None or self._thread is None:
            return
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = None

    def _log_records(self) -> Iterator[LogRecord]:
        for one in self.received:
            if one.path == "/v1/logs":
                yield from log_records(one.message)

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer = self.script.popleft() if self.script else Answer()
        message = MESSAGES[path].FromString(body)
        self.received.append(Received(path, headers, message, answer))
        if answer.hangs:
            self._released.wait()
        return answer

    def _request_class(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Request(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers["content-length"]))
                answer = receiver._take(self.path, headers, body)
                if answer.hangs:
                    return
                reply = ExportLogsServiceResponse()
                if answer.rejected:
                    reply.partial_success.rejected_log_records = answer.rejected
                content = answer.content or reply.SerializeToString()
                self.send_response(answer.status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(content)))
                if answer.retry_after is not None:
                    self.send_header("retry-after", answer.retry_after)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        return Request


def log_records(message: ExportLogsServiceRequest) -> list[LogRecord]:
    """Every log record of a request."""
    return [
        entry
        for resource in message.resource_logs
        for scope in resource.scope_logs
        for entry in scope.log_records
    ]


def is_prediction(entry: LogRecord) -> bool:
    """Whether a log record tells a prediction."""
    return bool(entry.event_name == "tiltyard.prediction")


def plain(attributes: Iterator[KeyValue] | list[KeyValue]) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value")
        for pair in attributes
    }
