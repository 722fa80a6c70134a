"""Claim: a day drains at 30,000 tasks a minute on four cores, in at most 1.3 times what bare HTTP calls take, in memory
that does not grow with the number of tasks, and faster with several drains at once.

The tasks were submitted, scored and assigned before. What is measured is the run of process_queue as Dagster executes
it within a process, checks and metadata included, against the simulator on this machine; start and imports are not. The
database is an embedded server with fsync on. In turns with it, in one process as well: a loop over httpx that makes the
same calls, as many at once, and keeps nothing. `bare_http_ratio` is the run's wall over the loop's.

The loop has a client of httpx for each connection, which is httpx at its best: one client with a pool of 256
connections looks through all of them at every call and is about ten times slower; it is measured on fewer calls.

The configuration is the shipped one but for `drain_cases/day.py`. CPU seconds tell who used what.

    python -m benchmarks.drain [--tasks 20000] [--rounds 3] [--drains 1 2 4]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import uuid4

import psutil
import psycopg

from benchmarks.drain_cases import day as prepared
from benchmarks.report import note, report
from cp_core.execution.prompt import chat_prompt
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.ledger import Ledger
from cp_resources.settings import PROJECT_ROOT

TASKS = 20_000
FEWER = 4
"""Memory at so many times fewer tasks is compared."""
FEWER_FOR_THE_POOL = 10
DRAINS = (1, 2, 4)
CONCURRENCY = 256
LATENCY_MS = 100
ROUNDS = 3
SIMULATORS = 2
GOALS = {"bare_http_ratio": "<= 1.3", "tasks_per_minute": ">= 30000", "memory_ratio": "<= 1.15"}
_TASKS = """
SELECT model, title, description, workspace, labels
FROM cp.tasks JOIN cp.task_payloads ON task_payloads.task = tasks.id ORDER BY value_score DESC, tasks.id
"""


@dataclass(frozen=True)
class Bench:
    """What all cases share.

    Attributes:
        simulator: its process and its address.
        server_process: the server's first process.
    """

    server: EmbeddedPostgres
    server_process: psutil.Process
    simulator: tuple[psutil.Process, str]
    folder: Path
    configuration: Configuration

    def database_url(self, tasks: int) -> str:
        """A new database with so many assigned tasks."""
        template, name = f"day_of_{tasks}", f"bench_{uuid4().hex}"
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [template]).fetchone()
        if not known:
            self.server.create_database(template)
            prepared.prepare(self.server.url(template), self.configuration, tasks)
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.server.url(name)


@dataclass(frozen=True)
class Measured:
    """What a case took.

    Attributes:
        seconds: from the common start to the end of the last process.
        cpu_seconds: by who used them.
        peak_bytes: of each process.
    """

    tasks: int
    seconds: float
    cpu_seconds: Mapping[str, float]
    said: Sequence[Mapping[str, float]]

    @property
    def peak_bytes(self) -> float:
        """Most memory that one of the processes held."""
        return max(one["peak_bytes"] for one in self.said)

    @property
    def per_minute(self) -> float:
        """Tasks a minute."""
        return 60 * self.tasks / self.seconds


def main() -> None:
    """Measure the run and the bare loops, then memory, then several drains at once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--drains", type=int, nargs="*", default=DRAINS, help="runs at once on one queue")
    arguments = parser.parse_args()
    with _bench() as bench:
        few = _drain(bench, max(1, arguments.tasks // FEWER), 1)
        rounds = [
            (_drain(bench, arguments.tasks, 1), _bare(bench, arguments.tasks, CONCURRENCY))
            for _ in range(arguments.rounds)
        ]
        _tell_rounds(rounds)
        _tell_memory(rounds[0][0], few)
        pool = _bare(bench, max(1, arguments.tasks // FEWER_FOR_THE_POOL), 1)
        _tell_bare("bare httpx loop, one client", [pool])
        for drains in arguments.drains:
            several = _drain(bench, arguments.tasks, drains)
            case = f"{drains} at once on one queue, {several.tasks} tasks"
            report("drain", case, "tasks_per_minute", several.per_minute, "tasks/min")


def _tell_rounds(rounds: Sequence[tuple[Measured, Measured]]) -> None:
    """The run beside the bare loop that had its turn after it: medians over the rounds."""
    runs = [run for run, _ in rounds]
    case = f"process_queue, {runs[0].tasks} tasks"
    ratio = median(run.seconds / bare.seconds for run, bare in rounds)
    report("drain", case, "bare_http_ratio", ratio, "ratio", GOALS["bare_http_ratio"])
    rate = median(run.per_minute for run in runs)
    report("drain", case, "tasks_per_minute", rate, "tasks/min", GOALS["tasks_per_minute"])
    report("drain", case, "run_seconds", median(run.seconds for run in runs), "s")
    report("drain", case, "drain_seconds", median(run.said[0]["drain_seconds"] for run in runs), "s")
    for name in runs[0].cpu_seconds:
        used = median(1000 * run.cpu_seconds[name] / run.tasks for run in runs)
        report("drain", f"{case}, {name}", "cpu_seconds_per_1000_tasks", used, "s")
    _tell_bare("bare httpx loop, a client for each connection", [bare for _, bare in rounds])


def _tell_bare(case: str, loops: Sequence[Measured]) -> None:
    report("drain", case, "calls_per_minute", median(loop.per_minute for loop in loops), "calls/min")
    used = median(1000 * loop.cpu_seconds["worker"] / loop.tasks for loop in loops)
    report("drain", case, "cpu_seconds_per_1000_calls", used, "s")


def _tell_memory(run: Measured, few: Measured) -> None:
    for one in (few, run):
        peak = one.peak_bytes / 2**20
        report("drain", f"process_queue, {one.tasks} tasks", "peak_memory", peak, "MiB")
    case, ratio = f"{run.tasks} against {few.tasks} tasks", run.peak_bytes / few.peak_bytes
    report("drain", case, "memory_ratio", ratio, "ratio", GOALS["memory_ratio"])


def _drain(bench: Bench, tasks: int, drains: int) -> Measured:
    url = bench.database_url(tasks)
    environment = {
        "CP_HOME": str(bench.folder / "home"),
        "CP_CONFIG_DIR": str(bench.folder / "config"),
        "CP_DATABASE_URL": url,
        "CP_SIMULATOR_URL": bench.simulator[1],
    }
    database = Database(url, max_connections=1)
    [(day,)] = database.fetch("SELECT DISTINCT submission_day FROM tasks")
    measured = _timed(bench, tasks, ["benchmarks.drain_cases.run", str(day)], drains, environment)
    states = dict(database.fetch("SELECT state, count(*) FROM tasks GROUP BY state"))
    [(attempts,)] = database.fetch("SELECT count(*) FROM executions")
    balanced = Ledger(database).verify().balanced
    database.close()
    if states != {"succeeded": tasks} or attempts != tasks or not balanced:
        raise SystemExit(f"{drains} drains: {states}, {attempts} attempts, ledger balanced: {balanced}")
    return measured


def _bare(bench: Bench, tasks: int, clients: int) -> Measured:
    bodies = bench.folder / f"bodies-{tasks}.jsonl"
    if not bodies.exists():
        _write_bodies(bench.database_url(tasks), bench.configuration, bodies)
    url = f"{bench.simulator[1]}/{prepared.PROVIDER}/v1/chat/completions"
    command = ["benchmarks.drain_cases.bare", str(bodies), url, str(CONCURRENCY), str(clients)]
    return _timed(bench, tasks, command, 1, {})


def _write_bodies(url: str, configuration: Configuration, path: Path) -> None:
    """The bodies of the calls that the platform makes, one a line."""
    database = Database(url, max_connections=1)
    with path.open("w") as file:
        for model, *texts in database.fetch(_TASKS):
            prompt = chat_prompt(*texts)
            body = {
                "model": configuration.registry.model(model).api_name,
                "messages": [
                    {"role": "system", "content": prompt.prefix},
                    {"role": "user", "content": prompt.user},
                ],
                "max_completion_tokens": configuration.policies.execution.output_tokens_floor,
            }
            file.write(json.dumps(body) + "\n")
    database.close()


def _timed(
    bench: Bench, tasks: int, command: Sequence[str], processes: int, environment: Mapping[str, str]
) -> Measured:
    """Start the processes, let them begin together, and wait for what they say."""
    with ExitStack() as open_:
        started = [
            open_.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", *command],
                    cwd=PROJECT_ROOT,
                    env=os.environ | environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(processes)
        ]
        for process in started:
            _line(process)
        before, began = _cpu_seconds(bench), time.perf_counter()
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = [json.loads(_line(process)) for process in started]
        seconds, after = time.perf_counter() - began, _cpu_seconds(bench)
    used = {name: after[name] - before[name] for name in after}
    used["worker"] = sum(one["cpu_seconds"] for one in said)
    note(f"{' '.join(command[:1])} x {processes}: {tasks:,} in {seconds:.1f} s; CPU seconds {used}")
    return Measured(tasks, seconds, used, said)


def _line(process: subprocess.Popen[str]) -> str:
    """What a process says next; a process that says nothing has failed, and said why on standard error."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args} ended with exit code {process.wait()}: see above")
    return line


def _cpu_seconds(bench: Bench) -> dict[str, float]:
    return {
        "postgres": _family_seconds(bench.server_process),
        "simulator": _family_seconds(bench.simulator[0]),
    }


def _family_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and all its children, also those that have ended."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


@contextmanager
def _bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="control-panel-bench-") as name, ExitStack() as open_:
        folder = Path(name)
        folder.chmod(0o755)  # under root the server runs as another account
        configuration = prepared.write_configuration(folder / "config", concurrency=CONCURRENCY)
        server = open_.enter_context(EmbeddedPostgres(folder))
        with psycopg.connect(server.url("postgres")) as connection:
            backend = psutil.Process(connection.info.backend_pid)
            postmaster = backend.parent()
        if postmaster is None:
            raise SystemExit("the server's processes cannot be seen from here")
        simulator = open_.enter_context(_simulator())
        yield Bench(server, postmaster, simulator, folder, configuration)


@contextmanager
def _simulator() -> Iterator[tuple[psutil.Process, str]]:
    options = ["--port", "0", "--workers", str(SIMULATORS), "--latency-ms", str(LATENCY_MS)]
    weather = ["--failure-share", "0", "--refusal-share", "0"]
    command = [sys.executable, "-m", "cp_cli.main", "simulate", *options, *weather]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield psutil.Process(process.pid), _line(process).split()[1]
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
