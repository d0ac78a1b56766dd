from math import inf

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.stats import bernoulli, ceilings, margins, multinomial

EVENTS = st.integers(0, 2_000)
SHARES = st.floats(0.01, 0.99)
PHASES = st.lists(st.tuples(EVENTS, EVENTS, SHARES), min_size=1, max_size=5)
RATIOS = st.floats(0.5, 4.0)
ROUNDING = 1e-6


@given(EVENTS, EVENTS, SHARES)
def test_no_evidence_of_a_rate_is_above_its_ceiling(x: int, y: int, limit: float) -> None:
    """A mixture of likelihood ratios is at most the largest of them."""
    assert bernoulli.log_e_above(x, y, limit) <= ceilings.rate_above(x, y, limit) + ROUNDING
    assert bernoulli.log_e_below(x, y, limit) <= ceilings.rate_below(x, y, limit) + ROUNDING


@given(EVENTS, EVENTS, SHARES)
def test_evidence_of_one_rate_is_the_same_alone_and_in_arrays(x: int, y: int, limit: float) -> None:
    """The fast way for one pair of counts computes what the one for many does."""
    for side, alone in (("above", bernoulli.log_e_above), ("below", bernoulli.log_e_below)):
        found = float(bernoulli.log_e_each(x, y, limit, side))  # type: ignore[arg-type]
        assert abs(alone(x, y, limit) - found) <= 1e-9 * max(1.0, abs(found))


@given(PHASES, RATIOS)
def test_no_evidence_of_a_ratio_is_above_its_ceiling(
    phases: list[tuple[int, int, float]], ratio: float
) -> None:
    """Over phases the ceilings add up, whatever the shares are."""
    told = [margins.Phase(*phase) for phase in phases]

    harm = margins.log_e_harm_over_phases(told, ratio)
    safe = margins.log_e_safe_over_phases(told, ratio)

    assert harm <= ceilings.ratio_above(phases, ratio) + ROUNDING
    assert safe <= ceilings.ratio_below(phases, ratio) + ROUNDING


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 5_000), min_size=3, max_size=3),
            st.lists(st.integers(1, 9_000), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_evidence_against_shares_is_above_its_ceiling(
    phases: list[tuple[list[int], list[int]]],
) -> None:
    """Nor is that of three arms whose weights change."""
    most = ceilings.shares([counts for counts, _ in phases], [shares for _, shares in phases])

    assert multinomial.log_e_over_phases(phases) <= most + ROUNDING


def test_a_unit_where_none_can_be_has_no_ceiling() -> None:
    """An arm with the weight zero that has a unit proves the split wrong."""
    assert ceilings.shares([(5, 1)], [(10_000, 0)]) == inf
