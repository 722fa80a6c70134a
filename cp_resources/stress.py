"""A load of made-up tasks on the production planner: how fast it decides, and whether it is sound when planners race.

The load runs on a database of its own, made on the same server for this run and dropped at its end: the owner's tasks
and quotas are never touched. Everything else is what production uses: scoring, the batch that finds prices, the planner
with its cache and pre-checks, the ledger.
"""

from __future__ import annotations

import os
import platform
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import numpy as np
import psycopg
from psycopg import sql

from cp_core.assignment.strategies import Strategy
from cp_core.assignment.telemetry import SUMMARY_EVENT
from cp_core.scoring.score import score_tasks
from cp_resources import migrate
from cp_resources.assigner import Assigner
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.ledger import Ledger
from cp_resources.planner import INLINE_EVENT, Planner, PlannerTimeoutError
from cp_resources.scores import CHUNK, ScoreStore
from cp_resources.stress_report import StressReport
from cp_resources.tasks import NewTask, TaskStore

MOST_TASKS = 20_000
MOST_CONCURRENCY = 4
BATCH_SHARE = 0.1
"""Share of the tasks that a batch decides first, so that there are prices."""
REPEATED_SHARE = 0.1
"""Share of the tasks that are offered to a second planner too."""
DATABASE_PREFIX = "control_panel_stress_"

_INSERTED_AT_ONCE = 5_000
_LABELS = (
    "backend",
    "frontend",
    "infrastructure",
    "testing",
    "documentation",
    "security",
    "hotfix",
    "production",
)
_WORKSPACES = ("stress/shop", "stress/web", "stress/platform", "stress/docs")
_VERBS = ("Fix", "Add", "Refactor", "Document", "Test", "Migrate", "Speed up")
_THINGS = (
    "the login form",
    "the invoice export",
    "the search index",
    "the retry logic",
    "the deployment script",
)


class StressError(UserError):
    """A load that is not allowed, or that cannot be run on this server."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the planner.

    Attributes:
        tasks: how many are made up.
        concurrency: planners that work at once, as threads of this process: they share its cache.
        seed: the tasks and their order follow from it.
    """

    tasks: int = 2_000
    concurrency: int = 2
    seed: int = 7

    def __post_init__(self) -> None:
        for name in ("tasks", "concurrency"):
            if getattr(self, name) < 1:
                raise StressError(f"{name} is {getattr(self, name)}; it must be at least 1")


def stress(server_url: str, configuration: Configuration, load: Load) -> StressReport:
    """Run a load, and report.

    Args:
        server_url: any database of the server on which the scratch database is made.

    Raises:
        StressError: the server's user may not create a database.
    """
    with scratch_database(server_url, connections=load.concurrency + 2) as database:
        task_ids = _submit(database, configuration, load)
        batch_seconds = _find_prices(database, configuration, load)
        planned = _Planners(database, configuration).run(_offers(task_ids, load), load.concurrency)
        return _report(database, configuration, load, batch_seconds, planned)


@contextmanager
def scratch_database(server_url: str, *, connections: int) -> Iterator[Database]:
    """A migrated database of its own on a server, dropped at the end."""
    name = f"{DATABASE_PREFIX}{uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as server:
        try:
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege as error:
            raise StressError(
                f"this user may not create a database at {Database(server_url).address}: give it the right "
                "(ALTER ROLE .. CREATEDB), or unset CP_DATABASE_URL to use the embedded server"
            ) from error
    url = urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    database = Database(url, max_connections=connections)
    try:
        migrate.upgrade(url)
        yield database
    finally:
        database.close()
        with psycopg.connect(server_url, autocommit=True) as server:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _submit(database: Database, configuration: Configuration, load: Load) -> list[str]:
    """Store and score the tasks, as intake and the asset `scored_tasks` would."""
    rng, now = random.Random(load.seed), datetime.now(UTC)  # noqa: S311 - no secret
    tasks = [_task(number, rng, now) for number in range(1, load.tasks + 1)]
    for first in range(0, len(tasks), _INSERTED_AT_ONCE):
        TaskStore(database).insert(tasks[first : first + _INSERTED_AT_ONCE])
    store, after = ScoreStore(database), 0
    while not (unscored := store.unscored(now.date(), after=after, limit=CHUNK)).empty:
        store.write_scores(score_tasks(unscored, configuration.scoring), configuration.content_hash)
        after = int(unscored.index[-1])
    with database.transaction() as connection:
        connection.execute("ANALYZE cp.tasks, cp.task_scores")
    return [task.task_id for task in tasks]


def _task(number: int, rng: random.Random, now: datetime) -> NewTask:
    """One task; a fifth has a deadline within two days, and one in thirty waits for an earlier one."""
    title = f"{rng.choice(_VERBS)} {rng.choice(_THINGS)}"
    waits_for = [f"stress-{rng.randrange(1, number)}"] if number > 1 and rng.random() < 1 / 30 else None
    return NewTask(
        task_id=f"stress-{number}",
        idempotency_key=None,
        submitted_at=now,
        priority=rng.choice((0, 1, 2, 2, 2, 3, 3, 4)),
        workspace=rng.choice(_WORKSPACES),
        deadline=now + timedelta(hours=rng.uniform(1, 48)) if rng.random() < 0.2 else None,
        dependencies=waits_for,
        max_attempts=3,
        title=title,
        description=f"{title}. Made up for a stress run.",
        labels=rng.sample(_LABELS, rng.choice((0, 1, 1, 2))),
        estimated_files=rng.choice((1, 2, 4, 8, 16)),
        estimated_lines=rng.choice((20, 80, 300, 1_200, 3_000)),
        workspace_files=None,
        extra=None,
    )


def _find_prices(database: Database, configuration: Configuration, load: Load) -> float:
    """Have a batch decide the most valuable tasks, and return how long that took."""
    began = time.monotonic()
    limit = max(1, int(load.tasks * BATCH_SHARE))
    Assigner(database, Ledger(database), configuration).assign_day(_day(database), limit=limit)
    return time.monotonic() - began


def _day(database: Database) -> date:
    [(day,)] = database.fetch("SELECT max(submission_day) FROM cp.tasks")
    return day  # type: ignore[no-any-return]


def _offers(task_ids: list[str], load: Load) -> list[str]:
    """The tasks in the order in which they are offered, some of them a second time right away."""
    rng = random.Random(load.seed + 1)  # noqa: S311 - no secret
    shuffled = rng.sample(task_ids, len(task_ids))
    return [task for task in shuffled for _ in range(2 if rng.random() < REPEATED_SHARE else 1)]


@dataclass(slots=True)
class _Planned:
    seconds: float
    latencies: list[float]
    timeouts: int
    repeats: int


class _Planners:
    """Planners that take tasks from one list until it is empty."""

    def __init__(self, database: Database, configuration: Configuration) -> None:
        self._planner = Planner(database, Ledger(database), configuration)

    def run(self, offers: list[str], concurrency: int) -> _Planned:
        waiting, lock = iter(offers), threading.Lock()

        def work() -> _Planned:
            planned = _Planned(0.0, [], 0, 0)
            while True:
                with lock:
                    task = next(waiting, None)
                if task is None:
                    return planned
                self._decide(task, planned)

        began = time.monotonic()
        with ThreadPoolExecutor(concurrency) as pool:
            parts = [future.result() for future in [pool.submit(work) for _ in range(concurrency)]]
        return _Planned(
            seconds=time.monotonic() - began,
            latencies=[seconds for part in parts for seconds in part.latencies],
            timeouts=sum(part.timeouts for part in parts),
            repeats=sum(part.repeats for part in parts),
        )

    def _decide(self, task: str, planned: _Planned) -> None:
        began = time.perf_counter()
        try:
            decided = self._planner.decide(task, path="stress")
        except PlannerTimeoutError:
            planned.timeouts += 1
            return
        if decided.is_new:
            planned.latencies.append(time.perf_counter() - began)
        else:
            planned.repeats += 1


def _report(
    database: Database, configuration: Configuration, load: Load, batch_seconds: float, planned: _Planned
) -> StressReport:
    events = [payload for (payload,) in database.fetch(_EVENTS, [INLINE_EVENT, "stress"])]
    gaps = [payload["gap"] for (payload,) in database.fetch(_EVENTS, [SUMMARY_EVENT, "batch"])]
    lookups = _sum(events, "cache_hits") + _sum(events, "cache_misses")
    [(assigned_twice,)] = database.fetch(_ASSIGNED_TWICE)
    ledger = Ledger(database).verify()
    percentiles = np.percentile(planned.latencies or [0.0], [50, 95, 99]) * 1000
    return StressReport(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=version("control-panel"),
        machine={
            "cores": os.cpu_count() or 1,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "system": platform.system(),
        },
        load={**asdict(load), "strategy": configuration.policies.assignment.strategy.value},
        config_hash=configuration.content_hash,
        seconds=planned.seconds,
        batch_seconds=batch_seconds,
        batch_gap=max((gap for gap in gaps if gap is not None), default=None),
        decisions=len(planned.latencies),
        decisions_per_second=len(planned.latencies) / planned.seconds if planned.seconds else 0.0,
        p50_ms=float(percentiles[0]),
        p95_ms=float(percentiles[1]),
        p99_ms=float(percentiles[2]),
        cache_hit_rate=_sum(events, "cache_hits") / lookups if lookups else None,
        considered=_sum(events, "considered"),
        pruned=_counts(events, "pruned"),
        outcomes=_counts(events, "outcomes"),
        reasons=_counts(events, "reasons"),
        timeouts=planned.timeouts,
        repeats=planned.repeats,
        races_lost=_sum(events, "races_lost"),
        assigned_twice=assigned_twice,
        ledger_differences=list(ledger.differences),
    )


def with_strategy(configuration: Configuration, strategy: Strategy) -> Configuration:
    """The configuration with another strategy in force."""
    assignment = configuration.policies.assignment.model_copy(update={"strategy": strategy})
    return replace(
        configuration, policies=configuration.policies.model_copy(update={"assignment": assignment})
    )


def _sum(events: list[dict[str, Any]], name: str) -> int:
    return sum(event[name] for event in events)


def _counts(events: list[dict[str, Any]], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for event in events:
        total.update(event[name])
    return dict(total.most_common())


_EVENTS = "SELECT payload FROM cp.events WHERE kind = %s AND payload ->> 'path' = %s"

_ASSIGNED_TWICE = """
SELECT count(*) FROM (
    SELECT FROM cp.assignments WHERE outcome = 'assigned' GROUP BY task HAVING count(*) > 1
) AS twice
"""
