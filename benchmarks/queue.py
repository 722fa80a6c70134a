"""Claim: claiming and completing tasks costs little more than the least SQL that does the same, and less than peers.

Eight workers, each a process, claim and complete batches of 100 through the `ExecutionStore` until the queue is empty,
on a real server with fsync on. Beside them, on the same server and in turns: a hand-written floor that leaves the
same rows (see `queue_cases/floor.py` for what it leaves out), a bare floor without executions, ledger and notices,
and two well-known queues for Python, each at its best setting. The peers keep neither ledger nor executions.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.queue_cases import platform
from benchmarks.report import note, report
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.ledger import Ledger

TASKS = 20_000
ROUNDS = 3
WORKERS = 8
PATIENCE_SECONDS = 120
"""A worker that takes longer has died: its error stands above."""
HOW_TO_INSTALL = "`make bench` installs it, or: pip install --require-hashes -r requirements/bench.txt"


@dataclass(frozen=True)
class Case:
    """One way to drain a queue: a module of `queue_cases`, and a function of it.

    Attributes:
        share: of the tasks; slow peers get fewer, so that a round does not take minutes.
        needs: package of the index that it is about.
    """

    name: str
    module: str
    function: str = "drain"
    workers: int = WORKERS
    share: float = 1.0
    needs: str | None = None


PLATFORM = Case(f"batches of {platform.BATCH}, {WORKERS} workers", "platform")
FLOOR = Case("floor", "floor")
BARE_FLOOR = Case("bare floor", "floor", "drain_bare")
PEERS = {
    Case("pgqueuer", "pgqueuer_peer", workers=4, needs="pgqueuer"): ">= 2",
    Case("procrastinate", "procrastinate_peer", workers=4, share=0.1, needs="procrastinate"): ">= 10",
}


def main() -> None:
    """Measure every case a few times, in turns, and compare medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-peers", action="store_true", help="only the platform and its floors")
    arguments = parser.parse_args()
    peers = {} if arguments.no_peers else {case: goal for case, goal in PEERS.items() if _is_installed(case)}
    rates: dict[Case, list[float]] = {case: [] for case in (PLATFORM, FLOOR, BARE_FLOOR, *peers)}
    with tempfile.TemporaryDirectory(prefix="control-panel-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # under root the server runs as another account
        with EmbeddedPostgres(home) as server:
            for _ in range(arguments.rounds):
                for case, measured in rates.items():
                    measured.append(_rate(server, case, int(arguments.tasks * case.share)))
    _tell({case: statistics.median(measured) for case, measured in rates.items()}, peers)


def _is_installed(case: Case) -> bool:
    if case.needs is None or find_spec(case.needs):
        return True
    note(f"{case.needs} is not installed, so it is left out: {HOW_TO_INSTALL}")
    return False


def _tell(rates: dict[Case, float], peers: dict[Case, str]) -> None:
    for case, rate in rates.items():
        report("queue", case.name, "tasks_per_second", rate, "tasks/s")
    own = rates[PLATFORM]
    report("queue", PLATFORM.name, "floor_ratio", own / rates[FLOOR], "ratio", ">= 0.8")
    for case, goal in peers.items():
        report("queue", case.name, "peer_ratio", own / rates[case], "ratio", goal)


def _rate(server: EmbeddedPostgres, case: Case, tasks: int) -> float:
    name = f"bench_{uuid4().hex}"
    server.create_database(name)
    url = server.url(name)
    _module(case).prepare(url, tasks)
    done, seconds = _run(case, url)
    if done != tasks:
        raise SystemExit(f"{case.name}: {done} of {tasks} tasks were done")
    if case is PLATFORM or case is FLOOR:
        _verify(url, case)
    note(f"{case.name}: {done:,} tasks in {seconds:.2f} s, {done / seconds:,.0f} a second")
    return done / seconds


def _verify(url: str, case: Case) -> None:
    database = Database(url, max_connections=1)
    if not Ledger(database).verify().balanced:
        raise SystemExit(f"{case.name}: the ledger does not balance")
    database.close()


def _run(case: Case, url: str) -> tuple[int, float]:
    """Tasks done, and seconds from the common start to the last one done."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(case.workers + 1)
    answers: Any = context.Queue()
    processes = [
        context.Process(target=_worker, args=(case, url, worker, start, answers), daemon=True)
        for worker in range(case.workers)
    ]
    for process in processes:
        process.start()
    start.wait(PATIENCE_SECONDS)
    begun = time.time()
    ends = [answers.get(timeout=PATIENCE_SECONDS) for _ in processes]
    for process in processes:
        process.join()
    return sum(done for done, _ in ends), max(ended for _, ended in ends) - begun


def _worker(case: Case, url: str, worker: int, start: Barrier, answers: Any) -> None:
    answers.put(getattr(_module(case), case.function)(url, worker, start))


def _module(case: Case) -> Any:
    return importlib.import_module(f"benchmarks.queue_cases.{case.module}")


if __name__ == "__main__":
    main()
