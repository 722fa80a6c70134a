"""What some days came to: the figures of `control-panel report` and of the demo, read from the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import LiteralString, TypeVar

from psycopg import Connection
from psycopg.rows import class_row

from cp_resources.database import Database

Row = TypeVar("Row")


@dataclass(frozen=True)
class ModelLine:
    """One model's share of the days. Tokens and money count every attempt, failures too."""

    model: str
    attempts: int
    succeeded: int
    finished: int
    quality: float | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: Decimal
    billed_usd: Decimal

    @property
    def success_rate(self) -> float | None:
        """Attempts that succeeded over those that ended and were not called off, or None when none has."""
        return self.succeeded / self.finished if self.finished else None


@dataclass(frozen=True)
class StageLine:
    """The attempts at one stage of all plans, from 1. Tokens and money count failures too."""

    stage: int
    attempts: int
    succeeded: int
    low_quality: int
    quality: float | None
    cost_usd: Decimal
    billed_usd: Decimal


@dataclass(frozen=True)
class EstimateError:
    """Actual over estimated tokens of attempts that succeeded: the batch's total, and the median task."""

    tasks: int
    input_total_ratio: float | None
    output_total_ratio: float | None
    input_median_ratio: float | None
    output_median_ratio: float | None
    input_in_interval: float | None
    output_in_interval: float | None


@dataclass(frozen=True)
class Report:
    """The figures of some submission days (UTC)."""

    days: tuple[date, ...]
    by_state: dict[str, int]
    reasons: dict[str, int]
    models: tuple[ModelLine, ...]
    stages: tuple[StageLine, ...]
    value_submitted: float
    value_delivered: float
    estimates: EstimateError

    @property
    def tasks(self) -> int:
        """Tasks submitted on these days."""
        return sum(self.by_state.values())


_BY_STATE: LiteralString = """
    SELECT state, count(*)::int FROM tasks
    WHERE submission_day = ANY(%s)
    GROUP BY state ORDER BY count(*) DESC
"""
_REASONS: LiteralString = """
    SELECT reason, count(*)::int FROM executions
    WHERE submission_day = ANY(%s) AND reason IS NOT NULL
    GROUP BY reason ORDER BY count(*) DESC, reason
"""
_MODELS: LiteralString = """
    SELECT model,
           count(*)::int AS attempts,
           count(*) FILTER (WHERE state = 'succeeded')::int AS succeeded,
           count(*) FILTER (WHERE state NOT IN ('running', 'cancelled'))::int AS finished,
           avg(quality) AS quality,
           sum(input_tokens)::bigint AS input_tokens,
           sum(cached_tokens)::bigint AS cached_tokens,
           sum(output_tokens)::bigint AS output_tokens,
           sum(cost_usd) AS cost_usd,
           sum(billed_usd) AS billed_usd
    FROM executions WHERE submission_day = ANY(%s) GROUP BY model ORDER BY count(*) DESC, model
"""
_STAGES: LiteralString = """
    SELECT stage + 1 AS stage,
           count(*)::int AS attempts,
           count(*) FILTER (WHERE state = 'succeeded')::int AS succeeded,
           count(*) FILTER (WHERE reason = 'LOW_QUALITY')::int AS low_quality,
           avg(quality) AS quality,
           sum(cost_usd) AS cost_usd,
           sum(billed_usd) AS billed_usd
    FROM executions WHERE submission_day = ANY(%s) GROUP BY stage ORDER BY stage
"""
_VALUE: LiteralString = """
    SELECT coalesce(sum(effective_score), 0), coalesce(sum(effective_score) FILTER (WHERE state = 'succeeded'), 0)
    FROM task_scores JOIN tasks ON tasks.id = task WHERE tasks.submission_day = ANY(%s)
"""
_ESTIMATES: LiteralString = """
    SELECT count(*)::int AS tasks,
           sum(e.input_tokens) / nullif(sum(s.input_mean), 0) AS input_total_ratio,
           sum(e.output_tokens) / nullif(sum(s.output_mean), 0) AS output_total_ratio,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY e.input_tokens / s.input_median) AS input_median_ratio,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY e.output_tokens / s.output_median)
               AS output_median_ratio,
           avg((e.input_tokens BETWEEN s.input_low AND s.input_high)::int)::float8 AS input_in_interval,
           avg((e.output_tokens BETWEEN s.output_low AND s.output_high)::int)::float8 AS output_in_interval
    FROM executions e JOIN task_scores s USING (task)
    WHERE e.submission_day = ANY(%s) AND e.state = 'succeeded'
"""


def read_report(database: Database, days: tuple[date, ...]) -> Report:
    """Read the figures of `days` in one transaction."""
    parameters = (list(days),)
    with database.transaction() as connection:
        by_state = dict(connection.execute(_BY_STATE, parameters).fetchall())
        reasons = dict(connection.execute(_REASONS, parameters).fetchall())
        models = _rows(connection, ModelLine, _MODELS, parameters)
        stages = _rows(connection, StageLine, _STAGES, parameters)
        submitted, delivered = connection.execute(_VALUE, parameters).fetchall()[0]
        (estimates,) = _rows(connection, EstimateError, _ESTIMATES, parameters)
    return Report(
        days=days,
        by_state=by_state,
        reasons=reasons,
        models=tuple(models),
        stages=tuple(stages),
        value_submitted=submitted,
        value_delivered=delivered,
        estimates=estimates,
    )


def days_with_tasks(database: Database) -> tuple[date, ...]:
    """Every submission day (UTC) that has a task, oldest first."""
    rows = database.fetch("SELECT DISTINCT submission_day FROM tasks ORDER BY 1")
    return tuple(day for (day,) in rows)


def _rows(
    connection: Connection, kind: type[Row], query: LiteralString, parameters: tuple[list[date]]
) -> list[Row]:
    return connection.cursor(row_factory=class_row(kind)).execute(query, parameters).fetchall()
