"""A worker that is told to stop with commands and endpoints at work: what ends, what goes back, what is charged."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from real_workers import (
    agent,
    assert_nothing_is_held,
    attempts,
    processes_of_runs,
    start_drain,
    submit_assigned,
    wait_until,
    write_configuration,
)
from reference_worker import KEY, RESULT, Behaviour, ReferenceWorker
from stub_provider import evidence_block

from cp_resources.database import Database

PATIENT: dict[str, Any] = {"lease_seconds": 30, "heartbeat_seconds": 1}

# What an agent does follows from its task. The obstinate one and its children have to be killed; the polite one says
# what it had used; the quick one is done once the worker was told to stop.
AGENT = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
sys.stdin.read()
task = os.environ["CONTROL_PANEL_TASK"]
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"

def end(*_):
    print('{{"usage": {{"input_tokens": 3000, "output_tokens": 500}}}}', flush=True)
    sys.exit(0)

if task == "obstinate":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE).stdout.readline()
elif task == "polite":
    signal.signal(signal.SIGTERM, end)
Path(f"{{task}}.began").touch()
while not (task == "quick" and Path("../told").exists()):
    time.sleep(0.02)
print({evidence_block()!r})
print('{{"usage": {{"input_tokens": 1000, "output_tokens": 100}}}}')
"""


@contextmanager
def draining(*start: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = start_drain(*start)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def tell_to_stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """Send SIGTERM and wait until it was heard."""
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in log.read_text(), "the signal's being heard")


def task_states(database: Database) -> dict[str, tuple[str, int]]:
    """State and attempts by task."""
    rows = database.fetch("SELECT task_id, state, attempts::int FROM tasks")
    return {task: (state, attempts) for task, state, attempts in rows}


def test_commands_end_with_the_drain_as_groups_and_what_they_used_is_charged(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    provider = agent(tmp_path, AGENT, ["one", "two", "three"])
    config_dir = write_configuration(tmp_path / "config", provider, drain_seconds=2, **PATIENT)
    tasks = {"obstinate": "one", "polite": "two", "quick": "three", "waiting": "one"}
    submit_assigned(database, tmp_path, config_dir, tasks)
    log = tmp_path / "drain.log"

    with draining(database_url, tmp_path, config_dir) as process:
        for folder, task in (("one", "obstinate"), ("two", "polite"), ("three", "quick")):
            wait_until((tmp_path / folder / f"{task}.began").exists, f"the start of {task}")
        assert len(processes_of_runs(tmp_path)) == 5
        tell_to_stop(process, log)
        (tmp_path / "told").touch()
        assert process.wait(60) == -signal.SIGTERM, log.read_text()

    assert processes_of_runs(tmp_path) == []
    # The one that never began, as its folder was taken, has lost nothing by it.
    assert task_states(database) == {
        "quick": ("succeeded", 1),
        "obstinate": ("assigned", 1),
        "polite": ("assigned", 1),
        "waiting": ("assigned", 0),
    }
    made = attempts(database)
    assert {task: state for (task, _), (state, *_) in made.items()} == {
        "quick": "succeeded",
        "obstinate": "lost",
        "polite": "lost",
    }
    assert made["quick", 1][1:3] == (1000, 100)
    assert made["polite", 1][1:3] == (3000, 500)
    assert_nothing_is_held(database)


def test_what_a_killed_worker_leaves_running_ends_when_the_next_one_starts(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    provider = agent(tmp_path, AGENT, ["one"])
    short = {"lease_seconds": 2, "heartbeat_seconds": 0.5}
    config_dir = write_configuration(tmp_path / "config", provider, **short)
    submit_assigned(database, tmp_path, config_dir, {"quick": "one"})
    began = tmp_path / "one" / "quick.began"

    with draining(database_url, tmp_path, config_dir) as killed:
        wait_until(began.exists, "the first start")
        killed.kill()
    [orphan] = processes_of_runs(tmp_path)
    began.unlink()
    with draining(database_url, tmp_path, config_dir) as process:
        wait_until(began.exists, "the second start")
        [successor] = processes_of_runs(tmp_path)
        assert successor != orphan

        # a third worker ends nothing of one that lives
        with draining(database_url, tmp_path, config_dir) as third:
            wait_until(
                lambda: len(list((tmp_path / "home" / "commands").iterdir())) == 2, "the third's start"
            )
            assert processes_of_runs(tmp_path) == [successor]
            (tmp_path / "told").touch()
            assert (process.wait(60), third.wait(60)) == (0, 0)

    assert task_states(database) == {"quick": ("succeeded", 2)}
    assert processes_of_runs(tmp_path) == []
    assert list((tmp_path / "home" / "commands").iterdir()) == []
    assert_nothing_is_held(database)


@contextmanager
def endpoint(
    database: Database,
    tmp_path: Path,
    behaviour: Behaviour,
    monkeypatch: pytest.MonkeyPatch,
    **execution: Any,
) -> Iterator[tuple[ReferenceWorker, Path]]:
    """A task assigned to an HTTP worker."""
    monkeypatch.setenv("WORKER_KEY", KEY)
    with ReferenceWorker(behaviour) as reference:
        provider = {
            "wire": "endpoint",
            "base_url": reference.url,
            "api_key_env": "WORKER_KEY",
            "allow_addresses": ["127.0.0.1"],
        }
        config_dir = write_configuration(tmp_path / "config", provider, **execution, **PATIENT)
        submit_assigned(database, tmp_path, config_dir, {"t-1": "acme/web"})
        yield reference, config_dir


def is_polled(reference: ReferenceWorker) -> Callable[[], bool]:
    return lambda: "GET /tasks/17" in reference.events


def test_an_endpoint_that_ends_within_the_drain_is_asked_to_its_end(
    database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = Behaviour(polls=10**6)
    with (
        endpoint(database, tmp_path, behaviour, monkeypatch, drain_seconds=30) as (reference, config_dir),
        draining(database_url, tmp_path, config_dir) as process,
    ):
        wait_until(is_polled(reference), "the first look")
        tell_to_stop(process, tmp_path / "drain.log")
        behaviour.polls = 0  # it is done now
        assert process.wait(60) == -signal.SIGTERM
        assert [event for event in reference.events if not event.startswith("GET")] == ["POST /tasks"]

    assert task_states(database) == {"t-1": ("succeeded", 1)}
    assert attempts(database)["t-1", 1][:3] == ("succeeded", 2000, 300)
    assert_nothing_is_held(database)


def test_an_endpoint_that_outlasts_the_drain_is_told_to_stop_and_what_it_used_is_charged(
    database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = Behaviour(
        polls=10**6, called_off={"usage": {"input_tokens": 700, "output_tokens": 30}}, result=RESULT
    )
    with (
        endpoint(database, tmp_path, behaviour, monkeypatch, drain_seconds=1) as (reference, config_dir),
        draining(database_url, tmp_path, config_dir) as process,
    ):
        wait_until(is_polled(reference), "the first look")
        tell_to_stop(process, tmp_path / "drain.log")
        assert process.wait(60) == -signal.SIGTERM
        assert reference.events.count("DELETE /tasks/17") == 1
        assert reference.events[-1] == "DELETE /tasks/17"

    assert task_states(database) == {"t-1": ("assigned", 1)}
    assert attempts(database)["t-1", 1][:3] == ("lost", 700, 30)
    assert_nothing_is_held(database)
