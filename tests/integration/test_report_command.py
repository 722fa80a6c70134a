"""`control-panel report` as a person reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, date, datetime

import pytest

from cp_core.tasks.submission import validate
from cp_resources.database import Database
from cp_resources.tasks import NewTask, TaskStore

DAYS = [date(2026, 3, 2), date(2026, 3, 3)]


def submit(database: Database, day: date) -> None:
    at = datetime(day.year, day.month, day.day, 9, tzinfo=UTC)
    submission = validate({"id": f"{day}", "title": "Fix it", "submitted_at": at.isoformat()}, now=at)
    TaskStore(database).insert([NewTask.of(submission, f"{day}", None)])


def report(database: Database, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cp_cli.main", "report", *arguments],
        env=os.environ | {"CP_DATABASE_URL": database.url, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        ([], "Tasks submitted 2026-03-02 to 2026-03-03"),
        (["--day", "2026-03-03"], "Tasks submitted 2026-03-03"),
        (["--day", "2026-03-03", "--day", "2026-03-02"], "Tasks submitted 2026-03-02 to 2026-03-03"),
    ],
)
def test_the_first_line_says_which_days(database: Database, arguments: list[str], title: str) -> None:
    for day in DAYS:
        submit(database, day)

    first, *rest = report(database, *arguments).splitlines()

    assert first.rstrip() == title
    assert max(map(len, rest)) <= 80


def test_a_report_of_nothing_is_a_report(database: Database) -> None:
    said = report(database)

    assert said.startswith("Tasks submitted on no day")
    assert "Ledger: balanced" in said
