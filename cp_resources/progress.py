"""How far the work is: what a drain tells of itself in table drains, and what `control-panel watch` reads."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, LiteralString

from psycopg.rows import dict_row

from cp_core.tasks.states import FINAL_STATES, TaskState
from cp_resources.database import Database

STALE_AFTER_SECONDS = 30
"""A drain that was not heard of for so long, by the database's clock, is taken for dead."""
RATE_SECONDS = 60
"""Rates are those of the last so many seconds."""


class DrainLog:
    """One drain's row in table drains. Liveness goes by the database's clock.

    Args:
        worker: the lease owner's name.
    """

    def __init__(self, database: Database, worker: str, day: date, run_id: str | None) -> None:
        self._database = database
        self._row = {
            "worker": worker,
            "day": day,
            "run_id": run_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    def tell(self, counts: Mapping[str, int | Decimal], ended: str | None = None) -> None:
        """Say what came of it so far, and when it is over, why. A repeat changes nothing but the time."""
        with self._database.transaction() as connection:
            connection.execute(_TELL, {**self._row, **counts, "ended": ended})


@dataclass(frozen=True, slots=True)
class ModelProgress:
    """Attempts of one model. `per_minute` counts those that ended in the last minute."""

    model: str
    running: int
    succeeded: int
    failed: int
    per_minute: int
    cost_usd: Decimal


@dataclass(frozen=True, slots=True)
class Drain:
    """A drain that is not over, as far as it said. A stale one was not heard of for `STALE_AFTER_SECONDS`."""

    worker: str
    run_id: str | None
    submission_day: date
    host: str
    pid: int
    held: int
    attempts: int
    beat_seconds_ago: float

    @property
    def is_stale(self) -> bool:
        """Whether its process is taken for dead."""
        return self.beat_seconds_ago > STALE_AFTER_SECONDS


@dataclass(frozen=True, slots=True)
class Progress:
    """How far some submission days are.

    Attributes:
        at: the database's time.
        states: tasks by state.
        ended_per_minute: tasks that came to an end in the last minute.
        oldest_wait_seconds: since the submission of the oldest task that is queued or assigned.
        breakers: of models that are not called now: provider, model, state.
    """

    at: datetime
    days: tuple[date, ...]
    states: Mapping[TaskState, int]
    ended_per_minute: int
    oldest_wait_seconds: float | None
    models: Sequence[ModelProgress]
    drains: Sequence[Drain]
    breakers: Sequence[Mapping[str, Any]]

    @property
    def open(self) -> int:
        """Tasks that are not over."""
        return sum(count for state, count in self.states.items() if state not in FINAL_STATES)

    @property
    def eta_seconds(self) -> float | None:
        """Until all are over at the rate of the last minute; None while nothing ends."""
        if not self.open:
            return 0.0
        return 60 * self.open / self.ended_per_minute if self.ended_per_minute else None

    @property
    def cost_usd(self) -> Decimal:
        """List price of every attempt."""
        return sum((line.cost_usd for line in self.models), Decimal(0))


def read_progress(database: Database, day: date | None = None) -> Progress:
    """How far `day` is; without one, the days with open tasks, or else the newest day."""
    with database.transaction() as connection, connection.cursor(row_factory=dict_row) as cursor:

        def rows(query: LiteralString, **parameters: Any) -> list[dict[str, Any]]:
            return cursor.execute(query, parameters).fetchall()

        days = [day] if day else [row["submission_day"] for row in rows(_OPEN_DAYS) or rows(_NEWEST_DAY)]
        counted = {TaskState(row["state"]): row for row in rows(_STATES, days=days, seconds=RATE_SECONDS)}
        waits = [row["oldest"] for row in counted.values() if row["oldest"] is not None]
        [clock] = rows("SELECT clock_timestamp() AS at")
        return Progress(
            at=clock["at"],
            days=tuple(days),
            states={state: counted[state]["count"] for state in TaskState if state in counted},
            ended_per_minute=sum(row["ended"] for row in counted.values()),
            oldest_wait_seconds=max(waits, default=None),
            models=[ModelProgress(**row) for row in rows(_MODELS, days=days, seconds=RATE_SECONDS)],
            drains=[Drain(**row) for row in rows(_DRAINS, days=days)],
            breakers=rows(_BREAKERS),
        )


_TELL: LiteralString = """
INSERT INTO cp.drains (worker, submission_day, run_id, host, pid, held, attempts, succeeded, failed, cancelled, late,
    input_tokens, output_tokens, cost_usd, ended, ended_at)
VALUES (%(worker)s, %(day)s, %(run_id)s, %(host)s, %(pid)s, %(held)s, %(attempts)s, %(succeeded)s, %(failed)s,
    %(cancelled)s, %(late)s, %(input_tokens)s, %(output_tokens)s, %(cost_usd)s, %(ended)s,
    CASE WHEN %(ended)s::text IS NOT NULL THEN clock_timestamp() END)
ON CONFLICT (worker) DO UPDATE
SET heartbeat_at = clock_timestamp(), held = excluded.held, attempts = excluded.attempts,
    succeeded = excluded.succeeded, failed = excluded.failed, cancelled = excluded.cancelled, late = excluded.late,
    input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens, cost_usd = excluded.cost_usd,
    ended = excluded.ended, ended_at = excluded.ended_at
"""

_OPEN_DAYS: LiteralString = """
SELECT DISTINCT submission_day FROM cp.tasks
WHERE state IN ('queued', 'deferred', 'assigned', 'running') ORDER BY submission_day
"""
_NEWEST_DAY: LiteralString = """
SELECT submission_day FROM cp.tasks ORDER BY submission_day DESC LIMIT 1
"""
_STATES: LiteralString = """
SELECT state, count(*) AS count,
    count(*) FILTER (
        WHERE state IN ('succeeded', 'failed', 'cancelled', 'dead')
            AND state_changed_at > clock_timestamp() - make_interval(secs => %(seconds)s)
    ) AS ended,
    extract(epoch FROM clock_timestamp() - min(submitted_at) FILTER (
        WHERE state IN ('queued', 'assigned')
    ))::float8 AS oldest
FROM cp.tasks WHERE submission_day = ANY(%(days)s::date[]) GROUP BY state
"""
_MODELS: LiteralString = """
SELECT model,
    count(*) FILTER (WHERE state = 'running') AS running,
    count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE state IN ('failed', 'lost')) AS failed,
    count(*) FILTER (WHERE finished_at > clock_timestamp() - make_interval(secs => %(seconds)s)) AS per_minute,
    sum(cost_usd) AS cost_usd
FROM cp.executions WHERE submission_day = ANY(%(days)s::date[]) GROUP BY model ORDER BY count(*) DESC, model
"""
_DRAINS: LiteralString = """
SELECT worker, run_id, submission_day, host, pid, held, attempts,
    extract(epoch FROM clock_timestamp() - heartbeat_at)::float8 AS beat_seconds_ago
FROM cp.drains WHERE ended_at IS NULL AND submission_day = ANY(%(days)s::date[]) ORDER BY started_at
"""
_BREAKERS: LiteralString = """
SELECT provider, model, state FROM cp.breakers WHERE state <> 'closed' ORDER BY provider, model
"""
