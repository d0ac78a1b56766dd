"""OTLP bytes of metrics, made of the official protocol messages.

Records and spans are encoded by the processes that serve (`gateway.serving.otlp_records`).

Source: OpenTelemetry protocol 1.x; semantic conventions 1.44.
"""

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from gateway import __version__
from gateway.core.otlp.wire import MAX_INT, Value, clean
from gateway.telemetry import Attributes, Series

Pairs: TypeAlias = Iterable[tuple[str, Value]]

_CUMULATIVE: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
_SCOPE: Final = InstrumentationScope(name="tiltyard", version=__version__)


class OtlpEncoder:
    """Makes request bodies; keeps nothing of them.

    Not thread-safe: the exporter calls it from one thread at a time.
    """

    def __init__(self, resource: Attributes, started_ns: int) -> None:
        """Describe this process.

        Args:
            resource: who we are, as `gateway.adapters.otel.resource_of` says it.
            started_ns: Unix time since when the metrics have counted.
        """
        self._resource = Resource(attributes=_attributes(resource))
        self._started_ns = started_ns

    def metrics(self, series: Sequence[Series], at_ns: int) -> bytes:
        """All series as cumulative metrics at this Unix time."""
        metrics: dict[str, Metric] = {}
        for one in series:
            metric = metrics.get(one.instrument.name)
            if metric is None:
                metric = metrics[one.instrument.name] = _metric(one)
            self._add_point(metric, one, at_ns)
        request = ExportMetricsServiceRequest()
        told = request.resource_metrics.add(resource=self._resource)
        told.scope_metrics.add(scope=_SCOPE, metrics=metrics.values())
        body: bytes = request.SerializeToString()
        return body

    def _add_point(self, metric: Metric, series: Series, at_ns: int) -> None:
        attributes = _attributes(series.attributes)
        if series.instrument.kind == "histogram":
            metric.histogram.data_points.append(
                HistogramDataPoint(
                    attributes=attributes,
                    start_time_unix_nano=self._started_ns,
                    time_unix_nano=at_ns,
                    count=sum(series.counts),
                    sum=series.total,
                    bucket_counts=series.counts,
                    explicit_bounds=series.instrument.bounds,
                )
            )
            return
        point = NumberDataPoint(
            attributes=attributes,
            start_time_unix_nano=0 if series.instrument.kind == "gauge" else self._started_ns,
            time_unix_nano=at_ns,
        )
        if isinstance(series.value, int):
            point.as_int = series.value
        else:
            point.as_double = series.value
        points = metric.gauge if series.instrument.kind == "gauge" else metric.sum
        points.data_points.append(point)


def _metric(series: Series) -> Metric:
    """The metric of a series, without points."""
    instrument = series.instrument
    metric = Metric(name=instrument.name, unit=instrument.unit, description=instrument.description)
    if instrument.kind == "histogram":
        metric.histogram.CopyFrom(Histogram(aggregation_temporality=_CUMULATIVE))
    elif instrument.kind == "gauge":
        metric.gauge.CopyFrom(Gauge())
    else:
        monotonic = instrument.kind == "counter"
        metric.sum.CopyFrom(Sum(aggregation_temporality=_CUMULATIVE, is_monotonic=monotonic))
    return metric


def _attributes(pairs: Pairs) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in pairs]


def _value(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=clean(value).decode())
    if isinstance(value, int):
        return AnyValue(int_value=max(min(value, MAX_INT), -MAX_INT))
    return AnyValue(double_value=value)
