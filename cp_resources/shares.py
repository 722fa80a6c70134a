"""What each worker holds of the limits that all workers share, in PostgreSQL.

A worker renews its shares about once a second, under one short lock, and never uses more than it holds; so a limit
holds over all machines, and no call waits for the database. Shares of a worker that is gone run out. What a provider
asked one worker to wait reaches the others the same way. The rule is `cp_core.execution.limits.share`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, LiteralString, NamedTuple

from psycopg.rows import namedtuple_row

from cp_core.execution.limits import share
from cp_resources.database import Database

_LOCK = 0x6370_7368  # any number that only those who renew shares take
TURN_SECONDS = 10
"""How long it takes until what cannot be divided is given to the next."""


class Wish(NamedTuple):
    """What a worker asks of one limit.

    Attributes:
        limit: for all workers.
        wanted: no more than this is of use.
        in_use: cannot be given back now, as calls are under way or may begin before the answer comes.
        paused_seconds: how long nothing may be begun, as far as this worker was told.
    """

    limit: int
    wanted: int
    in_use: int = 0
    paused_seconds: float = 0.0


class Share(NamedTuple):
    """What a worker has until the next time.

    Attributes:
        held: kept from the others.
        usable: nothing is begun beyond this: less than `held` where calls under way have to end first.
        paused_seconds: how long nothing may be begun, by what any worker was told.
    """

    held: int
    usable: int
    paused_seconds: float


class ShareStore:
    """Shared limits, by scope such as "model:gpt-5"."""

    def __init__(self, database: Database, *, seconds: float) -> None:
        self._database = database
        self._seconds = seconds

    def renew(self, worker: str, wishes: Mapping[str, Wish]) -> dict[str, Share]:
        """Hold shares for another `seconds`, as given to the constructor."""
        with self._database.transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute("DELETE FROM cp.worker_shares WHERE expires_at <= clock_timestamp()")
            with connection.cursor(row_factory=namedtuple_row) as cursor:
                rows: list[Any] = cursor.execute(_READ, (TURN_SECONDS, list(wishes))).fetchall()
            others: dict[str, list[Any]] = defaultdict(list)
            for row in rows:
                if row.worker is not None and row.worker != worker:
                    others[row.scope].append(row)
            turn = rows[0].turn if rows else 0
            shares = {scope: _shared(worker, wish, others[scope], turn) for scope, wish in wishes.items()}
            connection.execute(
                _WRITE,
                {
                    "worker": worker,
                    "seconds": self._seconds,
                    "scopes": list(wishes),
                    "wanted": [wish.wanted for wish in wishes.values()],
                    "held": [one.held for one in shares.values()],
                    "paused": [one.paused_seconds for one in shares.values()],
                },
            )
        return shares

    def give_up(self, worker: str) -> None:
        """Leave everything to the others."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM cp.worker_shares WHERE worker = %s", (worker,))


def _shared(worker: str, wish: Wish, others: list[Any], turn: int) -> Share:
    wanted = {row.worker: row.wanted for row in others} | {worker: wish.wanted}
    held = {row.worker: row.held for row in others}
    paused = max([wish.paused_seconds, *(row.paused_seconds for row in others)])
    usable = share(wish.limit, worker, wanted, held, 0, turn=turn)
    return Share(share(wish.limit, worker, wanted, held, wish.in_use, turn=turn), usable, paused)


_READ: LiteralString = """
SELECT asked.scope, s.worker, s.wanted, s.held,
    greatest(0, coalesce(extract(epoch FROM s.paused_until - clock_timestamp()), 0))::float8 AS paused_seconds,
    (extract(epoch FROM clock_timestamp())::bigint / %s)::int AS turn
FROM unnest(%s::text[]) AS asked (scope) LEFT JOIN cp.worker_shares s USING (scope)
"""
_WRITE: LiteralString = """
INSERT INTO cp.worker_shares (scope, worker, wanted, held, paused_until, expires_at)
SELECT asked.scope, %(worker)s, asked.wanted, asked.held,
    clock_timestamp() + make_interval(secs => nullif(asked.paused, 0)),
    clock_timestamp() + make_interval(secs => %(seconds)s)
FROM unnest(%(scopes)s::text[], %(wanted)s::int[], %(held)s::int[], %(paused)s::float8[])
    AS asked (scope, wanted, held, paused)
ON CONFLICT (scope, worker) DO UPDATE
SET wanted = excluded.wanted, held = excluded.held, paused_until = excluded.paused_until,
    expires_at = excluded.expires_at
"""
