"""Performance of models in PostgreSQL: reads attempts from the marts, stores what was measured."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import date
from typing import Any

import pandas as pd
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from cp_core.learning import estimates as estimating
from cp_core.learning.performance import KEYS, MEASURES
from cp_resources.database import Database

_ATTEMPTS = """
    SELECT model, domain, complexity, task, has_succeeded, score, quality, input_tokens, cached_tokens,
           output_tokens, cost_usd, latency_ms, expected_input_tokens, expected_output_tokens
    FROM marts.executions
    WHERE submission_day = %s AND state NOT IN ('running', 'cancelled')
    ORDER BY execution
"""
_COLUMNS = ["day", *KEYS, *MEASURES]


class PerformanceStore:
    """The attempts that performance is measured on, and tables performance_metrics and performance_estimates."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def attempts(self, day: date) -> pd.DataFrame:
        """Ended attempts of tasks submitted on `day`; columns as `measure_performance` takes them.

        Without those that were called off: they say nothing of a model.
        """
        with self._database.transaction() as connection, connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(_ATTEMPTS, [day]).fetchall()
            names = [column.name for column in cursor.description or ()]
        return pd.DataFrame(rows, columns=names)

    def replace_day(self, day: date, metrics: pd.DataFrame) -> None:
        """Put `metrics` (columns `KEYS` and `MEASURES`) in place of whatever is stored for `day`, at once."""
        rows = metrics[[*KEYS, *MEASURES]].astype(object).where(metrics.notna(), None)
        with self._database.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM performance_metrics WHERE day = %s", [day])
            with cursor.copy(f"COPY performance_metrics ({', '.join(_COLUMNS)}) FROM STDIN") as copy:
                for row in rows.itertuples(index=False, name=None):
                    copy.write_row((day, *row))

    def replace_estimates(self, day: date, estimates: pd.DataFrame) -> None:
        """Put `estimates`, as `estimate_performance` gives them, in place of whatever is stored for `day`, at once."""
        keys = estimates[[*KEYS, "effective_n"]].itertuples(index=False, name=None)
        measures = estimates.drop(columns=[*KEYS, "effective_n"]).to_dict("records")
        with self._database.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM performance_estimates WHERE day = %s", [day])
            with cursor.copy(
                "COPY performance_estimates (day, model, domain, complexity, effective_n, measures) FROM STDIN"
            ) as copy:
                for key, row in zip(keys, measures, strict=True):
                    copy.write_row((day, *key, Jsonb(_measures(row))))

    def estimates(self, day: date | None = None) -> tuple[date, pd.DataFrame] | None:
        """What was estimated on `day`, or on the newest day that has any; None when there is none."""
        rows = self._database.fetch(
            """
            SELECT day, model, domain, complexity, effective_n, measures FROM performance_estimates
            WHERE day = coalesce(%s, (SELECT max(day) FROM performance_estimates)) ORDER BY model, domain, complexity
            """,
            [day],
        )
        if not rows:
            return None
        flat = [
            {
                **dict(zip((*KEYS, "effective_n"), keys, strict=True)),
                "success_strength": measures["success"]["strength"],
                **{
                    name: (measures.get(measure) or {}).get(end)
                    for measure in estimating.MEASURES
                    for name, end in _ends(measure)
                },
            }
            for _, *keys, measures in rows
        ]
        return rows[0][0], pd.DataFrame(flat)


def _measures(row: Mapping[Hashable, Any]) -> dict[str, dict[str, float]]:
    """Value, low and high of each measure that there is."""
    found = {
        measure: {end: row[name] for name, end in _ends(measure)}
        for measure in estimating.MEASURES
        if pd.notna(row[measure])
    }
    found["success"]["strength"] = row["success_strength"]
    return found


def _ends(measure: str) -> tuple[tuple[str, str], ...]:
    return (measure, "value"), (f"{measure}_low", "low"), (f"{measure}_high", "high")
