"""Claims, leases and outcomes beside a model of them in plain Python: after every step both say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal
from threading import Barrier
from typing import LiteralString
from uuid import UUID, uuid4

import hypothesis.strategies as st
from assigned_tasks import DAY, DOLLARS, TOKENS, add_task, assign, configuration
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cp_core.execution.cost import Usage
from cp_core.execution.outcome import AttemptResult
from cp_core.tasks.reasons import Reason
from cp_resources.cancellation import CancellationStore, Cancelled, Selection
from cp_resources.database import Database
from cp_resources.executions import ClaimedTask, ExecutionStore, Finished
from cp_resources.ledger import Ledger

WORKERS = ("ada", "bob")
TABLES = "cp.tasks, cp.task_payloads, cp.task_scores, cp.assignments, cp.executions, cp.outbox"
DONE = AttemptResult(
    None, usage=Usage(900, 0, 0, 100), cost_usd=Decimal("0.03"), quality=9.0, evidence={}, http_status=200
)
OUTCOMES = {
    "good": DONE,
    "poor": replace(DONE, reason=Reason.LOW_QUALITY, quality=2.0),
    "busy": AttemptResult(Reason.OVERLOADED, http_status=529),
    "broken off": replace(DONE, reason=Reason.CONNECTION, quality=None, evidence=None),
    "refused": replace(DONE, reason=Reason.REFUSED, quality=None, evidence=None),
}
STOPPED = replace(DONE, reason=Reason.CANCELLED, quality=None, evidence=None)
"""What a worker says of an attempt that it stopped because the task was called off."""
RESULTS = OUTCOMES | {"called off": STOPPED}
AFTER = {
    "good": "succeeded",
    "poor": "queued",
    "refused": "queued",
    "busy": "assigned",
    "broken off": "assigned",
}
AFTER_LAST = {"good": "succeeded", "poor": "failed", "refused": "dead", "busy": "dead", "broken off": "dead"}
OVER = ("succeeded", "failed", "dead", "cancelled")


@dataclass(eq=False)
class ModelAttempt:
    """One attempt: running, succeeded, failed, cancelled or lost."""

    model: str
    worker: str
    claimed: ClaimedTask | None = None
    state: str = "running"
    outcome: str | None = None  # what the worker that has it will always say of it
    is_charged: bool = False


@dataclass(eq=False)
class ModelTask:
    """A task as the documentation has it."""

    id: int
    value: float
    max_attempts: int
    state: str = "queued"
    model: str | None = None
    attempts: list[ModelAttempt] = field(default_factory=list)
    is_expired: bool = False
    is_called_off: bool = False
    batch: UUID | None = None

    @property
    def current(self) -> ModelAttempt:
        """The attempt under way."""
        return self.attempts[-1]

    @property
    def is_last(self) -> bool:
        """Whether the attempt under way is the last one."""
        return len(self.attempts) == self.max_attempts

    def lose(self) -> None:
        """The attempt under way is lost."""
        self.current.state = "lost"
        self.move("dead" if self.is_last else "assigned")

    def move(self, state: str) -> None:
        """Leave a worker; what was called off is not tried again."""
        self.state = "cancelled" if self.is_called_off and state not in ("succeeded", "failed") else state

    def cancel(self) -> str:
        """Cancel it, and say what came of that."""
        if self.state in OVER:
            return self.state
        if self.state == "running":
            before, self.is_called_off = self.is_called_off, True
            return "requested before" if before else "requested"
        self.state = "cancelled"
        return "at once"


class ExecutionMachine(RuleBasedStateMachine):
    """Two workers on one queue, each with a memory of all that it ever claimed."""

    database: Database  # set by the test

    def __init__(self) -> None:
        super().__init__()
        with self.database.transaction() as connection:
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute(
                f"TRUNCATE {TABLES}, cp.evidence, cp.quota_transfers, cp.quota_accounts CASCADE"
            )
        config = configuration()
        self.ledger = Ledger(self.database)
        self.ledger.open_accounts(config.registry)
        self.store = ExecutionStore(self.database, self.ledger, config)
        self.canceller = CancellationStore(self.database, self.ledger)
        self.tasks: dict[int, ModelTask] = {}
        self.memory: list[tuple[ModelTask, ModelAttempt]] = []

    models = st.sampled_from(["sonnet", "mini"])
    workers = st.sampled_from(WORKERS)
    picks = st.lists(st.integers(0, 1_000), min_size=1, max_size=4)

    @initialize()
    def start(self) -> None:
        self.submit([10.0, 50.0, 90.0], 3, "sonnet")
        self.submit([10.0, 50.0, 90.0], 1, "mini")

    @rule(
        values=st.lists(st.sampled_from([10.0, 50.0, 90.0]), min_size=1, max_size=3),
        most=st.integers(1, 3),
        model=models,
    )
    def submit(self, values: list[float], most: int, model: str) -> None:
        for value in values:
            task = add_task(self.database, value_score=value, max_attempts=most)
            self.tasks[task] = ModelTask(task, value, most)
        self.assign(model)

    @precondition(lambda self: self._in_state("queued", "deferred"))
    @rule(model=models)
    def assign(self, model: str) -> None:
        """One batch of decisions."""
        due, batch = self._in_state("queued", "deferred"), uuid4()
        for task in due:
            assign(self.database, self.ledger, task.id, model)
            task.state, task.model, task.batch = "assigned", model, batch
        self._write(
            "UPDATE assignments SET batch = %s WHERE id IN (SELECT assignment FROM tasks WHERE id = ANY(%s))",
            (batch, [task.id for task in due]),
        )

    @precondition(lambda self: self._in_state("queued"))
    @rule(picks=picks)
    def defer(self, picks: list[int]) -> None:
        queued = self._in_state("queued")
        chosen = {queued[pick % len(queued)] for pick in picks}
        self._write("UPDATE tasks SET state = 'deferred' WHERE id = ANY(%s)", ([task.id for task in chosen],))
        for task in chosen:
            task.state = "deferred"

    @rule(worker=workers, limit=st.integers(1, 5), room=st.integers(0, 4))
    def claim(self, worker: str, limit: int, room: int) -> None:
        best = sorted(self._in_state("assigned"), key=lambda task: (-task.value, task.id))
        of_sonnet = [task for task in best if task.model == "sonnet"][:room]
        expected = [task for task in best if task.model == "mini" or task in of_sonnet][:limit]

        claims = self.store.claim(DAY, worker, limit, {"sonnet": room, "mini": 100})

        assert [claimed.task for claimed in claims] == [task.id for task in expected]
        for task, claimed in zip(expected, claims, strict=True):
            attempt = ModelAttempt(claimed.model, worker, claimed)
            task.attempts.append(attempt)
            assert claimed.attempt == len(task.attempts)
            task.state, task.is_expired = "running", False
            self.memory.append((task, attempt))

    @precondition(lambda self: self.memory)
    @rule(worker=workers, picks=picks, outcome=st.sampled_from(sorted(OUTCOMES)))
    def complete(self, worker: str, picks: list[int], outcome: str) -> None:
        """Of anything that was ever claimed, the lost and the finished included."""
        chosen = self._picked(worker, picks)
        expected: list[str | None] = []
        for task, attempt in chosen:
            attempt.outcome = attempt.outcome or outcome
            expected.append(self._completed(task, attempt))
        finished = self._finished(chosen)

        steps = self.store.complete(worker, finished)

        assert [step and step.state for step in steps] == expected
        assert self.store.complete(worker, finished) == [None] * len(finished)

    @rule(worker=workers, outcome=st.sampled_from(sorted(RESULTS)))
    def heed_what_was_called_off(self, worker: str, outcome: str) -> None:
        """A worker asks, and stops the attempts and says what they had used, or they end by themselves just then."""
        held = [(task, attempt) for task, attempt in self.memory if self._is_held(task, attempt)]
        chosen = [one for one in held if one[0].is_called_off and one[1].worker == worker]

        said = self.store.called_off(worker)

        assert said.keys() == {(task.id, len(task.attempts)) for task, _ in chosen}
        chosen = [(task, attempt) for task, attempt in chosen if attempt.outcome is None]
        for _, attempt in chosen:
            attempt.outcome = outcome
        expected = [self._completed(task, attempt) for task, attempt in chosen]
        steps = self.store.complete(worker, self._finished(chosen))
        assert [step and step.state for step in steps] == expected

    @rule(picks=picks, by=st.sampled_from(["tasks", "batch", "model", "everything"]))
    def cancel(self, picks: list[int], by: str) -> None:
        """Some tasks in whatever state, or the unfinished ones of a batch or a model, or all of them."""
        tasks = list(self.tasks.values())
        chosen = {tasks[pick % len(tasks)] for pick in picks}
        one = tasks[picks[0] % len(tasks)]
        selection = Selection()
        if by == "tasks":
            selection = Selection(task_ids=self._names(chosen))
        else:
            chosen = {task for task in tasks if task.state not in OVER}
        if by == "batch" and one.batch:
            selection = Selection(batch=one.batch)
            chosen = {task for task in chosen if task.batch == one.batch}
        elif by == "model" and one.model:
            selection = Selection(model=one.model)
            chosen = {task for task in self._in_state("assigned", "running") if task.model == one.model}
        came = Counter(task.cancel() for task in chosen)

        said = self.canceller.cancel(selection, by="ana", reason="not needed")

        assert said == Cancelled(
            at_once=came.pop("at once", 0),
            requested=came.pop("requested", 0),
            requested_before=came.pop("requested before", 0),
            too_late=came,
        )

    @precondition(lambda self: self._in_state("running"))
    @rule(picks=picks, outcome=st.sampled_from(sorted(OUTCOMES)))
    def cancel_while_it_is_completed(self, picks: list[int], outcome: str) -> None:
        """Both at the same time: work that was done and judged stands, and nothing is tried again."""
        worker = self._in_state("running")[0].current.worker
        chosen = [
            (task, attempt) for task, attempt in self._picked(worker, picks) if self._is_held(task, attempt)
        ]
        for task, attempt in chosen:
            attempt.outcome = attempt.outcome or outcome
            self._completed(task, attempt)
        if not chosen:
            return
        finished = self._finished(chosen)

        self._race([task for task, _ in chosen], lambda: self.store.complete(worker, finished))

    @precondition(lambda self: self._in_state("running"))
    @rule(picks=picks)
    def cancel_while_the_lease_runs_out(self, picks: list[int]) -> None:
        running = self._in_state("running")
        chosen = {running[pick % len(running)] for pick in picks}
        expired = {task for task in running if task.is_expired} | chosen
        self._run_out(expired)
        for task in expired:
            task.lose()

        self._race(list(chosen), self.store.requeue_expired)

    @precondition(lambda self: self.memory)
    @rule(worker=workers, picks=picks)
    def heartbeat(self, worker: str, picks: list[int]) -> None:
        chosen = self._picked(worker, picks)
        held = {attempt.claimed.execution for task, attempt in chosen if self._is_held(task, attempt)}

        assert self.store.heartbeat(worker, [attempt.claimed for _, attempt in chosen]) == held

        for task, attempt in chosen:
            if self._is_held(task, attempt):
                task.is_expired = False

    @precondition(lambda self: self.memory)
    @rule(worker=workers, picks=picks)
    def release(self, worker: str, picks: list[int]) -> None:
        """What has not begun is as if it had not been claimed; a worker forgets it. What was called off ends."""
        chosen = [(task, attempt) for task, attempt in self._picked(worker, picks) if attempt.outcome is None]
        held = [(task, attempt) for task, attempt in chosen if self._is_held(task, attempt)]
        released = [(task, attempt) for task, attempt in held if not task.is_called_off]

        assert self.store.release(worker, [attempt.claimed for _, attempt in chosen]) == len(released)

        for task, _ in held:
            if task.is_called_off:
                task.lose()
        for task, attempt in released:
            task.attempts.pop()
            task.state = "assigned"
            self.memory.remove((task, attempt))

    @precondition(lambda self: self.memory)
    @rule(worker=workers, picks=picks)
    def abandon(self, worker: str, picks: list[int]) -> None:
        chosen = self._picked(worker, picks)
        held = [task for task, attempt in chosen if self._is_held(task, attempt)]

        assert self.store.abandon(worker, [attempt.claimed for _, attempt in chosen]) == len(held)

        for task in held:
            task.lose()

    @precondition(lambda self: self._in_state("running"))
    @rule(picks=picks, sweeps=st.booleans())
    def expire(self, picks: list[int], sweeps: bool) -> None:
        """Time passes: some leases run out, and sooner or later somebody sweeps."""
        running = self._in_state("running")
        for task in {running[pick % len(running)] for pick in picks}:
            task.is_expired = True
        expired = [task for task in running if task.is_expired]
        self._run_out(expired)
        if sweeps:
            assert self.store.requeue_expired() == len(expired)
            for task in expired:
                task.lose()

    @invariant()
    def both_say_the_same(self) -> None:
        stored = dict.fromkeys(self.tasks, ("", []))
        for task, state, attempts in self.database.fetch(
            """SELECT t.id, t.state,
                   coalesce(array_agg(e.state ORDER BY e.attempt) FILTER (WHERE e.id IS NOT NULL), '{}')
               FROM tasks t LEFT JOIN executions e ON e.task = t.id GROUP BY t.id"""
        ):
            stored[task] = (state, attempts)
        assert stored == {
            task.id: (task.state, [attempt.state for attempt in task.attempts])
            for task in self.tasks.values()
        }

    @invariant()
    def the_ledger_holds_and_has_charged_what_it_should(self) -> None:
        holding = Counter(task.model for task in self.tasks.values() if task.state in ("assigned", "running"))
        charged = Counter(attempt.model for _, attempt in self.memory if attempt.is_charged)
        accounts = {one.account: (one.used, one.pending) for one in self.ledger.accounts()}
        tokens = (1_000 * charged["sonnet"], TOKENS * holding["sonnet"])
        assert accounts == {
            "plan/5-hour": tokens,
            "plan/weekly": tokens,
            "budget/api": (DONE.cost_usd * charged["mini"], DOLLARS * holding["mini"]),
        }
        assert self.ledger.verify().balanced

    @invariant()
    def who_ended_is_told_of_once(self) -> None:
        ended = {task.id for task in self.tasks.values() if task.state in OVER}
        told = self.database.fetch("SELECT task FROM outbox WHERE kind = 'completed'")
        assert sorted(task for (task,) in told) == sorted(ended)

    def _completed(self, task: ModelTask, attempt: ModelAttempt) -> str | None:
        """Where the task goes; an attempt whose lease was lost moves nothing, and is charged once all the same."""
        is_held, outcome = self._is_held(task, attempt), attempt.outcome or ""
        attempt.is_charged = attempt.is_charged or RESULTS[outcome].usage.total > 0
        if not is_held:
            return None
        if outcome == "called off":
            attempt.state = task.state = "cancelled"
            return task.state
        attempt.state = "succeeded" if outcome == "good" else "failed"
        task.move((AFTER_LAST if task.is_last else AFTER)[outcome])
        return task.state

    def _race(self, tasks: Sequence[ModelTask], other: Callable[[], object]) -> None:
        """Cancel tasks that the model has moved on already while `other` does that in the database."""
        selection = Selection(task_ids=self._names(tasks))
        together = Barrier(2)

        def cancel() -> object:
            together.wait()
            return self.canceller.cancel(selection, by="ana", reason="a race")

        def move_on() -> object:
            together.wait()
            return other()

        with ThreadPoolExecutor(2) as pool:
            for one in [pool.submit(cancel), pool.submit(move_on)]:
                one.result()
        other()  # what the cancelling had locked just then is left to the next sweep
        for task in tasks:
            is_dead = task.state == "dead"
            task.cancel()
            if is_dead:  # the one case in which it matters who was first
                [(task.state,)] = self.database.fetch("SELECT state FROM tasks WHERE id = %s", [task.id])
                assert task.state in ("dead", "cancelled")

    def _names(self, tasks: Sequence[ModelTask] | set[ModelTask]) -> tuple[str, ...]:
        ids = [task.id for task in tasks]
        return tuple(
            name for (name,) in self.database.fetch("SELECT task_id FROM tasks WHERE id = ANY(%s)", [ids])
        )

    def _finished(self, chosen: Sequence[tuple[ModelTask, ModelAttempt]]) -> list[Finished]:
        return [
            Finished(attempt.claimed, RESULTS[attempt.outcome])
            for _, attempt in chosen
            if attempt.claimed and attempt.outcome
        ]

    def _run_out(self, tasks: Sequence[ModelTask] | set[ModelTask]) -> None:
        """End the leases of running tasks."""
        self._write(
            "UPDATE tasks SET lease_expires_at = clock_timestamp() - interval '1 second' WHERE id = ANY(%s)",
            ([task.id for task in tasks],),
        )

    def _write(self, statement: LiteralString, parameters: Sequence[object]) -> None:
        with self.database.transaction() as connection:
            connection.execute(statement, parameters)

    def _is_held(self, task: ModelTask, attempt: ModelAttempt) -> bool:
        return task.state == "running" and task.current is attempt

    def _in_state(self, *states: str) -> list[ModelTask]:
        return [task for task in self.tasks.values() if task.state in states]

    def _picked(self, worker: str, picks: list[int]) -> list[tuple[ModelTask, ModelAttempt]]:
        """Some of what a worker ever claimed, the newest first in mind, each once."""
        own = [one for one in reversed(self.memory) if one[1].worker == worker]
        return list(dict.fromkeys(own[pick % len(own)] for pick in picks)) if own else []


def test_whatever_workers_do_the_queue_does_as_the_model(database: Database) -> None:
    ExecutionMachine.database = database
    run_state_machine_as_test(
        ExecutionMachine,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            phases=[Phase.generate],  # shrinking would take longer than reading forty steps
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
