"""What a drain tells of itself, and what `control-panel watch` shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal

import pytest
from assigned_tasks import DAY, add_assigned, add_task, configuration
from stub_provider import Reply, StubProvider, evidence_block, openai_answer

from cp_core.tasks.states import TaskState
from cp_resources.database import Database
from cp_resources.executions import ExecutionStore
from cp_resources.ledger import Ledger
from cp_resources.progress import DrainLog, read_progress
from cp_resources.settings import Settings
from cp_resources.worker import DrainSummary, drain


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


def test_a_drain_says_how_it_went(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 3, "mini")
    with StubProvider(lambda _: Reply(openai_answer(f"Done.\n{evidence_block()}"))) as provider:
        drain(
            database,
            ledger,
            configuration(),
            Settings(simulator_url=provider.url),
            DAY,
            worker_name="test",
            time_budget=timedelta(seconds=30),
            run_id="run-1",
        )

    [row] = database.fetch(
        """SELECT run_id, submission_day, pid, ended, held, attempts, succeeded, failed, cost_usd > 0,
               ended_at >= heartbeat_at - interval '1 second' AND heartbeat_at >= started_at FROM drains"""
    )
    assert row == ("run-1", DAY, os.getpid(), "drained", 0, 3, 3, 0, True, True)
    assert read_progress(database, DAY).drains == []


def test_a_drain_that_is_not_heard_of_is_taken_for_dead_by_the_databases_clock(database: Database) -> None:
    figures = {**DrainSummary().figures(), "held": 7}
    for worker in ("alive", "silent"):
        DrainLog(database, worker, DAY, None).tell(figures)
    with database.transaction() as connection:
        connection.execute(
            "UPDATE drains SET heartbeat_at = now() - interval '1 hour' WHERE worker = 'silent'"
        )

    drains = {one.worker: one for one in read_progress(database, DAY).drains}

    assert {name: one.is_stale for name, one in drains.items()} == {"alive": False, "silent": True}
    assert drains["alive"].held == 7


def test_progress_counts_states_models_and_what_waits(database: Database, ledger: Ledger) -> None:
    add_task(database, "queued")
    add_assigned(database, ledger, 3, "mini")
    store = ExecutionStore(database, ledger, configuration())
    store.claim(DAY, "w", 1, {"mini": 1})
    with database.transaction() as connection:
        connection.execute("UPDATE executions SET cost_usd = 0.25")
        connection.execute(
            "UPDATE tasks SET state = 'dead', reason = 'X', state_changed_at = now() WHERE task_id = 'queued'"
        )

    seen = read_progress(database)

    assert seen.days == (DAY,)
    assert seen.states == {TaskState.ASSIGNED: 2, TaskState.RUNNING: 1, TaskState.DEAD: 1}
    assert seen.open == 3
    assert seen.ended_per_minute == 1
    assert seen.eta_seconds == 180  # three are open, and one ended in the last minute
    [line] = seen.models
    assert (line.model, line.running, line.succeeded, line.failed) == ("mini", 1, 0, 0)
    assert seen.cost_usd == Decimal("0.25")
    assert seen.oldest_wait_seconds is not None


@pytest.mark.parametrize("options", [["--once"], ["--once", "--json"]], ids=["text", "json"])
def test_the_command_prints_plainly_where_there_is_no_terminal(
    database: Database, ledger: Ledger, database_url: str, options: list[str]
) -> None:
    add_assigned(database, ledger, 2, "mini")

    done = subprocess.run(
        [sys.executable, "-m", "cp_cli.main", "watch", "--day", str(DAY), *options],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "CP_DATABASE_URL": database_url},
    )

    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    if "--json" in options:
        seen = json.loads(done.stdout)
        assert (seen["states"], seen["open"], seen["eta_seconds"]) == ({"assigned": 2}, 2, None)
    else:
        assert "assigned 2" in done.stdout
        assert "nothing ends" in done.stdout
