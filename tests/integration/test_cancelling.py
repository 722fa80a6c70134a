"""Cancelling against a real PostgreSQL: every task has one end, and every reservation is resolved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from assigned_tasks import DAY, add_assigned, add_task, configuration
from stub_provider import Call, Reply, StubProvider, evidence_block, openai_answer

from cp_core.execution.cost import Usage
from cp_core.execution.outcome import AttemptResult
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import TaskState
from cp_resources.assigner import Assigner
from cp_resources.cancellation import CancellationStore, Cancelled, Selection, UnknownTasksError
from cp_resources.database import Database
from cp_resources.executions import ExecutionStore, Finished
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.worker import Ended, drain

ROOM = {"sonnet": 1000, "mini": 1000, "nano": 1000}
QUICK: dict[str, Any] = {"backoff_base_seconds": 0.02, "backoff_cap_seconds": 0.05, "drain_seconds": 0.2}
DONE = AttemptResult(None, usage=Usage(100, 0, 0, 20), quality=9.0, evidence={"tests_passed": 1}, output="x")
BUSY = AttemptResult(Reason.OVERLOADED, error="busy")


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


@pytest.fixture
def store(database: Database, ledger: Ledger) -> CancellationStore:
    return CancellationStore(database, ledger)


@pytest.fixture
def executions(database: Database, ledger: Ledger) -> ExecutionStore:
    return ExecutionStore(database, ledger, configuration())


def cancel(store: CancellationStore, **selection: Any) -> Cancelled:
    return store.cancel(Selection(**selection), by="ana", reason="not needed")


def states(database: Database) -> Counter[str]:
    return Counter(state for (state,) in database.fetch("SELECT state FROM tasks"))


def reserved(ledger: Ledger) -> set[Any]:
    return {account.pending for account in ledger.accounts()}


def expire_leases(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            "UPDATE tasks SET lease_expires_at = now() - interval '1 second' WHERE state = 'running'"
        )


def events(database: Database, kind: str) -> list[tuple[Any, ...]]:
    return database.fetch(
        "SELECT subject, payload ->> 'by', payload ->> 'reason' FROM events WHERE kind = %s ORDER BY subject",
        [kind],
    )


# --- what nobody works on


def test_what_nobody_works_on_is_cancelled_at_once_and_gives_its_quota_back(
    database: Database, ledger: Ledger, store: CancellationStore
) -> None:
    add_task(database, "queued")
    add_task(database, "deferred", state="deferred")
    add_assigned(database, ledger, task_id="assigned")
    add_assigned(database, ledger, model="mini", task_id="also assigned")

    assert cancel(store) == Cancelled(at_once=4)

    assert states(database) == {"cancelled": 4}
    assert reserved(ledger) == {0}
    assert ledger.verify().balanced
    assert database.fetch("SELECT DISTINCT reason FROM tasks") == [("CANCELLED",)]
    ids = ["also assigned", "assigned", "deferred", "queued"]
    assert events(database, "task.cancelled") == [(task, "ana", "not needed") for task in ids]
    assert database.fetch("SELECT kind, payload ->> 'state', count(*) FROM outbox GROUP BY 1, 2") == [
        ("completed", "cancelled", 4)
    ]


def test_cancelling_again_changes_nothing(
    database: Database, ledger: Ledger, store: CancellationStore, executions: ExecutionStore
) -> None:
    add_assigned(database, ledger, task_id="waits", model="mini")
    add_assigned(database, ledger, task_id="runs")
    executions.claim(DAY, "w", 1, {"sonnet": 1})
    assert cancel(store, task_ids=("waits", "runs")) == Cancelled(at_once=1, requested=1)
    before = database.fetch("SELECT * FROM tasks ORDER BY id"), database.fetch("SELECT * FROM events")

    again = cancel(store, task_ids=("waits", "runs"))

    assert again == Cancelled(requested_before=1, too_late=Counter(cancelled=1))
    after = database.fetch("SELECT * FROM tasks ORDER BY id"), database.fetch("SELECT * FROM events")
    assert after == before


def test_a_name_that_nobody_knows_cancels_nothing(
    database: Database, ledger: Ledger, store: CancellationStore
) -> None:
    add_assigned(database, ledger, task_id="known")

    with pytest.raises(UnknownTasksError, match="'unknown'; nothing was cancelled"):
        cancel(store, task_ids=("known", "unknown"))

    assert states(database) == {"assigned": 1}


def test_a_selection_takes_what_fits_all_of_it(
    database: Database, ledger: Ledger, store: CancellationStore, executions: ExecutionStore
) -> None:
    batch, other = uuid4(), uuid4()
    add_task(database, "queued")
    for task_id, model in (("s1", "sonnet"), ("m1", "mini"), ("m2", "mini")):
        add_assigned(database, ledger, model=model, task_id=task_id)
    with database.transaction() as connection:
        connection.execute(
            """INSERT INTO assignment_batches (id, strategy, seed, tasks, assigned, objective, bound, gap,
                   evaluations, seconds, prices, available, lapsing, forecast, alternatives, pruned, considered,
                   config_hash)
               SELECT id, 'tiered', 0, 1, 1, 1, 1, 0, 1, 0, '{}', '{}', '{}', '{}', '{}', '{}', 1, 'hash'
               FROM unnest(%s::uuid[]) AS id""",
            ([batch, other],),
        )
        connection.execute(
            """UPDATE assignments SET batch = CASE WHEN t.task_id = 'm2' THEN %s ELSE %s END,
                   run_id = CASE WHEN t.task_id = 's1' THEN 'run-1' ELSE 'run-2' END
               FROM tasks t WHERE t.id = task""",
            (batch, other),
        )

    def preview(**selection: Any) -> dict[TaskState, int]:
        return store.preview(Selection(**selection))

    assert preview() == {TaskState.QUEUED: 1, TaskState.ASSIGNED: 3}
    assert preview(day=DAY) == preview()
    assert preview(day=DAY - timedelta(days=1)) == {}
    assert preview(model="mini") == {TaskState.ASSIGNED: 2}
    assert preview(run_id="run-1") == {TaskState.ASSIGNED: 1}
    assert preview(batch=batch) == {TaskState.ASSIGNED: 1}
    assert preview(batch=UUID(int=7)) == {}

    cancel(store, model="mini", batch=batch)

    assert database.fetch("SELECT task_id FROM tasks WHERE state = 'cancelled'") == [("m2",)]
    executions.claim(DAY, "w", 1, {"sonnet": 1}, run_id="run-3")
    assert preview(run_id="run-3") == {TaskState.RUNNING: 1}


def test_more_tasks_than_one_transaction_takes_are_all_cancelled(
    database: Database, ledger: Ledger, store: CancellationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cp_resources.cancellation.PORTION", 3)
    add_assigned(database, ledger, 8)

    assert cancel(store, day=DAY) == Cancelled(at_once=8)
    assert states(database) == {"cancelled": 8}
    assert ledger.verify().balanced


def test_what_depends_on_a_cancelled_task_is_given_up(
    database: Database, ledger: Ledger, store: CancellationStore
) -> None:
    add_task(database, "first")
    add_task(database, "second")
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET dependencies = '{first}' WHERE task_id = 'second'")
    cancel(store, task_ids=("first",))

    Assigner(database, ledger, configuration()).assign_day(DAY)

    assert database.fetch("SELECT state, reason FROM tasks WHERE task_id = 'second'") == [
        ("dead", "DEPENDENCY_FAILED")
    ]


# --- what a worker holds


def test_work_that_was_done_first_stays_done(
    database: Database, ledger: Ledger, store: CancellationStore, executions: ExecutionStore
) -> None:
    add_assigned(database, ledger)
    [claimed] = executions.claim(DAY, "w", 1, ROOM)
    assert cancel(store) == Cancelled(requested=1)
    assert states(database) == {"running": 1}

    [step] = executions.complete("w", [Finished(claimed, DONE)])

    assert step is not None
    assert step.state is TaskState.SUCCEEDED
    assert cancel(store, task_ids=(claimed.task_id,)) == Cancelled(too_late=Counter(succeeded=1))
    assert ledger.verify().balanced


@pytest.mark.parametrize("how", ["fails", "is lost", "is abandoned", "is released"])
def test_a_requested_task_is_cancelled_however_its_attempt_ends(
    database: Database, ledger: Ledger, store: CancellationStore, executions: ExecutionStore, how: str
) -> None:
    add_assigned(database, ledger)
    [claimed] = executions.claim(DAY, "w", 1, ROOM)
    cancel(store)
    assert executions.called_off("w") == {(claimed.task, 1): "called off by ana: not needed"}
    assert executions.called_off("another") == {}

    if how == "fails":
        executions.complete("w", [Finished(claimed, BUSY)])
    elif how == "is lost":
        expire_leases(database)
        executions.requeue_expired()
    elif how == "is abandoned":
        executions.abandon("w", [claimed])
    else:
        assert executions.release("w", [claimed]) == 0

    assert states(database) == {"cancelled": 1}
    assert reserved(ledger) == {0}
    assert events(database, "task.cancelled") == [(claimed.task_id, "ana", "not needed")]
    assert database.fetch("SELECT payload ->> 'state' FROM outbox WHERE kind = 'completed'") == [
        ("cancelled",)
    ]
    assert ledger.verify().balanced


def test_an_answer_that_comes_after_the_sweep_is_paid_for_once_and_changes_nothing(
    database: Database, ledger: Ledger, store: CancellationStore, executions: ExecutionStore
) -> None:
    add_assigned(database, ledger)
    [claimed] = executions.claim(DAY, "w", 1, ROOM)
    cancel(store)
    expire_leases(database)
    executions.requeue_expired()

    for _ in range(2):
        assert executions.complete("w", [Finished(claimed, DONE)]) == [None]

    assert states(database) == {"cancelled": 1}
    assert {(account.account, account.used) for account in ledger.accounts() if account.used} == {
        ("plan/5-hour", 120),
        ("plan/weekly", 120),
    }
    assert ledger.verify().balanced


def wait_for_lock_waiters(database: Database, count: int) -> None:
    give_up = time.monotonic() + 20
    while database.fetch("SELECT count(*) FROM pg_locks WHERE NOT granted")[0][0] < count:
        assert time.monotonic() < give_up, "nobody waits for the row"
        time.sleep(0.02)


@pytest.mark.parametrize("first", ["cancelling", "completion"])
@pytest.mark.parametrize(("result", "ends"), [(DONE, "succeeded"), (BUSY, "cancelled")], ids=["done", "busy"])
def test_cancelling_and_completion_at_once_have_one_end(
    database: Database,
    ledger: Ledger,
    store: CancellationStore,
    executions: ExecutionStore,
    first: str,
    result: AttemptResult,
    ends: str,
) -> None:
    """Both have read their snapshots and wait for the task's row when it becomes free."""
    add_assigned(database, ledger)
    [claimed] = executions.claim(DAY, "w", 1, ROOM)

    def complete() -> None:
        executions.complete("w", [Finished(claimed, result)])

    def call_off() -> None:
        cancel(store, task_ids=(claimed.task_id,))

    racers = [threading.Thread(target=racer) for racer in (call_off, complete)]
    if first == "completion":
        racers.reverse()
    with database.transaction() as holding:
        holding.execute("SELECT FROM tasks FOR UPDATE")
        for waiting, racer in enumerate(racers, 1):
            racer.start()
            wait_for_lock_waiters(database, waiting)
    for racer in racers:
        racer.join(30)

    assert states(database) == {ends: 1}
    assert reserved(ledger) == {0}
    assert database.fetch("SELECT count(*) FROM outbox WHERE kind = 'completed'") == [(1,)]
    assert ledger.verify().balanced


def good(call: Call) -> Reply:
    return Reply(openai_answer(f"Done.\n{evidence_block()}"))


def test_a_call_in_flight_is_aborted_within_two_seconds_and_the_drain_goes_on(
    database: Database, ledger: Ledger, store: CancellationStore
) -> None:
    add_assigned(database, ledger, model="mini", task_id="endless", value_score=90.0)
    add_assigned(database, ledger, 3, "mini")
    took: list[float] = []

    def answer(call: Call) -> Reply:
        if call.task != "endless":
            return good(call)
        threading.Thread(target=call_off).start()
        return Reply(delay=60)

    def call_off() -> None:
        started = time.monotonic()
        cancel(store, task_ids=("endless",))
        while not database.fetch("SELECT FROM tasks WHERE task_id = 'endless' AND state = 'cancelled'"):
            time.sleep(0.02)
        took.append(time.monotonic() - started)

    with StubProvider(answer) as provider:
        summary = drain(
            database,
            ledger,
            configuration(**QUICK),
            Settings(simulator_url=provider.url),
            DAY,
            worker_name="test",
            time_budget=timedelta(seconds=50),
        )

    assert summary.ended is Ended.DRAINED
    assert summary.moved_to == {"succeeded": 3, "cancelled": 1}
    assert took[0] < 5  # documented as two seconds, on a machine that is not busy
    assert database.fetch(
        """SELECT e.state, e.reason, e.error, e.cost_usd FROM executions e
           JOIN tasks t ON t.id = e.task WHERE task_id = 'endless'"""
    ) == [("cancelled", "CANCELLED", "called off by ana: not needed", 0)]
    assert reserved(ledger) == {0}
    assert ledger.verify().balanced


def test_a_task_that_waits_for_its_turn_is_cancelled_without_a_call(
    database: Database, ledger: Ledger, store: CancellationStore
) -> None:
    add_assigned(database, ledger, model="mini", task_id="first", value_score=90.0)
    add_assigned(database, ledger, model="mini", task_id="second")

    def answer(call: Call) -> Reply:
        def call_off() -> None:
            while states(database)["running"] < 2:
                time.sleep(0.02)
            cancel(store, task_ids=("second",))

        threading.Thread(target=call_off).start()
        return Reply(good(call).body, delay=4)

    with StubProvider(answer) as provider:
        drain(
            database,
            ledger,
            configuration(concurrency=1, **QUICK),
            Settings(simulator_url=provider.url),
            DAY,
            worker_name="test",
            time_budget=timedelta(seconds=50),
        )

    assert [call.task for call in provider.calls] == ["first"]
    assert dict(database.fetch("SELECT task_id, state FROM tasks")) == {
        "first": "succeeded",
        "second": "cancelled",
    }


# --- the command


def run_command(
    database_url: str, *arguments: str, answer: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cp_cli.main", "cancel", *arguments],
        capture_output=True,
        text=True,
        input=answer,
        timeout=60,
        env={**os.environ, "CP_DATABASE_URL": database_url},
    )


def test_the_command_says_how_many_before_it_asks(
    database: Database, ledger: Ledger, database_url: str
) -> None:
    add_task(database, "queued")
    add_assigned(database, ledger, 2)

    refused = run_command(database_url, "--all", "--reason", "wrong file", answer="n\n")
    assert "This cancels 3 tasks: 1 queued, 2 assigned." in refused.stdout
    assert refused.returncode == 1
    assert states(database) == {"queued": 1, "assigned": 2}

    agreed = run_command(
        database_url, "--day", str(DAY), "--reason", "wrong file", "--by", "ana", "--yes", "--json"
    )
    assert json.loads(agreed.stdout) == {
        "at_once": 3,
        "requested": 0,
        "requested_before": 0,
        "too_late": {},
    }
    assert database.fetch("SELECT requested_by, reason, selection FROM cancellations") == [
        ("ana", "wrong file", {"day": str(DAY)})
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["t-1"], "--reason"),
        (["--reason", "x"], "say which tasks"),
        (["t-1", "--all", "--reason", "x"], "mixed"),
        (["--model", "m", "--all", "--reason", "x"], "mixed"),
    ],
    ids=["no reason", "no task", "ids and all", "model and all"],
)
def test_the_command_asks_for_what_is_missing(
    database: Database, database_url: str, arguments: list[str], says: str
) -> None:
    done = run_command(database_url, *arguments)

    assert done.returncode == 2
    assert says in done.stderr
    assert database.fetch("SELECT count(*) FROM cancellations") == [(0,)]
