"""The marts: what is in them, that a day is rewritten alone, and that their tests can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from worked_day import DAY, definitions, failed_checks, rows, run, submit

from cp_resources.database import Database
from cp_resources.dbt import credentials, one_at_a_time
from cp_resources.settings import PROJECT_ROOT

OTHER_DAY = date(2026, 3, 3)


def dbt(database: Database, *arguments: str) -> None:
    """Run dbt's own command line on a database."""
    with credentials(database), TemporaryDirectory() as target:
        ended = subprocess.run(
            [Path(sys.executable).with_name("dbt"), "--quiet", *arguments],
            cwd=PROJECT_ROOT / "dbt_project",
            env={**os.environ, "DBT_TARGET_PATH": target, "DBT_LOG_PATH": target},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def rewrite(database: Database, day: date) -> None:
    """Build one day of the marts, without their tests."""
    dbt(database, "run", "--vars", json.dumps({"day": str(day)}))


def attempts_by_day(database: Database) -> dict[date, int]:
    return dict(database.fetch("SELECT submission_day, count(*) FROM marts.executions GROUP BY 1"))


def execute(database: Database, *statements: str) -> None:
    with database.transaction() as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_run_rewrites_its_day_and_leaves_the_others_alone(worked, simulator_url, tmp_path):
    submit(worked, rows(OTHER_DAY, 4), tmp_path)
    run(definitions(worked, simulator_url, tmp_path), "process_queue", OTHER_DAY)
    assert set(attempts_by_day(worked)) == {DAY}

    rewrite(worked, OTHER_DAY)
    both = attempts_by_day(worked)
    assert set(both) == {DAY, OTHER_DAY}

    execute(
        worked,
        "UPDATE marts.executions SET cost_usd = 99",
        "DELETE FROM executions WHERE id = (SELECT max(id) FROM executions)",
    )
    rewrite(worked, OTHER_DAY)
    assert attempts_by_day(worked) == {DAY: both[DAY], OTHER_DAY: both[OTHER_DAY] - 1}
    marked = worked.fetch("SELECT DISTINCT submission_day FROM marts.executions WHERE cost_usd = 99")
    assert marked == [(DAY,)]

    # the first build of a mart takes every day there is
    execute(worked, "DROP SCHEMA marts CASCADE")
    rewrite(worked, DAY)
    assert set(attempts_by_day(worked)) == {DAY, OTHER_DAY}


def test_the_marts_agree_with_what_was_recorded(worked):
    assert worked.fetch("SELECT sum(tasks), sum(succeeded) FROM marts.queue_health_per_day") == [(16, 16)]
    assert worked.fetch("SELECT sum(cost_usd), sum(billed_usd) FROM marts.models_per_day") == worked.fetch(
        "SELECT sum(cost_usd), sum(billed_usd) FROM executions"
    )
    used = worked.fetch("SELECT account, used, still_reserved FROM marts.quota_use_per_day ORDER BY account")
    assert used == worked.fetch(
        """SELECT account, debits_posted, debits_pending FROM quota_accounts
           WHERE kind IN ('window', 'budget') AND debits_posted > 0 ORDER BY account"""
    )
    assert worked.fetch(
        """SELECT count(*) FROM marts.quota_use_per_day
           WHERE reserved + overrun <> used + returned + still_reserved"""
    ) == [(0,)]


def test_a_dbt_test_that_fails_is_a_failed_check_and_holds_back_the_metrics(worked, simulator_url, tmp_path):
    execute(worked, "UPDATE task_scores SET complexity = 'enormous'", "DELETE FROM performance_metrics")
    result = run(definitions(worked, simulator_url, tmp_path), "daily_learning", DAY, raise_on_error=False)
    assert not result.success
    assert failed_checks(result) == {"marts/executions:executions_complexity_is_known"}
    assert worked.fetch("SELECT count(*) FROM performance_metrics") == [(0,)]


def test_a_second_dbt_waits_until_the_first_is_through(database):
    began = threading.Event()

    def second() -> None:
        with one_at_a_time(database):
            began.set()

    thread = threading.Thread(target=second)
    with one_at_a_time(database):
        thread.start()
        while not database.fetch("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            assert thread.is_alive()
        assert not began.is_set()
    thread.join(timeout=10)
    assert began.is_set()


def test_dbt_gets_the_databases_credentials_and_leaves_no_trace_of_them(database):
    before = dict(os.environ)
    with credentials(database):
        assert os.environ["CP_DBT_DATABASE"] == psycopg.conninfo.conninfo_to_dict(database.url)["dbname"]
        assert os.environ["CP_DBT_PORT"] == str(psycopg.conninfo.conninfo_to_dict(database.url)["port"])
    assert dict(os.environ) == before


def test_the_project_is_parsed_without_a_database(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("CP_DBT_")]:
        monkeypatch.delenv(name)
    parsed = subprocess.run(
        [Path(sys.executable).with_name("dbt"), "--quiet", "parse"],
        cwd=PROJECT_ROOT / "dbt_project",
        env={
            **os.environ,
            "CP_DBT_PORT": "1",
            "DBT_TARGET_PATH": str(tmp_path),
            "DBT_LOG_PATH": str(tmp_path),
        },
        check=False,
    )
    assert parsed.returncode == 0
    assert (tmp_path / "manifest.json").exists()
