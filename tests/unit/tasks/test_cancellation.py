"""What cancelling does to a task, and to the attempt that is under way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.outcome import NextStep, next_step
from cp_core.tasks.cancellation import Cancelling, called_off, cancelling
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import FINAL_STATES, TaskState, require_legal


@pytest.mark.parametrize(
    ("state", "effect"),
    [
        (TaskState.QUEUED, Cancelling.AT_ONCE),
        (TaskState.DEFERRED, Cancelling.AT_ONCE),
        (TaskState.ASSIGNED, Cancelling.AT_ONCE),
        (TaskState.RUNNING, Cancelling.REQUESTED),
        (TaskState.SUCCEEDED, Cancelling.TOO_LATE),
        (TaskState.FAILED, Cancelling.TOO_LATE),
        (TaskState.CANCELLED, Cancelling.TOO_LATE),
        (TaskState.DEAD, Cancelling.TOO_LATE),
    ],
    ids=str,
)
def test_cancelling_depends_on_where_the_task_stands(state: TaskState, effect: Cancelling) -> None:
    assert cancelling(state) is effect


@pytest.mark.parametrize("state", [TaskState.SUCCEEDED, TaskState.FAILED])
def test_work_that_was_judged_stands(state: TaskState) -> None:
    assert called_off(NextStep(state, None)).state is state


@given(
    st.sampled_from(Reason),
    st.integers(1, 5),
    st.integers(1, 5),
    st.floats(0, 60),
    st.none() | st.floats(-5, 90),
)
def test_a_task_that_was_called_off_is_never_tried_again(
    reason: Reason, attempts: int, most: int, delay: float, deadline_in: float | None
) -> None:
    step = called_off(
        next_step(reason, attempts=attempts, max_attempts=most, delay=delay, deadline_in=deadline_in)
    )

    assert step.state in FINAL_STATES
    require_legal(TaskState.RUNNING, step.state)


def test_an_attempt_that_was_stopped_cancels_its_task_whichever_attempt_it_was() -> None:
    for attempts in (1, 3):
        step = next_step(Reason.CANCELLED, attempts=attempts, max_attempts=3, delay=1, deadline_in=None)
        assert step == NextStep(TaskState.CANCELLED, Reason.CANCELLED)
