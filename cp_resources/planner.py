"""One task decided while its owner waits: at the prices of the latest batch, and made real by a reservation.

Everything that a decision changes is one transaction under a deadline; when time runs out nothing of it remains but the
attempt, which is kept by itself. Decisions go by the database's time, the deadline by a clock that never goes back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
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
from cp_core.quota.account import Account
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import TaskState
from cp_resources import assignment_attempts as attempts
from cp_resources.arms import ArmsInForce, Exposure
from cp_resources.assignment_attempts import Attempt
from cp_resources.assignment_batches import QUOTED
from cp_resources.assignment_store import AssignmentStore, Facts, Moved, Stamp
from cp_resources.breakers import NOT_TO_BE_GIVEN, models_of, not_to_be_given_parameters
from cp_resources.configuration import Configuration
from cp_resources.database import Database, DatabaseBusyError, statements
from cp_resources.errors import UserError
from cp_resources.ledger import Ledger, LedgerError, Reservation
from cp_resources.outbox import Outbox, notices_about

INLINE_EVENT = "assign.inline"
"""Kind of the event that every decision emits."""

_OPEN = (TaskState.QUEUED, TaskState.DEFERRED)
_RECORD_SECONDS = 0.5  # how long keeping an attempt that failed may take, beyond the deadline


class TaskNotFoundError(UserError):
    """No task has this id."""


class TaskNotScoredError(UserError):
    """A task that has no value score yet cannot be decided."""


class TaskNeverDecidedError(UserError):
    """The task ended without a decision."""


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
        state: the task's state; after a rehearsal still that of before.
        is_new: whether this call made the decision; otherwise it stood already.
        plan: the stages in order, as `assignments.plan` holds them.
        explanation: see `cp_core.assignment.explain` and `cp_core.assignment.verdicts`; with the prices that decided.
        stage: where the plan stands, from 0.
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
    stage: int = 0
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
        self._store = AssignmentStore(
            database, policies.assignment, configuration.learned.calibration.trait_model
        )
        self.cache: PlannerCache[Answer] | None = None
        if policies.flags.planner_cache_enabled:
            self.cache = _cache_of_process(policies.inline.cache_ttl_seconds, policies.inline.cache_entries)
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
        self._arms = ArmsInForce(database, configuration, clock=clock)
        self._of_arms: dict[str, Planner] = {}

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
        timer = self._timer(deadline_seconds)
        try:
            planner, exposed = self._under_arms(task_id, timer)
            made = planner._in_time(task_id, path, timer, exposed)
        except _TOO_LATE as error:
            late = PlannerTimeoutError(task_id, timer.step, timer.limit, timer.seconds)
            self._keep(late, self._attempt(task_id, path, attempts.TIMEOUT, Reason.TIMEOUT, timer))
            raise late from error
        except Exception as error:
            self._keep(error, self._attempt(task_id, path, attempts.FAILED, None, timer, error=str(error)))
            raise
        return made if made is not None else self._standing(task_id, timer)

    def rehearse(self, task_id: str, *, deadline_seconds: float | None = None) -> Decided:
        """What `decide` would decide now, or the decision that the task has. Nothing is reserved or stored.

        Raises:
            PlannerTimeoutError, TaskNotFoundError, TaskNotScoredError, TaskNeverDecidedError: as `decide` does.
        """
        timer = self._timer(deadline_seconds)
        try:
            planner, _ = self._under_arms(task_id, timer)
            foreseen = planner._foreseen(task_id, timer)
            if foreseen is not None:
                return foreseen
        except _TOO_LATE as error:
            raise PlannerTimeoutError(task_id, timer.step, timer.limit, timer.seconds) from error
        return self._standing(task_id, timer)

    def _under_arms(self, task_id: str, timer: _Timer) -> tuple[Planner, Sequence[Exposure]]:
        """Who decides a task under the arms of experiments that it has, and what the decision exposes it to."""
        timer.next("wait for a connection")
        configuration, exposed = self._arms.of(task_id, timer.left)
        if configuration.content_hash == self._configuration.content_hash:
            return self, exposed
        made = Planner(self._database, self._ledger, configuration, clock=self._clock)
        return self._of_arms.setdefault(configuration.content_hash, made), exposed

    def _foreseen(self, task_id: str, timer: _Timer) -> Decided | None:
        """What would be decided now; None for a task that has its decision."""
        self._open(timer)
        with self._transaction(timer) as connection:
            going = self._read(connection, task_id, self._telemetry("inline"), timer, lock=False)
            if going.state not in _OPEN:
                return None
            answer = self._answer(going)
            return self._told(going, answer.decision, going.state, is_cached=answer.is_cached)

    def _timer(self, deadline_seconds: float | None) -> _Timer:
        limit = self._policies.inline.deadline_seconds if deadline_seconds is None else deadline_seconds
        return _Timer(self._clock, limit)

    def _telemetry(self, path: str) -> AssignmentTelemetry:
        return AssignmentTelemetry(
            path,
            self._policies.assignment.strategy.value,
            self._configuration.content_hash,
            tasks=1,
            debug=Counter() if self._policies.flags.debug_capacity_profiling else None,
        )

    def _in_time(
        self, task_id: str, path: str, timer: _Timer, exposed: Sequence[Exposure] = ()
    ) -> Decided | None:
        """Decide in one transaction; None for a task that has its decision.

        When others take the quota first, it is undone, and all is read and decided again.
        """
        self._open(timer)
        telemetry = self._telemetry(path)
        made: Decided | None = None
        for lost in range(self._policies.inline.most_replans + 2):
            with self._transaction(timer) as connection:
                going = self._read(connection, task_id, telemetry, timer, lost=lost, exposed=exposed)
                if going.state not in _OPEN:
                    self._tell_already_assigned(going, task_id)
                    return None
                made = self._decide(going)
                if made is None:
                    telemetry.queries += statements(connection)
                    raise psycopg.Rollback
                timer.next("commit")
            if made is not None:
                break
        return made and replace(made, seconds=timer.seconds)

    def _transaction(self, timer: _Timer) -> AbstractContextManager[psycopg.Connection]:
        timer.next("wait for a connection")
        return self._database.transaction(wait_seconds=timer.left)

    def _open(self, timer: _Timer) -> None:
        """Once a process: open the registry's accounts and keep the configuration."""
        if self._is_open:
            return
        with self._transaction(timer) as connection:
            timer.next("open the accounts", connection)
            self._ledger.open_accounts(self._configuration.registry, connection)
            self._configuration.remember(connection)
        self._is_open = True

    def _read(
        self,
        connection: psycopg.Connection,
        task_id: str,
        telemetry: AssignmentTelemetry,
        timer: _Timer,
        *,
        lost: int = 0,
        lock: bool = True,
        exposed: Sequence[Exposure] = (),
    ) -> _Going:
        """Lock a task, then read all that its decision depends on, in one round trip."""
        timer.next("find the task")
        parameters = {
            "task_id": task_id,
            "strategy": self._policies.assignment.strategy,
            "config_hash": self._configuration.content_hash,
            **not_to_be_given_parameters(self._policies.breaker),
        }
        with (
            telemetry.step("read", self._clock),
            connection.cursor(row_factory=namedtuple_row) as cursor,
            connection.pipeline(),
        ):
            _limit(connection, timer.left)
            cursor.execute(_LOCKED_TASK if lock else _TASK, parameters, prepare=True)
            facts = self._store.ask(connection, task_id)
            accounts = self._ledger.accounts(connection)
            found: Any = cursor.fetchone()
        if found is None:
            raise TaskNotFoundError(f"no task has the id {task_id!r}: submit it first, or check the spelling")
        state = TaskState(found.state)
        if state in _OPEN and not found.is_scored:
            raise TaskNotScoredError(f"task {task_id} has no value score yet: score it first")
        return _Going(
            connection,
            state,
            found,
            Facts(facts.fetchall(), self._configuration.content_hash),
            accounts,
            telemetry,
            timer,
            lost,
            lock,
            exposed,
        )

    def _decide(self, going: _Going) -> Decided | None:
        """Decide, store and reserve; None when others took the quota first, and it may be tried again.

        Quota is reserved last: the ledger's lock is held from then until the end, and others wait for it.
        """
        answer = self._answer(going)
        decision = answer.decision
        if decision.outcome is Outcome.ASSIGNED and going.lost > self._policies.inline.most_replans:
            decision = decision.outrun()
        with going.connection.pipeline():  # nothing is waited for before the reservation
            made, moved = self._made(going, decision, is_cached=answer.is_cached)
            if decision.outcome is Outcome.ASSIGNED and not self._reserve(going, decision):
                return None
        moved.check()
        return made

    def _answer(self, going: _Going) -> Answer:
        """Decide with the balances that were read."""
        going.timer.next("decide")
        row, telemetry = going.row, going.telemetry
        has_room = self._has_room(going)
        with telemetry.step("decide", self._clock):
            answer = self._desk.decide(
                row._asdict() | {"traits": going.facts.traits_of(row.task)},
                Circumstances(
                    accounts=going.accounts,
                    now=going.facts.now,
                    prices=going.found.prices or {},
                    prices_of=going.found.batch,
                    tiers_either_side=attempts.relaxation(row.last_attempt),
                    open_breakers=models_of(going.found.left_alone, self._configuration.registry),
                    has_room=has_room,
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

    def _made(self, going: _Going, decision: Decision, *, is_cached: bool) -> tuple[Decided, Moved]:
        """Store a decision with all that follows from it, but for the reservation, without waiting for the server."""
        connection, facts, timer = going.connection, going.facts, going.timer
        timer.next("store")
        steps = {}
        if self._policies.flags.retry_policy_v2:
            steps = attempts.steps_after(
                [decision], facts.rows, self._policies.assignment_retry, now=facts.now
            )
        step = steps.get(decision.task)
        attempt = self._attempt(
            decision.task_id,
            going.telemetry.path,
            decision.outcome.value,
            decision.reason,
            timer,
            replans=going.replans(self._policies.inline.most_replans),
            is_cached=is_cached,
        )
        either_side = attempts.relaxation(going.row.last_attempt)
        after = step.after_seconds if step else None
        moved = self._store.store_one(
            connection, facts, decision, self._stamp(going), going.found.number, after
        )
        Outbox.add(connection, notices_about(moved.states))
        attempts.follow(connection, steps, going.telemetry.path)
        attempts.record(connection, [replace(attempt, tiers_either_side=either_side)])
        self._store.announce(connection, INLINE_EVENT, decision.task_id, self._event(going, decision))
        state = moved.states.get(decision.task, going.state)
        return self._told(going, decision, state, is_cached=is_cached, retry=step), moved

    def _told(
        self,
        going: _Going,
        decision: Decision,
        state: TaskState,
        *,
        is_cached: bool,
        retry: Step | None = None,
    ) -> Decided:
        prices = {} if going.found.prices is None else {"prices": going.found.prices}
        return Decided(
            task_id=decision.task_id,
            state=state,
            is_new=True,
            outcome=decision.outcome,
            reason=decision.reason,
            plan=[stage.as_json() for stage in decision.plan],
            expected_cost_usd=decision.expected_cost_usd,
            explanation={**decision.explanation, **prices},
            config_hash=self._configuration.content_hash,
            batch=going.found.batch,
            replans=going.replans(self._policies.inline.most_replans),
            is_cached=is_cached,
            retry=retry,
        )

    def _stamp(self, going: _Going) -> Stamp:
        strategy = self._policies.assignment.strategy.value
        path = going.telemetry.path
        exposures = {going.found.id: going.exposed} if going.exposed else {}
        config_hash = self._configuration.content_hash
        return Stamp(strategy, config_hash, path, batch=going.found.batch, exposures=exposures)

    def _event(self, going: _Going, decision: Decision) -> dict[str, Any]:
        telemetry = replace(going.telemetry, summary=AssignmentSummary(races_lost=going.lost))
        telemetry.count([decision], self._configuration.registry)
        telemetry.inline = going.facts.last_attempts
        telemetry.queries += statements(going.connection)
        return telemetry.to_event()

    def _has_room(self, going: _Going) -> bool:
        workspace = going.row.workspace
        if workspace not in self._policies.fairness.workspace_caps:
            return True
        busy = self._store.busy(going.connection, [workspace], lock=going.is_locked)
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

    def _tell_already_assigned(self, going: _Going, task_id: str) -> None:
        path = going.telemetry.path
        with going.connection.pipeline():
            attempts.tell_already_assigned(going.connection, going.found.id, path)
            kept = self._attempt(task_id, path, attempts.ALREADY_ASSIGNED, None, going.timer)
            attempts.record(going.connection, [kept])

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
        return Decided(
            task_id=task_id,
            state=found.state,
            is_new=False,
            outcome=found.outcome,
            reason=found.reason,
            plan=found.plan,
            expected_cost_usd=found.expected_cost_usd,
            explanation=found.explanation,
            config_hash=found.config_hash,
            stage=found.stage,
            seconds=timer.seconds,
        )


@dataclass(frozen=True, slots=True)
class _Going:
    """A decision under way.

    Attributes:
        found: the row of `_TASK` or `_LOCKED_TASK`.
        lost: how often others took the quota first.
        exposed: what the decision exposes the task to.
    """

    connection: psycopg.Connection
    state: TaskState
    found: Any
    facts: Facts
    accounts: list[Account]
    telemetry: AssignmentTelemetry
    timer: _Timer
    lost: int
    is_locked: bool
    exposed: Sequence[Exposure]

    @property
    def row(self) -> Any:
        """The task's facts."""
        return self.facts.rows[self.found.id]

    def replans(self, most: int) -> int:
        """How often it was decided anew; after the last of them it is only given up."""
        return min(self.lost, most)


class _OutOfTime(Exception):  # noqa: N818 - it never leaves this module
    """The deadline came between two steps."""


_TOO_LATE = (_OutOfTime, QueryCanceled, LockNotAvailable, DatabaseBusyError)


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


@lru_cache(maxsize=1)
def _cache_of_process(ttl_seconds: float, most_entries: int) -> PlannerCache[Answer]:
    """What this process remembers: one cache for all of its planners. Its keys name the configuration."""
    return PlannerCache(ttl_seconds, most_entries)


def _limit(connection: psycopg.Connection, seconds: float) -> None:
    milliseconds = str(max(1, int(seconds * 1000)))
    connection.execute(_LIMIT, [milliseconds, milliseconds])


# Every statement here finds its rows by key, whatever the values: planning it anew would take as long as running it.
_LIMIT: LiteralString = """
SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true),
    set_config('plan_cache_mode', 'force_generic_plan', true)
"""

_OPEN_TASK: LiteralString = """
SELECT id, assignment_attempts_left, deadline, now() FROM cp.tasks
WHERE task_id = %s AND state IN ('queued', 'deferred') FOR NO KEY UPDATE NOWAIT
"""

_LEFT_ALONE: LiteralString = NOT_TO_BE_GIVEN.replace("%", "%%")
_FOUND: LiteralString = f"""
SELECT t.id, t.state, s.task IS NOT NULL AS is_scored, latest.id AS batch, latest.prices, %s AS number,
    {_LEFT_ALONE} AS left_alone
FROM cp.tasks t
LEFT JOIN cp.task_scores s ON s.task = t.id
LEFT JOIN LATERAL (
    SELECT b.id, {QUOTED} AS prices FROM cp.assignment_batches b
    WHERE b.strategy = %%(strategy)s AND b.strategy <> 'tiered' AND b.config_hash = %%(config_hash)s
    ORDER BY b.decided_at DESC LIMIT 1
) AS latest ON true
WHERE t.task_id = %%(task_id)s
"""
_TASK: LiteralString = _FOUND % "NULL"
_LOCKED_TASK: LiteralString = _FOUND % "nextval('cp.assignments_id_seq')" + "FOR NO KEY UPDATE OF t"
"""The same, kept from all others until the transaction ends; with the number that its decision will have."""
