from resource import RLIMIT_NOFILE, getrlimit, setrlimit

import pytest

from gateway.serving.cells import MAX_SETS, Cells, merge, watch_process
from gateway.telemetry import (
    ASSIGNMENT_COUNT,
    BATCH_SIZE,
    CONFIG_AGE,
    CONFIG_REVISION,
    RECORD_QUEUE_SIZE,
    Series,
)


def test_the_same_attributes_give_the_same_cell() -> None:
    """Whatever the order of the attributes, there is one cell for them."""
    cells = Cells()
    one = cells.counter(ASSIGNMENT_COUNT, (("a", "x"), ("b", 1)))
    assert cells.counter(ASSIGNMENT_COUNT, (("b", 1), ("a", "x"))) is one
    assert cells.counter(ASSIGNMENT_COUNT, (("a", "y"), ("b", 1))) is not one


def test_each_kind_of_cell_is_its_own() -> None:
    """A histogram and a gauge asked for twice are the same cells."""
    cells = Cells()
    assert cells.histogram(BATCH_SIZE) is cells.histogram(BATCH_SIZE)
    assert cells.gauge(CONFIG_AGE) is cells.gauge(CONFIG_AGE)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        pytest.param(0.5, 0, id="below all"),
        pytest.param(1.0, 0, id="on the first bound"),
        pytest.param(1.5, 1, id="between"),
        pytest.param(16384.0, 11, id="on the last bound"),
        pytest.param(16385.0, 12, id="above all"),
    ],
)
def test_upper_bounds_are_included(value: float, place: int) -> None:
    """A value on a bound counts below it, as the protocol says."""
    cells = Cells()
    cells.histogram(BATCH_SIZE).observe(value)
    (series,) = cells.collect()
    assert series.counts == tuple(1 if index == place else 0 for index in range(13))
    assert series.total == value


def test_what_was_collected_stays() -> None:
    """Later updates do not reach an earlier collection."""
    cells = Cells()
    counter, histogram = cells.counter(ASSIGNMENT_COUNT), cells.histogram(BATCH_SIZE)
    counter.add()
    before = cells.collect()
    counter.add(4)
    histogram.observe(3)
    assert [series.value for series in before] == [1, 0]
    assert sum(before[1].counts) == 0
    assert [series.value for series in cells.collect()] == [5, 0]


def test_a_gauge_stands_and_moves() -> None:
    """A gauge is what it was set to, and may be moved both ways."""
    cells = Cells()
    gauge = cells.gauge(RECORD_QUEUE_SIZE)
    gauge.set(7)
    gauge.add(-3)
    assert cells.collect()[0].value == 4


def test_too_many_attribute_sets_share_one_cell() -> None:
    """After 2,000 attribute sets an instrument has one more, for all the rest."""
    cells = Cells()
    for number in range(MAX_SETS + 500):
        cells.counter(ASSIGNMENT_COUNT, (("n", number),)).add()
    series = cells.collect()
    assert len(series) == MAX_SETS + 1
    assert series[-1].attributes == (("otel.metric.overflow", True),)
    assert series[-1].value == 500
    assert sum(one.value for one in series) == MAX_SETS + 500


def test_watchers_are_asked_before_each_collection() -> None:
    """What is cheaper to ask for than to keep is asked for when the cells are collected."""
    cells = Cells()
    gauge = cells.gauge(CONFIG_AGE)
    ages = iter([3.0, 5.0])
    cells.watch(lambda: gauge.set(next(ages)))
    assert [cells.collect()[0].value, cells.collect()[0].value] == [3.0, 5.0]


def test_the_process_is_measured() -> None:
    """Memory and processor time of this process are above zero."""
    cells = Cells()
    watch_process(cells)
    values = {series.instrument.name: series.value for series in cells.collect()}
    assert values["process.memory.usage"] > 1_000_000
    assert values["process.cpu.time"] > 0


def test_a_process_that_may_open_no_file_is_measured_all_the_same() -> None:
    """Its memory stands as it was; the rest is told."""
    cells = Cells()
    watch_process(cells)
    before = {series.instrument.name: series.value for series in cells.collect()}
    bounds = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (0, bounds[1]))
    try:
        now = {series.instrument.name: series.value for series in cells.collect()}
    finally:
        setrlimit(RLIMIT_NOFILE, bounds)
    assert now["process.memory.usage"] == before["process.memory.usage"]
    assert now["process.cpu.time"] >= before["process.cpu.time"]


def collected(revision: int, age: float, rows: float) -> list[Series]:
    """The cells of one process."""
    cells = Cells()
    cells.counter(ASSIGNMENT_COUNT, (("a", "x"),)).add(revision)
    cells.gauge(CONFIG_REVISION).set(revision)
    cells.gauge(CONFIG_AGE).set(age)
    cells.gauge(RECORD_QUEUE_SIZE).set(revision)
    cells.histogram(BATCH_SIZE).observe(rows)
    return cells.collect()


def test_processes_merge() -> None:
    """Counts and sizes add; the revision is the oldest that is served, the age the greatest."""
    merged = merge([collected(4, 1.5, 1), collected(6, 0.5, 2), collected(5, 0.7, 2)])
    assert [(one.instrument.name, one.value) for one in merged] == [
        ("tiltyard.assignment.count", 15),
        ("tiltyard.batch.size", 0),
        ("tiltyard.config.age", 1.5),
        ("tiltyard.config.revision", 4),
        ("tiltyard.record.queue.size", 15),
    ]
    assert merged[1].counts == (1, 2, *[0] * 11)
    assert merged[1].total == 5


def test_merging_knows_no_order() -> None:
    """Any partition, merged in any order, gives the same."""
    one, two, three = collected(4, 1.5, 1), collected(6, 0.5, 2), collected(5, 0.7, 2)
    assert merge([merge([three, one]), two]) == merge([one, two, three])


def test_different_attributes_stay_apart() -> None:
    """Merging joins only what has the same instrument and attributes."""
    cells = Cells()
    cells.counter(ASSIGNMENT_COUNT, (("a", "y"),)).add(2)
    merged = merge([collected(1, 1, 1)[:1], cells.collect()])
    assert [one.value for one in merged] == [1, 2]
