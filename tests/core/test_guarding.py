import pytest
from msgspec.structs import replace

from gateway.core.arms import Pair
from gateway.core.experiments import Guard
from gateway.core.guarding import Asked, apart, excess, read_guards, with_display
from gateway.core.readings import Reading, Verdict
from tests.studies import ERRORS, cell

EXACT = Asked((0.05,), 0.05, exact=True)


def pair(old: tuple[int, int], new: tuple[int, int], share: float = 0.5) -> Pair:
    """Units and units with an error, of the control and of the variant."""
    return Pair(share, (cell(0, old[0], events=[old[1]]),), (cell(1, new[0], events=[new[1]]),))


def read(*pairs: Pair, guard: Guard = ERRORS, asked: Asked = EXACT) -> Reading:
    """What one guard says."""
    (reading,) = read_guards([guard], "b", pairs, asked)
    return reading


def test_a_guard_tells_rates_and_counts() -> None:
    """One per cent against three."""
    reading = read(pair((1_000, 10), (1_000, 30)))

    assert (reading.control, reading.treatment) == (0.01, 0.03)
    assert reading.estimate == pytest.approx(0.02)
    assert reading.relative == pytest.approx(2.0)
    assert (reading.events, reading.units) == ((10, 30), (1_000, 1_000))
    assert reading.verdict is Verdict.WORSE


def test_harm_is_a_rate_above_the_tolerance() -> None:
    """Three times the errors are none if four times as many are tolerated."""
    patient = replace(ERRORS, tolerance=4.0)

    assert not read(pair((1_000, 10), (1_000, 30)), guard=patient).harm.holds


def test_silence_certifies_nothing_about_a_ratio() -> None:
    """Without an event there is no evidence of either kind, except that they are few."""
    strict = replace(ERRORS, negligible=0.0)
    quiet = pair((9_000, 0), (9_000, 0))

    assert read(quiet, guard=strict).verdict is Verdict.INCONCLUSIVE
    assert read(quiet, guard=strict).negligible is None
    assert read(quiet).verdict is Verdict.EQUIVALENT


def test_the_two_ways_to_be_safe_share_the_risk() -> None:
    """Each counts at half of it; alone, a way may use all."""
    both = read(pair((10, 0), (10, 0)))
    alone = read(pair((10, 0), (10, 0)), guard=replace(ERRORS, negligible=0.0))

    assert both.safe.threshold == 40.0
    assert both.negligible is not None
    assert both.negligible.threshold == 40.0
    assert alone.safe.threshold == 20.0


def test_a_ratio_certified_below_the_allowed_one_is_safe() -> None:
    """Frequent events, no difference, and twice the rate allowed."""
    loose = replace(ERRORS, allowed=2.0)

    assert read(pair((9_000, 450), (9_000, 450)), guard=loose).safe.holds


def test_where_every_rate_is_negligible_any_unit_will_do() -> None:
    """A limit of one is no limit."""
    lax = replace(ERRORS, negligible=1.0)

    assert read(pair((1, 0), (1, 1)), guard=lax).is_safe
    assert not read(pair((1, 0), (0, 0)), guard=lax).is_safe


def test_without_units_a_guard_is_open() -> None:
    """No stratum, no evidence."""
    reading = read()

    assert reading.verdict is Verdict.INCONCLUSIVE
    assert (reading.harm.e, reading.safe.e) == (1.0, 1.0)


def test_rates_alone_need_more_evidence_and_certify_nothing() -> None:
    """Where the shares cannot be trusted."""
    clear, unclear, calm = (read(pair((1_000, 10), (1_000, hit))) for hit in (100, 30, 0))

    assert apart(clear, ERRORS, 0.05).is_harm
    assert apart(unclear, ERRORS, 0.05).verdict is Verdict.INVALID
    assert not apart(calm, ERRORS, 0.05).is_safe


def test_the_excess_is_an_upper_bound() -> None:
    """Of two equal rates it is above zero and falls with more units; without units it is one."""
    few, many = (excess(read(pair((n, n // 50), (n, n // 50))), 0.05) for n in (1_000, 50_000))

    assert 0.0 < many < few < 0.05
    assert excess(read(), 0.05) == 1.0


def test_for_display_there_are_bounds_of_the_ratio_and_a_forecast() -> None:
    """The truth may lie between them; units are needed on."""
    pairs = (pair((1_000, 20), (1_000, 20)),)
    guard = replace(ERRORS, allowed=2.0)

    told = with_display(read(*pairs, guard=guard), guard, pairs, 0, 0.05)

    assert told.relative_interval is not None
    lower, upper = told.relative_interval
    assert lower is not None
    assert upper is not None
    assert lower < 0.0 < upper
    assert told.left is not None
    assert told.left > 1_000
    assert told.display is not None
    assert told.display.chance == pytest.approx(0.5, abs=0.01)


def test_without_events_the_forecast_is_that_of_a_negligible_rate() -> None:
    """So many units without an event, and it is certified."""
    pairs = (pair((100, 0), (100, 0)),)

    left = with_display(read(*pairs), ERRORS, pairs, 0, 0.05).left

    assert left is not None
    units = 100 + left // 2
    assert read(pair((units, 0), (units, 0))).is_safe
    assert not read(pair((units - 5, 0), (units - 5, 0))).is_safe
