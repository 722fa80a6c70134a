"""Several drains on one day at once, each a process of its own as on machines of their own: the day is shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path

from cp_resources.assigner import Assigner
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.intake import Intake
from cp_resources.ledger import Ledger
from cp_resources.rejects import RejectsFile
from cp_resources.scores import ScoreStore
from cp_resources.settings import PROJECT_ROOT
from cp_resources.simulator.journal import lines
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import running
from cp_resources.task_files import open_task_file
from cp_resources.tasks import TaskStore

DAY = date(2026, 3, 2)
TASKS = 400
DRAINS = 2

# Each says when it could begin and begins when all may, so that none finds the day done by another one.
ONE_DRAIN = f"""
import sys
from datetime import date, timedelta
from cp_resources.assigner import Assigner
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.worker import drain
settings = Settings()
database = Database(settings.database_url.get_secret_value())
ledger, configuration = Ledger(database), load_configuration(settings.config_dir)
day, assigner = date.fromisoformat("{DAY}"), Assigner(database, ledger, configuration)
print("ready", flush=True)
sys.stdin.readline()
summary = drain(database, ledger, configuration, settings, day, worker_name=sys.argv[1],
                time_budget=timedelta(seconds=90), assign_again=lambda: assigner.assign_day(day))
print(summary.ended, flush=True)
"""


def assigned_day(database: Database, folder: Path) -> None:
    rows = [
        {
            "id": f"t-{number}",
            "title": f"Fix export {number}",
            "description": "The export leaves out the last row.",
            "priority": f"P{number % 4 + 1}",
            "submitted_at": f"{DAY}T09:00:00Z",
        }
        for number in range(TASKS)
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Intake(TaskStore(database)) as intake, RejectsFile(folder / "rejects.jsonl") as rejects:
        with open_task_file(folder / "tasks.jsonl") as file:
            intake.take(file, rejects)
        assert intake.finish().stored == TASKS
    configuration, ledger = load_configuration(PROJECT_ROOT / "config"), Ledger(database)
    ledger.open_accounts(configuration.registry)
    ScoreStore(database).score_day(DAY, configuration)
    Assigner(database, ledger, configuration).assign_day(DAY)


def start(name: str, database_url: str, simulator_url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ONE_DRAIN, name],
        cwd=PROJECT_ROOT,
        env=os.environ | {"CP_DATABASE_URL": database_url, "CP_SIMULATOR_URL": simulator_url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_drains_at_once_share_a_day_and_no_attempt_is_made_twice(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    assigned_day(database, tmp_path)
    journal = tmp_path / "journal.jsonl"
    options = Options(latency_ms=100, latency_spread=0, failure_share=0.05, refusal_share=0, journal=journal)
    with running(options) as simulator_url:
        drains = [start(f"drain-{number}", database_url, simulator_url) for number in range(DRAINS)]
        try:
            for process in drains:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in drains:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            said = [process.communicate(timeout=150)[0] for process in drains]
        finally:
            for process in drains:
                process.kill()

    assert [process.returncode for process in drains] == [0] * DRAINS
    assert said == ["drained\n"] * DRAINS
    states = dict(database.fetch("SELECT state, count(*) FROM tasks GROUP BY state"))
    assert set(states) <= {"succeeded", "failed", "dead"}
    assert sum(states.values()) == TASKS

    by_drain = Counter(
        worker[: len("drain-0")] for (worker,) in database.fetch("SELECT worker FROM executions")
    )
    assert set(by_drain) == {f"drain-{number}" for number in range(DRAINS)}
    calls = Counter((line["task"], line["attempt"]) for line in lines(journal))
    assert set(calls.values()) == {1}, "a call was made twice"
    recorded = {
        (task_id, str(attempt))
        for task_id, attempt in database.fetch(
            "SELECT task_id, attempt FROM executions JOIN tasks ON tasks.id = task"
        )
    }
    assert set(calls) == recorded
    ledger = Ledger(database).verify()
    assert ledger.balanced, ledger.differences
