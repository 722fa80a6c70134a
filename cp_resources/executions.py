"""Claims, leases and outcomes of tasks in PostgreSQL.

A task that is `assigned` or `running` always holds a reservation in the ledger for its coming or current
attempt; whatever moves a task on settles that reservation in the same transaction, and reserves for the next attempt
where there is one: again at the same stage of its plan, or at the next. Every lease is measured by
the database's clock. What an attempt is made of, and what comes of it, is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from cp_core.assignment.decision import Stage, reservation_key
from cp_core.execution.cost import amounts_used, billed_usd
from cp_core.execution.outcome import DONE, AttemptResult, NextStep, next_step
from cp_core.execution.scrubbing import strike_secrets, strike_values
from cp_core.execution.stages import following_stage, reserved_at
from cp_core.tasks.cancellation import called_off
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import FINAL_STATES, TaskState, require_legal
from cp_resources import execution_queries as queries
from cp_resources.arrays import array, codes, numbers
from cp_resources.breakers import BreakerStore
from cp_resources.cancellation import ANNOUNCE_CANCELLED
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger, Reservation, Settlement
from cp_resources.outbox import Outbox, notices_about
from cp_resources.secrets import known_secrets
from cp_resources.shares import ShareStore

REQUEUE_LIMIT = 1000
"""Most tasks that one call of a sweep moves, so that no transaction is long."""


class ClaimedTask(NamedTuple):
    """A task under lease, with what an attempt at it needs.

    Attributes:
        task: `tasks.id`.
        execution: `executions.id` of this attempt.
        attempt: of the task, from 1.
        stage: of its plan, from 0.
        model: of that stage; `funding` pays for it.
        amounts: what this attempt may take of what is reserved, by account.
        reservation: its key in the ledger.
        output_high: upper end of the estimated output, in tokens.
        deadline_in: seconds from the claim to the deadline; None when there is none that counts.
        earlier_work: what the stage before answered, where the policy has it handed on.
        started_at: database's time of the claim.
        tokens_expected: mean of the estimate, input and output.
        expected_cost_usd: of the whole plan; None where it was not reckoned.
    """

    task: int
    task_id: str
    execution: int
    attempt: int
    decision_id: UUID
    decision_attempt: int
    model: str
    provider: str
    funding: str
    amounts: Mapping[str, Decimal]
    title: str
    description: str
    workspace: str
    labels: Sequence[str]
    output_high: float
    deadline_in: float | None
    run_id: str | None = None
    stage: int = 0
    earlier_work: str | None = None
    started_at: datetime | None = None
    tokens_expected: float = 0.0
    expected_cost_usd: Decimal | None = None

    @property
    def reservation(self) -> UUID:
        """Key of the reservation that this attempt settles."""
        return reservation_key(self.decision_id, self.decision_attempt)


class Finished(NamedTuple):
    """An attempt that ended. `delay` is what its task waits in seconds, should it be tried again."""

    claimed: ClaimedTask
    result: AttemptResult
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class OpenTasks:
    """Tasks of one day in one unfinished state.

    Attributes:
        available_in: seconds until the first of them may move, below 0 when it may already; None when all
            are deferred until something outside of this day's work changes, such as quota.
        breaker_in: seconds until those that wait for an open breaker are worth another decision; None without any.
    """

    count: int
    available_in: float | None
    breaker_in: float | None = None


@dataclass(frozen=True, slots=True)
class _Move:
    """A locked task on its way to another state, and what that does to its reservation.

    Attributes:
        model: of the next attempt; None when there is none under this decision.
        retry: what that attempt reserves.
    """

    task: int
    attempts: int
    step: NextStep
    settlement: Settlement
    model: str | None = None
    retry: Reservation | None = None


class ExecutionStore:
    """What workers read and write."""

    def __init__(self, database: Database, ledger: Ledger, configuration: Configuration) -> None:
        self._database = database
        self._ledger = ledger
        self._registry = configuration.registry
        self._policy = configuration.policies.execution
        self._enforce_deadlines = configuration.policies.assignment.enforce_deadlines
        self._patience_seconds = configuration.policies.breaker.patience_seconds
        self._trials = configuration.policies.breaker.trials
        self.breakers = BreakerStore(database, configuration)
        self.shares = ShareStore(database, seconds=self._policy.lease_seconds)
        self._reserve_for = timedelta(seconds=configuration.policies.assignment.reservation_seconds)

    def claim(
        self,
        day: date,
        worker: str,
        limit: int,
        max_by_model: Mapping[str, int],
        *,
        run_id: str | None = None,
    ) -> list[ClaimedTask]:
        """Take up to `limit` assigned tasks of `day` under a lease, the most valuable first.

        Nothing is taken of a model whose breaker is open, and no more than the trials that are left of one that is
        half-open. Waiting makes a task more valuable: see `queries.RANK`.

        Args:
            worker: the lease's owner; no two workers may share a name.
            max_by_model: most tasks to take of each model; other models are left alone.
        """
        free = {model: slots for model, slots in max_by_model.items() if slots > 0}
        if not free or limit < 1:
            return []
        parameters = {
            "day": day,
            "worker": worker,
            "limit": limit,
            "lease": self._policy.lease_seconds,
            "enforce": self._enforce_deadlines,
            "run_id": run_id,
            "hand_on": self._policy.hand_on_work,
        }
        with self._database.transaction(pipelined=True) as connection:
            connection.execute(queries.PLAN_ONCE)
            permits = self.breakers.permits(connection, free)
            free = {model: min(slots, limit, permits.get(model, limit)) for model, slots in free.items()}
            parameters |= {
                "models": list(free),
                "slots": list(free.values()),
                "providers": [self._registry.model(model).provider for model in free],
            }
            claimed = connection.execute(queries.CLAIM, parameters, prepare=True)
        return _claimed(claimed.fetchall())  # only now, so that the claim and its commit are one trip

    def heartbeat(self, worker: str, held: Sequence[ClaimedTask]) -> set[int]:
        """Renew the leases of these attempts, and return the executions that are still this worker's."""
        parameters = {
            "worker": worker,
            "tasks": [claimed.task for claimed in held],
            "attempts": [claimed.attempt for claimed in held],
            "lease": self._policy.lease_seconds,
        }
        with self._database.transaction() as connection:
            renewed = {row["id"]: row["attempt"] for row in _rows(connection, queries.HEARTBEAT, parameters)}
        return {claimed.execution for claimed in held if renewed.get(claimed.task) == claimed.attempt}

    def called_off(self, worker: str) -> dict[tuple[int, int], str]:
        """The worker's running tasks that are to be cancelled: by task and attempt, who says so and why."""
        with self._database.transaction() as connection:
            rows = _rows(connection, queries.CALLED_OFF, {"worker": worker})
        return {
            (row["id"], row["attempt"]): f"called off by {row['requested_by']}: {row['reason']}"
            for row in rows
        }

    def complete(self, worker: str, finished: Sequence[Finished]) -> list[NextStep | None]:
        """Record finished attempts and move their tasks on, in one transaction. A repeat changes nothing.

        Returns:
            Where each task went; None where the lease was no longer this worker's and nothing moved. What
            such a late attempt used is recorded and charged all the same, once.
        """
        good = [item for item in finished if item.result.reason is None]
        poor = [item for item in finished if item.result.reason is not None]
        with self._database.transaction(pipelined=True) as connection:
            # Where some need a closer look all are locked before, in one order.
            rows = (
                self._lock_attempts(connection, worker, [item.claimed for item in finished]) if poor else []
            )
            succeeded = self._succeed(connection, worker, good)
            moves = self._fail(connection, poor, rows)
            settled = [_settlement(item) for item in finished if item.claimed.execution not in moves]
            moved = self._apply(connection, TaskState.RUNNING, list(moves.values()), settled)
            steps = {execution: DONE for (execution,) in succeeded}
            late = [item for item in finished if item.claimed.execution not in steps.keys() | moves.keys()]
            if late:
                connection.execute(queries.RECORD_LATE, _result_columns(late))
        steps |= {execution: moved[move.task] for execution, move in moves.items()}
        return [steps.get(item.claimed.execution) for item in finished]

    def release(self, worker: str, unbegun: Sequence[ClaimedTask]) -> int:
        """Give back tasks whose attempt has not begun, as if they had not been claimed; return how many.

        Those that were called off meanwhile are cancelled.
        """
        parameters = {
            "worker": worker,
            "tasks": [claimed.task for claimed in unbegun],
            "attempts": [claimed.attempt for claimed in unbegun],
        }
        with self._database.transaction() as connection:
            released = {row["task"] for row in _rows(connection, queries.RELEASE, parameters)}
            left = [claimed for claimed in unbegun if claimed.task not in released]
            rows = self._lock_attempts(connection, worker, left)
            self._take_back(connection, rows, "called off before the attempt began")
        return len(released)

    def abandon(self, worker: str, begun: Sequence[ClaimedTask]) -> int:
        """Give back tasks whose attempt was cut off: the attempt counts as lost. Returns how many."""
        with self._database.transaction() as connection:
            rows = self._lock_attempts(connection, worker, begun)
            return self._take_back(connection, rows, "the worker was stopped before the answer came")

    def requeue_expired(self) -> int:
        """Take back tasks of any day whose lease ran out: tried again, or dead when attempts are used up."""
        parameters = {"limit": REQUEUE_LIMIT, "enforce": self._enforce_deadlines}
        with self._database.transaction() as connection:
            rows = _rows(connection, queries.LOCK_EXPIRED, parameters)
            return self._take_back(connection, rows, "the worker stopped renewing its lease")

    def withdraw(self, day: date) -> int:
        """Move on the assigned tasks of `day` that must not be executed; return how many.

        A task past its deadline is dead; one whose model is gone, disabled or left alone by its breaker for a while
        is queued for another; so is one that must wait for a task again. As many as a breaker lets through for trial
        stay for that: those that can wait longest.
        """
        enabled = [model for model in self._registry.models.values() if model.enabled]
        parameters = {
            "day": day,
            "enabled": [model.name for model in enabled],
            "providers": [model.provider for model in enabled],
            "limit": REQUEUE_LIMIT,
            "enforce": self._enforce_deadlines,
            "patience": self._patience_seconds,
            "trials": self._trials,
        }
        with self._database.transaction() as connection:
            moves = [
                _Move(row["id"], row["attempts"], _withdrawal(row), _voided(row))
                for row in _rows(connection, queries.LOCK_UNFIT, parameters)
            ]
            self._apply(connection, TaskState.ASSIGNED, moves)
        return len(moves)

    def open_tasks(self, day: date) -> dict[TaskState, OpenTasks]:
        """The unfinished tasks of `day`, by state."""
        models = self._registry.models.values()
        parameters = {
            "day": day,
            "models": [model.name for model in models],
            "providers": [model.provider for model in models],
        }
        with self._database.transaction() as connection:
            rows = _rows(connection, queries.OPEN_TASKS, parameters)
        return {
            TaskState(row["state"]): OpenTasks(row["count"], row["available_in"], row["breaker_in"])
            for row in rows
        }

    def waiting_models(self, day: date, models: Sequence[str]) -> set[str]:
        """Those of `models` that assigned tasks of `day` wait for."""
        with self._database.transaction() as connection:
            rows = _rows(connection, queries.WAITING_MODELS, {"day": day, "models": list(models)})
        return {row["model"] for row in rows}

    def assigned_models(self, day: date) -> set[str]:
        """Models that the assigned tasks of `day` wait for."""
        with self._database.transaction() as connection:
            return {row["model"] for row in _rows(connection, queries.ASSIGNED_MODELS, {"day": day})}

    def _lock_attempts(
        self, connection: psycopg.Connection, worker: str, claims: Sequence[ClaimedTask]
    ) -> list[dict[str, Any]]:
        """The tasks that are still under this worker's lease for these very attempts, and for no later one."""
        parameters = {
            "worker": worker,
            "tasks": sorted(claimed.task for claimed in claims),
            "enforce": self._enforce_deadlines,
        }
        attempts = {(claimed.task, claimed.attempt) for claimed in claims}
        rows = _rows(connection, queries.LOCK_LEASED, parameters)
        return [row for row in rows if (row["id"], row["attempts"]) in attempts]

    def _succeed(
        self, connection: psycopg.Connection, worker: str, good: Sequence[Finished]
    ) -> Iterable[tuple[int]]:
        """End the tasks whose attempt succeeded, and tell. What is returned gives the executions that were held."""
        if not good:
            return ()
        require_legal(TaskState.RUNNING, DONE.state)
        parameters = {
            **_result_columns(good),
            "task": numbers(item.claimed.task for item in good),
            "attempt": numbers(item.claimed.attempt for item in good),
            "title": array([item.claimed.title for item in good]),
            "expected": numbers([item.claimed.expected_cost_usd for item in good]),
            "worker": worker,
            "to": str(DONE.state),
        }
        return connection.execute(queries.SUCCEED, parameters, prepare=True)

    def _fail(
        self, connection: psycopg.Connection, poor: Sequence[Finished], rows: Sequence[Mapping[str, Any]]
    ) -> dict[int, _Move]:
        """Finish the attempts that failed and whose tasks are held (`rows`); return where those go, by execution."""
        held = {(row["id"], row["attempts"]): row for row in rows}
        ours = [item for item in poor if (item.claimed.task, item.claimed.attempt) in held]
        if not ours:
            return {}
        connection.execute(queries.FINISH_EXECUTIONS, _result_columns(ours))
        retries_in = self._retries_in(connection)
        return {
            claimed.execution: _move_on(
                held[claimed.task, claimed.attempt], result.reason, delay, _settlement(item), retries_in
            )
            for item in ours
            for claimed, result, delay in [item]
        }

    def _take_back(self, connection: psycopg.Connection, rows: Sequence[Mapping[str, Any]], note: str) -> int:
        lost = [{"task": row["id"], "attempt": row["attempts"], "error": note} for row in rows]
        _write(connection, queries.LOSE_EXECUTIONS, lost)
        retries_in = self._retries_in(connection)
        moves = [_move_on(row, Reason.LEASE_EXPIRED, 0.0, _voided(row), retries_in) for row in rows]
        self._apply(connection, TaskState.RUNNING, moves)
        return len(moves)

    def _retries_in(self, connection: psycopg.Connection) -> float | None:
        """Seconds until there may be retries again; None while the day's are not used up."""
        if self._policy.most_retries_per_day is None:
            return None
        [row] = _rows(connection, queries.RETRIES_OF_TODAY, {})
        return row["until_tomorrow"] if row["made"] >= self._policy.most_retries_per_day else None

    def _apply(
        self,
        connection: psycopg.Connection,
        source: TaskState,
        moves: Sequence[_Move],
        late: Sequence[Settlement] = (),
    ) -> dict[int, NextStep]:
        """Settle the reservations of locked tasks, reserve for those that are tried again, and move them.

        The ledger comes as late as can be, because others wait for it from here to the end of the transaction:
        only what is tried again is moved after it, as that depends on what it grants.
        """
        steps = {move.task: move.step for move in moves}
        _write_steps(connection, source, [move for move in moves if not move.retry], steps)
        self._ledger.settle(connection, [*(move.settlement for move in moves), *late])
        retried = [move for move in moves if move.retry]
        retries = [move.retry for move in retried if move.retry]
        granted = self._ledger.reserve(connection, retries, expires_in=self._reserve_for)
        for move, is_granted in zip(retried, granted, strict=True):
            if not is_granted:
                steps[move.task] = NextStep(TaskState.QUEUED, Reason.QUOTA_EXHAUSTED)
        _write_steps(connection, source, retried, steps)
        return steps


def _write_steps(
    connection: psycopg.Connection, source: TaskState, moves: Sequence[_Move], steps: Mapping[int, NextStep]
) -> None:
    """Move tasks, and tell of those that are over."""
    for move in moves:
        require_legal(source, steps[move.task].state)
    _write(connection, queries.MOVE_TASKS, [_task_row(move, steps[move.task]) for move in moves])
    over = {move.task: steps[move.task].state for move in moves if steps[move.task].state in FINAL_STATES}
    Outbox.add(connection, notices_about(over))
    cancelled = [task for task, state in over.items() if state is TaskState.CANCELLED]
    if cancelled:
        connection.execute(ANNOUNCE_CANCELLED, {"tasks": cancelled})


def _claimed(rows: Sequence[Sequence[Any]]) -> list[ClaimedTask]:
    """The rows, which are in the order of the fields, their amounts as JSON."""
    at = ClaimedTask._fields.index("amounts")
    amounts = json.loads(f"[{','.join([row[at] for row in rows])}]")
    return [
        ClaimedTask._make((*row[:at], {name: Decimal(of) for name, of in reserved.items()}, *row[at + 1 :]))
        for row, reserved in zip(rows, amounts, strict=True)
    ]


def _settlement(item: Finished) -> Settlement:
    claimed, result = item.claimed, item.result
    return Settlement(
        claimed.reservation, amounts_used(claimed.amounts, claimed.funding, result.usage, result.cost_usd)
    )


def _voided(row: Mapping[str, Any]) -> Settlement:
    return Settlement(reservation_key(row["decision_id"], row["decision_attempt"]), {})


def _move_on(
    row: Mapping[str, Any],
    reason: Reason | None,
    delay: float,
    settlement: Settlement,
    retries_in: float | None,
) -> _Move:
    """Where a locked task goes after the attempt that failed for `reason` (None: it succeeded)."""
    plan = [Stage.from_json(stage) for stage in row["plan"]]
    step = next_step(
        reason,
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        delay=delay,
        deadline_in=row["deadline_in"],
        stage=row["stage"],
        following=following_stage(plan, row["stage"]),
        retries_in=retries_in,
    )
    if row["is_called_off"]:
        step = called_off(step)
    if step.state is not TaskState.ASSIGNED:
        return _Move(row["id"], row["attempts"], step, settlement)
    key = reservation_key(row["decision_id"], row["decision_attempt"] + 1)
    return _Move(
        row["id"],
        row["attempts"],
        step,
        settlement,
        model=plan[step.stage].model,
        retry=Reservation(key, reserved_at(plan, step.stage), row["id"]),
    )


def _withdrawal(row: Mapping[str, Any]) -> NextStep:
    if row["deadline_in"] is not None and row["deadline_in"] <= 0:
        return NextStep(TaskState.DEAD, Reason.DEADLINE_PASSED)
    return NextStep(TaskState.QUEUED, Reason(row["reason"]))


def _result_columns(items: Sequence[Finished]) -> dict[str, str]:
    """What attempts came to, an array a column: see `queries.RESULT_COLUMNS`."""
    secrets = known_secrets()
    results = [item.result for item in items]
    usages = [result.usage for result in results]
    return {
        "id": numbers([item.claimed.execution for item in items]),
        "state": codes([_ending(result.reason) for result in results]),
        "reason": codes([result.reason for result in results]),
        "error": array(
            [_storable(result.error and strike_secrets(result.error, secrets)) for result in results]
        ),
        "http_status": numbers([result.http_status for result in results]),
        "request_id": array(
            [
                _storable(result.request_id and strike_secrets(result.request_id, secrets))
                for result in results
            ]
        ),
        "input_tokens": numbers([usage.input_tokens for usage in usages]),
        "cached_tokens": numbers([usage.cached_tokens for usage in usages]),
        "cache_write_tokens": numbers([usage.cache_write_tokens for usage in usages]),
        "output_tokens": numbers([usage.output_tokens for usage in usages]),
        "cost_usd": numbers([result.cost_usd for result in results]),
        "billed_usd": numbers([billed_usd(item.claimed.funding, item.result.cost_usd) for item in items]),
        "latency_ms": numbers([result.latency_ms for result in results]),
        "quality": numbers([result.quality for result in results]),
        "evidence": array(
            [None if result.evidence is None else json.dumps(dict(result.evidence)) for result in results]
        ),
        "output": array(
            [_storable(result.output and strike_values(result.output, secrets)) for result in results]
        ),
    }


def _ending(reason: Reason | None) -> str:
    """State of an execution that ended. One that was called off says nothing about its model."""
    if reason is Reason.CANCELLED:
        return "cancelled"
    return "failed" if reason else "succeeded"


def _storable(text: str | None) -> str | None:
    """The text without what PostgreSQL cannot hold: NUL, and halves of surrogate pairs."""
    if text is None:
        return None
    text = text.replace("\0", "")
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _task_row(move: _Move, step: NextStep) -> dict[str, Any]:
    return {
        "id": move.task,
        "attempts": move.attempts,
        "state": str(step.state),
        "reason": step.reason and str(step.reason),
        "delay": step.delay_seconds,
        "stage": step.stage,
        "model": move.model,
    }


def _rows(
    connection: psycopg.Connection, query: LiteralString, parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


def _write(connection: psycopg.Connection, query: LiteralString, rows: Sequence[Mapping[str, Any]]) -> None:
    """Run one statement over all rows; each of their keys is an array in it."""
    if rows:
        connection.execute(query, {name: array(row[name] for row in rows) for name in rows[0]})
