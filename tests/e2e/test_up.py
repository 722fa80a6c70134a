"""`control-panel up` with its real processes: ready when it says so, gone without a trace when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from cp_cli.stack import Stack, processes_of
from cp_resources.clean import forget_data
from cp_resources.embedded_postgres import EmbeddedPostgres, is_used
from cp_resources.ports import free_port
from cp_resources.postgres_place import existing_place
from cp_resources.settings import PROJECT_ROOT, Settings

READY_SECONDS = 120
CONTROL_PANEL = [sys.executable, "-m", "cp_cli.main"]


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="control-panel-up-"))
    folder.chmod(0o755)
    yield folder
    for process in processes_of(folder):
        process.kill()
    forget_data(Settings(home=folder))
    shutil.rmtree(folder)


@pytest.fixture
def up(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `control-panel up` as a shell would: in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*CONTROL_PANEL, "up", *arguments],
            env=os.environ | {"CP_HOME": str(home), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def control_panel(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CONTROL_PANEL, *arguments],
        env=os.environ | {"CP_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def read_until_ready(process: subprocess.Popen[str]) -> str:
    """What `up` prints until it is ready."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("Ready."):
            return said
    raise AssertionError(f"up ended before it was ready: {said}")


def wait_until(condition: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


def listens_at(process: psutil.Process) -> set[str]:
    """Addresses a process listens at; none when it has ended since it was found."""
    try:
        connections = process.net_connections()
    except psutil.NoSuchProcess:
        return set()
    return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}


def postgres_processes(home: Path) -> list[psutil.Process]:
    place = existing_place(home)
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if place and str(place.cluster) in (process.info["cmdline"] or [])
        if process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def assert_nothing_is_left(home: Path) -> None:
    assert processes_of(home) == []
    assert postgres_processes(home) == []
    assert not is_used(home)


def test_up_is_ready_when_it_says_so_and_an_interrupt_leaves_nothing_behind(
    home: Path, up: Callable[..., subprocess.Popen[str]]
) -> None:
    port = free_port()
    running = up("--port", str(port))
    said = read_until_ready(running)

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=10) as response:
        assert response.status == 200
    assert f"http://127.0.0.1:{port}" in said
    assert (home / "inbox").is_dir()
    listening = {
        address
        for process in [*processes_of(home), *postgres_processes(home)]
        for address in listens_at(process)
    }
    assert listening == {"127.0.0.1"}

    second = control_panel(home, "up", "--port", str(free_port()))
    assert second.returncode == 2
    assert f"the platform is already up on {home}: process {running.pid}" in second.stderr
    refused = control_panel(home, "clean-data", "--yes")
    assert refused.returncode == 2
    assert "stop it first" in refused.stderr

    os.killpg(running.pid, signal.SIGINT)
    rest, _ = running.communicate(timeout=60)
    assert rest.endswith("Stopped.\n")
    assert running.returncode == 0
    place = existing_place(home)
    assert place is not None
    assert place.password.read_text() not in said + rest
    assert_nothing_is_left(home)

    forgotten = control_panel(home, "clean-data", "--yes")
    assert forgotten.returncode == 0
    assert not (home / "postgres").exists()


def test_a_port_in_use_is_named_with_the_way_out(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = control_panel(home, "up", "--port", str(port))

    assert done.returncode == 2
    assert f"error: port {port} on 127.0.0.1 is in use by another program" in done.stderr
    assert "--port" in done.stderr
    assert_nothing_is_left(home)


def test_a_mistake_in_the_configuration_is_said_before_anything_starts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PROJECT_ROOT / "config", tmp_path / "config")
    models = tmp_path / "config" / "models.yaml"
    models.write_text(models.read_text().replace("tier: premium", "tier: premum", 1))
    monkeypatch.setenv("CP_CONFIG_DIR", str(tmp_path / "config"))
    done = control_panel(home, "up")

    assert done.returncode == 2
    assert f"error: {models}:" in done.stderr
    assert "tier: Input should be 'premium'" in done.stderr
    assert list(home.iterdir()) == []


def test_an_inbox_that_cannot_be_is_said_before_anything_starts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("CP_INBOX_DIR", str(tmp_path / "a-file" / "inbox"))
    done = control_panel(home, "up")

    assert done.returncode == 2
    assert f"error: cannot make {tmp_path / 'a-file' / 'inbox'}: Not a directory" in done.stderr
    assert "CP_INBOX_DIR" in done.stderr
    assert not (home / "postgres").exists()


def test_code_that_does_not_load_is_said_so_before_anything_waits_for_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CP_DBT_PROJECT_DIR", str(tmp_path))
    done = control_panel(home, "up", "--port", str(free_port()))

    assert done.returncode == 2
    assert "error: Dagster cannot load the platform" in done.stderr
    assert str(tmp_path / "target" / "manifest.json") in done.stderr
    assert_nothing_is_left(home)


def test_a_process_that_ends_ends_the_others_and_is_named(
    home: Path, up: Callable[..., subprocess.Popen[str]]
) -> None:
    running = up("--no-webserver")
    read_until_ready(running)
    (daemon,) = [process for process in processes_of(home) if "dagster._daemon" in process.cmdline()]
    daemon.kill()
    said, _ = running.communicate(timeout=60)

    assert running.returncode == 1
    assert "the daemon ended (exit code -9); its last lines" in said
    assert str(home / "logs" / "daemon.log") in said
    assert_nothing_is_left(home)


def test_a_database_server_that_was_killed_is_started_again_under_the_running_platform(
    home: Path, up: Callable[..., subprocess.Popen[str]]
) -> None:
    running = up("--no-webserver")
    read_until_ready(running)
    (killed,) = [process for process in postgres_processes(home) if process.ppid() == running.pid]
    killed.kill()
    wait_until(lambda: any(p.pid != killed.pid for p in postgres_processes(home)), 60)
    with EmbeddedPostgres(home) as server, psycopg.connect(server.url("control_panel")) as connection:
        assert connection.execute("SELECT count(*) FROM cp.tasks").fetchone() == (0,)
    assert running.poll() is None

    running.terminate()
    running.communicate(timeout=60)
    assert_nothing_is_left(home)


KILLED_STACK = """
import sys, time
from pathlib import Path
from cp_cli.stack import Stack
from cp_resources.settings import Settings
slow = ("--latency-ms", "600000", "--latency-spread", "0")
with Stack(Settings(home=Path(sys.argv[1])), webserver=False, simulate=True, simulator_options=slow):
    time.sleep(600)
"""


def test_runs_of_a_platform_that_was_killed_do_not_stay_started_for_ever(home: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"id": "one", "title": "Fix the login", "priority": "P1", "labels": ["backend"]}\n')
    killed = subprocess.Popen([sys.executable, "-c", KILLED_STACK, str(home)], start_new_session=True)
    with EmbeddedPostgres(home) as server:
        wait_until(lambda: started_runs(server) is not None)
        assert control_panel(home, "submit", str(tasks)).returncode == 0
        wait_until(lambda: bool(started_runs(server)))
        (run_id,) = started_runs(server) or []
        killed.kill()
        killed.wait()
        assert processes_of(home) != [], "what it started should have outlived it"

        with Stack(Settings(home=home), webserver=False):
            assert run_status(server, run_id) == "FAILURE"
            assert not any("simulate" in process.cmdline() for process in processes_of(home))
    assert_nothing_is_left(home)


def started_runs(server: EmbeddedPostgres) -> list[str] | None:
    """Ids of runs that are under way; None while Dagster has not made its tables."""
    server.create_database("dagster")
    with psycopg.connect(server.url("dagster")) as connection:
        if connection.execute("SELECT to_regclass('runs')").fetchone() == (None,):
            return None
        rows = connection.execute("SELECT run_id FROM runs WHERE status = 'STARTED'").fetchall()
    return [run_id for (run_id,) in rows]


def run_status(server: EmbeddedPostgres, run_id: str) -> str:
    with psycopg.connect(server.url("dagster")) as connection:
        row = connection.execute("SELECT status FROM runs WHERE run_id = %s", (run_id,)).fetchone()
    assert row is not None
    return str(row[0])
