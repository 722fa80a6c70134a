"""An installation to break: a database, simulated models in a process of their own, a day's tasks, and workers.

`Installation.settled` holds what must be true afterwards, whatever was broken.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from fault_worker import Orders, run_process_queue, shipped_configuration, work

from cp_core.models.registry import ModelRegistry
from cp_resources.assigner import Assigner
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.scores import ScoreStore
from cp_resources.simulator.journal import lines
from cp_resources.worker import PREFETCH

DAY = date(2026, 3, 2)
PATIENCE_SECONDS = 150.0
POLL_SECONDS = 0.01
QUICK: dict[str, Any] = {
    "lease_seconds": 2,
    "heartbeat_seconds": 0.4,
    "drain_seconds": 5,
    "concurrency": 8,
    "backoff_base_seconds": 0.05,
    "backoff_cap_seconds": 0.2,
}
"""An execution policy under which what takes minutes takes seconds."""
FINAL = {"succeeded", "failed", "cancelled", "dead"}

# Workers are forked from a process that has imported what they need, so that starting thirty of them is quick.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["cp_resources.worker", "cp_resources.assigner", "cp_resources.scores"])

WorkerProcess = multiprocessing.context.ForkServerProcess


@dataclass(frozen=True)
class Books:
    """What the simulator's journal and the database say of the same calls.

    Attributes:
        calls: that the simulator served.
        attempts: rows of executions.
        lost: attempts whose lease ran out or was given back.
        late: lost ones whose answer came all the same, and was recorded and charged.
        unrecorded: calls that were billed, and of which the database knows only that the attempt was lost: their
            worker was dead by then.
    """

    states: Counter[str]
    calls: int
    attempts: int
    lost: int
    late: int
    unrecorded: int


class Installation:
    """A database with a day of tasks, simulated models, and workers; everything it starts ends with it."""

    def __init__(
        self,
        database_url: str,
        folder: Path,
        simulator_url: str,
        journal: Path,
        execution: dict[str, Any],
        staged: bool,
    ) -> None:
        self.database = Database(database_url)
        self.ledger = Ledger(self.database)
        self.configuration = shipped_configuration(execution, staged=staged)
        self._url = database_url
        self._folder = folder
        self._simulator_url = simulator_url
        self._journal = journal
        self._told = {"execution": execution, "staged": staged}
        self._workers: list[WorkerProcess] = []
        self._submitted = 0

    def submit(self, count: int, **fields: Any) -> None:
        """Have `count` tasks submitted, scored and assigned."""
        assert self.submit_file(self.task_file(count, **fields)).returncode == 0
        self.assign()
        assert self.states() == {"assigned": self._submitted}

    def assign(self) -> None:
        """Have assigned what waits for it."""
        ScoreStore(self.database).score_day(DAY, self.configuration)
        Assigner(self.database, self.ledger, self.configuration).assign_day(DAY)

    def task_file(self, count: int, **fields: Any) -> Path:
        """The file of the day's tasks."""
        self._submitted = count
        path = self._folder / "tasks.jsonl"
        topics = ("the login form", "the invoice export", "the search index", "the deployment script")
        tasks = [
            {
                "id": f"task-{number}",
                "title": f"Fix {topics[number % len(topics)]}",
                "description": f"Number {number} of what is wrong with {topics[number % len(topics)]}.",
                "priority": f"P{number % 5}",
                "submitted_at": f"{DAY}T09:00:00Z",
                **fields,
            }
            for number in range(count)
        ]
        path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
        return path

    def submit_file(self, path: Path) -> subprocess.CompletedProcess[str]:
        """Run `control-panel submit`."""
        return self.control_panel("submit", str(path))

    def control_panel(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "cp_cli.main", *words],
            env={**os.environ, "CP_DATABASE_URL": self._url, "CP_HOME": str(self._folder / "home")},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def worker(self, *, through: str | None = None, **orders: Any) -> WorkerProcess:
        """Start a worker.

        Args:
            through: another address of the same database.
            orders: see `fault_worker.Orders`.
        """
        told = Orders(
            through or self._url,
            self._simulator_url,
            DAY,
            self._next_log(),
            **self._told,
            **orders,
        )
        return self._started(work, told)

    def run(self) -> WorkerProcess:
        """Start a run of process_queue for the day."""
        told = Orders(self._url, self._simulator_url, DAY, self._next_log(), **self._told)
        return self._started(run_process_queue, told)

    def _started(self, job: Callable[[Orders], None], told: Orders) -> WorkerProcess:
        process = _processes.Process(target=job, args=(told,), daemon=True)
        process.start()
        self._workers.append(process)
        return process

    def _next_log(self) -> Path:
        return self._folder / f"worker-{len(self._workers)}.log"

    def log_of(self, worker: WorkerProcess) -> str:
        """What a worker has said so far."""
        path = self._folder / f"worker-{self._workers.index(worker)}.log"
        return path.read_text() if path.exists() else ""

    def calls(self) -> list[dict[str, Any]]:
        """The lines of the simulator's journal."""
        return list(lines(self._journal))

    def await_calls(self, count: int) -> None:
        """Wait until the simulator has served so many calls."""
        wait_until(lambda: len(self.calls()) >= count, f"call {count}")

    def await_end(self, worker: WorkerProcess) -> None:
        """Wait until a worker ends by itself, in good order."""
        worker.join(PATIENCE_SECONDS)
        assert worker.exitcode == 0, self.log_of(worker)

    def finish(self) -> None:
        """Have a sound worker do what is left of the day."""
        self.await_end(self.worker())

    def states(self) -> Counter[str]:
        """How many tasks are in each state."""
        return Counter(dict(self.database.fetch("SELECT state, count(*) FROM tasks GROUP BY state")))

    def stages(self) -> Counter[int]:
        """How many attempts ended with an answer, by the stage of their plan."""
        query = "SELECT stage, count(*) FROM executions WHERE quality IS NOT NULL GROUP BY stage"
        return Counter(dict(self.database.fetch(query)))

    def owners(self) -> set[str]:
        """Workers that hold leases."""
        return {owner for (owner,) in self.database.fetch("SELECT DISTINCT lease_owner FROM tasks")} - {None}

    def settled(self, *, deaths: int = 0) -> Books:
        """Check what must hold when the day is over, and give the figures.

        Every task is in one final state, which its attempts account for; nobody was told twice; the ledger balances
        and holds nothing back; every call that was served is an attempt, and costs what the simulator billed.

        Args:
            deaths: workers that were killed. Only they may leave calls unrecorded, each no more than it held.
        """
        states = self.states()
        assert states.keys() <= FINAL, states
        assert states.total() == self._submitted
        assert self.database.fetch(_CONTRADICTIONS) == []
        verified = self.control_panel("ledger", "verify")
        assert verified.returncode == 0, verified.stdout
        books = self._compare(states)
        assert books.unrecorded <= deaths * PREFETCH * self.configuration.policies.execution.concurrency
        self._check_charges()
        return books

    def _compare(self, states: Counter[str]) -> Books:
        attempts = {
            (task, attempt): dict(zip(_USED, used, strict=True))
            for task, attempt, *used in self.database.fetch(_ATTEMPTS)
        }
        calls = self.calls()
        served = {(call["task"], int(call["attempt"])): call for call in calls}
        assert len(served) == len(calls), "an attempt was made twice"
        assert served.keys() <= attempts.keys(), "a call is no attempt"
        unrecorded = 0
        for key, attempt in attempts.items():
            call = served.get(key)
            if attempt["state"] == "lost" and not attempt["late"]:
                unrecorded += call is not None and call["output_tokens"] > 0
                assert attempt["cost_usd"] == 0
                continue
            if attempt["state"] == "cancelled" and not attempt["output_tokens"]:
                call = None  # the call was broken off, perhaps when its answer was on the way
            billed = {name: call[name] if call else 0 for name in _TOKENS}
            assert {name: attempt[name] for name in _TOKENS} == billed, (key, call, attempt)
            price = _price(self.configuration.registry, attempt["model"], billed)
            assert abs(attempt["cost_usd"] - price) < Decimal("1e-9"), (key, call, attempt)
        lost = [attempt for attempt in attempts.values() if attempt["state"] == "lost"]
        late = sum(bool(attempt["late"]) for attempt in lost)
        return Books(states, len(calls), len(attempts), len(lost), late, unrecorded)

    def _check_charges(self) -> None:
        """What the accounts gave is what the attempts used: tokens once for each window, dollars of budgets."""
        windows = {
            f"subscription:{name}": len(subscription.windows)
            for name, subscription in self.configuration.registry.subscriptions.items()
        }
        used = self.database.fetch(
            "SELECT funding, sum(input_tokens + output_tokens), sum(cost_usd), sum(billed_usd) "
            "FROM executions GROUP BY funding"
        )
        tokens = sum(windows.get(funding, 0) * tokens for funding, tokens, _, _ in used)
        dollars = sum(cost for funding, _, cost, _ in used if funding not in windows)
        assert dollars == sum(billed for *_, billed in used)
        spent = self.database.fetch(
            "SELECT credits_posted, credits_pending FROM quota_accounts WHERE kind = 'spent' ORDER BY account"
        )
        assert spent == [(tokens, 0), (dollars, 0)]

    def close(self) -> None:
        """End every worker that still runs."""
        for process in self._workers:
            process.kill()
            process.join()
        self.database.close()


@contextmanager
def installation(
    database_url: str,
    folder: Path,
    *simulation: str,
    latency_ms: int = 60,
    staged: bool = False,
    **execution: Any,
) -> Iterator[Installation]:
    """An installation on an empty, migrated database.

    Args:
        simulation: further options of `control-panel simulate`.
        staged: whether every plan has two stages or three.
        execution: what differs from `QUICK`.
    """
    journal = folder / "journal.jsonl"
    journal.touch()
    command = [sys.executable, "-m", "cp_cli.main", "simulate", "--port", "0", "--journal", str(journal)]
    options = ["--latency-ms", str(latency_ms), "--failure-share", "0", "--refusal-share", "0", *simulation]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as simulator:
        try:
            assert simulator.stdout is not None
            url = simulator.stdout.readline().split()[-1]
            broken = Installation(database_url, folder, url, journal, {**QUICK, **execution}, staged)
            try:
                yield broken
            finally:
                broken.close()
        finally:
            simulator.kill()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, and fail when it takes longer than any machine needs."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up, f"{what} did not happen within {PATIENCE_SECONDS:g} s"
        time.sleep(POLL_SECONDS)


def _price(registry: ModelRegistry, name: str, tokens: dict[str, int]) -> Decimal:
    """List price of tokens as the journal counts them: the cached and the written ones are part of the input."""
    model = registry.model(name)
    fresh = tokens["input_tokens"] - tokens["cached_tokens"] - tokens["cache_write_tokens"]
    return (
        fresh * model.input_usd_per_million
        + tokens["cached_tokens"] * model.cached_input_usd_per_million
        + tokens["cache_write_tokens"] * model.cache_write_usd_per_million
        + tokens["output_tokens"] * model.output_usd_per_million
    ) / 1_000_000


_TOKENS = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens")
_USED = ("state", "late", "model", "cost_usd", *_TOKENS)
_ATTEMPTS = """
SELECT t.task_id, e.attempt::int, e.state, coalesce(e.evidence @> '{"late": true}', false), e.model, e.cost_usd,
    e.input_tokens, e.cached_tokens, e.cache_write_tokens, e.output_tokens
FROM executions e JOIN tasks t ON t.id = e.task
"""

# A task's attempts are numbered without a gap, have all ended, and exactly a task that succeeded has one that did,
# its last. It was told of once, and holds no quota.
_CONTRADICTIONS = """
SELECT t.task_id, t.state, t.attempts, made.states, told.notices, held.reservations
FROM tasks t
CROSS JOIN LATERAL (
    SELECT array_agg(state ORDER BY attempt) AS states, count(*) AS count, coalesce(max(attempt), 0) AS last,
        count(*) FILTER (WHERE state = 'running') AS running,
        count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
        coalesce(bool_or(state = 'succeeded' AND attempt = t.attempts), false) AS at_last
    FROM executions WHERE task = t.id
) made
CROSS JOIN LATERAL (
    SELECT count(*) AS notices FROM outbox WHERE task = t.id AND kind = 'completed'
) told
CROSS JOIN LATERAL (
    SELECT count(*) AS reservations FROM quota_transfers p
    WHERE p.task = t.id AND p.phase = 'pending'
        AND NOT EXISTS (SELECT FROM quota_transfers r WHERE r.pending_id = p.transfer_id)
) held
WHERE made.count <> t.attempts OR made.last <> t.attempts OR made.running > 0
    OR made.succeeded <> (t.state = 'succeeded')::int OR made.at_last <> (t.state = 'succeeded')
    OR told.notices <> 1 OR held.reservations > 0
"""
