"""Outcomes that learning looks at: every ended execution of a window of days, as one frame.

Read from the tables themselves, so that what came in late counts the next time a window is read.
"""

from __future__ import annotations

from datetime import date, timedelta
from io import BytesIO
from typing import LiteralString

import pandas as pd
from psycopg import sql

from cp_core.learning.censoring import CENSORED
from cp_resources.database import Database

_COPY: LiteralString = """
COPY (
    WITH versions AS MATERIALIZED (
        SELECT config_hash, declared.key AS model, declared.value ->> 'api_name' AS model_version
        FROM cp.config_versions CROSS JOIN LATERAL jsonb_each(content #> '{{models,models}}') AS declared
    )
    SELECT e.id AS execution, e.task, t.task_id, e.attempt, e.stage, e.model, v.model_version, e.provider, e.funding,
        s.domain, s.complexity, s.risk, t.priority, t.workspace, e.submission_day, s.effective_score AS score,
        e.state = 'succeeded' AS has_succeeded, e.quality, e.reason, coalesce(e.reason = ANY({censored}), false)
            AS is_censored,
        e.input_tokens, e.cached_tokens, e.output_tokens, e.cost_usd, e.latency_ms,
        s.input_mean AS expected_input_tokens, s.output_mean AS expected_output_tokens,
        coalesce(jsonb_array_length(a.plan), 1) AS plan_stages, a.decision_id AS decision, a.strategy, a.path,
        a.propensity, a.config_hash, e.started_at{texts}
    FROM cp.executions e
    JOIN cp.tasks t ON t.id = e.task
    JOIN cp.task_scores s ON s.task = e.task
    JOIN cp.assignments a ON a.id = e.assignment
    LEFT JOIN versions v ON v.config_hash = a.config_hash AND v.model = e.model
    {payloads}
    WHERE e.submission_day BETWEEN {first} AND {last} AND e.state NOT IN ('running', 'cancelled')
    ORDER BY e.id
) TO STDOUT (FORMAT csv, HEADER)
"""
_WHOLE = [
    "execution",
    "task",
    "attempt",
    "stage",
    "priority",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "plan_stages",
]
_NAMES = [
    "model",
    "model_version",
    "provider",
    "funding",
    "domain",
    "complexity",
    "risk",
    "strategy",
    "path",
    "reason",
]
_TRUTHS = ["has_succeeded", "is_censored"]


class Observations:
    """Reads what came of executions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def window(self, day: date, days_back: int, *, with_texts: bool = False) -> pd.DataFrame:
        """Ended executions of the tasks submitted in the `days_back` days that end with `day`.

        Args:
            day: last submission day of the window.
            days_back: days in the window, at least 1.
            with_texts: also title and description, which are long.

        Returns:
            One row an execution, by its id: execution, task, task_id, attempt, stage, model, model_version (what the
            provider called it when it was decided), provider, funding, domain, complexity, risk, priority (0..4),
            workspace, submission_day, age_days (before `day`), score (effective value score), has_succeeded (its work
            was good enough), quality (0..10 or missing), reason (of a failure, or missing), is_censored (it was cut
            off, so that its tokens and time are lower bounds), input_tokens, cached_tokens (part of the input),
            output_tokens, cost_usd (list price), latency_ms, expected_input_tokens, expected_output_tokens (means of
            the task's estimate), plan_stages (of its decision), decision, strategy, path, propensity, config_hash,
            started_at; with texts also title and description.
        """
        first = day - timedelta(days=days_back - 1)
        texts = sql.SQL(", p.title, p.description" if with_texts else "")
        payloads = sql.SQL("JOIN cp.task_payloads p ON p.task = t.id" if with_texts else "")
        query = sql.SQL(_COPY).format(
            first=sql.Literal(first),
            last=sql.Literal(day),
            censored=sql.Literal([reason.value for reason in CENSORED]),
            texts=texts,
            payloads=payloads,
        )
        content = BytesIO()
        with self._database.transaction() as connection, connection.cursor().copy(query) as copy:
            for block in copy:
                content.write(block)
        content.seek(0)
        return _typed(pd.read_csv(content, keep_default_na=False, na_values=[""], dtype=_DTYPES), day)


def _typed(frame: pd.DataFrame, day: date) -> pd.DataFrame:
    for name in _TRUTHS:
        frame[name] = frame[name] == "t"
    for name in ("submission_day", "started_at"):
        frame[name] = pd.to_datetime(frame[name], utc=name == "started_at", format="ISO8601")
    frame["age_days"] = (pd.Timestamp(day) - frame["submission_day"]).dt.days
    return frame


_NUMBERS = [
    "score",
    "quality",
    "cost_usd",
    "latency_ms",
    "expected_input_tokens",
    "expected_output_tokens",
    "propensity",
]
_DTYPES = {
    **dict.fromkeys(_WHOLE, "int64"),
    **dict.fromkeys(_NAMES, "category"),
    **dict.fromkeys(_TRUTHS, "category"),
    **dict.fromkeys(_NUMBERS, "float64"),
    **dict.fromkeys(["task_id", "workspace", "decision", "config_hash", "title", "description"], "str"),
}
