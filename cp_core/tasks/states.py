"""The status machine of a task: one table of legal moves.

Every UPDATE of a task's state names the state it expects; this table says which expectations are legal.
"""

from __future__ import annotations

from enum import StrEnum


class TaskState(StrEnum):
    """Where a task stands.

    `failed` means that a model did the work and the work was not good enough; `dead` (the dead letter) means
    that the work could not be done at all. A person may send either back to `queued`.
    """

    QUEUED = "queued"
    DEFERRED = "deferred"
    ASSIGNED = "assigned"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"


LEGAL_MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.QUEUED: frozenset(
        {
            TaskState.ASSIGNED,
            TaskState.DEFERRED,
            TaskState.FAILED,  # a model did it, not well enough, and no other may be given it
            TaskState.CANCELLED,
            TaskState.DEAD,
        }
    ),
    TaskState.DEFERRED: frozenset(
        {TaskState.QUEUED, TaskState.ASSIGNED, TaskState.FAILED, TaskState.CANCELLED, TaskState.DEAD}
    ),
    TaskState.ASSIGNED: frozenset({TaskState.RUNNING, TaskState.QUEUED, TaskState.CANCELLED, TaskState.DEAD}),
    TaskState.RUNNING: frozenset(
        {
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.ASSIGNED,  # a transient failure, or a lost lease: the same assignment is tried again
            TaskState.QUEUED,  # a deterministic failure: another model must be chosen
            TaskState.CANCELLED,
            TaskState.DEAD,
        }
    ),
    TaskState.SUCCEEDED: frozenset(),
    TaskState.FAILED: frozenset({TaskState.QUEUED}),
    TaskState.CANCELLED: frozenset({TaskState.QUEUED}),
    TaskState.DEAD: frozenset({TaskState.QUEUED}),
}

VERDICT_MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.SUCCEEDED: frozenset({TaskState.FAILED}),
    TaskState.FAILED: frozenset({TaskState.SUCCEEDED}),
}
"""Moves that only evidence which arrives later makes: the work is done, and the word on it is corrected."""

FINAL_STATES: frozenset[TaskState] = frozenset(
    {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.DEAD}
)
"""States in which a task asks for no more work."""


class IllegalMoveError(ValueError):
    """A move between two task states that `LEGAL_MOVES` does not allow."""


def require_legal(source: TaskState, target: TaskState) -> None:
    """Raise `IllegalMoveError` unless a task may go from `source` to `target`."""
    if target not in LEGAL_MOVES[source]:
        allowed = ", ".join(sorted(LEGAL_MOVES[source])) or "nothing: it is final"
        raise IllegalMoveError(
            f"a task cannot go from {source} to {target}; from {source} it may go to {allowed}"
        )
