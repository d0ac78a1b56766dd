from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from gateway.adapters.otel_encode import OtlpEncoder
from gateway.serving.cells import Cells
from gateway.telemetry import ASSIGNMENT_COUNT, BATCH_SIZE, CONFIG_AGE, RECORD_QUEUE_SIZE
from tests.otlp_receiver import plain

AT = 1_700_000_000_000_000_000
STARTED = AT - 10_000_000_000
RESOURCE = (("service.name", "tiltyard"), ("process.pid", 12))


def test_metrics_are_cumulative() -> None:
    """Each kind of instrument becomes the protocol's own kind, since the start of the process."""
    cells = Cells()
    cells.counter(ASSIGNMENT_COUNT, (("a", "x"), ("b", 1), ("c", True))).add(3)
    cells.counter(ASSIGNMENT_COUNT, (("a", "y"),)).add()
    cells.gauge(CONFIG_AGE).set(1.5)
    cells.gauge(RECORD_QUEUE_SIZE).set(4)
    cells.histogram(BATCH_SIZE).observe(2)
    cells.histogram(BATCH_SIZE).observe(100_000)
    body = OtlpEncoder(RESOURCE, STARTED).metrics(cells.collect(), AT)
    (resource,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
    metrics = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    count = metrics["tiltyard.assignment.count"]
    assert (count.unit, count.sum.is_monotonic) == ("{assignment}", True)
    assert count.sum.aggregation_temporality == 2
    one, other = count.sum.data_points
    assert (one.as_int, other.as_int) == (3, 1)
    assert plain(one.attributes) == {"a": "x", "b": 1, "c": True}
    assert (one.start_time_unix_nano, one.time_unix_nano) == (STARTED, AT)
    assert metrics["tiltyard.config.age"].gauge.data_points[0].as_double == 1.5
    size = metrics["tiltyard.record.queue.size"]
    assert size.sum.is_monotonic is False
    assert size.sum.data_points[0].as_int == 4
    (point,) = metrics["tiltyard.batch.size"].histogram.data_points
    assert (point.count, point.sum) == (2, 100_002)
    assert list(point.bucket_counts) == [0, 1, *[0] * 10, 1]
    assert list(point.explicit_bounds) == list(BATCH_SIZE.bounds)
    assert metrics["tiltyard.batch.size"].histogram.aggregation_temporality == 2
    assert plain(resource.resource.attributes) == dict(RESOURCE)
    assert resource.scope_metrics[0].scope.name == "tiltyard"
