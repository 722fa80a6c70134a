"""A day that is worked through for real: submitted, scored, assigned and executed on simulated models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, Definitions, ExecuteInProcessResult

from cp_definitions import build_defs
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.intake import Intake
from cp_resources.rejects import RejectsFile
from cp_resources.settings import Settings
from cp_resources.task_files import open_task_file
from cp_resources.tasks import TaskStore

DAY = date(2026, 3, 2)

_WORK = [
    ("Fix login outage in production", "The login service returns 500.", "P0", ["hotfix", "security"], 3),
    ("Restyle the settings page", "Buttons overlap on small screens.", "P2", ["frontend"], 4),
    ("Document the export API", "Describe the export endpoint.", "P3", ["documentation"], 1),
    ("Cover the parser with tests", "Add tests for the parser.", "P2", ["testing"], 2),
    (
        "Migrate the cluster",
        "Migrate the Kubernetes cluster to the new region.",
        "P1",
        ["infrastructure"],
        15,
    ),
    ("Speed up the nightly report", "The database query takes a minute.", "P2", ["backend"], 3),
    ("Tune the ranking model", "Training loss does not fall.", "P1", ["ml"], 5),
    ("Rename a button", "Call it Save.", "P4", [], 1),
]


def rows(day: date, count: int = 16) -> list[dict[str, Any]]:
    """Tasks submitted on `day`, one a minute from 08:00; the last one depends on the first."""
    made = [
        {
            "id": f"{day}-{number}",
            "title": title,
            "description": description,
            "priority": priority,
            "labels": labels,
            "estimated_files": files,
            "workspace": "acme/shop",
            "submitted_at": f"{day}T08:{number:02}:00Z",
        }
        for number in range(count)
        for title, description, priority, labels, files in [_WORK[number % len(_WORK)]]
    ]
    made[-1]["dependencies"] = [made[0]["id"]]
    return made


def submit(database: Database, tasks: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Submit tasks as `control-panel submit` does."""
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    with Intake(TaskStore(database)) as intake, RejectsFile(folder / "rejects.jsonl") as rejects:
        with open_task_file(path) as file:
            intake.take(file, rejects)
        report = intake.finish()
    assert report.rejected == 0


def definitions(database: Database, simulator_url: str, home: Path) -> Definitions:
    """The code location on this database, with the shipped configuration and simulated models."""
    settings = Settings(home=home, simulator_url=simulator_url)
    return build_defs(
        database=database,
        settings=settings,
        configuration=load_configuration(settings.config_dir),
    )


def run(defs: Definitions, job: str, day: date, **options: Any) -> ExecuteInProcessResult:
    """Execute a job for a day in this process, as a run of it would."""
    with DagsterInstance.ephemeral() as instance:
        return defs.resolve_job_def(job).execute_in_process(
            partition_key=day.isoformat(), instance=instance, **options
        )


def failed_checks(result: ExecuteInProcessResult) -> set[str]:
    """The checks of a run that did not pass, as asset:check."""
    return {
        f"{each.asset_key.to_user_string()}:{each.check_name}"
        for each in result.get_asset_check_evaluations()
        if not each.passed
    }
