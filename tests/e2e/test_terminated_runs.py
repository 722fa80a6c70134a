"""A run of process_queue that somebody terminates, or whose platform is stopped, while agents are at work."""

from __future__ import annotations

from pathlib import Path

import httpx
import psycopg
from pydantic import SecretStr
from real_workers import (
    DAY,
    agent,
    assert_nothing_is_held,
    attempts,
    processes_of_runs,
    submit,
    wait_until,
    write_configuration,
)

from cp_cli.stack import Stack
from cp_resources.dagster_api import DagsterApi
from cp_resources.database import Database
from cp_resources.ports import free_port
from cp_resources.settings import Settings

# An agent that does not end by being asked, nor does its child.
AGENT = """
import os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdin.read()
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE).stdout.readline()
Path("began").touch()
time.sleep(600)
"""
TERMINATE = """
mutation ($run: String!) { terminateRun(runId: $run) { __typename ... on PythonError { message } } }
"""
TASKS = {"t-1": "one", "t-2": "two", "t-3": "one", "t-4": "two"}


def run_states(url: str) -> list[tuple[str, str]]:
    """Id and status of each run of the job, oldest first."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT run_id, status FROM runs WHERE pipeline_name = 'process_queue' ORDER BY id"
        ).fetchall()


def assert_all_wait(database: Database, folder: Path, *, lost: int) -> None:
    """Nothing of any agent is left, and every task may be claimed by anybody."""
    assert processes_of_runs(folder) == []
    assert database.fetch("SELECT state, count(*) FROM tasks GROUP BY state") == [("assigned", len(TASKS))]
    assert [state for state, *_ in attempts(database).values()] == ["lost"] * lost
    assert database.fetch("SELECT count(*) FROM tasks WHERE available_at > clock_timestamp()") == [(0,)]
    assert_nothing_is_held(database)


def test_a_terminated_run_and_a_stopped_platform_leave_no_agent_and_no_lease(
    database: Database, database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    provider = agent(tmp_path, AGENT, ["one", "two"])
    settings = Settings(
        home=tmp_path / "home",
        config_dir=write_configuration(tmp_path / "config", provider, drain_seconds=1),
        database_url=SecretStr(database_url),
        dagster_database_url=SecretStr(empty_database_url),
    )
    submit(database, tmp_path, TASKS)
    began = [tmp_path / workspace / "began" for workspace in ("one", "two")]
    port = free_port()
    with Stack(settings, port=port) as stack:
        wait_until(lambda: all(path.exists() for path in began), "both agents' start", 90)
        assert len(processes_of_runs(tmp_path)) == 4
        [(run, _)] = run_states(empty_database_url)
        answer = httpx.post(
            f"{stack.webserver_url}/graphql", json={"query": TERMINATE, "variables": {"run": run}}, timeout=30
        ).json()
        assert answer["data"]["terminateRun"]["__typename"] == "TerminateRunSuccess", answer
        wait_until(lambda: run_states(empty_database_url) == [(run, "CANCELED")], "the run's end")
        assert_all_wait(database, tmp_path, lost=2)

        for path in began:
            path.unlink()
        api = DagsterApi(stack.webserver_url)
        api.launch("process_queue", DAY)
        api.close()
        wait_until(lambda: all(path.exists() for path in began), "both agents' start", 90)

    assert_all_wait(database, tmp_path, lost=4)
    assert database.fetch("SELECT ended FROM drains") == [("stopped",), ("stopped",)]
