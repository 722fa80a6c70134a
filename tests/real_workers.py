"""An installation whose models are commands and HTTP workers: its configuration, its tasks, and a drain of them.

The simulator stands in for chat models only, so what a drain leaves of processes and endpoints is seen with these.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil

from cp_core.models.registry import Tier, Wire
from cp_core.scoring.config import Domain
from cp_resources.assigner import Assigner
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.intake import Intake
from cp_resources.ledger import Ledger
from cp_resources.rejects import RejectsFile
from cp_resources.scores import ScoreStore
from cp_resources.settings import PROJECT_ROOT
from cp_resources.task_files import open_task_file
from cp_resources.tasks import TaskStore
from cp_resources.worker_kinds.command import RUN_MARK

DAY = date(2026, 3, 2)
PATIENCE_SECONDS = 60.0

_DRAIN = f"""
import logging
from datetime import date, timedelta
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.worker import drain
logging.basicConfig(level=logging.INFO)
settings = Settings()
database = Database(settings.database_url.get_secret_value())
drain(database, Ledger(database), load_configuration(settings.config_dir), settings, date.fromisoformat("{DAY}"),
      worker_name="drain", time_budget=timedelta(seconds=120))
"""


def write_configuration(folder: Path, provider: Mapping[str, Any], **execution: Any) -> Path:
    """The shipped rules with a model of provider `worker` in each tier: 1 dollar per million tokens in, 4 out.

    Args:
        execution: keys of section `execution` of policies.yaml.
    """
    shutil.copytree(PROJECT_ROOT / "config", folder)
    model = {
        "provider": "worker",
        "api_name": "agent-1",
        "family": "agents",
        "input_usd_per_million": 1,
        "output_usd_per_million": 4,
        "context_window": 200_000,
        "max_output_tokens": 50_000,
        "capability": dict.fromkeys(map(str, Domain), 0.8),
    }
    models = {
        "providers": {"worker": dict(provider)},
        "models": {f"agent-{tier}": {**model, "tier": str(tier)} for tier in Tier},
        "budgets": {"api": {"window": "monthly", "usd": 100}},
    }
    (folder / "models.yaml").write_text(json.dumps(models))  # JSON is YAML
    (folder / "policies.yaml").write_text(json.dumps({"execution": execution}))
    return folder


def agent(folder: Path, program: str, workspaces: Sequence[str]) -> dict[str, Any]:
    """A provider that runs a Python program, in a folder of its own for each workspace."""
    script = folder / "agent.py"
    script.write_text(dedent(program))
    for name in workspaces:
        (folder / name).mkdir()
    return {
        "wire": str(Wire.COMMAND),
        "command": [sys.executable, "-I", str(script)],
        "workspaces": {name: str(folder / name) for name in workspaces},
    }


def submit(database: Database, folder: Path, tasks: Mapping[str, str]) -> None:
    """Submit tasks, by id and workspace."""
    rows = [
        {
            "id": task,
            "title": "Fix the export",
            "description": "The export leaves out the last row.",
            "priority": "P3",
            "workspace": workspace,
            "submitted_at": f"{DAY}T09:00:00Z",
        }
        for task, workspace in tasks.items()
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Intake(TaskStore(database)) as intake, RejectsFile(folder / "rejects.jsonl") as rejects:
        with open_task_file(folder / "tasks.jsonl") as file:
            intake.take(file, rejects)
        assert intake.finish().stored == len(rows)


def submit_assigned(database: Database, folder: Path, config_dir: Path, tasks: Mapping[str, str]) -> None:
    """Submit tasks, and have them scored and assigned."""
    submit(database, folder, tasks)
    configuration, ledger = load_configuration(config_dir), Ledger(database)
    ledger.open_accounts(configuration.registry)
    ScoreStore(database).score_day(DAY, configuration)
    Assigner(database, ledger, configuration).assign_day(DAY)
    assert database.fetch("SELECT state, count(*) FROM tasks GROUP BY state") == [("assigned", len(tasks))]


def start_drain(
    database_url: str, folder: Path, config_dir: Path, **environment: str
) -> subprocess.Popen[bytes]:
    """A process that drains the day; what it says is in `drain.log`."""
    told = {
        "CP_DATABASE_URL": database_url,
        "CP_CONFIG_DIR": str(config_dir),
        "CP_HOME": str(folder / "home"),
    }
    with (folder / "drain.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _DRAIN],
            cwd=PROJECT_ROOT,
            env=os.environ | told | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def processes_of_runs(folder: Path) -> list[int]:
    """The living processes that a run of a command in one of the folders below `folder` left or still is."""
    found = []
    for process in psutil.process_iter():
        try:
            if RUN_MARK in process.environ() and Path(process.cwd()).is_relative_to(folder.resolve()):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue  # of another user's, or gone meanwhile
    return found


def attempts(database: Database) -> dict[tuple[str, int], tuple[str, int, int, str | None]]:
    """State, tokens in and out, and what is said of it, of every attempt, by task and number."""
    rows = database.fetch(
        "SELECT task_id, attempt::int, e.state, input_tokens, output_tokens, error FROM executions e"
        " JOIN tasks t ON t.id = e.task"
    )
    return {
        (task, attempt): (state, read, written, error) for task, attempt, state, read, written, error in rows
    }


def assert_nothing_is_held(database: Database, *, running: int = 0) -> None:
    """No lease, no share of a limit, and in the ledger exactly what assigned tasks reserve and attempts used."""
    assert database.fetch("SELECT count(*) FROM tasks WHERE lease_owner IS NOT NULL") == [(running,)]
    assert database.fetch("SELECT count(*) FROM executions WHERE state = 'running'") == [(running,)]
    assert database.fetch("SELECT count(*) FROM worker_shares") == [(0,)]
    report = Ledger(database).verify()
    assert report.balanced, report.differences
    assert database.fetch(_WRONG_RESERVATIONS) == []
    [(cost, billed)] = database.fetch("SELECT sum(cost_usd), sum(billed_usd) FROM executions")
    [(posted,)] = database.fetch("SELECT sum(credits_posted) FROM quota_accounts WHERE kind = 'spent'")
    assert posted == cost == billed


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.02)


# Each task that waits for an attempt, or is in one, holds one reservation; any other task none.
_WRONG_RESERVATIONS = """
SELECT t.task_id, t.state, held.reservations
FROM tasks t CROSS JOIN LATERAL (
    SELECT count(DISTINCT p.reservation) AS reservations FROM quota_transfers p
    WHERE p.task = t.id AND p.phase = 'pending'
        AND NOT EXISTS (SELECT FROM quota_transfers r WHERE r.pending_id = p.transfer_id)
) held
WHERE held.reservations <> (t.state IN ('assigned', 'running'))::int
"""
