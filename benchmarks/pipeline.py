"""Claim: 10,000 tasks a second from the queue to a stored assignment: scored, assigned, reserved and persisted.

The tasks are made up (see `benchmarks.scoring`) and lie in a real database with fsync on, an embedded server of its
own. The clock runs from the first unscored task that is read to the commit of the last decision, over everything that
the assets `scored_tasks` and `assignments` do between: reading, scoring, storing the scores, deciding, storing
decisions with their explanations and notices, and reserving quota in the ledger.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from uuid import uuid4

import pandas as pd
import psutil

from benchmarks.report import note, report
from benchmarks.scoring import made_up_tasks
from cp_core.assignment.strategies import Strategy
from cp_resources import migrate
from cp_resources.assigner import Assigner
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.ledger import Ledger
from cp_resources.scores import ScoreStore

TASKS = 100_000
GOAL = ">= 10000"
ROOT = Path(__file__).parent.parent
QUOTA_FOR = 500
"""Tasks that the shipped quotas are about right for; they are raised in proportion, so that most tasks get a plan."""


def main() -> None:
    """Measure every strategy, or those named on the command line, on a database of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("strategies", nargs="*", default=[strategy.value for strategy in Strategy])
    parser.add_argument("--tasks", type=int, default=TASKS)
    arguments = parser.parse_args()
    tasks = made_up_tasks(random.Random(20240607)).iloc[: arguments.tasks]
    with tempfile.TemporaryDirectory(prefix="control-panel-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # under root the server runs as another account
        with EmbeddedPostgres(home) as server:
            for strategy in arguments.strategies:
                name = f"bench_{uuid4().hex}"
                server.create_database(name)
                migrate.upgrade(server.url(name))
                database = Database(server.url(name))
                _measure(database, Strategy(strategy), tasks)
                database.close()


def _measure(database: Database, strategy: Strategy, tasks: pd.DataFrame) -> None:
    configuration = with_quota_for(strategy, len(tasks))
    day = lay_in_queue(database, tasks)
    server = server_of(database)
    used = cpu_seconds(server)
    began, cpu = time.perf_counter(), time.process_time()
    ScoreStore(database).score_day(day, configuration)
    scored = time.perf_counter()
    ledger = Ledger(database)
    summary = Assigner(database, ledger, configuration).assign_day(day)
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    used = cpu_seconds(server) - used
    if summary.decided != len(tasks) or not ledger.verify().balanced:
        raise SystemExit(f"{strategy}: {summary}; every task must be decided, and the ledger must balance")
    case = f"tasks={len(tasks)},strategy={strategy}"
    report("pipeline", case, "tasks_per_second", len(tasks) / (ended - began), "tasks/s", GOAL)
    report("pipeline", case, "scoring_seconds", scored - began, "s")
    report("pipeline", case, "assignment_seconds", ended - scored, "s")
    report("pipeline", case, "python_cpu_seconds", cpu, "s")
    report("pipeline", case, "postgres_cpu_seconds", used, "s")
    steps = database.fetch(
        "SELECT sum((payload #>> '{seconds,read}')::float8), sum((payload #>> '{seconds,decide}')::float8), "
        "sum((payload #>> '{seconds,store}')::float8) FROM cp.events WHERE kind = 'assign.summary'"
    )
    read, decide, store = steps[0]
    note(f"{case}: {summary}; read {read:.2f} s, decide {decide:.2f} s, store {store:.2f} s")


def with_quota_for(strategy: Strategy, tasks: int) -> Configuration:
    """The shipped configuration under a strategy, with quotas raised so that most of the tasks get a plan."""
    shipped = load_configuration(ROOT / "config")
    factor = max(1, tasks // QUOTA_FOR)
    registry = shipped.registry.model_dump()
    for subscription in registry["subscriptions"].values():
        for window in subscription["windows"]:
            window["tokens"] *= factor
    for budget in registry["budgets"].values():
        budget["usd"] *= factor
    assignment = shipped.policies.assignment.model_copy(update={"strategy": strategy})
    return replace(
        shipped,
        registry=type(shipped.registry).model_validate(registry),
        policies=shipped.policies.model_copy(update={"assignment": assignment}),
    )


def server_of(database: Database) -> psutil.Process:
    """The server's first process, the parent of those that serve connections."""
    [(served_by,)] = database.fetch("SELECT pg_backend_pid()")
    return psutil.Process(psutil.Process(served_by).ppid())


def cpu_seconds(server: psutil.Process) -> float:
    """CPU time of all processes of the server so far, those that have ended too."""
    seconds = sum(server.cpu_times()[:4])
    for process in server.children():
        with suppress(psutil.Error):
            seconds += sum(process.cpu_times()[:2])
    return float(seconds)


def lay_in_queue(database: Database, tasks: pd.DataFrame) -> date:
    """Submit the tasks today, as fast as can be; the day."""
    now = datetime.now(UTC)
    with database.transaction() as connection:
        with connection.cursor().copy(
            "COPY cp.tasks (id, task_id, submitted_at, priority, workspace) FROM STDIN"
        ) as copy:
            for number, row in enumerate(_rows(tasks, ["priority", "workspace"]), 1):
                copy.write_row((number, f"T-{number}", now, *row))
        with connection.cursor().copy(
            "COPY cp.task_payloads (task, title, description, labels) FROM STDIN"
        ) as copy:
            for number, row in enumerate(_rows(tasks, ["title", "description", "labels"]), 1):
                copy.write_row((number, *row))
        connection.execute("SELECT setval('cp.tasks_id_seq', %s)", [len(tasks)])
    with database.transaction() as connection:
        connection.execute("ANALYZE cp.tasks")
    return now.date()


def _rows(tasks: pd.DataFrame, columns: list[str]) -> Iterator[tuple[object, ...]]:
    return zip(*(tasks[column].tolist() for column in columns), strict=True)


if __name__ == "__main__":
    main()
