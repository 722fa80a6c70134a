"""`control-panel models rank` on a day that was worked and learned from."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from cp_resources.database import Database


def rank(database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cp_cli.main", "models", "rank", *arguments],
        env=os.environ | {"CP_DATABASE_URL": database.url, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_models_are_ranked_by_success_with_intervals(worked: Database):
    done = rank(worked, "--domain", "backend", "--complexity", "moderate", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    assert [row["success"] for row in rows] == sorted((row["success"] for row in rows), reverse=True)
    assert all(0 <= row["low"] <= row["success"] <= row["high"] <= 1 for row in rows)
    assert abs(sum(row["probability_best"] for row in rows) - 1) < 1e-9
    shown = rank(worked)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(row["model"] in shown.stdout for row in rows)


def test_what_is_not_known_or_not_there_yet_is_said(database: Database):
    unknown = rank(database, "--domain", "cooking")
    assert unknown.returncode == 2
    assert "'cooking' is not known; allowed are" in unknown.stderr
    nothing = rank(database)
    assert nothing.returncode == 2
    assert "materialize performance_metrics" in nothing.stderr
