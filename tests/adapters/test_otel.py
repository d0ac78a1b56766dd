from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from gateway.adapters.otel import (
    OtelConfig,
    OtlpSender,
    SignalConfig,
    read_config,
    resource_of,
)
from gateway.core.errors import InvalidRequest
from gateway.telemetry import Delivery
from tests.otlp_receiver import Answer, Receiver

NOW = 1_700_000_000.0
BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A collector that is up."""
    with Receiver() as receiver:
        yield receiver


@asynccontextmanager
async def sending(receiver: Receiver, **environ: str) -> AsyncIterator[OtlpSender]:
    """A sender to that collector."""
    config = read_config({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, **environ})
    sender = OtlpSender(config, lambda: NOW)
    try:
        yield sender
    finally:
        await sender.close()


def test_nothing_is_exported_unless_asked_for() -> None:
    """An empty environment, or one of empty values, exports nothing."""
    for environ in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": " "}):
        config = read_config(environ)
        assert (config.logs, config.traces, config.metrics) == (None, None, None)
        assert config.exports_records is False


def test_one_endpoint_serves_all_signals() -> None:
    """The base address gets the signal's path; the defaults are the standard's and ours."""
    assert read_config(BASE) == OtelConfig(
        logs=SignalConfig("http://collector:4318/v1/logs"),
        traces=SignalConfig("http://collector:4318/v1/traces"),
        metrics=SignalConfig("http://collector:4318/v1/metrics"),
    )


def test_a_signals_own_variables_win() -> None:
    """An endpoint of a signal is taken as it is; so are its other variables."""
    config = read_config(
        {
            **BASE,
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=one",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2000",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "all.pem",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://logs/in",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "api-key=t%2Cwo,other=3",
            "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "750",
            "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "none",
            "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE": "logs.pem",
            "OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE": "me.pem",
            "OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY": "me.key",
        }
    )
    assert config.logs == SignalConfig(
        endpoint="https://logs/in",
        headers=(("api-key", "t,wo"), ("other", "3")),
        timeout_s=0.75,
        compressed=False,
        certificate="logs.pem",
        client_certificate="me.pem",
        client_key="me.key",
    )
    assert config.traces == SignalConfig(
        endpoint="http://collector:4318/v1/traces",
        headers=(("api-key", "one"),),
        timeout_s=2.0,
        compressed=True,
        certificate="all.pem",
    )


def test_an_exporter_by_name_is_enough() -> None:
    """`otlp` alone means the standard's own address; `none` switches a signal off."""
    config = read_config({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_LOGS_EXPORTER": "none"})
    assert config.metrics == SignalConfig("http://localhost:4318/v1/metrics")
    assert config.logs is None
    assert read_config({**BASE, "OTEL_TRACES_EXPORTER": "none"}).traces is None


def test_the_sdk_can_be_disabled() -> None:
    """`OTEL_SDK_DISABLED=true` stops every signal."""
    config = read_config({**BASE, "OTEL_SDK_DISABLED": "TRUE"})
    assert (config.logs, config.traces, config.metrics) == (None, None, None)


def test_intervals_and_sizes_are_read() -> None:
    """Times come in milliseconds."""
    config = read_config(
        {
            "OTEL_METRIC_EXPORT_INTERVAL": "15000",
            "OTEL_BLRP_SCHEDULE_DELAY": "50",
            "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "64",
        }
    )
    assert config.metric_interval_s == 15.0
    assert config.linger_s == 0.05
    assert config.batch_records == 64


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", id="protocol"),
        pytest.param("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", id="no scheme"),
        pytest.param("OTEL_EXPORTER_OTLP_ENDPOINT", "http://", id="no host"),
        pytest.param("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://[::", id="no address"),
        pytest.param("OTEL_EXPORTER_OTLP_TIMEOUT", "5s", id="timeout"),
        pytest.param("OTEL_EXPORTER_OTLP_TIMEOUT", "0", id="no time"),
        pytest.param("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", id="compression"),
        pytest.param("OTEL_EXPORTER_OTLP_HEADERS", "key", id="no value"),
        pytest.param("OTEL_EXPORTER_OTLP_HEADERS", "k=a%0d%0ab", id="line break"),
        pytest.param("OTEL_EXPORTER_OTLP_HEADERS", "k k=a", id="header name"),
        pytest.param("OTEL_RESOURCE_ATTRIBUTES", "=x", id="no name"),
        pytest.param("OTEL_METRIC_EXPORT_INTERVAL", "-1", id="interval"),
    ],
)
def test_what_cannot_be_meant_is_refused(variable: str, value: str) -> None:
    """A wrong value stops the start with a sentence, and the value of a header is not in it."""
    with pytest.raises(InvalidRequest) as caught:
        read_config({**BASE, variable: value})
    assert "a\r\nb" not in str(caught.value)


def test_headers_are_not_shown() -> None:
    """Keys of a collector do not reach a log by way of `repr`."""
    config = read_config({**BASE, "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret"})
    assert "secret" not in repr(config)


def test_a_process_says_who_it_is() -> None:
    """The resource names service, version, process, host and the encoder."""
    resource = dict(resource_of(OtelConfig(), host="h", pid=12))
    instance = str(resource.pop("service.instance.id"))
    assert resource == {
        "service.name": "tiltyard",
        "service.version": "0.1.0",
        "host.name": "h",
        "process.pid": 12,
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "gateway.adapters.otel",
        "telemetry.sdk.version": "0.1.0",
        "telemetry.distro.name": "tiltyard",
        "telemetry.distro.version": "0.1.0",
    }
    assert instance == dict(resource_of(OtelConfig(), host="h", pid=99))["service.instance.id"]
    assert instance != dict(resource_of(OtelConfig(), "h", 12, slot=1))["service.instance.id"]


def test_the_environment_may_say_who_we_are() -> None:
    """Attributes of the environment win, and the service's name has a variable of its own."""
    given = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,host.name=b,team=c%20d"}
    resource = dict(resource_of(read_config(given), host="h", pid=1))
    assert (resource["service.name"], resource["host.name"]) == ("a", "b")
    assert resource["team"] == "c d"
    named = read_config({**given, "OTEL_SERVICE_NAME": "e"})
    assert dict(resource_of(named, host="h", pid=1))["service.name"] == "e"


@pytest.mark.parametrize(
    ("answer", "delivery"),
    [
        pytest.param(Answer(), Delivery("taken"), id="200"),
        pytest.param(Answer(status=202), Delivery("taken"), id="202"),
        pytest.param(Answer(rejected=3), Delivery("taken", rejected=3), id="partial success"),
        pytest.param(Answer(rejected=-3), Delivery("taken"), id="nonsense"),
        pytest.param(Answer(status=400), Delivery("invalid"), id="400"),
        pytest.param(Answer(status=413), Delivery("invalid"), id="413"),
        pytest.param(Answer(status=401), Delivery("refused"), id="401"),
        pytest.param(Answer(status=404), Delivery("refused"), id="404"),
        pytest.param(Answer(status=307), Delivery("refused"), id="redirect"),
        pytest.param(Answer(status=500), Delivery("refused"), id="500"),
        pytest.param(Answer(status=502), Delivery("retry"), id="502"),
        pytest.param(Answer(status=503), Delivery("retry"), id="503"),
        pytest.param(Answer(status=504), Delivery("retry"), id="504"),
        pytest.param(
            Answer(status=429, retry_after="60"), Delivery("retry", retry_after_s=60.0), id="429"
        ),
        pytest.param(
            Answer(status=503, retry_after="Tue, 14 Nov 2023 22:14:20 GMT"),
            Delivery("retry", retry_after_s=60.0),
            id="a date",
        ),
        pytest.param(
            Answer(status=503, retry_after="Tue, 14 Nov 2022 22:14:20 GMT"),
            Delivery("retry", retry_after_s=0.0),
            id="a date gone by",
        ),
        pytest.param(Answer(status=503, retry_after="soon"), Delivery("retry"), id="no date"),
    ],
)
async def test_an_answer_is_understood(
    receiver: Receiver, answer: Answer, delivery: Delivery
) -> None:
    """Each answer of a collector has one meaning."""
    receiver.script.append(answer)
    async with sending(receiver) as sender:
        assert await sender.send("logs", b"") == delivery
    assert len(receiver.received) == 1


async def test_a_collector_that_is_away_is_tried_again(receiver: Receiver) -> None:
    """A refused connection is no loss; the same sender reaches it when it is back."""
    async with sending(receiver) as sender:
        receiver.stop()
        assert await sender.send("logs", b"") == Delivery("retry")
        receiver.start()
        assert await sender.send("logs", b"") == Delivery("taken")


async def test_a_collector_that_never_answers_times_out(receiver: Receiver) -> None:
    """After the configured time the request is given up, to be sent again."""
    receiver.script.append(Answer(hangs=True))
    async with sending(receiver, OTEL_EXPORTER_OTLP_TIMEOUT="100") as sender:
        assert await sender.send("logs", b"") == Delivery("retry")
        receiver.stop()


async def test_each_signal_goes_its_way(receiver: Receiver) -> None:
    """Path, content type and the configured headers are as the standard has them."""
    async with sending(receiver, OTEL_EXPORTER_OTLP_HEADERS="api-key=k") as sender:
        for signal in ("logs", "traces", "metrics"):
            assert await sender.send(signal, b"") == Delivery("taken")
    assert [one.path for one in receiver.received] == ["/v1/logs", "/v1/traces", "/v1/metrics"]
    headers = receiver.received[0].headers
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["api-key"] == "k"
    assert headers["user-agent"] == "OTel-OTLP-Exporter-Tiltyard/0.1.0"
    assert "content-encoding" not in headers


@pytest.mark.parametrize(
    "content",
    [pytest.param(b"{}", id="no message"), pytest.param(b"\n" * 100_000, id="too long")],
)
async def test_an_answer_that_makes_no_sense_is_a_success(
    receiver: Receiver, content: bytes
) -> None:
    """The status decides; a body that cannot be read rejects nothing."""
    receiver.script.append(Answer(content=content))
    async with sending(receiver) as sender:
        assert await sender.send("logs", b"") == Delivery("taken")


async def test_a_body_may_be_compressed(receiver: Receiver) -> None:
    """With `gzip` asked for, the body is compressed and says so."""
    async with sending(receiver, OTEL_EXPORTER_OTLP_COMPRESSION="gzip") as sender:
        assert await sender.send("logs", b"") == Delivery("taken")
    assert receiver.received[0].headers["content-encoding"] == "gzip"


async def test_proxies_of_the_environment_are_not_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the OTEL_* variables say decides where telemetry goes."""
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with sending(receiver) as sender:
        assert await sender.send("logs", b"") == Delivery("taken")


def test_an_unreadable_certificate_is_refused() -> None:
    """A certificate that is not there stops the start, and its path is not told."""
    config = read_config({**BASE, "OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such.pem"})
    with pytest.raises(InvalidRequest) as caught:
        OtlpSender(config, lambda: NOW)
    assert "/no/such.pem" not in str(caught.value)
