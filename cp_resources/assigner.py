"""Decisions made real: reads the tasks to decide, has the strategy decide, reserves quota and stores it all.

Reservation, decision and the task's new state are one transaction, a batch at a time. Tasks are locked while
they are decided, so two assigners never decide the same one; quota is only what the ledger grants, so they
never promise the same tokens twice. Time is the database's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

import pandas as pd
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from cp_core.assignment.decision import Decision, Outcome, decision_id, reservation_key
from cp_core.assignment.summary import AssignmentSummary
from cp_core.assignment.tiered import assign_tiered
from cp_core.quota.account import Account
from cp_core.tasks.reasons import TRANSIENT, Reason
from cp_core.tasks.states import TaskState, require_legal
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.ledger import Ledger, Reservation, reservation_transfers
from cp_resources.outbox import Outbox, notices_about

MOST_RACES = 3
"""How often one run tries to reserve for a task whose quota others take first; then the task is deferred."""

_OPEN = (TaskState.QUEUED, TaskState.DEFERRED)


class TaskNotFoundError(UserError):
    """No task has this id."""


class TaskNotScoredError(UserError):
    """A task that has no value score yet cannot be decided."""


class TaskBusyError(UserError):
    """Another process is deciding the task at this moment."""


class TaskNeverDecidedError(UserError):
    """The task ended without a decision."""


@dataclass(frozen=True, slots=True)
class TaskAssignment:
    """The decision that stands for one task.

    Attributes:
        state: the task's state; after a dry run still that of before.
        is_new: whether this call made the decision; otherwise it stood already.
        plan: the stages in order, as `assignments.plan` holds them.
        explanation: see `cp_core.assignment.explain`.
    """

    task_id: str
    state: TaskState
    is_new: bool
    outcome: Outcome
    reason: Reason | None
    plan: list[dict[str, Any]]
    expected_cost_usd: Decimal | None
    explanation: dict[str, Any]
    config_hash: str


class Assigner:
    """Assigns tasks by the configured strategy."""

    def __init__(self, database: Database, ledger: Ledger, configuration: Configuration) -> None:
        self._database = database
        self._ledger = ledger
        self._configuration = configuration
        self._registry = configuration.registry
        self._policy = configuration.policies.assignment

    def assign_day(
        self, day: date, *, run_id: str | None = None, limit: int | None = None
    ) -> AssignmentSummary:
        """Decide the scored tasks of a submission day that are due, the most valuable first.

        Due is what is queued, what was deferred until now, and what waited for tasks that have ended since;
        so what depends on a task that is given up here is given up too. A repeat decides what is due by then.

        Args:
            day: UTC day of submission.
            run_id: stored with each decision.
            limit: most tasks to decide.
        """
        began = time.monotonic()
        summary = AssignmentSummary()
        started = self._prepare()
        races: Counter[int] = Counter()
        while due := self._due(day, started, None if limit is None else limit - summary.decided):
            progress = summary.decided, summary.races_lost
            for first in range(0, len(due), self._policy.batch_size):
                batch = due[first : first + self._policy.batch_size]
                summary.add(self._assign_batch(batch, started, races, run_id)[0])
            if (summary.decided, summary.races_lost) == progress:
                break  # what is left is locked: another assigner is deciding it
        summary.seconds = time.monotonic() - began
        return summary

    def assign_task(self, task_id: str, *, commit: bool = True) -> TaskAssignment:
        """Decide one task, due or not, or tell the decision that it has.

        Args:
            commit: reserve and store the decision; otherwise only tell what it would be now.

        Raises:
            TaskNotFoundError: no task has this id.
            TaskNotScoredError: the task is open and has no value score yet.
            TaskBusyError: another process is deciding it.
            TaskNeverDecidedError: it ended without a decision.
        """
        self._prepare()
        races: Counter[int] = Counter()
        while True:
            task, state = self._find(task_id)
            if state not in _OPEN:
                return self._standing(task_id)
            if not commit:
                return self._rehearse(task, state)
            lost = races[task]
            _, decisions = self._assign_batch([task], None, races, None)
            if decisions:
                return self._told(decisions[0], self._find(task_id)[1])
            if races[task] == lost:
                raise TaskBusyError(
                    f"task {task_id} is being decided by another process: try again in a moment"
                )

    def _prepare(self) -> datetime:
        """Open the accounts, free what expired, keep the configuration; return the database's time."""
        self._ledger.open_accounts(self._registry)
        self._ledger.expire_pending()
        with self._database.transaction() as connection:
            self._configuration.remember(connection)
            [(now,)] = connection.execute("SELECT now()").fetchall()
        return now  # type: ignore[no-any-return]

    def _due(self, day: date, due: datetime, limit: int | None) -> list[int]:
        rows = self._database.fetch(_DUE, {"day": day, "due": due, "limit": limit})
        return [task for (task,) in rows]

    def _assign_batch(
        self, tasks: Sequence[int], due: datetime | None, races: Counter[int], run_id: str | None
    ) -> tuple[AssignmentSummary, list[Decision]]:
        """Decide, reserve and store those of `tasks` that are due at `due` (None: any that is open).

        A task whose quota others took first stays as it is, to be decided anew with the balances of then, and
        is counted in `races`; at MOST_RACES it is deferred.
        """
        began = time.monotonic()
        accounts = self._ledger.accounts()
        with self._database.transaction() as connection:
            rows = _read(connection, _LOCKED_TASKS, tasks, due)
            decisions = self._decide(rows, accounts)
            outrun = self._reserve(connection, rows, decisions)
            races.update(outrun)
            held = [
                decision.outrun() if decision.task in outrun else decision
                for decision in decisions
                if decision.task not in outrun or races[decision.task] >= MOST_RACES
            ]
            self._store(connection, rows, held, run_id)
            summary = AssignmentSummary(races_lost=len(outrun))
            for decision in held:
                summary.count(decision, self._registry)
            summary.seconds = time.monotonic() - began
            if decisions:
                self._announce(connection, rows, summary, run_id)
        return summary, held

    def _decide(self, rows: Mapping[int, Mapping[str, Any]], accounts: Sequence[Account]) -> list[Decision]:
        if not rows:
            return []
        return assign_tiered(
            pd.DataFrame(list(rows.values())),
            self._registry,
            accounts,
            self._policy,
            now=next(iter(rows.values()))["now"],
        )

    def _reserve(
        self,
        connection: psycopg.Connection,
        rows: Mapping[int, Mapping[str, Any]],
        decisions: Sequence[Decision],
    ) -> set[int]:
        """Reserve what was assigned, in the order of the decisions; return the tasks that came too late."""
        assigned = [decision for decision in decisions if decision.outcome is Outcome.ASSIGNED]
        granted = self._ledger.reserve(
            connection,
            [
                Reservation(
                    reservation_key(self._id(rows[decision.task]), 1), decision.amounts, decision.task
                )
                for decision in assigned
            ],
            expires_in=timedelta(seconds=self._policy.reservation_seconds),
        )
        return {decision.task for decision, made in zip(assigned, granted, strict=True) if not made}

    def _store(
        self,
        connection: psycopg.Connection,
        rows: Mapping[int, Mapping[str, Any]],
        decisions: Sequence[Decision],
        run_id: str | None,
    ) -> None:
        if not decisions:
            return
        decided = [self._row(decision, rows[decision.task]) for decision in decisions]
        stored = connection.execute(
            _STORE,
            {
                "rows": Jsonb(decided),
                "strategy": self._policy.strategy,
                "config_hash": self._configuration.content_hash,
                "run_id": run_id,
            },
        ).rowcount
        if stored != len(decisions):
            raise RuntimeError(f"{len(decisions)} locked tasks were decided, but {stored} could be moved")
        Outbox.add(connection, notices_about({row["task"]: row["state"] for row in decided}))

    def _row(self, decision: Decision, row: Mapping[str, Any]) -> dict[str, Any]:
        """One element of the array that `_STORE` reads."""
        before, (state, reason) = TaskState(row["state"]), _next_state(decision, row)
        if state is not before:
            require_legal(before, state)
        identity = self._id(row)
        return {
            "task": decision.task,
            "decision_id": str(identity),
            "submission_day": row["submission_day"].isoformat(),
            "outcome": decision.outcome,
            "reason": decision.reason,
            "model": decision.model,
            "funding": decision.funding,
            "plan": [stage.as_json() for stage in decision.plan] or None,
            "expected_cost_usd": None
            if decision.expected_cost_usd is None
            else str(decision.expected_cost_usd),
            "transfers": [
                str(transfer)
                for transfer in reservation_transfers(reservation_key(identity, 1), decision.amounts)
            ],
            "explanation": decision.explanation,
            "state_before": before,
            "state": state,
            "task_reason": reason,
            "wait_seconds": 0.0
            if decision.outcome is not Outcome.DEFERRED or decision.reason is None
            else self._policy.wait_seconds(decision.reason, row["waited_seconds"]),
            "is_repeated": state is before and reason == row["reason"],
        }

    def _announce(
        self,
        connection: psycopg.Connection,
        rows: Mapping[int, Mapping[str, Any]],
        summary: AssignmentSummary,
        run_id: str | None,
    ) -> None:
        """Say in the events what the batch came to."""
        payload = {
            "days": sorted({row["submission_day"].isoformat() for row in rows.values()}),
            "strategy": self._policy.strategy,
            "config_hash": self._configuration.content_hash,
            **summary.as_json(),
        }
        connection.execute(
            "INSERT INTO cp.events (kind, subject, payload) VALUES ('assign.summary', %s, %s)",
            (run_id, Jsonb(payload)),
        )

    def _id(self, row: Mapping[str, Any]) -> UUID:
        return decision_id(row["task_id"], row["decisions"], self._configuration.content_hash)

    def _find(self, task_id: str) -> tuple[int, TaskState]:
        found = self._database.fetch(
            "SELECT t.id, t.state, s.task IS NOT NULL "
            "FROM cp.tasks t LEFT JOIN cp.task_scores s ON s.task = t.id WHERE t.task_id = %s",
            [task_id],
        )
        if not found:
            raise TaskNotFoundError(f"no task has the id {task_id!r}: submit it first, or check the spelling")
        [(task, state, is_scored)] = found
        if state in _OPEN and not is_scored:
            raise TaskNotScoredError(f"task {task_id} has no value score yet: score it first")
        return task, TaskState(state)

    def _rehearse(self, task: int, state: TaskState) -> TaskAssignment:
        accounts = self._ledger.accounts()
        with self._database.transaction() as connection:
            [decision] = self._decide(_read(connection, _TASKS, [task], None), accounts)
        return self._told(decision, state)

    def _told(self, decision: Decision, state: TaskState) -> TaskAssignment:
        return TaskAssignment(
            task_id=decision.task_id,
            state=state,
            is_new=True,
            outcome=decision.outcome,
            reason=decision.reason,
            plan=[stage.as_json() for stage in decision.plan],
            expected_cost_usd=decision.expected_cost_usd,
            explanation=decision.explanation,
            config_hash=self._configuration.content_hash,
        )

    def _standing(self, task_id: str) -> TaskAssignment:
        """The newest decision about a task that is not open."""
        found = self._database.fetch(_STANDING, [task_id])
        if not found:
            raise TaskNeverDecidedError(f"task {task_id} ended before anything was decided about it")
        [(state, outcome, reason, plan, cost, explanation, config_hash)] = found
        return TaskAssignment(
            task_id=task_id,
            state=TaskState(state),
            is_new=False,
            outcome=Outcome(outcome),
            reason=reason and Reason(reason),
            plan=plan or [],
            expected_cost_usd=cost,
            explanation=explanation,
            config_hash=config_hash,
        )


def _next_state(decision: Decision, row: Mapping[str, Any]) -> tuple[TaskState, Reason | None]:
    """Where a decision takes its task, and the reason that the task then shows.

    A task that was done, not well enough, and that no other model may be given has failed; one that nobody
    could do is dead.
    """
    if decision.outcome is Outcome.ASSIGNED:
        return TaskState.ASSIGNED, None
    if decision.outcome is Outcome.DEFERRED:
        return TaskState.DEFERRED, decision.reason
    if decision.reason is Reason.NO_ELIGIBLE_PLAN and row["was_done_poorly"]:
        return TaskState.FAILED, Reason.LOW_QUALITY
    return TaskState.DEAD, decision.reason


def _read(
    connection: psycopg.Connection, query: LiteralString, tasks: Sequence[int], due: datetime | None
) -> dict[int, dict[str, Any]]:
    """What the strategy needs of those of `tasks` that are due, by `tasks.id`."""
    parameters = {"tasks": list(tasks), "due": due or "infinity", "transient": sorted(TRANSIENT)}
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, parameters).fetchall()
    return {row["task"]: row for row in rows}


# A task that waits for others is due as soon as they have all succeeded, or one of them cannot any more.
_IS_DUE: LiteralString = """
t.state IN ('queued', 'deferred') AND (
    t.available_at <= %(due)s::timestamptz
    OR t.reason = 'DEPENDENCY_PENDING' AND (
        EXISTS (
            SELECT FROM cp.tasks d
            WHERE d.task_id = ANY(t.dependencies) AND d.state IN ('failed', 'dead', 'cancelled')
        )
        OR NOT EXISTS (
            SELECT FROM unnest(t.dependencies) AS wanted (task_id)
            LEFT JOIN cp.tasks d USING (task_id)
            WHERE d.state IS DISTINCT FROM 'succeeded'
        )
    )
)
"""

_DUE: LiteralString = f"""
SELECT t.id
FROM cp.tasks t JOIN cp.task_scores s ON s.task = t.id
WHERE t.submission_day = %(day)s AND {_IS_DUE}
ORDER BY s.effective_score DESC, t.deadline, t.id
LIMIT %(limit)s
"""

_TASK_COLUMNS: LiteralString = """
    SELECT id, task_id, submission_day, state, reason, deadline, dependencies, available_at, state_changed_at
    FROM cp.tasks WHERE id = ANY(%(tasks)s::bigint[])
"""

# A listed task may be due no longer: another assigner may have decided it. That is asked outside the fence,
# so that the rows are found by primary key.
_FACTS: LiteralString = f"""
SELECT t.id AS task, t.task_id, t.submission_day, t.state, t.reason, t.deadline, now() AS now,
    extract(epoch FROM now() - t.state_changed_at)::float8 AS waited_seconds,
    s.effective_score AS value_score, s.domain, s.input_mean, s.input_high, s.output_mean, s.output_high,
    dependency.failed AS dependencies_failed, dependency.pending AS dependencies_pending,
    failure.models AS failed_models, coalesce(failure.is_poor, false) AS was_done_poorly,
    (SELECT count(*) FROM cp.assignments a WHERE a.task = t.id) AS decisions
FROM chosen t
JOIN cp.task_scores s ON s.task = t.id
CROSS JOIN LATERAL (
    SELECT array_agg(wanted.task_id) FILTER (WHERE d.state IN ('failed', 'dead', 'cancelled')) AS failed,
        array_agg(wanted.task_id) FILTER (
            WHERE d.state IS NULL OR d.state NOT IN ('succeeded', 'failed', 'dead', 'cancelled')
        ) AS pending
    FROM unnest(t.dependencies) AS wanted (task_id)
    LEFT JOIN cp.tasks d USING (task_id)
) AS dependency
CROSS JOIN LATERAL (
    SELECT array_agg(DISTINCT e.model) AS models, bool_or(e.reason = 'LOW_QUALITY') AS is_poor
    FROM cp.executions e
    WHERE e.task = t.id AND e.state = 'failed' AND e.reason <> ALL(%(transient)s::text[])
) AS failure
WHERE {_IS_DUE}
"""

_TASKS: LiteralString = f"WITH chosen AS MATERIALIZED ({_TASK_COLUMNS}) {_FACTS}"
_LOCKED_TASKS: LiteralString = (
    f"WITH chosen AS MATERIALIZED ({_TASK_COLUMNS} FOR NO KEY UPDATE SKIP LOCKED) {_FACTS}"
)

# A deferral for the same reason as before is no new decision: the task waits on, and the old row stands. Ids
# are drawn on the way in: a join with what INSERT returns would compare every row with every other.
_STORE: LiteralString = """
WITH decided AS MATERIALIZED (
    SELECT *, CASE WHEN NOT is_repeated THEN nextval('cp.assignments_id_seq') END AS assignment
    FROM jsonb_to_recordset(%(rows)s) AS r (
        task bigint, decision_id uuid, submission_day date, outcome text, reason text, model text,
        funding text, plan jsonb, expected_cost_usd numeric, transfers uuid[], explanation jsonb,
        state_before text, state text, task_reason text, wait_seconds float8, is_repeated boolean
    )
),
stored AS (
    INSERT INTO cp.assignments (id, decision_id, task, submission_day, strategy, outcome, reason, model,
        funding, plan, expected_cost_usd, transfers, explanation, config_hash, run_id)
    SELECT assignment, decision_id, task, submission_day, %(strategy)s, outcome, reason, model, funding,
        plan, expected_cost_usd, transfers, explanation, %(config_hash)s, %(run_id)s
    FROM decided WHERE NOT is_repeated
)
UPDATE cp.tasks t
SET state = r.state, reason = r.task_reason, model = r.model,
    assignment = coalesce(r.assignment, t.assignment),
    available_at = now() + make_interval(secs => r.wait_seconds),
    state_changed_at = CASE WHEN r.state = t.state THEN t.state_changed_at ELSE now() END
FROM decided r
WHERE t.id = r.task AND t.state = r.state_before
"""

_STANDING: LiteralString = """
SELECT t.state, a.outcome, a.reason, a.plan, a.expected_cost_usd, a.explanation, a.config_hash
FROM cp.tasks t JOIN cp.assignments a ON a.task = t.id
WHERE t.task_id = %s
ORDER BY a.id DESC LIMIT 1
"""
