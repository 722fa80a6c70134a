"""When a model is left alone, when it is tried again, and when it is trusted again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.breaker import (
    LEGAL_MOVES,
    Breaker,
    BreakerPolicy,
    BreakerState,
    Seen,
    Signal,
    after,
    half_opened,
    permits,
    reset,
    signal_of,
)
from cp_core.tasks.reasons import Reason

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
POLICY = BreakerPolicy(
    of_last=5,
    failures=3,
    forget_seconds=100,
    cool_down_seconds=10,
    cool_down_cap_seconds=30,
    barred_seconds=1000,
    trials=2,
    answers_to_close=2,
)
DOWN = Reason.SERVER_ERROR


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def told(breaker: Breaker, *reasons: Reason | None, now: float = 0, began: float | None = None) -> Breaker:
    """The breaker after attempts that began at `began` (by default at `now`)."""
    start = at(now if began is None else began)
    return after(breaker, [Seen(reason, start) for reason in reasons], POLICY, at(now))


def opened() -> Breaker:
    """Open since NOON, to be tried ten seconds later."""
    return told(Breaker(), DOWN, DOWN, DOWN)


def test_it_opens_when_so_many_of_the_last_attempts_failed() -> None:
    assert told(Breaker(), DOWN, DOWN, None, None, None, DOWN, DOWN).state is BreakerState.CLOSED
    breaker = told(Breaker(), DOWN, None, DOWN, None, DOWN)

    assert (breaker.state, breaker.reason) == (BreakerState.OPEN, DOWN)
    assert (breaker.since, breaker.retry_at) == (NOON, at(10))


def test_failures_of_long_ago_are_forgotten() -> None:
    breaker = told(Breaker(), DOWN, DOWN)

    assert told(breaker, DOWN, now=100).state is BreakerState.OPEN
    assert told(breaker, DOWN, now=101).state is BreakerState.CLOSED
    assert not breaker.is_troubled(POLICY, at(101))


@pytest.mark.parametrize(
    ("reason", "signal"),
    [
        (None, Signal.ANSWERED),
        (Reason.LOW_QUALITY, Signal.ANSWERED),
        (Reason.REFUSED, Signal.ANSWERED),
        (Reason.TIMEOUT, Signal.FAILED),
        (Reason.OVERLOADED, Signal.FAILED),
        (Reason.RATE_LIMITED, Signal.NOTHING),  # the limiter's matter
        (Reason.LEASE_EXPIRED, Signal.NOTHING),  # the worker's fault
        (Reason.INVALID_REQUEST, Signal.NOTHING),
        (Reason.PROVIDER_QUOTA, Signal.BARRED),
        (Reason.AUTH_FAILED, Signal.PROVIDER_BARRED),
    ],
)
def test_the_end_of_an_attempt_says_something_about_the_model_or_not(
    reason: Reason | None, signal: Signal
) -> None:
    assert signal_of(reason) is signal


@pytest.mark.parametrize("reason", [Reason.AUTH_FAILED, Reason.PROVIDER_QUOTA])
def test_what_a_person_must_mend_opens_it_at_once_and_for_long(reason: Reason) -> None:
    breaker = told(Breaker(), reason)

    assert (breaker.state, breaker.retry_at, breaker.reason) == (BreakerState.OPEN, at(1000), reason)


def test_an_open_one_lets_nothing_through_before_its_time_and_then_a_few_trials() -> None:
    assert permits(Breaker(), 100, POLICY, NOON) is None
    assert permits(opened(), 0, POLICY, at(9.9)) == 0
    assert half_opened(opened(), at(9.9)) == opened()
    trying = half_opened(opened(), at(10))

    assert (trying.state, trying.since) == (BreakerState.HALF_OPEN, at(10))
    assert [permits(trying, under_way, POLICY, at(10)) for under_way in range(4)] == [2, 1, 0, 0]


def test_answered_trials_close_it_and_a_failed_one_opens_it_for_twice_as_long() -> None:
    trying = half_opened(opened(), at(10))
    answered = told(trying, None, now=11)

    assert answered.state is BreakerState.HALF_OPEN
    assert told(answered, None, now=12) == Breaker(since=at(12))
    again = told(answered, DOWN, now=12)
    assert (again.state, again.retry_at) == (BreakerState.OPEN, at(32))
    once_more = told(half_opened(again, at(32)), DOWN, now=33)
    assert once_more.retry_at == at(63)  # 40 seconds, but for the cap of 30


def test_attempts_that_began_before_the_state_change_nothing() -> None:
    trying = half_opened(opened(), at(10))

    assert told(trying, DOWN, None, None, now=12, began=9) == trying
    closed = told(trying, None, None, now=12)
    assert told(closed, DOWN, DOWN, DOWN, Reason.AUTH_FAILED, now=13, began=11) == closed


def test_a_person_closes_it_at_once() -> None:
    assert reset(opened(), at(5)) == Breaker(since=at(5))
    assert reset(half_opened(opened(), at(10)), at(11)) == Breaker(since=at(11))
    assert reset(told(Breaker(), DOWN, DOWN), at(1)) == Breaker()


def test_a_policy_that_could_never_open_is_refused() -> None:
    with pytest.raises(ValueError, match="failures is 6 but at most of_last"):
        BreakerPolicy(of_last=5, failures=6)


ENDS = st.sampled_from(
    [None, Reason.LOW_QUALITY, DOWN, Reason.TIMEOUT, Reason.RATE_LIMITED, Reason.PROVIDER_QUOTA]
)
STEPS = st.lists(
    st.tuples(
        st.floats(0, 60),  # seconds since the step before
        st.one_of(
            st.tuples(ENDS, st.floats(0, 40)),  # an attempt ends that began so long ago
            st.just("try"),
            st.just("reset"),
        ),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_only_legal_moves_are_made_and_no_breaker_stays_open_for_ever(steps: list) -> None:
    breaker, seconds = Breaker(), 0.0
    for pause, step in steps:
        seconds += pause
        before = breaker
        if step == "try":
            breaker = half_opened(breaker, at(seconds))
        elif step == "reset":
            breaker = reset(breaker, at(seconds))
        else:
            reason, age = step
            breaker = told(breaker, reason, now=seconds, began=seconds - age)
        if breaker.state is not before.state:
            assert breaker.state in LEGAL_MOVES[before.state]
            assert breaker.since == at(seconds)
        assert len(breaker.recent) <= POLICY.of_last
        assert (breaker.retry_at is None) == (breaker.state is BreakerState.CLOSED)
        if breaker.state is BreakerState.OPEN:
            assert breaker.retry_at is not None
            assert breaker.since is not None
            assert half_opened(breaker, breaker.retry_at).state is BreakerState.HALF_OPEN
            seconds_open = (breaker.retry_at - breaker.since).total_seconds()
            assert seconds_open == 1000 or 10 <= seconds_open <= 30


@given(st.lists(st.sampled_from([None, Reason.REFUSED, Reason.RATE_LIMITED, Reason.INVALID_REQUEST])))
def test_a_model_that_answers_is_never_left_alone(reasons: list[Reason | None]) -> None:
    assert told(Breaker(), *reasons).state is BreakerState.CLOSED
