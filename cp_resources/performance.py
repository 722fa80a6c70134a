"""Performance of models in PostgreSQL: reads attempts from the marts, stores what was measured."""

from __future__ import annotations

from datetime import date

import pandas as pd
from psycopg.rows import dict_row

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
    """The attempts that performance is measured on, and table performance_metrics."""

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
