"""Claim: one task is decided in a millisecond, and with its reservation in the ledger in 15, a hundred times a second.

Without database: features, prices and balances go in and a decision with its explanation comes out; every task differs,
and nothing is remembered. With reservation: a planner beside a real server with fsync on; decisions begin at a fixed
rate whether or not those before have ended, and each latency counts from the time it should have begun. The floor is
the same at the same rate with a transaction that does nothing. One process with WORKERS threads decides; its CPU time,
without the server's, is told beside the latencies.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from psycopg.types.json import Jsonb

from benchmarks.report import note, report
from cp_core.assignment.cache import PlannerCache
from cp_core.assignment.calibration import Calibration
from cp_core.assignment.inline import Answer, Circumstances, Desk
from cp_core.assignment.market import Catalogue
from cp_core.assignment.strategies import Strategy
from cp_core.quota.account import Account
from cp_core.scoring.config import Complexity, Domain
from cp_resources import migrate
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.ledger import Ledger
from cp_resources.planner import Planner
from cp_resources.settings import PROJECT_ROOT

DECISIONS = 5_000
RATE = 100
SECONDS = 10
WORKERS = 4
WARM_UP = 100
DAY = date(2026, 3, 4)
TOKENS = {"simple": (7_500, 1_250), "moderate": (27_500, 3_500), "complex": (70_000, 10_000)}
PRICES_A_MILLION = 40.0  # value points of a million prepaid tokens
GENEROUS = 10_000  # times the quota, so that it lasts for every decision


def main() -> None:
    """Measure every case."""
    config = _configuration(Strategy.MAXIMIZE_VALUE)
    _without_database(config, "decide without database", remember=False, goal="<= 1")
    _without_database(config, "decide without database, equal tasks remembered", remember=True)
    _without_database(_configuration(Strategy.TIERED), "decide without database, tiered", remember=False)
    with tempfile.TemporaryDirectory(prefix="control-panel-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # under root the server runs as another account
        with EmbeddedPostgres(home) as server:
            _with_reservation(server, config)


def _configuration(strategy: Strategy) -> Configuration:
    """The project's own, with quota that lasts."""
    whole = load_configuration(PROJECT_ROOT / "config")
    content = whole.registry.model_dump()
    for subscription in content["subscriptions"].values():
        for window in subscription["windows"]:
            window["tokens"] *= GENEROUS
    for budget in content["budgets"].values():
        budget["usd"] *= GENEROUS
    assignment = whole.policies.assignment.model_copy(update={"strategy": strategy})
    return Configuration(
        registry=type(whole.registry).model_validate(content),
        scoring=whole.scoring,
        policies=whole.policies.model_copy(update={"assignment": assignment}),
    )


def _task(number: int, draw: random.Random) -> dict[str, Any]:
    complexity = draw.choice(list(TOKENS))
    size = draw.lognormvariate(0.0, 0.5)
    tokens = {
        f"{side}_{part}": mean * size * factor
        for side, mean in zip(("input", "output"), TOKENS[complexity], strict=True)
        for part, factor in (("mean", 1.0), ("median", 0.8), ("high", 2.0))
    }
    return {
        "task": number,
        "task_id": f"T-{number}",
        "value_score": draw.uniform(20, 100),
        "domain": draw.choice(list(Domain)).value,
        "complexity": Complexity(complexity).value,
        "risk": "development",
        "workspace": "acme/web",
        "waiting_hours": draw.uniform(0, 24),
        "deadline": None,
        "failed_models": None,
        "dependencies_failed": None,
        "dependencies_pending": None,
        **tokens,
    }


def _prices(config: Configuration) -> dict[str, float]:
    tokens = PRICES_A_MILLION / 1e6
    return {terms.account: tokens if terms.unit == "tokens" else 1.0 for terms in config.registry.accounts()}


def _without_database(config: Configuration, case: str, *, remember: bool, goal: str | None = None) -> None:
    policies, draw, now = config.policies, random.Random(1), datetime.now(UTC)
    catalogue = Catalogue(
        config.registry, policies.prediction, policies.plans, policies.objective, Calibration()
    )
    cache = PlannerCache[Answer](60.0, DECISIONS) if remember else None
    desk = Desk(config.registry, catalogue, policies.assignment, policies.fairness, "bench", cache)
    accounts = [
        Account(t.account, t.kind, t.unit, t.window, t.limit, Decimal(0), Decimal(0), t.limit)
        for t in config.registry.accounts()
    ]
    at = Circumstances(accounts, now, _prices(config), prices_of=1)
    tasks = [_task(number, draw) for number in range(100 if remember else DECISIONS)]
    for task in tasks[:WARM_UP]:
        desk.decide(task, at, tick=0.0)
    seconds, busy = [], time.process_time()
    for number in range(DECISIONS):
        task = tasks[number % len(tasks)]
        begun = time.perf_counter()
        desk.decide(task, at, tick=0.0)
        seconds.append(time.perf_counter() - begun)
    busy = time.process_time() - busy
    _report(f"{case}, plans={len(catalogue.book)}", seconds, busy, goal)


def _with_reservation(server: EmbeddedPostgres, config: Configuration) -> None:
    name = f"bench_{uuid4().hex}"
    server.create_database(name)
    url = server.url(name)
    migrate.upgrade(url)
    database = Database(url)
    planner = Planner(database, Ledger(database), config)
    tasks = RATE * SECONDS + WARM_UP
    _insert(database, config, tasks)

    def nothing(_: int) -> str:
        database.fetch("SELECT 1")
        return "nothing"

    def decide(number: int) -> str:
        return planner.decide(f"T-{number}").outcome.value

    _open_loop(nothing, 0, WARM_UP)
    floor, busy, _ = _open_loop(nothing, 0, RATE * SECONDS)
    _report(f"floor: SELECT 1 at {RATE}/s", floor, busy)
    _open_loop(decide, 0, WARM_UP)
    seconds, busy, outcomes = _open_loop(decide, WARM_UP, RATE * SECONDS)
    if set(outcomes) != {"assigned"}:
        raise SystemExit(f"not every decision reserved: {sorted(set(outcomes))}")
    _report(f"with reservation at {RATE}/s", seconds, busy, "<= 15")
    if not Ledger(database).verify().balanced:
        raise SystemExit("the ledger does not balance")
    database.close()


def _insert(database: Database, config: Configuration, count: int) -> None:
    draw = random.Random(2)
    rows = [_task(number, draw) for number in range(count)]
    with database.transaction() as connection:
        connection.execute(
            """INSERT INTO tasks (task_id, priority, workspace, value_score)
               SELECT r.task_id, 2, 'acme/web', r.value_score
               FROM jsonb_to_recordset(%s) AS r (task_id text, value_score float8)""",
            (Jsonb(rows),),
        )
        connection.execute(
            "INSERT INTO task_payloads (task, title, description, labels) SELECT id, 'title', 'text', '{}' FROM tasks"
        )
        connection.execute(
            """INSERT INTO task_scores (task, submission_day, files, lines, size_source, complexity, complexity_factor,
                   priority_points, time_bonus, time_bonus_reason, domain, domain_factor, domain_source, risk,
                   risk_factor, score, input_mean, input_median, input_low, input_high, output_mean, output_median,
                   output_low, output_high, config_hash)
               SELECT t.id, t.submission_day, 1, 1, 'given', r.complexity, 1, 1, 0, 'none', r.domain, 1, 'default',
                   r.risk, 1, r.value_score, r.input_mean, r.input_median, 0, r.input_high, r.output_mean,
                   r.output_median, 0, r.output_high, 'bench'
               FROM jsonb_to_recordset(%s) AS r (task_id text, value_score float8, complexity text, domain text,
                   risk text, input_mean float8, input_median float8, input_high float8, output_mean float8,
                   output_median float8, output_high float8)
               JOIN tasks t USING (task_id)""",
            (Jsonb(rows),),
        )
        connection.execute(
            """INSERT INTO assignment_batches (id, submission_day, strategy, seed, tasks, assigned, objective, bound,
                   gap, evaluations, seconds, prices, available, lapsing, forecast, alternatives, pruned, considered,
                   config_hash)
               VALUES (%s, %s, %s, 1, 0, 0, 0, 0, 0, 0, 0, %s, '{}', '{}', '{}', '{}', '{}', 0, %s)""",
            (
                uuid4(),
                DAY,
                config.policies.assignment.strategy,
                Jsonb(_prices(config)),
                config.content_hash,
            ),
        )
        connection.execute("ANALYZE")


def _open_loop(work: Callable[[int], str], first: int, count: int) -> tuple[list[float], float, list[str]]:
    """Begin work at RATE, whether or not what was begun before has ended.

    Returns:
        Latencies from the scheduled begin, this process's CPU time, and what came of each.
    """
    numbers, lock = iter(range(count)), threading.Lock()
    seconds, outcomes = [0.0] * count, [""] * count
    begun, busy = time.perf_counter() + 0.05, time.process_time()

    def run() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            scheduled = begun + number / RATE
            time.sleep(max(0.0, scheduled - time.perf_counter()))
            outcomes[number] = work(first + number)
            seconds[number] = time.perf_counter() - scheduled

    threads = [threading.Thread(target=run) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, time.process_time() - busy, outcomes


def _report(case: str, seconds: list[float], busy: float, goal: str | None = None) -> None:
    p50, p95, p99, most = (float(np.percentile(seconds, share)) * 1000 for share in (50, 95, 99, 100))
    cpu = busy / len(seconds) * 1000
    report("inline", case, "p50_ms", p50, "ms")
    report("inline", case, "p95_ms", p95, "ms")
    report("inline", case, "p99_ms", p99, "ms", goal)
    report("inline", case, "cpu_ms", cpu, "ms")
    note(
        f"{case}: {len(seconds):,} times, p50 {p50:.3f} ms, p95 {p95:.3f} ms, p99 {p99:.3f} ms, slowest {most:.1f} ms; "
        f"CPU {cpu:.3f} ms each"
    )


if __name__ == "__main__":
    main()
