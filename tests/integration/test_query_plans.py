"""The plans of the hot queries, on a database with 50,000 tasks: what they read follows from what they are asked for.

A statement that reads a table from end to end, or rows that it only passes over, is as quick as any in a small
database. So plans and counts of rows and blocks are held here, never seconds.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from assigned_tasks import DAY, DOLLARS, FUNDINGS, configuration
from explained import ExplainedDatabase, Scan

from cp_core.execution.cost import Usage
from cp_core.execution.outcome import AttemptResult
from cp_core.policy.notices import NoticePolicy
from cp_resources import migrate
from cp_resources.assignment_store import AssignmentStore
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.executions import ClaimedTask, ExecutionStore, Finished
from cp_resources.ledger import Ledger, Reservation, Settlement
from cp_resources.notifiers.message import Message, Sent
from cp_resources.outbox import Outbox
from cp_resources.scores import ScoreStore

TASKS = 50_000
BUSY_DAY = 10_000
"""Tasks of DAY; the others were done on the forty days before."""
ASSIGNED, RUNNING, EXPIRED, QUEUED, DEFERRED, UNSCORED = 6_000, 300, 50, 1_500, 300, 400
UNDELIVERED = 500
BIG = ("tasks", "task_payloads", "task_scores", "assignments", "executions", "quota_transfers", "outbox")
DATABASE = "fifty_thousand"
DONE = AttemptResult(None, usage=Usage(900, 0, 0, 100), cost_usd=Decimal("0.01"), quality=9.0, evidence={})


@pytest.fixture(scope="session")
def fifty_thousand(postgres_server: EmbeddedPostgres) -> str:
    """The address of a database with a history; whoever is first makes it, and nothing in it is changed."""
    with (Path(os.environ["CP_TEST_SESSION_HOME"]) / f"{DATABASE}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone():
                connection.execute("CREATE DATABASE filling")
                _fill(postgres_server.url("filling"))
                connection.execute(f"ALTER DATABASE filling RENAME TO {DATABASE}")
    return postgres_server.url(DATABASE)


@pytest.fixture
def explained(fifty_thousand: str) -> Iterator[ExplainedDatabase]:
    database = ExplainedDatabase(fifty_thousand)
    yield database
    database.close()


@pytest.fixture
def store(explained: ExplainedDatabase) -> ExecutionStore:
    return ExecutionStore(explained, Ledger(explained), configuration())


def running(database: Database, first: int, count: int) -> list[ClaimedTask]:
    """Tasks under the lease of worker `busy`, as it would have claimed them."""
    found = database.fetch(
        """SELECT t.id, t.task_id, e.id, t.attempts, a.decision_id, e.model, e.provider, e.funding,
               a.plan -> 0 -> 'amounts'
           FROM cp.tasks t JOIN cp.executions e ON e.task = t.id JOIN cp.assignments a ON a.id = t.assignment
           WHERE t.lease_owner = 'busy' ORDER BY t.id OFFSET %s LIMIT %s""",
        (first, count),
    )
    return [
        ClaimedTask(
            task=task,
            task_id=task_id,
            execution=execution,
            attempt=attempts,
            decision_id=decision,
            decision_attempt=1,
            model=model,
            provider=provider,
            funding=funding,
            amounts={account: Decimal(amount) for account, amount in amounts.items()},
            title="",
            description="",
            workspace="",
            labels=(),
            output_high=1.0,
            deadline_in=None,
        )
        for task, task_id, execution, attempts, decision, model, provider, funding, amounts in found
    ]


def read(database: ExplainedDatabase, *tables: str) -> int:
    """Rows that were read of these tables."""
    return sum(scan.rows for scan in database.scans(*tables))


def assert_no_table_is_read_from_end_to_end(database: ExplainedDatabase) -> None:
    assert database.plans
    assert [scan for scan in database.scans(*BIG) if scan.node == "Seq Scan"] == []


def blocks(database: ExplainedDatabase) -> int:
    return sum(plan.blocks for plan in database.plans)


def test_a_claim_of_n_takes_n_and_reads_a_few_rows_for_each(
    explained: ExplainedDatabase, store: ExecutionStore
) -> None:
    claimed = store.claim(DAY, "w", 100, {"sonnet": 1_000, "mini": 1_000, "nano": 1_000})

    assert len(claimed) == 100
    assert explained.plans[-1].rows == 100
    assert_no_table_is_read_from_end_to_end(explained)
    # the best hundred of each of three models; then those taken, to lock and to change them
    assert read(explained, "tasks") <= 3 * 100 + 2 * 100
    assert blocks(explained) < 100 * 100


def test_a_completion_reads_the_rows_of_its_tasks(
    explained: ExplainedDatabase, store: ExecutionStore
) -> None:
    finished = [Finished(claimed, DONE) for claimed in running(Database(explained.url), 0, 100)]

    steps = store.complete("busy", finished)

    assert [step and step.state for step in steps] == ["succeeded"] * 100
    assert_no_table_is_read_from_end_to_end(explained)
    assert read(explained, "tasks") <= 4 * 100
    assert read(explained, "executions") <= 5 * 100
    assert blocks(explained) < 150 * 100


def test_a_heartbeat_reads_the_tasks_that_are_held(
    explained: ExplainedDatabase, store: ExecutionStore
) -> None:
    held = running(Database(explained.url), 0, 200)

    assert len(store.heartbeat("busy", held)) == 200

    assert_no_table_is_read_from_end_to_end(explained)
    assert read(explained, "tasks") == 2 * 200  # to lock them in order, and to renew their leases
    assert blocks(explained) < 40 * 200


def test_a_sweep_reads_the_leases_that_ran_out(explained: ExplainedDatabase, store: ExecutionStore) -> None:
    assert store.requeue_expired() == EXPIRED

    assert_no_table_is_read_from_end_to_end(explained)
    assert read(explained, "tasks") <= 4 * EXPIRED
    assert blocks(explained) < 150 * EXPIRED


def test_what_is_due_is_found_among_the_open_tasks_of_its_day(explained: ExplainedDatabase) -> None:
    due = AssignmentStore(explained, configuration().policies.assignment).due(DAY, datetime.now(UTC), 200)

    assert len(due) == 200
    assert_no_table_is_read_from_end_to_end(explained)
    assert read(explained, "tasks") <= QUEUED + DEFERRED + UNSCORED
    assert blocks(explained) < 10 * (QUEUED + DEFERRED)


def test_what_has_no_score_is_found_among_the_tasks_of_its_day(explained: ExplainedDatabase) -> None:
    assert len(ScoreStore(explained).unscored(DAY)) == UNSCORED

    assert_no_table_is_read_from_end_to_end(explained)
    assert (
        read(explained, "tasks") <= BUSY_DAY + QUEUED + DEFERRED + UNSCORED
    )  # the day's, and who waits for others
    assert blocks(explained) < BUSY_DAY


class Silent:
    """Delivers nothing."""

    def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
        return {}


def test_a_delivery_takes_from_what_waits_and_not_from_what_was_delivered(
    explained: ExplainedDatabase,
) -> None:
    assert Outbox(explained, NoticePolicy()).deliver(Silent(), 100).claimed == 100

    assert_no_table_is_read_from_end_to_end(explained)
    assert read(explained, "outbox") <= UNDELIVERED


def test_the_ledger_looks_up_its_keys_however_long_its_history(explained: ExplainedDatabase) -> None:
    ledger = Ledger(explained)
    keys = [uuid4() for _ in range(100)]
    held = [claimed.reservation for claimed in running(Database(explained.url), 100, 100)]

    with explained.transaction() as connection:
        amounts = {"budget/api": Decimal("0.001")}
        granted = ledger.reserve(
            connection, [Reservation(key, amounts) for key in keys], expires_in=timedelta(hours=1)
        )
        resolved = [ledger.settle(connection, [Settlement(key, {}) for key in held]) for _ in range(2)]

    assert granted == [True] * 100
    assert resolved[0] >= 100
    assert resolved[1] == 0
    assert_no_table_is_read_from_end_to_end(explained)
    *plans, settled, looked_up = explained.plans
    assert all(plan.blocks < 25 * 100 for plan in plans)
    assert settled.blocks < 25 * resolved[0]
    [(pages,)] = Database(explained.url).fetch(
        "SELECT relpages FROM pg_class WHERE oid = 'cp.quota_transfers'::regclass"
    )
    assert looked_up.blocks < min(12 * 100, pages)


def test_a_table_that_is_read_from_end_to_end_is_noticed(explained: ExplainedDatabase) -> None:
    explained.fetch("SELECT count(*) FROM tasks WHERE workspace <> 'acme/1'")

    assert explained.scans("tasks") == [Scan("Seq Scan", "tasks", TASKS)]


def _fill(url: str) -> None:
    migrate.upgrade(url)
    database = Database(url)
    ledger = Ledger(database)
    ledger.open_accounts(configuration(tokens=1_000_000_000).registry)
    with database.transaction() as connection:
        connection.execute(
            "SET LOCAL session_replication_role = replica"
        )  # a history, and not one of the ledger's
        for statement in _HISTORY:
            connection.execute(statement, _NUMBERS)
    for model, (_, amounts) in FUNDINGS.items():
        decisions = database.fetch(
            """SELECT a.decision_id, a.task FROM assignments a JOIN tasks t ON t.assignment = a.id
               WHERE t.state IN ('running', 'assigned') AND t.model = %s AND t.id > %s""",
            (model, ASSIGNED - 300),
        )
        with database.transaction() as connection:
            reservations = [Reservation(decision, amounts, task) for decision, task in decisions]
            assert all(ledger.reserve(connection, reservations, expires_in=timedelta(hours=6)))
    database.close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")  # as it is done by and by


_NUMBERS = {
    "day": DAY,
    "tasks": TASKS,
    "busy": BUSY_DAY,
    "assigned": ASSIGNED,
    "running": ASSIGNED + RUNNING,
    "expired": ASSIGNED + RUNNING - EXPIRED,
    "queued": ASSIGNED + RUNNING + QUEUED,
    "deferred": ASSIGNED + RUNNING + QUEUED + DEFERRED,
    "unscored": ASSIGNED + RUNNING + QUEUED + DEFERRED + UNSCORED,
    "undelivered": UNDELIVERED,
    "plans": json.dumps(
        {
            model: [
                {
                    "model": model,
                    "funding": funding,
                    "amounts": {name: str(of) for name, of in amounts.items()},
                }
            ]
            for model, (funding, amounts) in FUNDINGS.items()
        }
    ),
    "dollars": DOLLARS,
}
_HISTORY = (
    """
    INSERT INTO tasks (id, task_id, submitted_at, state, priority, workspace, value_score, assignment, model,
        attempts, available_at, lease_owner, lease_expires_at)
    SELECT n, 'task-' || n, (%(day)s - CASE WHEN n <= %(busy)s THEN 0 ELSE 1 + n %% 40 END) + time '12:00',
        state, n %% 5, 'acme/' || n %% 20, CASE WHEN n NOT BETWEEN %(deferred)s + 1 AND %(unscored)s THEN n %% 100 END,
        CASE WHEN state IN ('assigned', 'running', 'succeeded') THEN n END,
        CASE WHEN state IN ('assigned', 'running', 'succeeded') THEN ('{sonnet,mini,nano}'::text[])[1 + n %% 3] END,
        CASE WHEN state IN ('running', 'succeeded') THEN 1 ELSE 0 END, now() - interval '1 hour',
        CASE WHEN state = 'running' THEN 'busy' END,
        CASE WHEN state = 'running' THEN now() + interval '1 hour' * CASE WHEN n > %(expired)s THEN -1 ELSE 9 END END
    FROM (
        SELECT n, CASE WHEN n <= %(assigned)s THEN 'assigned' WHEN n <= %(running)s THEN 'running'
            WHEN n <= %(queued)s THEN 'queued' WHEN n <= %(deferred)s THEN 'deferred'
            WHEN n <= %(unscored)s THEN 'queued' ELSE 'succeeded' END AS state
        FROM generate_series(1, %(tasks)s) AS n
    ) AS numbered
    """,
    """
    INSERT INTO task_payloads (task, title, description, labels)
    SELECT id, 'Task ' || id, repeat('What is to be done. ', 10), '{bug}' FROM tasks
    """,
    """
    INSERT INTO task_scores (task, submission_day, files, lines, size_source, complexity, complexity_factor,
        priority_points, time_bonus, time_bonus_reason, domain, domain_factor, domain_source, risk, risk_factor, score,
        input_mean, input_median, input_low, input_high, output_mean, output_median, output_low, output_high,
        config_hash)
    SELECT id, submission_day, 1, 1, 'given', 'simple', 1, 1, 0, 'none', 'backend', 1, 'default', 'development', 1,
        value_score, 20000, 20000, 10000, 40000, 2000, 2000, 1000, 4000, 'hash'
    FROM tasks WHERE value_score IS NOT NULL
    """,
    """
    INSERT INTO assignments (id, decision_id, task, submission_day, strategy, outcome, model, funding, plan,
        explanation, config_hash)
    SELECT id, gen_random_uuid(), id, submission_day, 'tiered', 'assigned', model,
        %(plans)s::jsonb -> model -> 0 ->> 'funding', %(plans)s::jsonb -> model, '{}', 'hash'
    FROM tasks WHERE assignment IS NOT NULL
    """,
    """
    INSERT INTO executions (task, assignment, submission_day, attempt, model, provider, funding, worker, state,
        finished_at)
    SELECT t.id, t.id, t.submission_day, 1, t.model, 'openai', a.funding, 'busy', t.state,
        CASE WHEN t.state = 'succeeded' THEN now() END
    FROM tasks t JOIN assignments a ON a.id = t.assignment WHERE t.attempts > 0
    """,
    """
    INSERT INTO outbox (task, kind, payload, delivered_at)
    SELECT id, kind, jsonb_build_object('id', gen_random_uuid(), 'task_id', task_id),
        CASE WHEN id <= %(tasks)s - %(undelivered)s OR kind = 'assigned' THEN now() END
    FROM tasks, unnest('{assigned,completed}'::text[]) AS kind WHERE state = 'succeeded'
    """,
    """
    WITH made AS (
        INSERT INTO quota_transfers (transfer_id, phase, reservation, debit_account, credit_account, amount, code,
            task, expires_at)
        SELECT gen_random_uuid(), 'pending', decision_id, 'budget/api', 'spent:usd', %(dollars)s, 'use', task,
            now() + interval '6 hours'
        FROM assignments JOIN tasks ON tasks.id = task WHERE state = 'succeeded'
        RETURNING *
    )
    INSERT INTO quota_transfers (transfer_id, phase, pending_id, reservation, debit_account, credit_account, amount,
        code, task)
    SELECT gen_random_uuid(), 'post', transfer_id, reservation, debit_account, credit_account, amount, code, task
    FROM made
    """,
)
