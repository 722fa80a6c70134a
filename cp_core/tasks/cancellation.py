"""What cancelling does to a task, by where it stands, and what a call for it makes of an attempt that ends."""

from __future__ import annotations

from enum import StrEnum

from cp_core.execution.outcome import NextStep
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import LEGAL_MOVES, TaskState


class Cancelling(StrEnum):
    """What cancelling does to a task."""

    AT_ONCE = "at once"  # nobody works on it
    REQUESTED = "requested"  # its worker is told, and the task is cancelled when the work has stopped
    TOO_LATE = "too late"  # it is over


def cancelling(state: TaskState) -> Cancelling:
    """What cancelling does to a task in `state`."""
    if TaskState.CANCELLED not in LEGAL_MOVES[state]:
        return Cancelling.TOO_LATE
    return Cancelling.REQUESTED if state is TaskState.RUNNING else Cancelling.AT_ONCE


def called_off(step: NextStep) -> NextStep:
    """Where a running task goes after an attempt, when its cancelling was requested meanwhile.

    Work that was done and judged stands, good or poor. Everything else ends here: no retry, no other model.
    """
    if step.state in (TaskState.SUCCEEDED, TaskState.FAILED):
        return step
    return NextStep(TaskState.CANCELLED, Reason.CANCELLED)
