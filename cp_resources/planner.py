"""One task decided while its owner waits: at the prices of the latest batch, and made real by a reservation.

Everything that a decision changes is one transaction under a deadline; when time runs out nothing of it remains but the
attempt, which is kept by itself. Decisions go by the database's time, the deadline by a clock that never goes back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.errors import LockNotAvailable, QueryCanceled
from psycopg.rows import namedtuple_row

from cp_core.assignment.cache import PlannerCache
from cp_core.assignment.decision import Decision, Outcome, reservation_key
from cp_core.assignment.inline import Answer, Circumstances, Desk
from cp_core.assignment.market import Catalogue
from cp_core.assignment.retry import Step, next_step
from cp_core.assignment.summary import AssignmentSummary
from cp_core.assignment.telemetry import AssignmentTelemetry
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import TaskState
from cp_resources import assignment_attempts as attempts
from cp_resources.assigner import TaskNeverDecidedError, TaskNotFoundError, TaskNotScoredError
from cp_resources.assignment_attempts import Attempt
from cp_resources.assignment_store import AssignmentStore, Facts, Stamp
from cp_resources.configuration import Configuration
from cp_resources.database import Database, DatabaseBusyError, statements
from cp_resources.errors import UserError
from cp_resources.ledger import Ledger, LedgerError, Reservation
from cp_resources.outbox import Outbox, notices_about

INLINE_EVENT = "assign.inline"
"""Kind of the event that every decision emits."""

_OPEN = (TaskState.QUEUED, TaskState.DEFERRED)
_RECORD_SECONDS = 0.5  # how long keeping an attempt that failed may take, beyond the deadline


class PlannerTimeoutError(UserError):
    """The deadline came before the decision. The task is as it was, and the attempt is kept.

    Attributes:
        task_id: the task that was not decided.
        step: what was being done when time ran out.
        deadline_seconds, seconds: how long it could take, and how long it took.
    """

    def __init__(self, task_id: str, step: str, deadline_seconds: float, seconds: float) -> None:
        super().__init__(
            f"task {task_id} was not decided within {deadline_seconds:g} s (it came to: {step}, after "
            f"{seconds:.3f} s); nothing has changed: try again, allow more time, or leave it to the next batch"
        )
        self.task_id = task_id
        self.step = step
        self.deadline_seconds = deadline_seconds
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Decided:
    """The decision that stands for one task.

    Attributes:
        state: the task's state.
        is_new: whether this call made the decision; otherwise it stood already.
        plan: the stages in order, as `assignments.plan` holds them.
        explanation: see `cp_core.assignment.explain` and `cp_core.assignment.verdicts`.
        batch: whose prices were used; None for none.
        replans: how often others took the quota first.
        is_cached: whether the process remembered the plan of an equal task.
        retry: what follows when nothing was assigned, under retry policy v2.
        seconds: how long it took.
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
    batch: UUID | None = None
    replans: int = 0
    is_cached: bool = False
    retry: Step | None = None
    seconds: float = 0.0


class Planner:
    """Decides one task at a time. Safe to share between threads.

    Args:
        clock: seconds that never go back.
    """

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        configuration: Configuration,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._configuration = configuration
        self._policies = policies = configuration.policies
        self._clock = clock
        self._store = AssignmentStore(database, policies.assignment)
        self.cache: PlannerCache[Answer] | None = None
        if policies.flags.planner_cache_enabled:
            self.cache = PlannerCache(policies.inline.cache_ttl_seconds, policies.inline.cache_entries)
        self._desk = Desk(
            configuration.registry,
            Catalogue(
                configuration.registry,
                policies.prediction,
                policies.plans,
                policies.objective,
                configuration.learned.calibration,
            ),
            policies.assignment,
            policies.fairness,
            configuration.content_hash,
            self.cache,
        )
        self._is_open = False

    def decide(
        self, task: str | Mapping[str, Any], *, deadline_seconds: float | None = None, path: str = "inline"
    ) -> Decided:
        """Decide a task, reserve for it and store it all, or tell the decision that it has.

        A task that is assigned, running or over is never decided again: it keeps its decision.

        Args:
            task: the id of a scored task, or its row with `task_id`; what is stored about it decides.
            deadline_seconds: longest time it may take; without it that of policies.yaml.
            path: `inline` or `stress`.

        Raises:
            PlannerTimeoutError: the deadline came first; nothing has changed.
            TaskNotFoundError: no task has this id.
            TaskNotScoredError: it has no value score yet.
            TaskNeverDecidedError: it ended without a decision.
        """
        task_id = task if isinstance(task, str) else str(task["task_id"])
        policy = self._policies.inline
        timer = _Timer(self._clock, policy.deadline_seconds if deadline_seconds is None else deadline_seconds)
        try:
            made = self._in_time(task_id, path, timer)
        except (_OutOfTime, QueryCanceled, LockNotAvailable, DatabaseBusyError) as error:
            late = PlannerTimeoutError(task_id, timer.step, timer.limit, timer.seconds)
            self._keep(late, self._attempt(task_id, path, attempts.TIMEOUT, Reason.TIMEOUT, timer))
            raise late from error
        except Exception as error:
            self._keep(error, self._attempt(task_id, path, attempts.FAILED, None, timer, error=str(error)))
            raise
        return made if made is not None else self._standing(task_id, timer)

    def _in_time(self, task_id: str, path: str, timer: _Timer) -> Decided | None:
        """Decide in one transaction; None for a task that has its decision."""
        if not self._is_open:
            self._open(timer)
        timer.next("wait for a connection")
        with self._database.transaction(wait_seconds=timer.left) as connection:
            timer.next("find the task", connection)
            found = self._find(connection, task_id)
            if found.state not in _OPEN:
                attempts.tell_already_assigned(connection, found.id, path)
                attempts.record(
                    connection, [self._attempt(task_id, path, attempts.ALREADY_ASSIGNED, None, timer)]
                )
                return None
            if not found.is_scored:
                raise TaskNotScoredError(f"task {task_id} has no value score yet: score it first")
            made = self._decide(connection, found, path, timer)
            timer.next("commit")
        return replace(made, seconds=timer.seconds)

    def _open(self, timer: _Timer) -> None:
        """Once a process: open the registry's accounts and keep the configuration."""
        timer.next("wait for a connection")
        with self._database.transaction(wait_seconds=timer.left) as connection:
            timer.next("open the accounts", connection)
            self._ledger.open_accounts(self._configuration.registry, connection)
            self._configuration.remember(connection)
        self._is_open = True

    def _find(self, connection: psycopg.Connection, task_id: str) -> Any:
        """Lock a task, and read what is known beside its facts: prices, and what earlier attempts mean."""
        with connection.cursor(row_factory=namedtuple_row) as cursor:
            found = cursor.execute(
                _FIND,
                {
                    "task_id": task_id,
                    "strategy": self._policies.assignment.strategy,
                    "config_hash": self._configuration.content_hash,
                },
            ).fetchone()
        if found is None:
            raise TaskNotFoundError(f"no task has the id {task_id!r}: submit it first, or check the spelling")
        return found

    def _decide(self, connection: psycopg.Connection, found: Any, path: str, timer: _Timer) -> Decided:
        """Decide, store and reserve; when others take the quota first, decide again with the balances of then.

        Quota is reserved last: the ledger's lock is held from then until the end, and others wait for it.
        """
        config_hash = self._configuration.content_hash
        telemetry = AssignmentTelemetry(
            path,
            self._policies.assignment.strategy.value,
            config_hash,
            tasks=1,
            debug=Counter() if self._policies.flags.debug_capacity_profiling else None,
        )
        with telemetry.step("read", self._clock):
            facts = self._store.read(connection, [found.id], None, config_hash)
            has_room = self._has_room(connection, facts.rows[found.id].workspace)
        going = _Going(connection, facts, found, has_room, path, telemetry, timer)
        for replans in range(self._policies.inline.most_replans + 1):
            answer = self._answer(going)
            decision = answer.decision
            with connection.transaction() as attempt:
                made = self._made(going, decision, replans, answer.is_cached)
                if decision.outcome is not Outcome.ASSIGNED or self._reserve(going, decision):
                    return made
                raise psycopg.Rollback(attempt)
        return self._made(going, decision.outrun(), replans, is_cached=False)

    def _answer(self, going: _Going) -> Answer:
        """Decide with the balances of now."""
        going.timer.next("decide")
        row, telemetry = going.facts.rows[going.found.id], going.telemetry
        with telemetry.step("decide", self._clock):
            answer = self._desk.decide(
                row._asdict(),
                Circumstances(
                    accounts=self._ledger.accounts(going.connection),
                    now=going.facts.now,
                    prices=going.found.prices or {},
                    prices_of=going.found.batch,
                    tiers_either_side=attempts.relaxation(row.last_attempt),
                    has_room=going.has_room,
                ),
                tick=self._clock(),
            )
        telemetry.considered += answer.considered
        telemetry.pruned.update(answer.pruned)
        telemetry.profile(
            searches=int(not answer.is_cached), eligible=answer.considered - sum(answer.pruned.values())
        )
        if self.cache is not None:
            telemetry.cache_hits += answer.is_cached
            telemetry.cache_misses += not answer.is_cached
        if answer.decision.outcome is Outcome.ASSIGNED:
            return answer._replace(decision=replace(answer.decision, propensity=1.0))
        return answer

    def _made(self, going: _Going, decision: Decision, replans: int, is_cached: bool) -> Decided:
        """Store a decision with all that follows from it, but for the reservation."""
        connection, facts, timer, task = going.connection, going.facts, going.timer, decision.task
        timer.next("store")
        config_hash, strategy = self._configuration.content_hash, self._policies.assignment.strategy.value
        steps = {}
        if self._policies.flags.retry_policy_v2:
            steps = attempts.steps_after(
                [decision], facts.rows, self._policies.assignment_retry, now=facts.now
            )
        waits = {one: step.after_seconds for one, step in steps.items() if step.after_seconds is not None}
        stamp = Stamp(strategy, config_hash, going.path, batch=going.found.batch)
        with going.telemetry.step("store", self._clock):
            moved = self._store.store(connection, facts, [decision], stamp, waits)
        attempt = self._attempt(
            decision.task_id,
            going.path,
            decision.outcome.value,
            decision.reason,
            timer,
            replans=replans,
            is_cached=is_cached,
        )
        either_side = attempts.relaxation(facts.rows[task].last_attempt)
        event = self._event(going, decision, replans)
        with connection.pipeline():  # nobody waits for what these return
            Outbox.add(connection, notices_about(moved))
            attempts.follow(connection, steps, going.path)
            self._store.announce(connection, INLINE_EVENT, decision.task_id, event)
            attempts.record(connection, [replace(attempt, tiers_either_side=either_side)])
        return Decided(
            task_id=decision.task_id,
            state=moved.get(task, TaskState(going.found.state)),
            is_new=True,
            outcome=decision.outcome,
            reason=decision.reason,
            plan=[stage.as_json() for stage in decision.plan],
            expected_cost_usd=decision.expected_cost_usd,
            explanation=decision.explanation,
            config_hash=config_hash,
            batch=going.found.batch,
            replans=replans,
            is_cached=is_cached,
            retry=steps.get(task),
        )

    def _event(self, going: _Going, decision: Decision, replans: int) -> dict[str, Any]:
        telemetry = replace(going.telemetry, summary=AssignmentSummary(races_lost=replans))
        telemetry.count(decision, self._configuration.registry)
        telemetry.inline = going.facts.last_attempts
        telemetry.queries = statements(going.connection)
        return telemetry.to_event()

    def _has_room(self, connection: psycopg.Connection, workspace: str) -> bool:
        caps = self._policies.fairness.workspace_caps
        if workspace not in caps:
            return True
        busy = self._store.busy(connection, [workspace], lock=True)
        return self._policies.fairness.rooms(busy)[workspace] > 0

    def _reserve(self, going: _Going, decision: Decision) -> bool:
        going.timer.next("reserve", going.connection)
        key = reservation_key(going.facts.ids[decision.task], 1)
        try:
            [made] = self._ledger.reserve(
                going.connection,
                [Reservation(key, decision.amounts, decision.task)],
                expires_in=timedelta(seconds=self._policies.assignment.reservation_seconds),
            )
        except LedgerError:  # an account was closed since the balances were read: they are read anew
            return False
        return made

    def _attempt(
        self, task_id: str, path: str, outcome: str, reason: Reason | None, timer: _Timer, **detail: Any
    ) -> Attempt:
        detail = {"step": timer.step, "deadline_seconds": timer.limit, **detail}
        return Attempt(task_id, path, outcome, reason, timer.seconds, detail=detail)

    def _keep(self, error: Exception, attempt: Attempt) -> None:
        """Keep an attempt that came to nothing, in a transaction of its own; `error` tells where that fails."""
        try:
            with self._database.transaction(wait_seconds=_RECORD_SECONDS) as connection:
                _limit(connection, _RECORD_SECONDS)
                attempts.record(connection, [attempt])
        except Exception as second:
            error.add_note(f"the attempt could not be kept: {second}")
            return
        if attempt.reason is Reason.TIMEOUT and self._policies.flags.retry_policy_v2:
            with suppress(
                psycopg.OperationalError, DatabaseBusyError
            ):  # whoever holds the task decides it now
                self._take_attempt(attempt)

    def _take_attempt(self, attempt: Attempt) -> None:
        with self._database.transaction(wait_seconds=_RECORD_SECONDS) as connection:
            _limit(connection, _RECORD_SECONDS)
            found = connection.execute(_OPEN_TASK, [attempt.task_id]).fetchone()
            if found is None:
                return
            task, attempts_left, deadline, now = found
            step = next_step(
                Reason.TIMEOUT,
                attempts_left,
                self._policies.assignment_retry,
                jitter=0.0,  # nobody waits: the task stays due, for the next batch
                now=now,
                deadline=deadline,
            )
            attempts.follow(connection, {task: step}, attempt.path)

    def _standing(self, task_id: str, timer: _Timer) -> Decided:
        found = self._store.standing(task_id)
        if found is None:
            raise TaskNeverDecidedError(f"task {task_id} ended before anything was decided about it")
        state, outcome, reason, plan, cost, explanation, config_hash = found
        return Decided(
            task_id=task_id,
            state=TaskState(state),
            is_new=False,
            outcome=Outcome(outcome),
            reason=reason and Reason(reason),
            plan=plan or [],
            expected_cost_usd=cost,
            explanation=explanation,
            config_hash=config_hash,
            seconds=timer.seconds,
        )


@dataclass(frozen=True, slots=True)
class _Going:
    """A decision under way."""

    connection: psycopg.Connection
    facts: Facts
    found: Any
    has_room: bool
    path: str
    telemetry: AssignmentTelemetry
    timer: _Timer


class _OutOfTime(Exception):  # noqa: N818 - it never leaves this module
    """The deadline came between two steps."""


class _Timer:
    """A deadline, and the step that is under way."""

    def __init__(self, clock: Callable[[], float], limit: float) -> None:
        self.limit = limit
        self.step = "begin"
        self._clock = clock
        self._began = clock()

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return max(0.0, self._clock() - self._began)

    @property
    def left(self) -> float:
        """Time until the deadline.

        Raises:
            _OutOfTime: there is none.
        """
        left = self.limit - self.seconds
        if left <= 0:
            raise _OutOfTime
        return left

    def next(self, step: str, connection: psycopg.Connection | None = None) -> None:
        """Begin a step; with a connection, no statement from here on may wait or run longer than what is left."""
        self.step = step
        left = self.left
        if connection is not None:
            _limit(connection, left)


def _limit(connection: psycopg.Connection, seconds: float) -> None:
    milliseconds = str(max(1, int(seconds * 1000)))
    connection.execute(_LIMIT, [milliseconds, milliseconds])


_LIMIT: LiteralString = (
    "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true)"
)

_OPEN_TASK: LiteralString = """
SELECT id, assignment_attempts_left, deadline, now() FROM cp.tasks
WHERE task_id = %s AND state IN ('queued', 'deferred') FOR NO KEY UPDATE NOWAIT
"""

_FIND: LiteralString = """
SELECT t.id, t.state, s.task IS NOT NULL AS is_scored, latest.id AS batch, latest.prices
FROM cp.tasks t
LEFT JOIN cp.task_scores s ON s.task = t.id
LEFT JOIN LATERAL (
    SELECT b.id, b.prices FROM cp.assignment_batches b
    WHERE b.strategy = %(strategy)s AND b.config_hash = %(config_hash)s
    ORDER BY b.decided_at DESC LIMIT 1
) AS latest ON true
WHERE t.task_id = %(task_id)s
FOR NO KEY UPDATE OF t
"""
