"""Signatures of deliveries, and what becomes of an event after a try."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest
from gateway.core.webhooks import (
    FEWEST_TRIES,
    LAST_RETRY_S,
    Posted,
    Progress,
    Verdict,
    Webhook,
    after_try,
    check_secret,
    check_types,
    fresh_secret,
    signed_headers,
    wants,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WEBHOOK = Webhook("https://a.example/", ("*",), SECRET, 0.0, "ana")
START = Progress(cursor="1-1", alerts="0-0")
LIMITS = (86_400.0, 0.5)


def test_a_signature_is_that_of_the_public_example() -> None:
    """The package `standardwebhooks` signs the same message alike."""
    headers = signed_headers(
        WEBHOOK, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330.9, b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_replaced_secret_signs_until_its_time_is_over() -> None:
    """Both signatures are there, the new one first; afterwards one."""
    old = fresh_secret(b"o" * 32)
    webhook = Webhook(WEBHOOK.url, ("*",), SECRET, 0.0, "ana", previous=old, previous_until=100.0)
    alone = signed_headers(WEBHOOK, "e", 99.0, b"{}")["webhook-signature"]
    both = signed_headers(webhook, "e", 99.0, b"{}")["webhook-signature"].split(" ")
    assert len(both) == 2
    assert both[0] == alone
    assert len(signed_headers(webhook, "e", 100.0, b"{}")["webhook-signature"].split(" ")) == 1


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param("", id="empty"),
        pytest.param("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", id="no prefix"),
        pytest.param("whsec_short", id="short"),
        pytest.param("whsec_" + "A" * 400, id="long"),
        pytest.param("whsec_!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!", id="no base64"),
        pytest.param("whsec_é" + "A" * 40, id="not ascii"),
    ],
)
def test_what_is_no_secret_is_refused_unseen(secret: str) -> None:
    """The sentence does not repeat it."""
    with pytest.raises(InvalidRequest) as refused:
        check_secret(secret)
    assert not secret or secret not in str(refused.value)


def test_secrets_are_not_shown() -> None:
    """Neither a log nor a traceback shows a webhook's secret or address."""
    assert SECRET not in repr(WEBHOOK)
    assert "a.example" not in repr(WEBHOOK)
    assert check_secret(fresh_secret(b"x" * 32)) == fresh_secret(b"x" * 32)


def test_types_are_chosen_by_pattern() -> None:
    """A star stands for any letters; anything else that is no name is refused."""
    webhook = Webhook("u", ("tiltyard.version.*", "tiltyard.alert.raised"), SECRET, 0.0, "ana")
    assert wants(webhook, "tiltyard.version.promoted")
    assert not wants(webhook, "tiltyard.alert.cleared")
    for wrong in ((), ("a b",), ("*",) * 33):
        with pytest.raises(InvalidRequest):
            check_types(wrong)


@given(st.integers(200, 299))
def test_two_hundreds_are_taken(status: int) -> None:
    """And the next event begins afresh."""
    tired = Progress(cursor="1-1", alerts="0-0", trying="e", tries=3, problem="x", next_at=9.0)
    after, verdict = after_try(tired, Posted(status), 10.0, event=("e", 0.0), limits=LIMITS)
    assert verdict is Verdict.DELIVERED
    assert (after.tries, after.problem, after.next_at, after.delivered) == (0, "", 0.0, 1)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 422])
def test_refusals_are_few(status: int) -> None:
    """A receiver that answers and does not want it is asked a few times."""
    progress, now, verdict = START, 0.0, Verdict.LATER
    tries = 0
    while verdict is Verdict.LATER:
        now = max(now, progress.next_at)
        progress, verdict = after_try(
            progress, Posted(status), now, event=("e", 0.0), limits=LIMITS
        )
        tries += 1
    assert verdict is Verdict.DEAD
    assert tries == FEWEST_TRIES
    assert now < 600


@pytest.mark.parametrize("posted", [Posted(), Posted(500), Posted(503), Posted(408), Posted(429)])
def test_one_that_is_away_is_waited_for_a_day(posted: Posted) -> None:
    """Tries become rarer, and end with the day."""
    progress, now, verdict, gaps = START, 0.0, Verdict.LATER, []
    while verdict is Verdict.LATER:
        progress, verdict = after_try(progress, posted, now, event=("e", 0.0), limits=LIMITS)
        gaps.append(progress.next_at - now)
        now = max(now, progress.next_at)
    assert verdict is Verdict.DEAD
    assert 86_400 <= now < 86_400 + LAST_RETRY_S
    assert gaps[:-2] == sorted(gaps[:-2])
    assert len(gaps) < 60


def test_tries_are_those_of_one_event() -> None:
    """Another event that comes in between has all of its own."""
    once, _ = after_try(START, Posted(400), 0.0, event=("one", 0.0), limits=LIMITS)
    twice, _ = after_try(once, Posted(400), 0.0, event=("one", 0.0), limits=LIMITS)
    other, _ = after_try(twice, Posted(400), 0.0, event=("two", 0.0), limits=LIMITS)
    assert (once.tries, twice.tries, other.tries) == (1, 2, 1)


@given(
    st.integers(100, 599) | st.none(),
    st.floats(0, 1e12),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 100),
)
def test_the_next_try_is_within_bounds(
    status: int | None, retry_after_s: float, draw: float, tries: int
) -> None:
    """Whatever a receiver says, the pause is neither negative nor longer than the bound."""
    before = Progress(cursor="1-1", alerts="0-0", trying="e", tries=tries)
    posted = Posted(status, retry_after_s=retry_after_s)
    limits = (86_400.0, draw)
    after, verdict = after_try(before, posted, 1_000.0, event=("e", 1_000.0), limits=limits)
    if verdict is Verdict.LATER:
        assert 1_000 < after.next_at <= 1_000 + 86_400
