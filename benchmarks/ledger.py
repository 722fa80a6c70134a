"""Claim: four writers on one account reserve and post 20,000 times a second, in batches of 100.

A pair is one reservation and its settlement; each batch is two transactions, one that reserves and one that posts.
The server is a real one with fsync on. The floor is the ledger without batches: the same calls with one task each.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from benchmarks.report import note, report
from cp_core.models.registry import ModelRegistry
from cp_resources import migrate
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.ledger import Ledger, Reservation, Settlement

SECONDS = 4.0
WRITERS = 4
GOAL = ">= 20000"
ACCOUNT = "budget/all"
AMOUNT = Decimal(1000)
USED = Decimal(800)

_REGISTRY = {
    "providers": {
        "local": {"wire": "openai-chat", "base_url": "http://127.0.0.1:1/v1", "api_key_env": "LOCAL_KEY"}
    },
    "models": {
        "one": {
            "provider": "local",
            "api_name": "one",
            "tier": "budget",
            "family": "local",
            "input_usd_per_million": 1,
            "output_usd_per_million": 1,
            "context_window": 1000,
            "max_output_tokens": 1000,
            "capability": dict.fromkeys(
                ("infrastructure", "backend", "ml", "frontend", "testing", "documentation"), 0.5
            ),
        }
    },
    "budgets": {"all": {"window": "monthly", "usd": 10**9}},
}


def main() -> None:
    """Measure every case on a database of its own."""
    with tempfile.TemporaryDirectory(prefix="control-panel-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # under root the server runs as another account
        with EmbeddedPostgres(home) as server:
            for batch, writers, goal in ((100, WRITERS, GOAL), (1000, WRITERS, None), (100, 1, None)):
                _measure(server, f"batch={batch},writers={writers}", _in_batches, batch, writers, goal)
            _measure(server, f"floor: one task a call,writers={WRITERS}", _in_batches, 1, WRITERS, None)
            _measure(server, f"floor: one UPDATE a task,writers={WRITERS}", _bare_updates, 1, WRITERS, None)


def _measure(
    server: EmbeddedPostgres,
    case: str,
    write: Callable[[str, int, float], int],
    batch: int,
    writers: int,
    goal: str | None,
) -> None:
    name = f"bench_{uuid4().hex}"
    server.create_database(name)
    url = server.url(name)
    migrate.upgrade(url)
    database = Database(url)
    ledger = Ledger(database)
    ledger.open_accounts(ModelRegistry.model_validate(_REGISTRY))
    pairs, seconds = _run(write, url, batch, writers)
    report("ledger", case, "pairs_per_second", pairs / seconds, "pairs/s", goal)
    if write is _in_batches and not ledger.verify().balanced:
        raise SystemExit(f"{case}: the ledger does not balance")
    note(f"{case}: {pairs:,} pairs in {seconds:.1f} s")
    database.close()


def _run(write: Callable[[str, int, float], int], url: str, batch: int, writers: int) -> tuple[int, float]:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(writers + 1)
    answers: Any = context.SimpleQueue()
    processes = [
        context.Process(target=_writer, args=(start, answers, write, url, batch)) for _ in range(writers)
    ]
    for process in processes:
        process.start()
    start.wait()
    begun = time.perf_counter()
    pairs = sum(answers.get() for _ in processes)
    seconds = time.perf_counter() - begun
    for process in processes:
        process.join()
    return pairs, seconds


def _writer(
    start: Barrier, answers: Any, write: Callable[[str, int, float], int], url: str, batch: int
) -> None:
    write(url, batch, 0.2)  # connects, prepares statements, fills caches
    start.wait()
    answers.put(write(url, batch, SECONDS))


def _in_batches(url: str, batch: int, seconds: float) -> int:
    database = Database(url, max_connections=1)
    ledger = Ledger(database)
    pairs = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        keys = [uuid4() for _ in range(batch)]
        with database.transaction() as connection:
            made = ledger.reserve(
                connection,
                [Reservation(key, {ACCOUNT: AMOUNT}, task=1) for key in keys],
                expires_in=timedelta(hours=1),
            )
        with database.transaction() as connection:
            ledger.settle(connection, [Settlement(key, {ACCOUNT: USED}) for key in keys])
        pairs += sum(made)
    database.close()
    return pairs


def _bare_updates(url: str, _batch: int, seconds: float) -> int:
    """No transfers, no idempotency: only the counters of the hot row, moved once a task and phase."""
    pairs = 0
    with psycopg.connect(url, autocommit=True) as connection:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.execute(
                """UPDATE cp.quota_accounts SET debits_pending = debits_pending + %(amount)s
                   WHERE account = %(account)s
                     AND credits_posted - debits_posted - debits_pending >= %(amount)s""",
                {"amount": AMOUNT, "account": ACCOUNT},
            )
            connection.execute(
                """UPDATE cp.quota_accounts SET debits_pending = debits_pending - %(amount)s,
                       debits_posted = debits_posted + %(used)s WHERE account = %(account)s""",
                {"amount": AMOUNT, "used": USED, "account": ACCOUNT},
            )
            pairs += 1
    return pairs


if __name__ == "__main__":
    main()
