"""Circuit breakers in PostgreSQL, where all workers share them; the rule is in `cp_core.execution.breaker`.

A row stands for a model, or with model "*" for everything that its provider serves. No row, or a closed one, is the
common case and costs a claim one look at a tiny table. Time is the database's. Every move is an event.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg.rows import dict_row

from cp_core.execution.breaker import (
    WHOLE_PROVIDER,
    Breaker,
    BreakerPolicy,
    BreakerState,
    Seen,
    Signal,
    after,
    half_opened,
    permits,
    reset,
    signal_of,
)
from cp_core.models.registry import ModelRegistry
from cp_core.tasks.reasons import Reason
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.events import announce

EVENTS = {
    BreakerState.OPEN: "breaker.opened",
    BreakerState.HALF_OPEN: "breaker.half_opened",
    BreakerState.CLOSED: "breaker.closed",
}
"""Kinds of the events that moves leave, by the state that is moved to."""


class Scope(NamedTuple):
    """What a breaker stands for; `model` may be `WHOLE_PROVIDER`."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt at a model that ended, and when it had begun (database's time)."""

    model: str
    reason: Reason | None
    began: datetime


class UnknownBreakerError(UserError):
    """No model or provider has this name."""


class BreakerStore:
    """Reads and moves breakers. Safe to share between threads."""

    def __init__(self, database: Database, configuration: Configuration) -> None:
        self._database = database
        self._registry = configuration.registry
        self._policy = configuration.policies.breaker
        self._troubled: frozenset[Scope] = frozenset()
        self._open: frozenset[Scope] = frozenset()

    def is_open(self, model: str) -> bool:
        """Whether the model was to be left alone when breakers were last read or moved here."""
        return bool(self._open) and any(self._concerns(scope, model) for scope in self._open)

    def all(self) -> dict[Scope, Breaker]:
        """Every breaker that ever counted a failure."""
        with self._database.transaction() as connection:
            return _read(connection, _ALL)[0]

    def permits(self, connection: psycopg.Connection, models: Iterable[str]) -> dict[str, int]:
        """How many attempts may begin now, of those models whose breaker is not closed.

        Trials are handed out under the breaker's lock, which the caller's transaction keeps: what it claims counts
        before anybody else asks. Whoever finds the lock taken gets none.
        """
        known, now = _read(connection, _ALL)
        self._note(known, now)
        allowed: dict[str, int] = {}
        for scope, breaker in known.items():
            concerned = [model for model in models if self._concerns(scope, model)]
            if breaker.state is BreakerState.CLOSED or not concerned:
                continue
            granted = self._trials(connection, scope) if breaker.is_due(now) else 0
            if granted is not None:
                for model, share in _shared_out(granted, concerned).items():
                    allowed[model] = min(share, allowed.get(model, share))
        return allowed

    def learn(self, ended: Sequence[Ended]) -> list[tuple[Scope, Breaker]]:
        """Take in what attempts came to, in the order in which they ended; return the breakers that moved.

        Answers of models that have no trouble are not written down.
        """
        heard: dict[Scope, list[Seen]] = defaultdict(list)
        for one in ended:
            provider = self._registry.model(one.model).provider
            whole, signal = Scope(provider, WHOLE_PROVIDER), signal_of(one.reason)
            if signal is not Signal.PROVIDER_BARRED:
                heard[Scope(provider, one.model)].append(Seen(one.reason, one.began))
            if signal is Signal.PROVIDER_BARRED or whole in self._troubled:
                heard[whole].append(Seen(one.reason, one.began))
        matters = {
            scope: seen
            for scope, seen in heard.items()
            if scope in self._troubled or any(signal_of(one.reason) in _BAD for one in seen)
        }
        if not matters:
            return []
        with self._database.transaction() as connection:
            return self._learn(connection, matters)

    def reset(self, name: str, *, reason: str, by: str) -> list[Scope]:
        """Close the breakers of a model or a provider, and forget what they counted; return those that were not closed.

        A model's provider-wide breaker is closed with it, or the model would stay out of reach.

        Raises:
            UnknownBreakerError: neither a model nor a provider has this name.
        """
        if name in self._registry.models:
            provider = self._registry.model(name).provider
            scopes = [Scope(provider, WHOLE_PROVIDER), Scope(provider, name)]
        elif name in self._registry.providers:
            names = [model.name for model in self._registry.models.values() if model.provider == name]
            scopes = [Scope(name, model) for model in sorted([WHOLE_PROVIDER, *names])]
        else:
            known = ", ".join(sorted({*self._registry.models, *self._registry.providers}))
            raise UnknownBreakerError(f"no model or provider is called {name!r}; there are {known}")
        with self._database.transaction() as connection:
            found, now = _lock(connection, scopes)
            for scope, breaker in found.items():
                _write(connection, scope, breaker, reset(breaker, now), said={"because": reason, "by": by})
        return [scope for scope, breaker in found.items() if breaker.state is not BreakerState.CLOSED]

    def unavailable(self, connection: psycopg.Connection) -> frozenset[str]:
        """Models that no task shall be given now; see `models_of` and `NOT_TO_BE_GIVEN`."""
        [(rows,)] = connection.execute(
            f"SELECT {NOT_TO_BE_GIVEN}", not_to_be_given_parameters(self._policy)
        ).fetchall()
        return models_of(rows, self._registry)

    def _trials(self, connection: psycopg.Connection, scope: Scope) -> int | None:
        found, now = _lock(connection, [scope], wait=False)
        if scope not in found:
            return 0
        before = found[scope]
        breaker = half_opened(before, now)
        _write(connection, scope, before, breaker)
        self._open -= {scope}
        models = [model for model in self._registry.models if self._concerns(scope, model)]
        [(under_way,)] = connection.execute(_UNDER_WAY, (models, breaker.since or now)).fetchall()
        return permits(breaker, under_way, self._policy, now)

    def _learn(
        self, connection: psycopg.Connection, matters: Mapping[Scope, Sequence[Seen]]
    ) -> list[tuple[Scope, Breaker]]:
        scopes = sorted(matters)
        connection.execute(_CREATE, ([scope.provider for scope in scopes], [scope.model for scope in scopes]))
        found, now = _lock(connection, scopes)
        learned = {scope: after(before, matters[scope], self._policy, now) for scope, before in found.items()}
        for scope, breaker in learned.items():
            _write(connection, scope, found[scope], breaker)
        self._note(learned, now)
        return [item for item in learned.items() if item[1].state is not found[item[0]].state]

    def _concerns(self, scope: Scope, model: str) -> bool:
        return scope.model == model or (
            scope.model == WHOLE_PROVIDER and self._registry.model(model).provider == scope.provider
        )

    def _note(self, found: Mapping[Scope, Breaker], now: datetime) -> None:
        """Remember which breakers are open, and which it matters to tell of answers too."""
        troubled = {scope for scope, breaker in found.items() if breaker.is_troubled(self._policy, now)}
        opened = {scope for scope, breaker in found.items() if breaker.state is BreakerState.OPEN}
        self._troubled = (self._troubled - found.keys()) | troubled
        self._open = (self._open - found.keys()) | opened


_BAD = (Signal.FAILED, Signal.BARRED, Signal.PROVIDER_BARRED)

# Trials need tasks: once an open model is due it may be given some, until as many as there are trials wait for it or
# are under way. Whoever has more to give than that shows them again to whoever asks, when the trials have ended.
NOT_TO_BE_GIVEN: LiteralString = """(
    SELECT array_agg(ARRAY[b.provider, b.model]) FROM cp.breakers b
    WHERE b.state <> 'closed' AND NOT (
        b.retry_at <= clock_timestamp() AND (
            b.model = '*'
            OR b.retry_at < clock_timestamp() - make_interval(secs => %(breaker_cool_down)s)
            OR (
                SELECT count(*) FROM (
                    SELECT FROM cp.tasks t
                    WHERE t.state IN ('assigned', 'running') AND t.model = b.model LIMIT %(breaker_trials)s
                ) AS waiting
            ) < %(breaker_trials)s
        )
    )
)"""
"""An SQL expression: [provider, model] of the breakers that keep the planner off, or NULL."""


def not_to_be_given_parameters(policy: BreakerPolicy) -> dict[str, Any]:
    """What `NOT_TO_BE_GIVEN` needs."""
    return {"breaker_trials": policy.trials, "breaker_cool_down": policy.cool_down_seconds}


def models_of(scopes: Iterable[Sequence[str]] | None, registry: ModelRegistry) -> frozenset[str]:
    """The models that some breakers stand for."""
    pairs = {(provider, model) for provider, model in scopes or ()}
    return frozenset(
        model.name
        for model in registry.models.values()
        if pairs & {(model.provider, model.name), (model.provider, WHOLE_PROVIDER)}
    )


def _shared_out(granted: int, models: Sequence[str]) -> dict[str, int]:
    """Trials of a whole provider, one by one among its models; which come first is left to chance."""
    if len(models) == 1:
        return {models[0]: granted}
    chosen = set(random.sample(models, min(granted, len(models))))
    return {model: int(model in chosen) for model in models}


def _read(
    connection: psycopg.Connection, query: LiteralString, parameters: Sequence[Any] = ()
) -> tuple[dict[Scope, Breaker], datetime]:
    """Breakers in the query's order, and the database's time."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, parameters).fetchall()
    now = rows[0]["now"] if rows else datetime.max.replace(tzinfo=UTC)
    return {Scope(row["provider"], row["model"]): _breaker(row) for row in rows}, now


def _breaker(row: Mapping[str, Any]) -> Breaker:
    return Breaker(
        state=BreakerState(row["state"]),
        since=row["since"],
        retry_at=row["retry_at"],
        openings=row["openings"],
        recent=row["recent"],
        heard_at=row["heard_at"],
        reason=row["reason"] and Reason(row["reason"]),
    )


def _lock(
    connection: psycopg.Connection, scopes: Sequence[Scope], *, wait: bool = True
) -> tuple[dict[Scope, Breaker], datetime]:
    """Those of the breakers that have a row, locked; the others' rows too while `wait` is set."""
    query = _LOCK if wait else f"{_LOCK} SKIP LOCKED"
    return _read(connection, query, ([scope.provider for scope in scopes], [scope.model for scope in scopes]))


def _write(
    connection: psycopg.Connection,
    scope: Scope,
    before: Breaker,
    breaker: Breaker,
    said: Mapping[str, str] | None = None,
) -> None:
    """Store a locked breaker, and tell of its move."""
    if breaker == before:
        return
    connection.execute(
        _UPDATE,
        (
            breaker.state.value,
            breaker.since,
            breaker.retry_at,
            breaker.openings,
            breaker.recent,
            breaker.heard_at,
            breaker.reason and breaker.reason.value,
            scope.provider,
            scope.model,
        ),
    )
    if breaker.state is not before.state:
        event = {
            "from": before.state.value,
            "to": breaker.state.value,
            "reason": breaker.reason and breaker.reason.value,
            "retry_at": breaker.retry_at and breaker.retry_at.isoformat(),
            "openings": breaker.openings,
            **(said or {}),
        }
        announce(connection, EVENTS[breaker.state], str(scope), event)


_COLUMNS: LiteralString = """
SELECT provider, model, state, since, retry_at, openings, recent, heard_at, reason, clock_timestamp() AS now
FROM cp.breakers
"""
_ALL: LiteralString = f"{_COLUMNS} ORDER BY provider, model"
_LOCK: LiteralString = f"""
{_COLUMNS}
WHERE (provider, model) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
ORDER BY provider, model FOR UPDATE
"""
_CREATE: LiteralString = """
INSERT INTO cp.breakers (provider, model) SELECT * FROM unnest(%s::text[], %s::text[])
ON CONFLICT DO NOTHING
"""
_UPDATE: LiteralString = """
UPDATE cp.breakers
SET state = %s, since = %s, retry_at = %s, openings = %s, recent = %s, heard_at = %s, reason = %s
WHERE provider = %s AND model = %s
"""
# A claim is when an attempt begins; a task that is given back is under way no more.
_UNDER_WAY: LiteralString = """
SELECT count(*) FROM cp.tasks
WHERE state = 'running' AND model = ANY(%s::text[]) AND state_changed_at >= %s
"""
