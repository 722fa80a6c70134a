"""Where a task goes after an attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.outcome import NextStep, judge, next_step
from cp_core.tasks.reasons import TRANSIENT, Reason
from cp_core.tasks.states import LEGAL_MOVES, TaskState

deterministic = st.sampled_from(sorted(set(Reason) - TRANSIENT - {Reason.LOW_QUALITY, Reason.CANCELLED}))
transient = st.sampled_from(sorted(TRANSIENT))


def step(
    reason: Reason | None,
    *,
    attempts: int = 1,
    max_attempts: int = 3,
    delay: float = 5.0,
    deadline_in: float | None = None,
) -> NextStep:
    return next_step(
        reason, attempts=attempts, max_attempts=max_attempts, delay=delay, deadline_in=deadline_in
    )


def test_good_work_ends_a_task() -> None:
    assert step(None, attempts=3) == NextStep(TaskState.SUCCEEDED, None)


@given(transient)
def test_a_transient_failure_is_tried_again_on_the_same_assignment_after_the_delay(reason: Reason) -> None:
    assert step(reason, attempts=2, delay=5) == NextStep(TaskState.ASSIGNED, reason, 5)


@given(transient | deterministic)
def test_a_task_whose_attempts_are_used_up_is_dead(reason: Reason) -> None:
    assert step(reason, attempts=3) == NextStep(TaskState.DEAD, Reason.ATTEMPTS_EXHAUSTED)


@given(transient)
def test_a_retry_beyond_the_day_s_waits_for_the_next_day_unless_the_deadline_comes_first(
    reason: Reason,
) -> None:
    def tomorrow(deadline_in: float | None) -> NextStep:
        return next_step(
            reason, attempts=1, max_attempts=3, delay=5, deadline_in=deadline_in, retries_in=3600
        )

    assert tomorrow(None) == NextStep(TaskState.QUEUED, Reason.RETRIES_SPENT, 3600)
    assert tomorrow(3600) == NextStep(TaskState.DEAD, Reason.DEADLINE_PASSED)


@given(deterministic | st.just(Reason.LOW_QUALITY))
def test_what_the_same_model_would_fail_again_goes_back_for_another_model(reason: Reason) -> None:
    assert step(reason, attempts=2) == NextStep(TaskState.QUEUED, reason)


def test_work_that_stays_below_the_bar_fails_its_task() -> None:
    assert step(Reason.LOW_QUALITY, attempts=3) == NextStep(TaskState.FAILED, Reason.LOW_QUALITY)


@pytest.mark.parametrize(("delay", "deadline_in"), [(5.0, 5.0), (5.0, 4.9), (0.0, 0.0), (0.0, -1.0)])
def test_nothing_is_tried_again_at_or_past_the_deadline(delay: float, deadline_in: float) -> None:
    expected = NextStep(TaskState.DEAD, Reason.DEADLINE_PASSED)

    assert step(Reason.TIMEOUT, delay=delay, deadline_in=deadline_in) == expected


@given(
    st.none() | st.sampled_from(Reason),
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0, 1e5),
    st.none() | st.floats(-1e5, 1e5),
)
def test_every_step_is_a_legal_move_and_no_retry_exceeds_the_attempts(
    reason: Reason | None, attempts: int, max_attempts: int, delay: float, deadline_in: float | None
) -> None:
    outcome = next_step(
        reason, attempts=attempts, max_attempts=max_attempts, delay=delay, deadline_in=deadline_in
    )

    assert outcome.state in LEGAL_MOVES[TaskState.RUNNING]
    if outcome.state in (TaskState.ASSIGNED, TaskState.QUEUED):
        assert attempts < max_attempts


@given(deterministic | st.just(Reason.LOW_QUALITY), st.integers(1, 9))
def test_an_escalation_is_at_once_and_is_no_retry(reason: Reason, attempts: int) -> None:
    outcome = next_step(
        reason, attempts=attempts, max_attempts=1, delay=30.0, deadline_in=5.0, stage=0, following=1
    )

    assert outcome == NextStep(TaskState.ASSIGNED, reason, 0.0, 1)


@given(transient)
def test_a_transient_failure_stays_at_its_stage_and_escalations_are_not_its_attempts(reason: Reason) -> None:
    def after(attempts: int) -> NextStep:
        return next_step(
            reason, attempts=attempts, max_attempts=3, delay=5.0, deadline_in=None, stage=1, following=2
        )

    assert after(3) == NextStep(TaskState.ASSIGNED, reason, 5.0, 1)
    assert after(4) == NextStep(TaskState.DEAD, Reason.ATTEMPTS_EXHAUSTED)


def test_no_stage_follows_at_or_past_the_deadline() -> None:
    outcome = next_step(
        Reason.LOW_QUALITY, attempts=1, max_attempts=3, delay=5.0, deadline_in=0.0, stage=0, following=1
    )

    assert outcome == NextStep(TaskState.DEAD, Reason.DEADLINE_PASSED)


def answer(failed: int) -> str:
    counts = f'{{"tests_passed": 8, "tests_failed": {failed}, "bugs_introduced": 0, "revisions_needed": 0}}'
    return f"Done.\n```evidence\n{counts}\n```"


def test_an_answer_is_judged_by_its_evidence_against_the_bar() -> None:
    good, poor = judge(answer(failed=0), 6.0), judge(answer(failed=8), 6.0)

    assert (good.reason, good.quality) == (None, 10.0)
    assert (poor.reason, poor.quality) == (Reason.LOW_QUALITY, 2.5)  # 10 x 0.5^2
    assert poor.evidence["tests_failed"] == 8


def test_an_answer_exactly_at_the_bar_passes() -> None:
    assert judge(answer(failed=0), 10.0).reason is None


def test_an_answer_without_evidence_is_of_low_quality() -> None:
    verdict = judge("All done!", 6.0)

    assert (verdict.reason, verdict.quality) == (Reason.LOW_QUALITY, 0.0)
    assert verdict.evidence["schema_valid"] is False
