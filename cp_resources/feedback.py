"""Evidence that arrives after an attempt, in PostgreSQL: kept for good, and the attempt's quality scored anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from cp_core.execution.feedback import Report, Standing, standing, verdict_after, worker_report
from cp_core.execution.scrubbing import strike_from_record, strike_secrets
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import VERDICT_MOVES, TaskState
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.events import announce
from cp_resources.secrets import known_secrets

RESCORED = "quality.rescored"
"""Kind of the event that every recorded report leaves."""


class FeedbackError(UserError):
    """Evidence cannot be added. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Rescored:
    """What a report came to.

    Attributes:
        is_new: False when a report with the same key had been recorded before: nothing changed.
    """

    task_id: str
    submission_day: date
    execution: int
    attempt: int
    model: str
    quality_before: float
    quality_after: float
    state_before: TaskState
    state_after: TaskState
    evidence: Mapping[str, Any]
    is_new: bool


class FeedbackStore:
    """Adds evidence to finished attempts.

    Args:
        success_quality: the bar, 0 to 10 (`execution.success_quality`).
    """

    def __init__(self, database: Database, success_quality: float) -> None:
        self._database = database
        self._success_quality = success_quality

    def record(
        self, task_id: str, report: Report, *, by: str, attempt: int | None = None, key: str | None = None
    ) -> Rescored:
        """Add `report` to an attempt and score its quality anew, in one transaction.

        Args:
            by: who reports.
            attempt: which one; without it the latest whose work was judged.
            key: idempotency key within the task: a second report with the same key changes nothing.

        Raises:
            FeedbackError: no such task or attempt, its work was not judged, or the key stands for other
                evidence.
        """
        secrets = known_secrets()
        said = strike_from_record(report.model_dump(mode="json", exclude_none=True), secrets)
        by, key = strike_secrets(by, secrets), key and strike_secrets(key, secrets)
        with self._database.transaction() as connection:
            task = _lock_task(connection, task_id)
            if key and (before := _recorded(connection, task, key)):
                _require_same(before, said, key, task_id)
                return _rescored(before, is_new=False)
            judged = _judged(connection, task, attempt)
            after = self._standing(connection, judged, Report.model_validate(said))
            moved = self._verdict(connection, task, judged, after)
            connection.execute(
                _ADD,
                {
                    "task": task["id"],
                    "execution": judged["id"],
                    "source": str(report.source),
                    "by": by,
                    "key": key,
                    "report": Jsonb(said),
                    "evidence_before": Jsonb(judged["evidence"]),
                    "evidence_after": Jsonb(dict(after.record)),
                    "quality_before": judged["quality"],
                    "quality_after": after.quality,
                    "state_before": task["state"],
                    "state_after": moved[0] if moved else task["state"],
                },
            )
            [row] = _rows(connection, _NEWEST, {"task": task["id"]})
            announce(connection, RESCORED, task_id, _payload(row))
        return _rescored(row, is_new=True)

    def _standing(
        self, connection: psycopg.Connection, judged: Mapping[str, Any], report: Report
    ) -> Standing:
        history = _rows(connection, _HISTORY, {"execution": judged["id"]})
        first = history[0]["evidence_before"] if history else judged["evidence"]
        own = worker_report(first)
        reports = [
            *([own] if own else []),
            *(Report.model_validate(row["report"]) for row in history),
            report,
        ]
        return standing(reports)

    def _verdict(
        self,
        connection: psycopg.Connection,
        task: Mapping[str, Any],
        judged: Mapping[str, Any],
        after: Standing,
    ) -> tuple[TaskState, Reason | None] | None:
        """Write the attempt's new quality, and move the task when its last attempt's work decided it."""
        moved = None
        if judged["is_last"]:
            moved = verdict_after(
                TaskState(task["state"]), judged["reason"], after.quality, self._success_quality
            )
        values = {"execution": judged["id"], "quality": after.quality, "evidence": Jsonb(dict(after.record))}
        if moved is None:
            connection.execute(_RESCORE, values)
            return None
        state, reason = moved
        if state not in VERDICT_MOVES[TaskState(task["state"])]:
            raise AssertionError(f"evidence does not move a task from {task['state']} to {state}")
        values |= {"task": task["id"], "state": str(state), "reason": reason and str(reason)}
        connection.execute(_RESCORE_AND_JUDGE, values)
        connection.execute(_MOVE, {**values, "expected": task["state"]})
        return moved


def _lock_task(connection: psycopg.Connection, task_id: str) -> dict[str, Any]:
    found = _rows(connection, _LOCK, {"task_id": task_id})
    if not found:
        raise FeedbackError(f"no task has the id {task_id!r}: check the spelling")
    return found[0]


def _recorded(connection: psycopg.Connection, task: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    return next(iter(_rows(connection, _BY_KEY, {"task": task["id"], "key": key})), None)


def _require_same(before: Mapping[str, Any], said: Mapping[str, Any], key: str, task_id: str) -> None:
    if before["report"] != said:
        raise FeedbackError(
            f"the key {key!r} stands for other evidence on task {task_id}, recorded "
            f"{before['recorded_at']:%Y-%m-%d %H:%M} UTC by {before['reported_by']}: {before['report']}. "
            "Give new evidence a key of its own with --id"
        )


def _judged(connection: psycopg.Connection, task: Mapping[str, Any], attempt: int | None) -> dict[str, Any]:
    attempts = _rows(connection, _ATTEMPTS, {"task": task["id"]})
    wanted = [row for row in attempts if attempt in (None, row["attempt"])]
    judged = next((row for row in wanted if row["quality"] is not None), None)
    if judged:
        return judged
    made = ", ".join(f"{row['attempt']} ({row['reason'] or row['state']})" for row in reversed(attempts))
    which = "no attempt" if attempt is None else f"no attempt {attempt}"
    raise FeedbackError(
        f"task {task['task_id']} ({task['state']}) has {which} with work to judge; its attempts: "
        f"{made or 'none yet'}"
    )


def _rescored(row: Mapping[str, Any], *, is_new: bool) -> Rescored:
    return Rescored(
        task_id=row["task_id"],
        submission_day=row["submission_day"],
        execution=row["execution"],
        attempt=row["attempt"],
        model=row["model"],
        quality_before=row["quality_before"],
        quality_after=row["quality_after"],
        state_before=TaskState(row["state_before"]),
        state_after=TaskState(row["state_after"]),
        evidence=row["evidence_after"],
        is_new=is_new,
    )


def _payload(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("execution", "attempt", "model", "source", "quality_before", "quality_after")
    states = {"state_before": row["state_before"], "state_after": row["state_after"]}
    return {**{name: row[name] for name in names}, "by": row["reported_by"], **states}


def _rows(
    connection: psycopg.Connection, query: LiteralString, parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


# The task's row is what everybody locks first who changes its attempts.
_LOCK: LiteralString = """
    SELECT id, task_id, state FROM cp.tasks WHERE task_id = %(task_id)s FOR NO KEY UPDATE
"""
_ATTEMPTS: LiteralString = """
    SELECT id, attempt, state, reason, quality, evidence, attempt = max(attempt) OVER () AS is_last
    FROM cp.executions WHERE task = %(task)s ORDER BY attempt DESC
"""
_HISTORY: LiteralString = """
    SELECT report, evidence_before FROM cp.evidence WHERE execution = %(execution)s ORDER BY id
"""
_ADD: LiteralString = """
    INSERT INTO cp.evidence (task, execution, source, reported_by, key, report, evidence_before,
        evidence_after, quality_before, quality_after, state_before, state_after)
    VALUES (%(task)s, %(execution)s, %(source)s, %(by)s, %(key)s, %(report)s, %(evidence_before)s,
        %(evidence_after)s, %(quality_before)s, %(quality_after)s, %(state_before)s, %(state_after)s)
"""
_RECORDED: LiteralString = """
    SELECT v.*, t.task_id, e.submission_day, e.attempt, e.model
    FROM cp.evidence v JOIN cp.executions e ON e.id = v.execution JOIN cp.tasks t ON t.id = v.task
"""
_BY_KEY: LiteralString = f"{_RECORDED} WHERE v.task = %(task)s AND v.key = %(key)s"
_NEWEST: LiteralString = f"{_RECORDED} WHERE v.task = %(task)s ORDER BY v.id DESC LIMIT 1"
_RESCORE: LiteralString = """
    UPDATE cp.executions SET quality = %(quality)s, evidence = %(evidence)s WHERE id = %(execution)s
"""
_RESCORE_AND_JUDGE: LiteralString = """
    UPDATE cp.executions
    SET quality = %(quality)s, evidence = %(evidence)s, state = %(state)s, reason = %(reason)s
    WHERE id = %(execution)s
"""
_MOVE: LiteralString = """
    UPDATE cp.tasks SET state = %(state)s, reason = %(reason)s, state_changed_at = clock_timestamp()
    WHERE id = %(task)s AND state = %(expected)s
"""
