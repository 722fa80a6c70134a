"""The platform's processes on this machine: started together, watched, and stopped without a trace.

PostgreSQL (unless CP_DATABASE_URL names a server), Dagster's webserver and daemon, and the simulator if it is
wanted. What they start in turn (code servers, run workers) is found by a mark in its environment.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import LiteralString, Self

import psutil
import psycopg

from cp_cli.dagster_home import environment, require_scale_out, write_dagster_yaml
from cp_resources.configuration import load_configuration
from cp_resources.connect import CONTROL_PANEL_DATABASE, dagster_storage_url, database_url
from cp_resources.dagster_api import DagsterApi
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.errors import UserError
from cp_resources.log_files import last_lines, open_log
from cp_resources.ports import LOOPBACK, free_port, is_free
from cp_resources.settings import PROJECT_ROOT, Settings

LOCK = "up.lock"
MARK = "CP_STACK"
"""Environment variable by which a process, and all that it starts, is known as part of a stack."""
READY_SECONDS = 180
"""How long Dagster may take to load the code location and to answer."""
STOP_SECONDS = 20
"""How long a process may end in its own way before it is killed, beyond what execution.drain_seconds gives a run."""
POLL_SECONDS = 0.1
DATABASE_CHECK_SECONDS = 2.0


class ProcessEndedError(UserError):
    """A process of the stack ended by itself. The text ends with the last lines of its log."""


class Stack:
    """All processes of one installation, for the length of a with-block.

    Args:
        settings: where the installation keeps its data, and which database it uses.
        port: port of Dagster's webserver on 127.0.0.1.
        webserver: whether to start the webserver.
        simulate: whether to start the simulator and send every provider's calls to it.
        simulator_seed: seed of the simulator's hidden truth.
        simulator_options: further options of `control-panel simulate`.

    Raises:
        UserError: on entering, when the configuration is wrong, a port is in use, another stack runs on the same
            home, or a process does not start.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        port: int = 3000,
        webserver: bool = True,
        simulate: bool = False,
        simulator_seed: int = 7,
        simulator_options: Sequence[str] = (),
    ) -> None:
        self.settings = settings
        self.webserver_url = f"http://{LOOPBACK}:{port}"
        self.simulator_url: str | None = None
        self.database_address = ""
        self.environment: dict[str, str] = {}
        self.logs = settings.home / "logs"
        self._port = port
        self._webserver = webserver
        self._simulate = simulate
        self._simulator_options = ["--seed", str(simulator_seed), *simulator_options]
        self._children: list[Child] = []
        self._server: EmbeddedPostgres | None = None
        self._server_checked = 0.0
        self._closing = ExitStack()
        self._hurry = False
        self._stop_seconds: float = STOP_SECONDS

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def check(self) -> None:
        """Make sure that every process lives; an embedded database server that died is started again.

        Raises:
            ProcessEndedError: one has ended.
        """
        for child in self._children:
            child.check()
        if self._server and time.monotonic() - self._server_checked > DATABASE_CHECK_SECONDS:
            self._server_checked = time.monotonic()
            if self._server.url(CONTROL_PANEL_DATABASE) != self.environment["CP_DATABASE_URL"]:
                raise ProcessEndedError(
                    "the embedded database server ended, and its port was taken before it could be started "
                    "again: start once more"
                )

    def _start(self) -> None:
        home = self.settings.home
        if self.settings.redis_url is not None:
            require_scale_out(self.settings)
        configuration = load_configuration(
            self.settings.config_dir
        )  # each run reads it anew: better said now
        self._stop_seconds = STOP_SECONDS + configuration.policies.execution.drain_seconds
        _make_folder(self.logs, "CP_HOME")
        _make_folder(self.settings.inbox, "CP_INBOX_DIR" if self.settings.inbox_dir else "CP_HOME")
        self._closing.enter_context(_only_one(home, self.webserver_url if self._webserver else None))
        # left by a stack that was killed
        _stop_processes(partial(processes_of, home), lambda: False, self._stop_seconds)
        if self._webserver:
            _require_free(self._port)
        if self.settings.database_url is None:
            self._server = self._closing.enter_context(EmbeddedPostgres(home))
        url = self._closing.enter_context(database_url(self.settings))
        dagster_url = dagster_storage_url(self.settings, url)
        self.database_address = Database(url).address
        self.environment = self._environment(url, dagster_url)
        # on a server of the owner's, runs may have their workers on other machines
        interrupted = _runs_in_progress(dagster_url) if self._server else []
        self._closing.callback(self._stop)
        if self._simulate:
            self._start_simulator()
        self._start_dagster(dagster_url, interrupted)

    def _start_simulator(self) -> None:
        port = free_port()
        self.simulator_url = self.environment["CP_SIMULATOR_URL"] = f"http://{LOOPBACK}:{port}"
        self._spawn("simulator", "cp_cli.main", "simulate", "--port", str(port), *self._simulator_options)
        self._wait_for("simulator", lambda: not is_free(port))

    def _start_dagster(self, dagster_url: str, interrupted: Sequence[str]) -> None:
        write_dagster_yaml(self.settings)
        began = time.time()
        workspace = ("-w", str(PROJECT_ROOT / "workspace.yaml"))
        if self._webserver:
            self._spawn("webserver", "dagster_webserver", "-h", LOOPBACK, "-p", str(self._port), *workspace)
        self._spawn("daemon", "dagster._daemon", "run", *workspace)
        if interrupted:
            self._run("interrupted-runs", "cp_sensors.interrupted_runs", *interrupted)
        if self._webserver:
            self._wait_for("webserver", lambda: _answers(f"{self.webserver_url}/server_info"))
            self._require_loaded()
        self._wait_for("daemon", lambda: _beats(dagster_url, since=began))

    def _require_loaded(self) -> None:
        """Fail with Dagster's own words when the code location does not load: nothing would run."""
        api = DagsterApi(self.webserver_url)
        error = api.load_error()
        api.close()
        if error:
            raise UserError(f"Dagster cannot load the platform: {error}\nMore in {self.logs}")

    def _environment(self, url: str, dagster_url: str) -> dict[str, str]:
        """What every process of the platform must know."""
        own = {name: value for name, value in os.environ.items() if name != MARK}
        return own | environment(self.settings, url, dagster_url)

    def _spawn(self, name: str, *arguments: str) -> Child:
        """Start `python -m ARGUMENTS` in a session of its own: Ctrl-C at the terminal is for us to handle."""
        log = self.logs / f"{name}.log"
        with open_log(log) as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=PROJECT_ROOT,
                env=self.environment | {MARK: _mark(self.settings.home, name)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def _run(self, name: str, *arguments: str) -> None:
        """Start a process that is to end well, and wait for that."""
        child = self._spawn(name, *arguments)
        self._wait_for(name, lambda: child.process.poll() == 0)
        self._children.remove(child)

    def _wait_for(self, name: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not condition():
            for child in self._children:
                child.check()
            if time.monotonic() > deadline:
                raise UserError(
                    f"the {name} is not ready after {READY_SECONDS} s; its last lines, from "
                    f"{self.logs / name}.log:\n{last_lines(self.logs / f'{name}.log')}"
                )
            time.sleep(POLL_SECONDS)

    def _stop(self) -> None:
        """Stop Dagster first and the simulator last, so that no run fails for want of an answer."""
        home = self.settings.home
        for names in (("webserver", "daemon", "interrupted-runs"), ("simulator",)):
            _stop_processes(partial(processes_of, home, names), lambda: self._hurry, self._stop_seconds)
        for child in self._children:
            child.process.wait()

    def _close(self) -> None:
        with _signals_heard_by(self._hear):
            self._closing.close()

    def _hear(self, *_: object) -> None:
        self._hurry = True  # who asks twice does not want to wait


@dataclass(frozen=True)
class Child:
    """A process that the stack started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise `ProcessEndedError` if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise ProcessEndedError(
                f"the {self.name} ended (exit code {code}); its last lines, from {self.log}:\n"
                f"{last_lines(self.log)}"
            )


def processes_of(home: Path, names: Sequence[str] | None = None) -> list[psutil.Process]:
    """The living processes of the stack of `home`, with all that they started, or those called `names`."""
    marks = {_mark(home.resolve(), name) for name in names} if names else None
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK, "")
            is_ours = mark in marks if marks else mark.startswith(_mark(home.resolve(), ""))
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def is_up(home: Path) -> bool:
    """Whether a stack runs on `home`, or has left processes behind."""
    lock = home / LOCK
    if not lock.exists():
        return False
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return bool(processes_of(home))


def webserver_url_of(home: Path) -> str | None:
    """Address of the webserver of the stack that runs on `home`, as it wrote it down; None without one."""
    lock = home / LOCK
    said = lock.read_text().strip().rpartition(", ")[2] if lock.exists() else ""
    return said if said.startswith("http") else None


def _mark(home: Path, name: str) -> str:
    return f"{home}:{name}"


def _make_folder(folder: Path, variable: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder}: {error.strerror}. Set {variable} to another folder"
        ) from error


@contextmanager
def _only_one(home: Path, webserver_url: str | None) -> Iterator[None]:
    """Hold the lock of the one stack that `home` may have."""
    with (home / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"the platform is already up on {home}: {lock.read().strip() or 'it just starts'}. Stop that "
                "one first, or set CP_HOME to another folder"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}, {webserver_url or 'without a webserver'}\n")
        lock.flush()
        yield


def _stop_processes(
    find: Callable[[], list[psutil.Process]], is_hurried: Callable[[], bool], seconds: float
) -> None:
    """Ask processes to end, and kill those that have not after `seconds`."""
    asked: set[int] = set()
    patience = time.monotonic() + seconds
    while processes := find():
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                if is_hurried() or time.monotonic() > patience:
                    process.kill()
                elif process.pid not in asked:
                    asked.add(process.pid)
                    process.terminate()
        time.sleep(POLL_SECONDS)


@contextmanager
def _signals_heard_by(handler: Callable[..., None]) -> Iterator[None]:
    """Let a second Ctrl-C or SIGTERM hurry the end along instead of breaking it off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _require_free(port: int) -> None:
    if not is_free(port):
        raise UserError(
            f"port {port} on {LOOPBACK} is in use by another program: choose another one with --port"
        )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 our own address
            return bool(response.status == 200)
    except OSError:
        return False


def _beats(dagster_url: str, *, since: float) -> bool:
    """Whether the sensor daemon has said that it lives."""
    query = "SELECT 1 FROM daemon_heartbeats WHERE daemon_type = 'SENSOR' AND timestamp >= %s"
    return bool(_ask_dagster(dagster_url, "daemon_heartbeats", query, datetime.fromtimestamp(since, UTC)))


def _runs_in_progress(dagster_url: str) -> list[str]:
    """Runs that count on a worker: before Dagster starts, that worker cannot be."""
    query = "SELECT run_id FROM runs WHERE status IN ('STARTING', 'STARTED', 'CANCELING')"
    return [run_id for (run_id,) in _ask_dagster(dagster_url, "runs", query)]


def _ask_dagster(dagster_url: str, table: str, query: LiteralString, *parameters: object) -> list[tuple[str]]:
    """The rows of a query on Dagster's storage; none while Dagster has not made its tables."""
    with psycopg.connect(dagster_url, options="-c timezone=UTC") as connection:
        if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
            return []
        return connection.execute(query, parameters).fetchall()
