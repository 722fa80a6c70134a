"""Outcomes that learning looks at: every ended execution of a window of days, as one frame.

Read from the tables themselves, so that what came in late counts the next time a window is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, LiteralString

import numpy as np
import pandas as pd
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from cp_core.learning.censoring import CENSORED
from cp_resources.columns import Number, read_columns
from cp_resources.database import Database

_SOURCE: LiteralString = """
    FROM cp.executions e
    JOIN cp.tasks t ON t.id = e.task AND t.submission_day BETWEEN {first} AND {last}
    JOIN cp.task_scores s ON s.task = e.task AND s.submission_day BETWEEN {first} AND {last}
    JOIN cp.assignments a ON a.id = e.assignment AND a.submission_day BETWEEN {first} AND {last}
    LEFT JOIN (
        SELECT config_hash, declared.key AS model, declared.value ->> 'api_name' AS model_version
        FROM cp.config_versions CROSS JOIN LATERAL jsonb_each(content #> '{{models,models}}') AS declared
    ) AS v ON v.config_hash = a.config_hash AND v.model = e.model
    WHERE e.submission_day BETWEEN {first} AND {last} AND e.state NOT IN ('running', 'cancelled')
"""
_NUMBERS: dict[str, tuple[LiteralString, str]] = {
    "execution": ("e.id", "int64"),
    "task": ("e.task", "int64"),
    "attempt": ("e.attempt", "int16"),
    "stage": ("e.stage", "int16"),
    "plan_stages": ("coalesce(jsonb_array_length(a.plan), 1)", "int16"),
    "priority": ("t.priority", "int16"),
    "age_days": ("{last} - e.submission_day", "int16"),
    "score": ("s.effective_score", "float64"),
    "has_succeeded": ("e.state = 'succeeded'", "bool"),
    "is_censored": ("coalesce(e.reason = ANY({censored}), false)", "bool"),
    "quality": ("coalesce(e.quality, 'NaN')", "float64"),
    "input_tokens": ("e.input_tokens", "int64"),
    "output_tokens": ("e.output_tokens", "int64"),
    "expected_input_tokens": ("s.input_mean", "float64"),
    "expected_output_tokens": ("s.output_mean", "float64"),
    "cost_usd": ("e.cost_usd", "float64"),
    "latency_ms": ("coalesce(e.latency_ms, 'NaN')", "float64"),
}
_NAMES: dict[str, LiteralString] = {
    "model": "e.model",
    "model_version": "v.model_version",
    "domain": "s.domain",
    "complexity": "s.complexity",
    "risk": "s.risk",
    "reason": "e.reason",
    "config_hash": "a.config_hash",
}


class Observations:
    """Reads what came of executions, each window once: all assets of a run look at the same outcomes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read: tuple[date, int, pd.DataFrame] | None = None

    def window(self, day: date, days_back: int) -> pd.DataFrame:
        """Ended executions of the tasks submitted in the `days_back` days that end with `day`.

        What was read last is kept, and gives shorter windows that end with the same day, too.

        Args:
            day: last submission day of the window.
            days_back: days in the window, at least 1.

        Returns:
            One row an execution, by its id: execution, task, attempt, stage, model, model_version (what the provider
            called it when it was decided), config_hash (of that decision), plan_stages (likewise), domain, complexity,
            risk, priority (0..4), age_days (of the task's submission, before `day`), score (effective value score),
            has_succeeded (its work was good enough), quality (0..10 or missing), reason (of a failure, or missing),
            is_censored (it was cut off, so that its tokens and time are lower bounds), input_tokens, output_tokens,
            cost_usd (list price), latency_ms (or missing), expected_input_tokens, expected_output_tokens (means of the
            task's estimate). Names are categories.
        """
        if self._read is None or self._read[0] != day or self._read[1] < days_back:
            self._read = (day, days_back, self._window(day, days_back))
        _, kept, frame = self._read
        if kept == days_back:
            return frame.copy(deep=False)
        return frame[frame["age_days"] < days_back].reset_index(drop=True)

    def texts(self, tasks: Iterable[int]) -> pd.DataFrame:
        """Title and description of some tasks, by `task` in the order given; a task that is gone is left out.

        They are long: read those that are wanted, and no more.
        """
        wanted = [int(task) for task in tasks]
        found = self._database.fetch(
            """
            SELECT p.task, p.title, p.description
            FROM unnest(%s::bigint[]) WITH ORDINALITY AS wanted (task, place)
            JOIN task_payloads p ON p.task = wanted.task ORDER BY place
            """,
            [wanted],
        )
        return pd.DataFrame(found, columns=["task", "title", "description"])

    def _window(self, day: date, days_back: int) -> pd.DataFrame:
        values = {
            "first": sql.Literal(day - timedelta(days=days_back - 1)),
            "last": sql.Literal(day),
            "censored": sql.Literal([reason.value for reason in CENSORED]),
        }
        source = sql.SQL(_SOURCE).format(**values)
        columns = {
            **{name: Number(sql.SQL(of).format(**values), dtype) for name, (of, dtype) in _NUMBERS.items()},
            # A text is sent as its hash, and what each hash stands for is asked afterwards.
            **{name: Number(sql.SQL(_HASH).format(sql.SQL(of)), "int64") for name, of in _NAMES.items()},
        }
        with self._database.transaction() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            found: dict[str, Any] = dict(read_columns(connection, source, columns))
            order = np.argsort(found["execution"], kind="stable")
            found = {name: values[order] for name, values in found.items()}
            found |= _names(connection, source, found)
        return pd.DataFrame(found, copy=False)


_HASH: LiteralString = "coalesce(hashtextextended({}, 0), 0)"


def _names(
    connection: psycopg.Connection, source: sql.Composable, found: Mapping[str, NDArray[Any]]
) -> dict[str, pd.Categorical[str]]:
    """Names in place of their hashes: each is read from the first row that has it."""
    codes = {name: pd.factorize(found[name])[0] for name in _NAMES}
    first = {name: _first_rows(of) for name, of in codes.items()}
    rows = found["execution"][np.unique(np.concatenate(list(first.values())))]
    query = sql.SQL("SELECT e.id, {} {} AND e.id = ANY({})").format(
        sql.SQL(", ").join(map(sql.SQL, _NAMES.values())), source, sql.Literal(rows.tolist())
    )
    said = {row: texts for row, *texts in connection.execute(query).fetchall()}
    return {
        name: _categories(of, [said[found["execution"][row]][place] for row in first[name]])
        for place, (name, of) in enumerate(codes.items())
    }


def _first_rows(codes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Where each code stands first."""
    first = np.zeros(codes.max(initial=-1) + 1, dtype=np.intp)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of equal codes, the last assignment stands
    return first


def _categories(codes: NDArray[np.intp], names: Sequence[str | None]) -> pd.Categorical[str]:
    """Codes as names in alphabetical order; None is missing."""
    known = sorted(name for name in names if name is not None)
    places = np.array([-1 if name is None else known.index(name) for name in names], dtype=np.int16)
    return pd.Categorical.from_codes(places[codes], pd.Index(known))
