"""Rounds of the solver as rows: prices for whoever decides next, and what proves and compares each round."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb

from cp_core.assignment.optimal import Round
from cp_core.assignment.quotes import Quote
from cp_resources.database import Database

QUOTED: LiteralString = (
    "coalesce((SELECT jsonb_object_agg(key, value -> 'price') FROM jsonb_each(b.quotes)), b.prices)"
)
"""SQL: the prices, by account, that hold for tasks decided alone after round `b` of assignment_batches."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of the accounts, and the batch that found them; none before the first batch.

    Attributes:
        quotes: what holds for tasks that come alone until the next round, see `cp_core.assignment.quotes`.
    """

    by_account: dict[str, float]
    batch: UUID | None = None
    quotes: dict[str, Quote] = field(default_factory=dict)


class AssignmentBatches:
    """Table assignment_batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def latest(self, strategy: str, config_hash: str) -> Prices:
        """Prices of the latest round under one configuration and strategy."""
        found = self._database.fetch(_LATEST, [strategy, config_hash])
        if not found:
            return Prices({})
        [(batch, prices, quotes)] = found
        return Prices(prices, batch, {name: _quote(**quote) for name, quote in (quotes or {}).items()})

    def add(
        self,
        connection: psycopg.Connection,
        round: Round,
        *,
        tasks: int,
        assigned: int,
        day: date,
        strategy: str,
        seed: int,
        start: Prices,
        quotes: Mapping[str, Quote],
        config_hash: str,
        run_id: str | None,
        seconds: float,
    ) -> UUID:
        """Store a round, and return its id.

        Args:
            tasks, assigned: how many were decided, and given a plan. A solver's round is stored before its decisions
                are: a task that another process decides first is in it all the same.
        """
        identity = uuid4()
        row: dict[str, Any] = {
            "id": identity,
            "day": day,
            "strategy": strategy,
            "seed": seed,
            "started_from": start.batch,
            "tasks": tasks,
            "assigned": assigned,
            "objective": round.objective,
            "bound": round.bound,
            "gap": round.gap,
            "evaluations": round.evaluations,
            "seconds": seconds,
            "prices": Jsonb(round.prices),
            "quotes": Jsonb({name: _quote_json(quote) for name, quote in quotes.items()}),
            "available": Jsonb(round.available),
            "lapsing": Jsonb(round.lapsing),
            "forecast": Jsonb(asdict(round.forecast) if round.forecast else {}),
            "alternatives": Jsonb(
                {
                    "tasks": round.compared,
                    "of": tasks,
                    "strategies": {name: asdict(one) for name, one in round.alternatives.items()},
                }
            ),
            "pruned": Jsonb(round.pruned),
            "considered": round.considered,
            "legend": Jsonb(round.legend.as_json()) if round.legend else None,
            "config_hash": config_hash,
            "run_id": run_id,
        }
        connection.execute(_ADD, row)
        return identity


def seed_of(day: date, decisions: int) -> int:
    """The seed of a round: the same for the same day and number of decisions stored before it."""
    digest = hashlib.sha256(f"{day.isoformat()}\n{decisions}".encode()).digest()
    return int.from_bytes(digest[:7], "big")  # fits a signed bigint


def _quote(price: float, tasks: int, until: str) -> Quote:
    return Quote(price, tasks, datetime.fromisoformat(until))


def _quote_json(quote: Quote) -> dict[str, Any]:
    return {"price": quote.price, "tasks": quote.tasks, "until": quote.until.isoformat()}


_LATEST: LiteralString = """
SELECT id, prices, quotes FROM cp.assignment_batches WHERE strategy = %s AND config_hash = %s
ORDER BY decided_at DESC LIMIT 1
"""

_ADD: LiteralString = """
INSERT INTO cp.assignment_batches (
    id, submission_day, strategy, seed, started_from, tasks, assigned, objective, bound, gap, evaluations, seconds,
    prices, quotes, available, lapsing, forecast, alternatives, pruned, considered, legend, config_hash, run_id
)
VALUES (
    %(id)s, %(day)s, %(strategy)s, %(seed)s, %(started_from)s, %(tasks)s, %(assigned)s, %(objective)s, %(bound)s,
    %(gap)s, %(evaluations)s, %(seconds)s, %(prices)s, %(quotes)s, %(available)s, %(lapsing)s, %(forecast)s,
    %(alternatives)s, %(pruned)s, %(considered)s, %(legend)s, %(config_hash)s, %(run_id)s
)
"""
