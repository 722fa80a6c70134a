"""A process that is killed in the middle of storing a round leaves whole chunks, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from test_assigner import DAY, NOON
from test_assigner_strategies import assign, market

from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger

TASKS = 20_000
CHUNK = 500
SECONDS = 120

CHILD = """
import sys
from test_killed_while_storing import assign_in_small_chunks
assign_in_small_chunks(sys.argv[1])
"""


def assign_in_small_chunks(url: str) -> None:
    """What the process does that is killed."""
    from cp_resources import assigner

    assigner._CHUNK = CHUNK
    assign(Database(url), ample())


def ample() -> Configuration:
    return market(tokens=1e12, usd=1e6, batch_size=CHUNK, stages=2)


def add_tasks(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            """INSERT INTO tasks (task_id, submitted_at, priority, workspace)
               SELECT 'T' || number, %s, 0, 'here' FROM generate_series(1, %s) AS number""",
            (NOON, TASKS),
        )
        connection.execute(
            """INSERT INTO task_payloads (task, title, description, labels)
               SELECT id, 'title', 'text', '{}' FROM tasks"""
        )
        connection.execute(
            """INSERT INTO task_scores (task, submission_day, files, lines, size_source, complexity,
                   complexity_factor, priority_points, time_bonus, time_bonus_reason, domain, domain_factor,
                   domain_source, risk, risk_factor, score, input_mean, input_median, input_low, input_high,
                   output_mean, output_median, output_low, output_high, config_hash)
               SELECT id, %s, 1, 1, 'given', 'simple', 1, 1, 0, 'none', 'backend', 1, 'default', 'development', 1,
                   1 + id %% 100, 20000, 20000, 10000, 40000, 2000, 2000, 1000, 4000, 'hash'
               FROM tasks""",
            (DAY,),
        )


def wait_until(happened: Callable[[], bool], child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS
    while not happened():
        assert child.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < until, "it did not come so far"
        time.sleep(0.01)


def figure(database: Database, query: str) -> int:
    [(found,)] = database.fetch(query)  # type: ignore[arg-type]
    return int(found)


def test_every_task_is_wholly_decided_or_still_queued_and_the_next_run_finishes(database: Database) -> None:
    add_tasks(database)
    folder = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, database.url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
    )
    try:
        wait_until(lambda: figure(database, "SELECT count(*) FROM assignments") > 0, child)
        with psycopg.connect(database.url) as rival:
            rival.execute("SELECT cp.lock_ledger()")  # a chunk that is written waits for it with its commit
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            wait_until(lambda: figure(database, waiting) > 0, child)
            child.kill()
            child.wait()
    finally:
        child.kill()
        child.wait()
    decided = whole_decisions(database)
    assert 0 < decided < TASKS
    assert decided % CHUNK == 0
    assert assign(database, ample()).outcomes == {"assigned": TASKS - decided}
    assert whole_decisions(database) == TASKS


def whole_decisions(database: Database) -> int:
    """How many tasks have a decision, its reservation and its notice, once each; the others must have none of it."""
    counts = database.fetch(
        """SELECT state, decisions, reservations, notices, count(*)
           FROM tasks
           CROSS JOIN LATERAL (
               SELECT count(*) AS decisions,
                   count((SELECT min(transfer_id::text) FROM quota_transfers WHERE reservation = decision_id))
                       AS reservations
               FROM assignments WHERE assignments.task = tasks.id
           ) AS decided
           CROSS JOIN LATERAL (SELECT count(*) AS notices FROM outbox WHERE outbox.task = tasks.id) AS told
           GROUP BY 1, 2, 3, 4"""
    )
    found = {(state, *each): tasks for state, *each, tasks in counts}
    assert found.keys() <= {("assigned", 1, 1, 1), ("queued", 0, 0, 0)}
    assert Ledger(database).verify().balanced
    return found.get(("assigned", 1, 1, 1), 0)
