"""Claims, leases and outcomes against a real PostgreSQL: nothing is done, lost or charged twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from assigned_tasks import (
    DAY,
    DOLLARS,
    TOKENS,
    add_assigned,
    add_task,
    assign,
    configuration,
)

from cp_core.execution.cost import Usage
from cp_core.execution.outcome import AttemptResult, NextStep
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import TaskState
from cp_resources import execution_queries as queries
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.executions import ClaimedTask, ExecutionStore, Finished
from cp_resources.ledger import Ledger

ROOM = {"sonnet": 1000, "mini": 1000, "nano": 1000}
USAGE = Usage(input_tokens=10_000, cached_tokens=4_000, cache_write_tokens=1_000, output_tokens=2_000)
DONE = AttemptResult(
    None,
    usage=USAGE,
    cost_usd=Decimal("0.02"),
    quality=9.0,
    evidence={"tests_passed": 3},
    output="the work",
    http_status=200,
    request_id="req-1",
    latency_ms=12.5,
)
BUSY = AttemptResult(Reason.RATE_LIMITED, error="Slow down", http_status=429)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


@pytest.fixture
def store(database: Database, ledger: Ledger) -> ExecutionStore:
    return ExecutionStore(database, ledger, configuration())


def claim(
    store: ExecutionStore, worker: str = "w", limit: int = 100, day: date = DAY, room: dict[str, int] = ROOM
) -> list[ClaimedTask]:
    return store.claim(day, worker, limit, room, run_id="run-1")


def claim_one(store: ExecutionStore, worker: str = "w") -> ClaimedTask:
    [claimed] = claim(store, worker)
    return claimed


def complete(
    store: ExecutionStore,
    claimed: ClaimedTask,
    result: AttemptResult = DONE,
    worker: str = "w",
    delay: float = 0.0,
) -> NextStep | None:
    [step] = store.complete(worker, [Finished(claimed, result, delay)])
    return step


def task_row(database: Database, task: int) -> tuple[Any, ...]:
    [row] = database.fetch("SELECT state, reason, attempts, model FROM tasks WHERE id = %s", [task])
    return row


def executions(database: Database, task: int) -> list[tuple[Any, ...]]:
    return database.fetch(
        "SELECT attempt, state, reason FROM executions WHERE task = %s ORDER BY attempt", [task]
    )


def expire_leases(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            "UPDATE tasks SET lease_expires_at = now() - interval '1 second' WHERE state = 'running'"
        )


def use(ledger: Ledger, account: str) -> tuple[Decimal, Decimal]:
    """What is used and what is reserved of an account."""
    [found] = [one for one in ledger.accounts() if one.account == account]
    return found.used, found.pending


# --- claims


def test_a_claim_takes_the_most_valuable_first_and_never_more_than_asked(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    for index in range(30):
        add_assigned(database, ledger, task_id=f"t{index:02}", value_score=float(index))

    first, second = claim(store, limit=7), claim(store, limit=7)

    assert [claimed.task_id for claimed in first] == [f"t{index:02}" for index in range(29, 22, -1)]
    assert [claimed.task_id for claimed in second] == [f"t{index:02}" for index in range(22, 15, -1)]
    assert len(claim(store, limit=100)) == 16


def test_a_claim_takes_of_each_model_only_what_it_has_room_for(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, 5, "sonnet", value_score=90.0)
    add_assigned(database, ledger, 5, "mini")
    add_assigned(database, ledger, 5, "nano")

    claimed = claim(store, room={"sonnet": 2, "mini": 3, "nano": 0})

    assert [one.model for one in claimed] == ["sonnet"] * 2 + ["mini"] * 3


class Lingering(Database):
    """Before a transaction is committed it says how many assigned tasks others may still lock."""

    left: int

    @contextmanager
    def transaction(
        self, *, wait_seconds: float | None = None, pipelined: bool = False
    ) -> Iterator[psycopg.Connection]:
        with super().transaction(wait_seconds=wait_seconds, pipelined=pipelined) as connection:
            yield connection
            connection.execute("SELECT").fetchall()  # sends what waits to be sent
            free = "SELECT FROM cp.tasks WHERE state = 'assigned' FOR UPDATE SKIP LOCKED"
            with psycopg.connect(self.url) as other:
                self.left = len(other.execute(free).fetchall())


def test_a_claim_locks_no_more_than_it_takes(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    for model in ROOM:
        add_assigned(database, ledger, 10, model, value_score=90.0 if model == "mini" else 10.0)
    lingering = Lingering(database.url)

    claimed = claim(ExecutionStore(lingering, ledger, configuration()), limit=12)

    assert [one.model for one in claimed[:10]] == ["mini"] * 10
    assert len(claimed) == 12
    assert lingering.left == 30 - 12
    lingering.close()


def test_a_claim_takes_what_is_left_where_others_hold_the_best(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, 3, "sonnet", value_score=90.0)
    add_assigned(database, ledger, 3, "mini", value_score=20.0)
    add_assigned(database, ledger, 3, "nano", value_score=10.0)

    with database.transaction() as other:
        other.execute("SELECT FROM tasks WHERE value_score > 50 FOR UPDATE")
        claimed = claim(store, limit=3, room={"sonnet": 3, "mini": 2, "nano": 3})

    assert [one.model for one in claimed] == ["mini", "mini", "nano"]
    assert [one.model for one in claim(store)] == ["sonnet"] * 3 + ["mini"] + ["nano"] * 2


def test_a_claim_leaves_other_days_and_what_may_not_move_yet(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [waiting, overdue] = add_assigned(database, ledger, 2)
    add_task(database, state="queued")
    with database.transaction() as connection:
        connection.execute(
            "UPDATE tasks SET available_at = now() + interval '1 hour' WHERE id = %s", [waiting]
        )
        connection.execute("UPDATE tasks SET deadline = now() - interval '1 hour' WHERE id = %s", [overdue])

    assert claim(store) == []
    assert claim(store, day=DAY + timedelta(days=1)) == []


def test_deadlines_do_not_count_where_the_policy_says_so(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, deadline_in=timedelta(hours=-1))
    lenient = ExecutionStore(database, ledger, configuration(enforce_deadlines=False))

    assert claim_one(lenient).deadline_in is None


def test_a_claimed_task_carries_all_that_an_attempt_needs(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, task_id="web-7", deadline_in=timedelta(hours=2))
    [(decision,)] = database.fetch("SELECT decision_id FROM assignments")

    claimed = claim_one(store)

    assert claimed == ClaimedTask(
        task=task,
        task_id="web-7",
        execution=claimed.execution,
        attempt=1,
        decision_id=decision,
        decision_attempt=1,
        model="sonnet",
        provider="anthropic",
        funding="subscription:plan",
        amounts={"plan/5-hour": TOKENS, "plan/weekly": TOKENS},
        title="A title",
        description="What to do",
        workspace="acme/web",
        labels=["bug"],
        output_high=4000.0,
        deadline_in=claimed.deadline_in,
        run_id="run-1",
        started_at=claimed.started_at,
        tokens_expected=22_000.0,
    )
    assert claimed.deadline_in == pytest.approx(7200, abs=60)
    assert claimed.reservation == decision
    assert task_row(database, task) == ("running", None, 1, "sonnet")
    assert database.fetch(
        "SELECT id, task, attempt, worker, provider, funding, state, run_id FROM executions"
    ) == [(claimed.execution, task, 1, "w", "anthropic", "subscription:plan", "running", "run-1")]


def test_workers_at_once_never_claim_the_same_task(database: Database, ledger: Ledger) -> None:
    tasks = add_assigned(database, ledger, 120, "mini")
    workers = 6
    start = threading.Barrier(workers)

    def claim_all(worker: str) -> list[int]:
        store = ExecutionStore(database, ledger, configuration())
        start.wait()
        taken: list[int] = []
        # Others may hold every row that is left for a moment, so an empty claim is not the end.
        while database.fetch("SELECT 1 FROM tasks WHERE state = 'assigned' LIMIT 1"):
            claimed = claim(store, worker, limit=7)
            assert len(claimed) <= 7
            taken += [one.task for one in claimed]
        return taken

    with ThreadPoolExecutor(workers) as pool:
        taken = [task for part in pool.map(claim_all, "abcdef") for task in part]

    assert sorted(taken) == tasks


# --- outcomes


def test_good_work_is_recorded_charged_and_ends_the_task(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)

    step = complete(store, claim_one(store))

    assert step == NextStep(TaskState.SUCCEEDED, None)
    assert task_row(database, task) == ("succeeded", None, 1, "sonnet")
    [row] = database.fetch(
        """SELECT state, reason, input_tokens, cached_tokens, cache_write_tokens, output_tokens, cost_usd,
               billed_usd, quality, evidence, output, http_status, request_id, latency_ms,
               finished_at >= started_at
           FROM executions"""
    )
    assert row == (
        *("succeeded", None, 10_000, 4_000, 1_000, 2_000, Decimal("0.02"), 0),
        *(9.0, {"tests_passed": 3}, "the work", 200, "req-1", 12.5, True),
    )
    assert use(ledger, "plan/5-hour") == use(ledger, "plan/weekly") == (12_000, 0)
    assert ledger.verify().balanced


def test_a_budget_is_charged_the_cost_also_beyond_what_was_reserved(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, model="mini")

    complete(store, claim_one(store), replace(DONE, cost_usd=DOLLARS * 3))

    assert database.fetch("SELECT cost_usd, billed_usd FROM executions") == [(DOLLARS * 3, DOLLARS * 3)]
    assert use(ledger, "budget/api") == (DOLLARS * 3, 0)
    assert ledger.verify().balanced


def test_a_transient_failure_is_tried_again_later_under_a_reservation_of_its_own(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)

    step = complete(store, claim_one(store), BUSY, delay=30.0)

    assert step == NextStep(TaskState.ASSIGNED, Reason.RATE_LIMITED, 30.0)
    assert task_row(database, task) == ("assigned", "RATE_LIMITED", 1, "sonnet")
    assert use(ledger, "plan/weekly") == (0, TOKENS)
    [(wait,)] = database.fetch("SELECT extract(epoch FROM available_at - now())::float8 FROM tasks")
    assert 0 < wait <= 30
    assert claim(store) == []


def test_when_the_day_s_retries_are_used_up_a_task_waits_for_the_next_day_without_quota(
    database: Database, ledger: Ledger
) -> None:
    given = configuration()
    execution = given.policies.execution.model_copy(update={"most_retries_per_day": 1})
    policies = given.policies.model_copy(update={"execution": execution})
    store = ExecutionStore(database, ledger, replace(given, policies=policies))
    [task] = add_assigned(database, ledger)

    steps = [complete(store, claim_one(store), BUSY) for _ in range(2)]

    assert [step and step.state for step in steps] == ["assigned", "queued"]
    assert task_row(database, task)[:2] == ("queued", "RETRIES_SPENT")
    [(is_tomorrow,)] = database.fetch(
        "SELECT available_at BETWEEN date_trunc('day', now(), 'UTC') + interval '1 day' - interval '1 second' "
        "AND date_trunc('day', now(), 'UTC') + interval '1 day 1 second' FROM tasks WHERE state = 'queued'"
    )
    assert is_tomorrow
    assert use(ledger, "plan/weekly") == (0, 0)
    assert ledger.verify().balanced


def test_each_attempt_counts_and_the_last_transient_failure_is_the_end(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)
    used = replace(BUSY, usage=Usage(input_tokens=100), cost_usd=Decimal("0.001"))

    steps = [complete(store, claim_one(store), used) for _ in range(3)]

    assert [step and step.state for step in steps] == ["assigned", "assigned", "dead"]
    assert task_row(database, task) == ("dead", "ATTEMPTS_EXHAUSTED", 3, "sonnet")
    assert executions(database, task) == [(n, "failed", "RATE_LIMITED") for n in (1, 2, 3)]
    assert use(ledger, "plan/weekly") == (300, 0)
    assert ledger.verify().balanced


def test_a_retry_that_finds_no_quota_goes_back_to_be_assigned(database: Database) -> None:
    ledger = Ledger(database)
    tight = configuration(tokens=30_000)
    ledger.open_accounts(tight.registry)
    store = ExecutionStore(database, ledger, tight)
    [task] = add_assigned(database, ledger)
    spent = replace(BUSY, usage=Usage(input_tokens=9_000))

    step = complete(store, claim_one(store), spent)

    assert step == NextStep(TaskState.QUEUED, Reason.QUOTA_EXHAUSTED)
    assert task_row(database, task) == ("queued", "QUOTA_EXHAUSTED", 1, None)
    assert use(ledger, "plan/weekly") == (9_000, 0)
    assert ledger.verify().balanced


def test_no_attempt_is_made_past_the_deadline(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, deadline_in=timedelta(seconds=20))

    complete(store, claim_one(store), BUSY, delay=25.0)

    assert task_row(database, task)[:2] == ("dead", "DEADLINE_PASSED")
    assert use(ledger, "plan/weekly") == (0, 0)


def test_what_the_model_would_fail_again_goes_back_for_another_model(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)
    poor = replace(DONE, reason=Reason.LOW_QUALITY, quality=2.0)

    step = complete(store, claim_one(store), poor)

    assert step == NextStep(TaskState.QUEUED, Reason.LOW_QUALITY)
    assert task_row(database, task) == ("queued", "LOW_QUALITY", 1, None)
    assert use(ledger, "plan/weekly") == (12_000, 0)
    # Another decision follows: its first attempt is the task's second, and settles its reservation.
    assign(database, ledger, task, "mini")
    second = claim_one(store)
    assert (second.attempt, second.decision_attempt, second.reservation) == (2, 1, second.decision_id)
    complete(store, second)
    assert use(ledger, "budget/api") == (Decimal("0.02"), 0)
    assert ledger.verify().balanced


def test_work_below_the_bar_on_the_last_attempt_fails_the_task(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, max_attempts=1)

    complete(store, claim_one(store), replace(DONE, reason=Reason.LOW_QUALITY, quality=2.0))

    assert task_row(database, task)[:2] == ("failed", "LOW_QUALITY")


def test_what_postgresql_cannot_hold_does_not_lose_the_work(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger)

    complete(store, claim_one(store), replace(DONE, output="a\0b\ud800c"))

    assert database.fetch("SELECT output FROM executions") == [("ab?c",)]


def test_a_batch_is_recorded_each_by_itself(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, 3)
    first, second, third = claim(store)

    steps = store.complete(
        "w",
        [
            Finished(third, replace(DONE, reason=Reason.REFUSED, quality=None)),
            Finished(first, DONE),
            Finished(second, BUSY, 9.0),
        ],
    )

    assert [step and step.state for step in steps] == ["queued", "succeeded", "assigned"]
    assert task_row(database, first.task)[0] == "succeeded"
    assert task_row(database, second.task)[0] == "assigned"
    assert task_row(database, third.task)[0] == "queued"


@pytest.mark.parametrize("result", [DONE, BUSY, replace(DONE, reason=Reason.LOW_QUALITY)])
def test_recording_again_changes_nothing(
    database: Database, ledger: Ledger, store: ExecutionStore, result: AttemptResult
) -> None:
    [task] = add_assigned(database, ledger)
    claimed = claim_one(store)
    complete(store, claimed, result)
    before = (task_row(database, task), database.fetch("SELECT * FROM executions"), ledger.accounts())

    assert complete(store, claimed, result) is None

    assert (task_row(database, task), database.fetch("SELECT * FROM executions"), ledger.accounts()) == before


# --- leases


def test_a_heartbeat_keeps_a_lease_and_tells_which_were_lost(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, 2)
    kept, lost = claim(store)
    expire_leases(database)
    store.heartbeat("w", [kept])
    store.requeue_expired()

    assert store.heartbeat("w", [kept, lost]) == {kept.execution}
    assert store.heartbeat("another", [kept]) == set()
    assert task_row(database, kept.task)[0] == "running"


def test_a_lease_that_ran_out_is_taken_back_and_the_attempt_counts(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)
    claim_one(store)
    assert store.requeue_expired() == 0

    expire_leases(database)

    assert store.requeue_expired() == 1
    assert task_row(database, task) == ("assigned", "LEASE_EXPIRED", 1, "sonnet")
    assert executions(database, task) == [(1, "lost", "LEASE_EXPIRED")]
    assert use(ledger, "plan/weekly") == (0, TOKENS)
    second = claim_one(store, "another")
    assert (second.attempt, second.decision_attempt) == (2, 2)


def test_a_task_whose_last_lease_ran_out_is_dead(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, max_attempts=1)
    claim_one(store)
    expire_leases(database)

    store.requeue_expired()

    assert task_row(database, task)[:2] == ("dead", "ATTEMPTS_EXHAUSTED")
    assert use(ledger, "plan/weekly") == (0, 0)


def test_a_late_answer_changes_no_task_but_is_recorded_and_charged_once(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)
    late = claim_one(store, "slow")
    expire_leases(database)
    store.requeue_expired()
    current = claim_one(store, "quick")

    assert complete(store, late, worker="slow") is None
    assert complete(store, late, worker="slow") is None

    assert task_row(database, task) == ("running", None, 2, "sonnet")
    assert executions(database, task) == [(1, "lost", "LEASE_EXPIRED"), (2, "running", None)]
    assert database.fetch(
        "SELECT input_tokens, output_tokens, cost_usd, evidence, quality FROM executions WHERE attempt = 1"
    ) == [(10_000, 2_000, Decimal("0.02"), {"late": True}, None)]
    assert use(ledger, "plan/weekly") == (12_000, TOKENS)
    complete(store, current, worker="quick")
    assert task_row(database, task)[0] == "succeeded"
    assert use(ledger, "plan/weekly") == (24_000, 0)
    assert ledger.verify().balanced


def test_a_worker_that_claimed_its_own_lost_task_again_does_not_mix_up_the_attempts(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)
    first = claim_one(store)
    expire_leases(database)
    store.requeue_expired()
    second = claim_one(store)

    assert store.heartbeat("w", [first, second]) == {second.execution}
    steps = store.complete("w", [Finished(first, BUSY), Finished(second, DONE)])

    assert steps == [None, NextStep(TaskState.SUCCEEDED, None)]
    assert executions(database, task) == [(1, "lost", "LEASE_EXPIRED"), (2, "succeeded", None)]


def test_an_answer_after_the_lease_ran_out_counts_as_long_as_nobody_took_it_back(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)
    claimed = claim_one(store)
    expire_leases(database)

    complete(store, claimed)

    assert task_row(database, task)[0] == "succeeded"


def test_a_task_given_back_before_its_attempt_began_is_as_if_never_claimed(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)
    claimed = claim_one(store)

    assert store.release("another", [claimed]) == 0
    assert store.release("w", [claimed]) == 1

    assert task_row(database, task) == ("assigned", None, 0, "sonnet")
    assert executions(database, task) == []
    assert use(ledger, "plan/weekly") == (0, TOKENS)
    again = claim_one(store)
    assert (again.attempt, again.reservation) == (1, claimed.reservation)


def test_a_task_whose_attempt_was_cut_off_is_tried_again_and_the_attempt_is_lost(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger)
    claimed = claim_one(store)

    assert store.abandon("another", [claimed]) == 0
    assert store.abandon("w", [claimed]) == 1

    assert task_row(database, task) == ("assigned", "LEASE_EXPIRED", 1, "sonnet")
    assert executions(database, task) == [(1, "lost", "LEASE_EXPIRED")]
    assert use(ledger, "plan/weekly") == (0, TOKENS)


# --- what must not be executed


def test_an_assigned_task_past_its_deadline_is_dead_and_frees_its_quota(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [overdue] = add_assigned(database, ledger, deadline_in=timedelta(seconds=-1))
    [in_time] = add_assigned(database, ledger, deadline_in=timedelta(hours=1))

    assert store.withdraw(DAY) == 1

    assert task_row(database, overdue)[:2] == ("dead", "DEADLINE_PASSED")
    assert task_row(database, in_time)[0] == "assigned"
    assert use(ledger, "plan/weekly") == (0, TOKENS)


def test_an_assigned_task_whose_model_was_disabled_is_queued_for_another(
    database: Database, ledger: Ledger
) -> None:
    [task] = add_assigned(database, ledger)
    config = configuration()
    models = {
        name: model.model_copy(update={"enabled": name != "sonnet"})
        for name, model in config.registry.models.items()
    }
    registry = config.registry.model_copy(update={"models": models})
    store = ExecutionStore(database, ledger, Configuration(registry, config.scoring, config.policies))

    assert store.withdraw(DAY) == 1

    assert task_row(database, task) == ("queued", "MODEL_DISABLED", 0, None)
    assert use(ledger, "plan/weekly") == (0, 0)
    assert ledger.verify().balanced


def test_open_tasks_say_when_the_first_of_each_state_may_move(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, 2)
    add_task(database, state="deferred", task_id="for quota")
    assert store.open_tasks(DAY)[TaskState.DEFERRED].available_in is None
    add_task(database, state="deferred", task_id="for a task")
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET reason = 'DEPENDENCY_PENDING' WHERE task_id = 'for a task'")
        connection.execute("UPDATE tasks SET available_at = now() + interval '1 hour'")

    found = store.open_tasks(DAY)

    assert {state: tasks.count for state, tasks in found.items()} == {"assigned": 2, "deferred": 2}
    assert found[TaskState.ASSIGNED].available_in == pytest.approx(3600, abs=60)
    assert found[TaskState.DEFERRED].available_in == pytest.approx(0, abs=1)
    assert store.open_tasks(DAY + timedelta(days=1)) == {}
    assert store.assigned_models(DAY) == {"sonnet"}


# --- plans of the hot queries


def test_a_claim_reads_little_however_many_tasks_of_other_models_are_worth_more(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 10, "nano")
    with database.transaction() as connection:
        connection.execute(
            """INSERT INTO tasks (task_id, submitted_at, priority, workspace, state, value_score, assignment,
                   model)
               SELECT 'other-' || n, t.submitted_at, 2, 'w', 'assigned', 99, t.assignment, 'sonnet'
               FROM (SELECT * FROM tasks LIMIT 1) t, generate_series(1, 5000) n"""
        )
        connection.execute("ANALYZE cp.tasks, cp.executions, cp.assignments")
    parameters = {
        "day": DAY,
        "worker": "w",
        "limit": 100,
        "models": ["mini", "nano"],
        "slots": [100, 5],
        "providers": ["openai", "openai"],
        "lease": 60.0,
        "enforce": True,
        "run_id": None,
        "hand_on": False,
    }

    with database.transaction() as connection:
        [(plan,)] = connection.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {queries.CLAIM}", parameters
        ).fetchall()

    root = plan[0]["Plan"]
    assert root["Actual Rows"] == 5
    assert (
        root["Shared Hit Blocks"] + root["Shared Read Blocks"] < 400
    )  # reading the 5,000 would take as many
