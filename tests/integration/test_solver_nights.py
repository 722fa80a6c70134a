"""Nights under a solver strategy, from submission to promotion: what outcomes show decides what is submitted next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from busy_days import add_day
from dagster import AssetKey, Definitions
from typer.testing import CliRunner
from worked_day import DAY, rows, run, submit

from benchmarks.pipeline import with_quota_for
from cp_cli.main import app
from cp_core.assignment.strategies import Strategy
from cp_core.learning.gates.verdict import REQUIRED
from cp_definitions import build_defs
from cp_resources.champion import ConfigurationStore
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.gate_results import GateResults
from cp_resources.settings import PROJECT_ROOT, Settings

TASKS = 160
COPIES = 5
NIGHT = [AssetKey("candidate_config"), AssetKey("calibrated_config"), AssetKey("learning_report")]
DAYS = [DAY + timedelta(days=number) for number in range(1, 7)]


def files() -> Configuration:
    """Shipped, with quota for all, under a strategy; tasks of days long past are no more urgent than others."""
    shipped = with_quota_for(Strategy.MAXIMIZE_VALUE, 10 * TASKS * len(DAYS))
    patient = shipped.policies.fairness.model_copy(update={"points_per_hour": 0.0, "overdue_hours": 1e6})
    return replace(shipped, policies=shipped.policies.model_copy(update={"fairness": patient}))


FILES = files()


def tasks(day: date) -> Iterator[dict[str, Any]]:
    """Tasks of all kinds and priorities."""
    for number, task in enumerate(rows(day, TASKS)):
        yield {
            **task,
            "title": f"{task['title']} of tenant {number}",
            "priority": f"P{number % 5}",
            "submitted_at": f"{day}T08:00:00Z",
            "dependencies": [],
        }


def definitions(database: Database, simulator_url: str, home: Path) -> Definitions:
    """The code location as a run of the moment would load it."""
    settings = Settings(home=home, simulator_url=simulator_url)
    return build_defs(
        database=database, settings=settings, configuration=ConfigurationStore(database).in_force(FILES)
    )


def test_what_outcomes_show_is_promoted_and_decides_what_is_submitted_next(database, simulator_url, tmp_path):
    submit(database, tasks(DAY), tmp_path)
    assert run(definitions(database, simulator_url, tmp_path), "process_queue", DAY).success
    for number, day in enumerate(DAYS):
        add_day(database, day, 1_000_000 * (number + 1), copies=COPIES, most=0.9, others=0.45)
    store = ConfigurationStore(database)

    for day in DAYS[2:]:
        assert run(
            definitions(database, simulator_url, tmp_path), "daily_learning", day, asset_selection=NIGHT
        ).success
        [(version,)] = database.fetch("SELECT config_hash FROM config_candidates WHERE day = %s", [day])
        found = GateResults(database).latest(version)
        # Whatever was promoted before, decisions of days before it go on to say something of what would be selected.
        assert found["selection_is_no_worse"].evidence["ess"] >= 100
    champion = store.pointers()["champion"]
    passed = GateResults(database).latest(champion)
    assert set(passed) == set(REQUIRED)
    assert all(verdict.has_passed for verdict in passed.values())

    following = DAYS[-1] + timedelta(days=1)
    submit(database, tasks(following), tmp_path)
    assert run(definitions(database, simulator_url, tmp_path), "process_queue", following).success
    assert database.fetch(
        "SELECT DISTINCT config_hash FROM assignments WHERE submission_day = %s", [following]
    ) == [(champion,)]


def told(database: Database, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """What `control-panel evaluate` says on a database."""
    monkeypatch.setenv("CP_DATABASE_URL", database.url)
    monkeypatch.setenv("CP_CONFIG_DIR", arguments[0])
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_what_another_configuration_would_have_earned_is_told_from_the_log(
    database, simulator_url, tmp_path, monkeypatch
):
    submit(database, tasks(DAY), tmp_path)
    assert run(definitions(database, simulator_url, tmp_path), "process_queue", DAY).success
    for number, day in enumerate(DAYS[:3]):
        add_day(database, day, 1_000_000 * (number + 1), copies=COPIES, most=0.9, others=0.45)
    written = tmp_path / "config"
    shutil.copytree(PROJECT_ROOT / "config", written)
    policies = (
        (written / "policies.yaml").read_text("utf-8").replace("strategy: tiered", "strategy: maximize_value")
    )
    (written / "policies.yaml").write_text(policies, "utf-8")

    same = told(database, monkeypatch, str(written), "--until", str(DAYS[2]), "--days", "3")

    assert same["decisions"] >= 1000
    assert same["agrees"] > 0.85  # but for what exploration drew
    for way in ("ips", "snips", "dr"):
        assert same[way]["low"] < same["earned"] < same[way]["high"] + 0.1 * abs(same["earned"])
    assert same["dr"]["ess"] >= 100

    other = CliRunner().invoke(app, ["evaluate", str(PROJECT_ROOT / "config")])
    assert other.exit_code != 0
    assert "tiered" in str(other.exception)
