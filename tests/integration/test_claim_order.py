"""In which order tasks are claimed, against a real PostgreSQL: by value, with aging, and after what they depend on."""

from __future__ import annotations

from datetime import timedelta

import pytest
from assigned_tasks import DAY, add_assigned, configuration

from cp_core.execution.outcome import AttemptResult
from cp_core.tasks.reasons import Reason
from cp_resources import execution_queries as queries
from cp_resources.database import Database
from cp_resources.executions import ExecutionStore, Finished
from cp_resources.ledger import Ledger


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


@pytest.fixture
def store(database: Database, ledger: Ledger) -> ExecutionStore:
    return ExecutionStore(database, ledger, configuration())


def submitted(database: Database, task: int, after_noon: timedelta) -> None:
    with database.transaction() as connection:
        connection.execute(
            "UPDATE tasks SET submitted_at = submitted_at + %s WHERE id = %s", (after_noon, task)
        )


def order(store: ExecutionStore, limit: int = 100) -> list[int]:
    return [task.task for task in store.claim(DAY, "w", limit, {"sonnet": 1000, "mini": 1000})]


def test_ten_minutes_of_waiting_are_worth_one_point_of_value(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [old] = add_assigned(database, ledger, value_score=20.0)
    [better] = add_assigned(database, ledger, value_score=80.0)
    [newer] = add_assigned(database, ledger, model="mini", value_score=79.0)
    submitted(database, better, timedelta(minutes=599))
    submitted(database, newer, timedelta(minutes=601))

    assert order(store) == [better, old, newer]


def test_a_task_waits_behind_newer_ones_for_the_bound_and_no_longer(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    """A stream of the most valuable tasks, one a minute, and one claimed a minute: it never lets up."""
    [modest] = add_assigned(database, ledger, value_score=70.0)
    bound = (100 - 70) * 10
    for minute in range(bound + 5):
        [task] = add_assigned(database, ledger, value_score=100.0)
        submitted(database, task, timedelta(minutes=minute))

    claimed = [task for _ in range(bound + 2) for task in order(store, limit=1)]

    assert modest not in claimed[:bound]  # more valuable tasks went first as long as they may
    assert modest in claimed


def test_a_task_is_not_claimed_while_one_that_it_depends_on_is_unfinished(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [first] = add_assigned(database, ledger, task_id="first", value_score=10.0)
    [second] = add_assigned(database, ledger, task_id="second", value_score=90.0)
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET dependencies = '{first}' WHERE id = %s", (second,))
    [claimed] = store.claim(DAY, "w", 10, {"sonnet": 10})

    assert claimed.task == first
    assert order(store) == []
    store.complete("w", [Finished(claimed, AttemptResult(None, quality=9.0, latency_ms=1.0))])
    assert order(store) == [second]


def test_an_assigned_task_whose_dependency_was_undone_waits_for_it_again(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, task_id="first")
    [second] = add_assigned(database, ledger)
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET dependencies = '{first}' WHERE id = %s", (second,))

    assert store.withdraw(DAY) == 1
    assert database.fetch("SELECT state, reason FROM tasks WHERE id = %s", [second]) == [
        ("queued", Reason.DEPENDENCY_PENDING)
    ]
    assert ledger.verify().balanced


def test_the_order_comes_from_an_index_and_is_never_sorted(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 200)
    parameters = {
        "day": DAY,
        "worker": "w",
        "limit": 10,
        "models": ["sonnet"],
        "slots": [10],
        "providers": ["anthropic"],
        "lease": 60,
        "enforce": True,
        "run_id": None,
        "hand_on": False,
    }
    with database.transaction() as connection:
        connection.execute("ANALYZE tasks")
        connection.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(
            line for (line,) in connection.execute(f"EXPLAIN {queries.CLAIM}", parameters).fetchall()
        )
    looked_at = plan[plan.index("CTE shares") : plan.index("CTE foremost")]
    locked = plan[plan.index("CTE foremost") : plan.index("CTE rest")]

    assert "Index Scan using ix_tasks_claimable" in looked_at
    assert "Index Scan using ix_tasks_claimable" in locked
    assert "Sort" not in locked
