"""Retry policy v2 of assignment: passing reasons back off, lasting ones end it, and each stop is told once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.assignment.retry import KINDS, AssignmentRetryPolicy, Kind, Step, Stop, next_step
from cp_core.tasks.reasons import TRANSIENT, Reason

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
POLICY = AssignmentRetryPolicy(most_attempts=3, backoff_base_seconds=2, backoff_cap_seconds=60)


def step(reason: Reason, left: int, jitter: float = 0.5, deadline: datetime | None = None) -> Step:
    return next_step(reason, left, POLICY, jitter=jitter, now=NOW, deadline=deadline)


def test_every_reason_is_either_passing_or_lasting():
    assert set(KINDS) == set(Reason)


def test_what_passes_for_an_execution_passes_for_an_assignment_too():
    assert {KINDS[reason] for reason in TRANSIENT} == {Kind.TRANSIENT}


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.INSUFFICIENT_GLOBAL_CAPACITY, Kind.TRANSIENT),
        (Reason.INSUFFICIENT_TIER_CAPACITY, Kind.TRANSIENT),
        (Reason.QUOTA_EXHAUSTED, Kind.TRANSIENT),
        (Reason.OUTBID, Kind.TRANSIENT),
        (Reason.BREAKER_OPEN, Kind.TRANSIENT),
        (Reason.DEPENDENCY_PENDING, Kind.TRANSIENT),
        (Reason.NO_ELIGIBLE_PLAN, Kind.DETERMINISTIC),
        (Reason.DEADLINE_PASSED, Kind.DETERMINISTIC),
        (Reason.DEPENDENCY_FAILED, Kind.DETERMINISTIC),
        (Reason.COST_ABOVE_VALUE, Kind.DETERMINISTIC),
    ],
)
def test_the_table(reason, kind):
    assert KINDS[reason] is kind


def test_a_passing_reason_waits_longer_each_time_and_the_third_attempt_is_the_last():
    assert step(Reason.OUTBID, 3) == Step(Reason.OUTBID, 2, after_seconds=1.0)  # half of 2 s
    assert step(Reason.OUTBID, 2) == Step(Reason.OUTBID, 1, after_seconds=2.0)  # half of 4 s
    assert step(Reason.OUTBID, 1) == Step(Reason.OUTBID, 0, stop=Stop.EXHAUSTED)


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_lasting_reason_ends_it_at_once(left):
    assert step(Reason.NO_ELIGIBLE_PLAN, left) == Step(Reason.NO_ELIGIBLE_PLAN, 0, stop=Stop.DETERMINISTIC)


def test_a_retry_that_could_not_begin_before_the_deadline_is_cut_off():
    assert step(Reason.OUTBID, 3, 0.5, NOW + timedelta(seconds=1)).stop is Stop.CUTOFF
    assert step(Reason.OUTBID, 3, 0.5, NOW + timedelta(seconds=1.001)).after_seconds == 1.0


@pytest.mark.parametrize("reason", [Reason.OUTBID, Reason.NO_ELIGIBLE_PLAN])
def test_who_has_stopped_does_not_stop_again(reason):
    assert step(reason, 0) == Step(reason, 0)


@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=6),
    st.none() | st.floats(-10, 100),
)
def test_whatever_happens_there_are_at_most_three_attempts_and_exactly_one_stop(reason, jitters, seconds):
    deadline = None if seconds is None else NOW + timedelta(seconds=seconds)
    left, stops, waited, now = 3, [], 0, NOW
    for jitter in jitters:
        made = next_step(reason, left, POLICY, jitter=jitter, now=now, deadline=deadline)
        assert made.attempts_left < left or left == 0
        if made.after_seconds is not None:
            waited += 1
            now += timedelta(seconds=made.after_seconds)
            assert 0 <= made.after_seconds <= POLICY.backoff_cap_seconds
            assert deadline is None or now < deadline
        stops += [made.stop] if made.stop else []
        left = made.attempts_left
    assert len(stops) == 1
    assert waited <= 2
