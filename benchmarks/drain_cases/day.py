"""A day of tasks that were submitted, scored and assigned by the platform itself, and the configuration of that.

The models are the shipped ones of one provider, all tiers, so that one wire format is compared. What an operator would
set for much work is set: limits on calls, quotas, and every answer is accepted, so that a task is one call.
"""

from __future__ import annotations

import random
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import yaml

from benchmarks.pipeline import lay_in_queue
from benchmarks.scoring import made_up_tasks
from cp_resources import migrate
from cp_resources.assigner import Assigner
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.scores import ScoreStore
from cp_resources.settings import PROJECT_ROOT

PROVIDER = "openai"
PLENTY = 10**7


def write_configuration(folder: Path, *, concurrency: int) -> Configuration:
    """The shipped configuration for `concurrency` calls at once, in `folder`."""
    shutil.copytree(PROJECT_ROOT / "config", folder)
    models = _read(folder / "models.yaml")
    models["providers"] = {PROVIDER: models["providers"][PROVIDER]}
    models["models"] = {
        name: {**model, "max_concurrency": concurrency}
        for name, model in models["models"].items()
        if model["provider"] == PROVIDER
    }
    models["subscriptions"] = {}
    models["budgets"] = {"api": {"window": "monthly", "usd": PLENTY}}
    policies = _read(folder / "policies.yaml")
    policies["execution"] |= {"concurrency": concurrency, "most_calls": concurrency, "success_quality": 0.0}
    (folder / "models.yaml").write_text(yaml.safe_dump(models))
    (folder / "policies.yaml").write_text(yaml.safe_dump(policies))
    return load_configuration(folder)


def prepare(url: str, configuration: Configuration, tasks: int) -> date:
    """A migrated database whose only day holds so many assigned tasks."""
    migrate.upgrade(url)
    database = Database(url)
    ledger = Ledger(database)
    ledger.open_accounts(configuration.registry)
    rows = made_up_tasks(random.Random(20240607)).iloc[:tasks]
    day = lay_in_queue(database, rows)
    ScoreStore(database).score_day(day, configuration)
    Assigner(database, ledger, configuration).assign_day(day)
    [(assigned,)] = database.fetch("SELECT count(*) FROM tasks WHERE state = 'assigned'")
    database.close()
    if assigned != tasks:
        raise SystemExit(f"only {assigned} of {tasks} tasks could be assigned")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")  # as autovacuum would have in the hours of real life
    return day


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content
