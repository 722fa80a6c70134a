"""What people corrected in scores, and what they left as it was: what weights are learned from."""

from __future__ import annotations

from datetime import date, timedelta

import pandas as pd

from cp_core.learning.decay import HALF_LIFE_DAYS
from cp_resources.database import Database

_COLUMNS = [
    "priority",
    "domain",
    "risk",
    "base",
    "time_bonus",
    "tasks",
    "corrections",
    "weight",
    "log_ratio",
    "squares",
]


class Corrections:
    """Reads overridden scores beside all others."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def window(self, day: date, days_back: int) -> pd.DataFrame:
        """Scored tasks submitted in the `days_back` days that end with `day`, those with equal factors together.

        Returns:
            One row a combination of factors: priority (0..4), domain, risk, base (priority points times complexity),
            time_bonus, tasks, corrections (tasks whose score a person overrode), weight (of the tasks, each by its
            age: see `cp_core.learning.decay`), log_ratio and squares (the sum over corrections of ln(override / score),
            and of its square, each by its task's age). A score or override of zero has no logarithm: such a task is
            left out.
        """
        found = self._database.fetch(
            """
            SELECT priority, domain, risk, priority_points * complexity_factor, time_bonus, count(*),
                count(override_score), sum(weight), coalesce(sum(weight * ln(override_score / score)), 0),
                coalesce(sum(weight * ln(override_score / score) ^ 2), 0)
            FROM task_scores JOIN tasks ON tasks.id = task_scores.task
            CROSS JOIN LATERAL (
                SELECT 0.5::float8 ^ ((%(last)s - task_scores.submission_day) / %(half_life)s::float8) AS weight
            ) AS aged
            WHERE task_scores.submission_day BETWEEN %(first)s AND %(last)s
              AND score > 0 AND coalesce(override_score, 1) > 0
            GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
            """,
            {"first": day - timedelta(days=days_back - 1), "last": day, "half_life": HALF_LIFE_DAYS},
        )
        return pd.DataFrame(found, columns=_COLUMNS)
