"""Attempts at assignment: each is kept with how it ended, and what later ones make of it.

A task that ran out of time is decided with a relaxed policy the next time; one that failed for a lasting reason has
fewer attempts left. Whoever stops trying says so in one event. Everything works in the caller's transaction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.types.json import Jsonb

from cp_core.assignment.decision import Decision, Outcome
from cp_core.assignment.retry import STOP_EVENT, AssignmentRetryPolicy, Step, Stop, next_step
from cp_core.tasks.reasons import Reason

TIMEOUT = "timeout"
FAILED = "failed"
ALREADY_ASSIGNED = "already_assigned"


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt ended; for `outcome` see table assignment_attempts."""

    task_id: str
    path: str
    outcome: str
    reason: Reason | None
    seconds: float
    tiers_either_side: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)


def relaxation(last_attempt: str | None) -> int:
    """How many tiers either side the written policy is relaxed by, for the way the last attempt ended."""
    return 1 if last_attempt == TIMEOUT else 0


def record(connection: psycopg.Connection, attempts: Sequence[Attempt]) -> None:
    """Keep how attempts ended. One at a task that does not exist is not kept."""
    rows = [
        {
            "task_id": attempt.task_id,
            "path": attempt.path,
            "outcome": attempt.outcome,
            "reason": attempt.reason,
            "tiers_either_side": attempt.tiers_either_side,
            "seconds": attempt.seconds,
            "detail": dict(attempt.detail),
        }
        for attempt in attempts
    ]
    if rows:
        connection.execute(_RECORD, {"rows": Jsonb(rows)})


def steps_after(
    decisions: Iterable[Decision],
    rows: Mapping[int, Any],
    policy: AssignmentRetryPolicy,
    *,
    now: datetime,
    draw: Callable[[], float] = random.random,
) -> dict[int, Step]:
    """What follows each decision that assigned nothing, by task.

    Args:
        rows: the facts of the tasks, with attempts_left and deadline.
        draw: gives random numbers in [0, 1), for the jitter.
    """
    return {
        decision.task: next_step(
            decision.reason,
            rows[decision.task].attempts_left,
            policy,
            jitter=draw(),
            now=now,
            deadline=rows[decision.task].deadline,
        )
        for decision in decisions
        if decision.outcome is not Outcome.ASSIGNED and decision.reason is not None
    }


def follow(connection: psycopg.Connection, steps: Mapping[int, Step], path: str) -> None:
    """Keep the attempts that are left, and tell the stops: one event each."""
    if not steps:
        return
    left = [step.attempts_left for step in steps.values()]
    connection.execute(_LEFT, {"tasks": list(steps), "left": left})
    stops = [(task, step.stop, step.reason) for task, step in steps.items() if step.stop is not None]
    if stops:
        tasks, kinds, reasons = (list(column) for column in zip(*stops, strict=True))
        connection.execute(
            _STOPS, {"kind": STOP_EVENT, "tasks": tasks, "stops": kinds, "because": reasons, "path": path}
        )


def tell_already_assigned(connection: psycopg.Connection, task: int, path: str) -> None:
    """Tell that an attempt stopped because the task has its decision."""
    stop = {"tasks": [task], "stops": [Stop.ALREADY_ASSIGNED], "because": [None]}
    connection.execute(_STOPS, {"kind": STOP_EVENT, "path": path, **stop})


_RECORD: LiteralString = """
INSERT INTO cp.assignment_attempts (task, path, outcome, reason, tiers_either_side, seconds, detail)
SELECT t.id, r.path, r.outcome, r.reason, r.tiers_either_side, r.seconds, r.detail
FROM jsonb_to_recordset(%(rows)s) AS r (
    task_id text, path text, outcome text, reason text, tiers_either_side smallint, seconds float8, detail jsonb
)
JOIN cp.tasks t ON t.task_id = r.task_id
"""

_LEFT: LiteralString = """
UPDATE cp.tasks t SET assignment_attempts_left = r.attempts_left
FROM unnest(%(tasks)s::bigint[], %(left)s::smallint[]) AS r (task, attempts_left)
WHERE t.id = r.task AND t.assignment_attempts_left <> r.attempts_left
"""

_STOPS: LiteralString = """
INSERT INTO cp.events (kind, subject, payload)
SELECT %(kind)s, t.task_id, jsonb_build_object(
    'reason', r.stop, 'because', r.because, 'path', %(path)s::text, 'state', t.state
)
FROM unnest(%(tasks)s::bigint[], %(stops)s::text[], %(because)s::text[]) AS r (task, stop, because)
JOIN cp.tasks t ON t.id = r.task
ORDER BY t.id
"""
