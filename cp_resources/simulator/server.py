"""Runs the simulator: one process or several behind one loopback socket."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

import uvicorn

from cp_resources.errors import UserError
from cp_resources.simulator.app import create_app
from cp_resources.simulator.options import Options

HOST = "127.0.0.1"
BACKLOG = 2048
START_SECONDS = 60
STOP_SECONDS = 5
KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection, so that the server is never the first to close it."""


class SimulatorError(UserError):
    """The simulator cannot start, or one of its processes died."""


def serve(options: Options, port: int, workers: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; call `ready` with the address once every process takes calls."""
    _check_journal(options.journal)
    with listening_socket(port) as listener, tempfile.TemporaryDirectory(prefix="simulator-") as folder:
        address = address_of(listener)
        state, started_at = Path(folder), time.time()
        _interrupt_on_signals()
        with contextlib.suppress(KeyboardInterrupt):
            if workers == 1:
                _Server(options, state, started_at, lambda: ready(address)).run(sockets=[listener])
            else:
                _serve_in_processes(options, state, started_at, listener, workers, lambda: ready(address))


@contextlib.contextmanager
def running(options: Options) -> Iterator[str]:
    """Serve from a thread while the context lasts, and give the address. For tests and benchmarks."""
    with listening_socket(0) as listener, tempfile.TemporaryDirectory(prefix="simulator-") as folder:
        started = threading.Event()
        server = _Server(options, Path(folder), time.time(), started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            if not started.wait(START_SECONDS):
                raise SimulatorError("the simulator's thread did not start; look above for its traceback")
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join(STOP_SECONDS)


def listening_socket(port: int) -> socket.socket:
    """Return a socket that listens on loopback; port 0 takes any free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        taken = (
            "is in use by another process" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
        )
        raise SimulatorError(
            f"port {port} on {HOST} {taken}; stop that process, or name another --port (0 takes any free one)"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the base address of the simulator on this socket."""
    return f"http://{HOST}:{listener.getsockname()[1]}"


class _Server(uvicorn.Server):
    """uvicorn's server that says when it takes calls, and is silent otherwise."""

    def __init__(self, options: Options, state: Path, started_at: float, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(options, state, started_at),
                http="httptools",
                ws="none",
                lifespan="on",
                log_level="critical",
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=2,
            )
        )
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _interrupt_on_signals() -> None:
    """Make both signals raise KeyboardInterrupt, also where a shell had SIGINT ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def _check_journal(path: Path | None) -> None:
    try:
        if path is not None:
            path.open("ab").close()
    except OSError as error:
        raise SimulatorError(
            f"the journal {path} cannot be written: {error.strerror}; name another --journal"
        ) from error


def _serve_in_processes(
    options: Options,
    state: Path,
    started_at: float,
    listener: socket.socket,
    workers: int,
    ready: Callable[[], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    processes = []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(options, state, started_at, listener, theirs))
            process.start()
            theirs.close()
            processes.append((process, ours))
        for process, ours in processes:
            _await_ready(process.pid, ours)
        ready()
        wait([process.sentinel for process, _ in processes])
        raise SimulatorError("a process of the simulator ended by itself; start the simulator again")
    finally:
        for process, _ in processes:
            process.terminate()
        for process, _ in processes:
            process.join(STOP_SECONDS)
            process.kill()


def _await_ready(pid: int | None, pipe: Connection) -> None:
    try:
        if pipe.poll(START_SECONDS):
            pipe.recv()
            return
    except EOFError:
        pass
    raise SimulatorError(f"process {pid} of the simulator did not start; look above for its traceback")


def _work(
    options: Options, state: Path, started_at: float, listener: socket.socket, pipe: Connection
) -> None:
    """Run one process of several; it ends with the process that started it."""
    _interrupt_on_signals()
    server = _Server(options, state, started_at, lambda: pipe.send(True))

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        server.should_exit = True

    threading.Thread(target=follow_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
