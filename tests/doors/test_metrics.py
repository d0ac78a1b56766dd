import shutil
import subprocess
from math import inf, nan

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.doors.http.metrics import metric_name, render
from gateway.serving.cells import Cells
from gateway.telemetry import (
    ASSIGNMENT_COUNT,
    BATCH_SIZE,
    CONFIG_AGE,
    CONFIG_REVISION,
    INSTRUMENTS,
    PROCESS_CPU_TIME,
    PROCESS_MEMORY,
    REQUEST_DURATION,
    Instrument,
    Series,
)

RESOURCE = (("service.name", "tiltyard"), ("process.pid", 12))


def everything() -> list[Series]:
    """Every instrument of the telemetry page, with attributes that are hard to write."""
    cells = Cells()
    for instrument in INSTRUMENTS:
        for attributes in ((), (("a.b", 'x"\\\n\té'), ("ok", True), ("n", 3))):
            if instrument.kind == "counter":
                cells.counter(instrument, attributes).add(3)
            elif instrument.kind == "histogram":
                cells.histogram(instrument, attributes).observe(0.003)
            else:
                cells.gauge(instrument, attributes).set(1.5)
    return cells.collect()


def test_the_text_is_as_the_format_has_it() -> None:
    """Families stand in order, each with its help, its type and all its samples."""
    cells = Cells()
    cells.counter(ASSIGNMENT_COUNT, (("feature_flag.key", "digits"), ("ok", True))).add(3)
    cells.counter(ASSIGNMENT_COUNT, (("feature_flag.key", "flights"),)).add()
    cells.gauge(CONFIG_AGE).set(1.5)
    rows = Instrument("tiltyard.rows", "histogram", "{row}", "Rows\nand \\ more.", (1.0, 2.5))
    for value in (1, 2, 9):
        cells.histogram(rows, (("m", "x"),)).observe(value)
    assert render(cells.collect(), RESOURCE).decode() == (
        "# HELP target_info Who this is.\n"
        "# TYPE target_info gauge\n"
        'target_info{service_name="tiltyard",process_pid="12"} 1\n'
        "# HELP tiltyard_assignment_count_total Requests that were given a variant.\n"
        "# TYPE tiltyard_assignment_count_total counter\n"
        'tiltyard_assignment_count_total{feature_flag_key="digits",ok="true"} 3\n'
        'tiltyard_assignment_count_total{feature_flag_key="flights"} 1\n'
        "# HELP tiltyard_config_age_seconds Since the store was last read.\n"
        "# TYPE tiltyard_config_age_seconds gauge\n"
        "tiltyard_config_age_seconds 1.5\n"
        "# HELP tiltyard_rows Rows\\nand \\\\ more.\n"
        "# TYPE tiltyard_rows histogram\n"
        'tiltyard_rows_bucket{m="x",le="1"} 1\n'
        'tiltyard_rows_bucket{m="x",le="2.5"} 2\n'
        'tiltyard_rows_bucket{m="x",le="+Inf"} 3\n'
        'tiltyard_rows_sum{m="x"} 12\n'
        'tiltyard_rows_count{m="x"} 3\n'
    )


@pytest.mark.parametrize(
    ("instrument", "name"),
    [
        (REQUEST_DURATION, "http_server_request_duration_seconds"),
        (ASSIGNMENT_COUNT, "tiltyard_assignment_count_total"),
        (CONFIG_REVISION, "tiltyard_config_revision"),
        (BATCH_SIZE, "tiltyard_batch_size"),
        (PROCESS_MEMORY, "process_memory_usage_bytes"),
        (PROCESS_CPU_TIME, "process_cpu_time_seconds_total"),
        (Instrument("9.lives-left", "gauge", "s", ""), "_9_lives_left_seconds"),
        (Instrument("a.seconds", "gauge", "s", ""), "a_seconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_are_those_that_a_collector_would_give(instrument: Instrument, name: str) -> None:
    """Dots are underscores; the unit and the counter's suffix are part of the name."""
    assert metric_name(instrument) == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (7.0, "7"),
        (0.00025, "0.00025"),
        (1e22, "10000000000000000000000"),
        (inf, "+Inf"),
        (-inf, "-Inf"),
        (nan, "NaN"),
    ],
)
def test_numbers_are_written_in_full(value: float, text: str) -> None:
    """A whole number has no point; what is no number is spelled as the format does."""
    line = render([Series(CONFIG_AGE, (), value)]).decode().splitlines()[-1]
    assert line == f"tiltyard_config_age_seconds {text}"


def test_nothing_is_an_empty_page() -> None:
    """Without series there is no text."""
    assert render([]) == b""


def test_an_independent_parser_reads_it_back() -> None:
    """Prometheus's own client finds each family, its type, its labels and its values."""
    series = everything()
    families = {
        family.name: family
        for family in text_string_to_metric_families(render(series, RESOURCE).decode())
    }
    assert len(families) == len(INSTRUMENTS) + 1
    for instrument in INSTRUMENTS:
        family = families[metric_name(instrument).removesuffix("_total")]
        assert family.documentation == instrument.description
        wanted = {"counter": "counter", "histogram": "histogram"}.get(instrument.kind, "gauge")
        assert family.type == wanted
        labels = [sample.labels for sample in family.samples]
        assert {"a_b": 'x"\\\n\té', "ok": "true", "n": "3"}.items() <= labels[-1].items()
        if instrument.kind == "histogram":
            last = [s.value for s in family.samples if s.labels.get("le") == "+Inf"]
            assert last == [1, 1]
        else:
            value = 3 if instrument.kind == "counter" else 1.5
            assert [sample.value for sample in family.samples] == [value, value]


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not on PATH; Debian's prometheus package has it",
)
def test_promtool_finds_no_fault() -> None:
    """Prometheus's own linter says nothing about any instrument."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=render(everything(), RESOURCE),
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert (checked.stdout + checked.stderr).decode() == ""
    assert checked.returncode == 0
