"""The main job through a real daemon: tasks are submitted, and nobody launches anything."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import psycopg
from pydantic import SecretStr

from cp_cli.stack import Stack
from cp_resources.database import Database
from cp_resources.intake import Intake
from cp_resources.ledger import Ledger
from cp_resources.rejects import RejectsFile
from cp_resources.settings import Settings
from cp_resources.task_files import open_task_file
from cp_resources.tasks import TaskStore

DAYS = (date(2026, 3, 1), date(2026, 3, 2))
PATIENCE_SECONDS = 120


def rows(day: date, numbers: range) -> str:
    return "".join(
        json.dumps(
            {
                "id": f"{day}-{number}",
                "title": "Fix the export",
                "description": "The export leaves out the last row.",
                "priority": f"P{number % 4 + 1}",
                "submitted_at": f"{day}T09:00:{number:02}Z",
            }
        )
        + "\n"
        for number in numbers
    )


def submit(database: Database, folder: Path, text: str) -> None:
    """Submit tasks as `control-panel submit` does."""
    (folder / "tasks.jsonl").write_text(text)
    with Intake(TaskStore(database)) as intake, RejectsFile(folder / "rejects.jsonl") as rejects:
        with open_task_file(folder / "tasks.jsonl") as file:
            intake.take(file, rejects)
        assert intake.finish().rejected == 0


def drop(inbox: Path, name: str, text: str) -> None:
    """Put a whole file into the inbox at once."""
    inbox.mkdir(parents=True, exist_ok=True)
    (inbox / f"{name}.part").write_text(text)
    (inbox / f"{name}.part").rename(inbox / name)


def wait_until(condition: Callable[[], bool], what: str, stack: Stack) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        stack.check()
        assert time.monotonic() < give_up, (
            f"{what} did not happen within {PATIENCE_SECONDS} s; see {stack.logs}"
        )
        time.sleep(0.5)


def runs(url: str, job: str) -> list[tuple[str, str | None]]:
    """Status and partition of each run of a job, oldest first."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT status, partition FROM runs WHERE pipeline_name = %s ORDER BY id", [job]
        ).fetchall()


def test_what_is_dropped_or_submitted_is_executed_without_anyone_launching_a_run(
    database: Database, database_url: str, empty_database_url: str, tmp_path: Path
):
    settings = Settings(
        home=tmp_path / "home",
        database_url=SecretStr(database_url),
        dagster_database_url=SecretStr(empty_database_url),
    )

    def states() -> dict[str, int]:
        return dict(database.fetch("SELECT state, count(*) FROM tasks GROUP BY state"))

    simulation = ["--latency-ms", "5", "--failure-share", "0", "--refusal-share", "0"]
    with Stack(settings, webserver=False, simulate=True, simulator_options=simulation) as stack:
        drop(settings.inbox, "first.jsonl", rows(DAYS[0], range(3)) + rows(DAYS[1], range(3)))
        wait_until(lambda: sum(states().values()) == 6, "the file's being taken", stack)
        wait_until(lambda: set(states()) <= {"succeeded", "failed"}, "every task's end", stack)

        # the sensor is armed again for a day whose run has succeeded
        submit(database, tmp_path, rows(DAYS[1], range(3, 5)))
        wait_until(lambda: set(states()) <= {"succeeded", "failed"}, "every task's end", stack)

        def all_over() -> bool:
            return {status for status, _ in runs(empty_database_url, "process_queue")} == {"SUCCESS"}

        wait_until(all_over, "every run's end", stack)

    assert [status for status, _ in runs(empty_database_url, "take_inbox")] == ["SUCCESS"]
    partitions = sorted(str(partition) for _, partition in runs(empty_database_url, "process_queue"))
    assert partitions == ["2026-03-01", "2026-03-02", "2026-03-02"]
    assert [path.name[-12:] for path in (settings.inbox / "done").iterdir()] == ["-first.jsonl"]

    report = Ledger(database).verify()
    assert report.balanced, report.differences
    [(attempts, decided)] = database.fetch(
        "SELECT count(*), count(DISTINCT task) FROM executions WHERE finished_at IS NOT NULL"
    )
    assert attempts >= decided == 8
