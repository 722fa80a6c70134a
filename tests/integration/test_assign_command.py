"""`control-panel assign` against a real PostgreSQL and the configuration that ships."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from cp_cli.main import run
from cp_core.assignment.policy import AssignmentPolicy
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import PROJECT_ROOT
from cp_resources.tasks import NewTask, TaskStore


class Printed(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Printed]:
    """Run `control-panel ARGUMENTS` on the test's database."""
    monkeypatch.setenv("CP_DATABASE_URL", database.url)

    def invoke(*arguments: str) -> Printed:
        monkeypatch.setattr(sys, "argv", ["control-panel", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        out, err = capsys.readouterr()
        return Printed(int(ended.value.code or 0), out, err)

    return invoke


def submit(database: Database, task_id: str, **changes: object) -> None:
    """The worked example of the value score: a P0 security hotfix, 3 files, backend, production: 78.65."""
    fields = {
        "task_id": task_id,
        "idempotency_key": None,
        "submitted_at": datetime(2026, 3, 4, 12, tzinfo=UTC),
        "priority": 0,
        "workspace": "shop",
        "deadline": None,
        "dependencies": None,
        "max_attempts": 3,
        "title": "Escape the name in the login answer",
        "description": "An attacker can inject markup.",
        "labels": ["security", "hotfix", "backend"],
        "estimated_files": 3,
        "estimated_lines": None,
        "workspace_files": None,
        "extra": None,
        **changes,
    }
    TaskStore(database).insert([NewTask(**fields)])


def state(database: Database, task_id: str) -> str:
    [(found,)] = database.fetch("SELECT state FROM tasks WHERE task_id = %s", [task_id])
    return found


def test_a_new_task_is_scored_assigned_and_explained(database, command):
    submit(database, "hotfix")
    printed = command("assign", "hotfix", "--explain")
    assert (printed.code, printed.err) == (0, "")
    lines = printed.out.splitlines()
    assert lines[0].startswith("hotfix: assigned to ")
    assert "paid by subscription:" in lines[0]
    assert lines[1].startswith(
        "reserves 31,000 tokens of "
    )  # 27,500 in and 3,500 out, a moderate task's prior
    assert lines[2] == (
        "value score 78.65 (backend): band 75 to below 90 allows premium or mid-premium, subscription first"
    )
    assert "may be given, most preferred first:" in lines
    assert state(database, "hotfix") == "assigned"
    assert any(account.pending == 31_000 for account in Ledger(database).accounts())


def test_an_assigned_task_shows_the_decision_it_has(database, command):
    submit(database, "hotfix")
    first = command("assign", "hotfix").out.splitlines()
    again = command("assign", "hotfix").out.splitlines()
    assert again[0] == f"{first[0]} (decided before; the task is assigned now)"
    assert again[1] == first[1]
    assert database.fetch("SELECT count(*) FROM assignments") == [(1,)]


def test_a_dry_run_reserves_nothing_and_stores_no_decision(database, command):
    submit(database, "hotfix")
    printed = command("assign", "hotfix", "--dry-run")
    assert "(dry run: nothing was reserved, no decision stored)" in printed.out
    assert state(database, "hotfix") == "queued"
    assert database.fetch("SELECT count(*) FROM assignments") == [(0,)]
    assert all(account.pending == 0 for account in Ledger(database).accounts())


def test_json_holds_the_plan_and_the_explanation(database, command):
    submit(database, "hotfix")
    printed = json.loads(command("assign", "hotfix", "--json").out)
    assert (printed["task_id"], printed["state"], printed["outcome"]) == ("hotfix", "assigned", "assigned")
    assert printed["plan"][0]["model"] == printed["explanation"]["candidates"][0]["model"]
    assert printed["explanation"]["value_score"] == pytest.approx(78.65)


def test_a_task_that_waits_says_what_it_waits_for(database, command):
    submit(database, "hotfix", dependencies=["groundwork"])
    printed = command("assign", "hotfix", "--explain")
    assert printed.code == 0
    assert printed.out.startswith(
        "hotfix: deferred: DEPENDENCY_PENDING, a task that it depends on has not succeeded yet\n"
    )
    assert "depends on: groundwork" in printed.out.splitlines()


def test_an_unknown_task_is_one_clear_sentence(command):
    printed = command("assign", "nobody")
    assert (printed.code, printed.out) == (2, "")
    assert printed.err == "error: no task has the id 'nobody': submit it first, or check the spelling\n"


def test_the_policy_that_ships_is_the_written_one():
    assert load_configuration(PROJECT_ROOT / "config").policies.assignment == AssignmentPolicy()


def test_a_decision_at_prices_is_explained_as_text_and_as_json(
    database: Database, command: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    submit(database, "T1")
    shutil.copytree(PROJECT_ROOT / "config", tmp_path / "config")
    policies = tmp_path / "config" / "policies.yaml"
    policies.write_text(policies.read_text().replace("strategy: tiered", "strategy: maximize_value"))
    monkeypatch.setenv("CP_CONFIG_DIR", str(tmp_path / "config"))
    text = command("assign", "T1", "--explain", "--dry-run").out
    assert "strategy maximize_value" in text
    assert "chosen:\n" in text
    assert "next best:\n" in text
    assert "why: " in text
    told = json.loads(command("assign", "T1", "--json").out)
    assert told["outcome"] == "assigned"
    assert {"success", "list_usd", "seconds", "worth", "net"} <= told["explanation"]["plan"].keys()
    assert len(told["explanation"]["alternatives"]) == 3
    shown = json.loads(command("assign", "T1", "--json").out)
    assert (shown["is_new"], shown["plan"], shown["explanation"]) == (
        False,
        told["plan"],
        told["explanation"],
    )
