"""Plans of two stages against the simulator, whose journal says what was really billed; workers are killed between.

Every task of the first test is given to nano (a budget pays), and should its work not do, to sonnet (a subscription).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from assigned_tasks import DAY, add_assigned, configuration

from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import running
from cp_resources.worker import DrainSummary, Ended, drain

QUICK: dict[str, Any] = {
    "backoff_base_seconds": 0.02,
    "backoff_cap_seconds": 0.05,
    "lease_seconds": 1,
    "heartbeat_seconds": 0.3,
}
TASKS = 40
PRICES = {"nano-1": ("0.1", "0.1", "0.4"), "sonnet-1": ("3", "0.3", "15")}
"""Of an uncached, a cached and an output token, in US dollars per million; nothing is written to a cache here."""

OTHERS_AT_WORK = """
    SELECT 1 FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
"""

DRAIN_IN_A_PROCESS = """
import json, sys
from datetime import timedelta
url, simulator, folder, quick = sys.argv[1:]
sys.path.insert(0, folder)
from assigned_tasks import DAY, configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.worker import drain

database = Database(url)
drain(
    database, Ledger(database), configuration(concurrency=4, **json.loads(quick)),
    Settings(simulator_url=simulator), DAY, worker_name="child", time_budget=timedelta(seconds=60),
)
"""


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
def simulator(journal: Path) -> Iterator[str]:
    with running(Options(latency_ms=60, failure_share=0, refusal_share=0, journal=journal)) as url:
        yield url


def submit(database: Database, ledger: Ledger) -> None:
    """Tasks that differ, so that the simulated models do some well and some badly."""
    add_assigned(database, ledger, TASKS, "nano", "sonnet", max_attempts=6)
    with database.transaction() as connection:
        connection.execute(
            "UPDATE task_payloads SET description = 'Refactor module ' || task || ' of ten files'"
        )


def work(database: Database, ledger: Ledger, simulator: str) -> DrainSummary:
    return drain(
        database,
        ledger,
        configuration(**QUICK),
        Settings(simulator_url=simulator),
        DAY,
        worker_name="test",
        time_budget=timedelta(seconds=60),
    )


def billed(journal: Path) -> dict[tuple[str, int], tuple[str, Decimal, int]]:
    """Model, list price and tokens of every call, by task and attempt, as the simulator billed it."""
    calls = {}
    for line in map(json.loads, journal.read_text().splitlines()):
        if not line["output_tokens"]:
            continue  # a killed caller never finished asking, or left
        fresh, cached, output = map(Decimal, PRICES[line["model"]])
        uncached = line["input_tokens"] - line["cached_tokens"]
        price = uncached * fresh + line["cached_tokens"] * cached + line["output_tokens"] * output
        calls[line["task"], int(line["attempt"])] = (
            line["model"],
            price / 1_000_000,
            line["input_tokens"] + line["output_tokens"],
        )
    return calls


def paths(database: Database) -> Counter[tuple[tuple[int, str, str], ...]]:
    """How many tasks went which way: stage, model and end of each attempt that was not lost."""
    rows = database.fetch(
        """SELECT array_agg(e.stage || ' ' || e.model || ' ' || coalesce(e.reason, 'done') ORDER BY e.attempt)
           FROM executions e WHERE e.state <> 'lost' GROUP BY e.task"""
    )
    return Counter(tuple(path) for (path,) in rows)


GOOD = ("0 nano done",)
ESCALATED = ("0 nano LOW_QUALITY", "1 sonnet done")
FAILED = ("0 nano LOW_QUALITY", "1 sonnet LOW_QUALITY")


def assert_accounts_are_what_was_billed(database: Database, ledger: Ledger, journal: Path) -> None:
    calls = billed(journal)
    rows = database.fetch(
        """SELECT t.task_id, e.attempt, e.model, e.cost_usd, e.input_tokens + e.output_tokens, e.funding
           FROM executions e JOIN tasks t ON t.id = e.task WHERE e.state <> 'lost'"""
    )
    dollars, tokens = Decimal(0), 0
    for task, attempt, model, cost, used, funding in rows:
        assert calls[task, attempt] == (f"{model}-1", cost, used)
        dollars += cost if funding == "budget:api" else 0
        tokens += used if funding == "subscription:plan" else 0
    accounts = {account.account: (account.used, account.pending) for account in ledger.accounts()}
    assert accounts == {
        "budget/api": (dollars, 0),
        "plan/5-hour": (tokens, 0),
        "plan/weekly": (tokens, 0),
    }
    assert ledger.verify().balanced


def test_work_that_is_not_good_enough_goes_to_the_next_model_and_everything_is_charged(
    database: Database, ledger: Ledger, simulator: str, journal: Path
) -> None:
    submit(database, ledger)

    summary = work(database, ledger, simulator)

    went = paths(database)
    assert set(went) == {GOOD, ESCALATED, FAILED}
    assert went[ESCALATED] > 0 < went[GOOD]
    assert summary.escalated == went[ESCALATED] + went[FAILED]
    assert summary.succeeded == went[GOOD] + went[ESCALATED]
    # what no stage did well enough waits for another plan, which nobody makes here
    assert summary.open == {"queued": went[FAILED]}
    assert summary.ended is Ended.WAITING
    assert database.fetch(
        "SELECT count(*), count(DISTINCT model) FROM tasks WHERE state = 'succeeded' AND model = 'sonnet'"
    ) == [(went[ESCALATED], 1)]
    assert_accounts_are_what_was_billed(database, ledger, journal)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "the condition did not come true"
        time.sleep(0.02)


def test_a_worker_killed_between_two_stages_leaves_plans_that_another_carries_on(
    database: Database, ledger: Ledger, simulator: str, journal: Path, database_url: str
) -> None:
    submit(database, ledger)
    child = subprocess.Popen(
        [
            *(sys.executable, "-c", DRAIN_IN_A_PROCESS, database_url, simulator),
            *(str(Path(__file__).parent), json.dumps(QUICK)),
        ],
        stderr=subprocess.DEVNULL,
        env={**os.environ},
    )
    try:
        wait_for(
            lambda: bool(
                database.fetch(
                    "SELECT 1 FROM tasks WHERE stage = 1 AND state IN ('assigned', 'running') LIMIT 1"
                )
            )
        )
    finally:
        child.kill()
        child.wait()
    wait_for(lambda: not database.fetch(OTHERS_AT_WORK))  # what it had sent is committed or undone
    before = dict(database.fetch("SELECT id, stage FROM tasks WHERE state IN ('assigned', 'running')"))
    assert 1 in before.values()

    work(database, ledger, simulator)

    assert set(paths(database)) <= {GOOD, ESCALATED, FAILED}
    stages = database.fetch(
        "SELECT task, min(stage) FROM executions WHERE worker LIKE 'test-%' GROUP BY task"
    )
    assert dict(stages) == before  # each was taken up where it stood
    states = dict(database.fetch("SELECT state, count(*) FROM tasks GROUP BY state"))
    assert states.keys() <= {"succeeded", "queued"}
    assert sum(states.values()) == TASKS
    assert_accounts_are_what_was_billed(database, ledger, journal)
