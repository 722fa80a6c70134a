"""Is today like the days before: what is watched of scored tasks and attempts, as findings for a person."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from dagster import AssetCheckSeverity

from cp_assets.checks import SHOWN, Check, Findings, Scope

TRAILING_DAYS = 28
"""Days before the day that it is held against."""

_FEATURES = """
    SELECT feature, value, task_scores.submission_day = %(day)s AS is_today, count(*)
    FROM task_scores
    JOIN tasks ON tasks.id = task_scores.task
    CROSS JOIN LATERAL (VALUES
        ('priority', 'P' || priority), ('domain', domain), ('complexity', complexity), ('risk', risk),
        ('due', time_bonus_reason), ('score', to_char(floor(effective_score), '000'))
    ) AS looked_at (feature, value)
    WHERE task_scores.submission_day BETWEEN %(first)s AND %(day)s
    GROUP BY 1, 2, 3 ORDER BY 1, 2
"""
_SUCCESS = """
    SELECT model, submission_day, count(*), count(*) FILTER (WHERE state = 'succeeded')
    FROM executions
    WHERE submission_day BETWEEN %(first)s AND %(day)s AND state NOT IN ('running', 'cancelled')
      AND (reason IS NULL OR reason <> ALL(%(not_of_the_model)s))
    GROUP BY 1, 2 ORDER BY 1, 2
"""


def drifted_features(scope: Scope) -> Findings:
    """Features of scored tasks, and their scores, whose distribution has moved."""
    from cp_core.learning.drift import kolmogorov_smirnov, population_stability

    if scope.day is None:
        return Findings.of([])
    counts: dict[str, dict[str, list[int]]] = {}
    for feature, value, is_today, count in scope.database.fetch(_FEATURES, _window(scope.day)):
        counts.setdefault(feature, {}).setdefault(value, [0, 0])[is_today] = count
    found: list[dict[str, Any]] = []
    for feature, by_value in counts.items():
        before, now = zip(*by_value.values(), strict=True)
        measures = {"PSI": population_stability} if feature != "score" else {"KS": kolmogorov_smirnov}
        for name, measure in measures.items():
            if (drift := measure(before, now)).is_notable:
                found.append(
                    {"feature": feature, "measure": name, "moved by": drift.statistic, "bound": drift.bound}
                )
    return Findings.of(found)


def spiking_tokens(scope: Scope) -> Findings:
    """Attempts of the day that took far more tokens than usual."""
    import pandas as pd

    from cp_core.learning.drift import token_spikes

    if scope.day is None:
        return Findings.of([])
    seen = scope.observations.window(scope.day, TRAILING_DAYS + 1)
    spikes = [
        token_spikes(
            seen[["model", "domain", "task", "attempt"]].assign(
                kind=kind, tokens=seen[f"{kind}_tokens"].astype("float64")
            ),
            (seen["age_days"] == 0).to_numpy(),
        )
        for kind in ("input", "output")
    ]
    found = pd.concat(spikes).sort_values("z", ascending=False)
    shown = found.head(SHOWN)
    names = dict(
        scope.database.fetch("SELECT id, task_id FROM tasks WHERE id = ANY(%s)", [shown["task"].tolist()])
    )
    rows = shown.assign(task=shown["task"].map(names)).rename(columns={"task": "task_id"}).to_dict("records")
    return Findings(len(found), [{str(name): value for name, value in row.items()} for row in rows])


def fallen_success(scope: Scope) -> Findings:
    """Models whose success has fallen for good."""
    from cp_core.learning.ability import NOT_OF_THE_MODEL
    from cp_core.learning.drift import success_fell

    if scope.day is None:
        return Findings.of([])
    parameters = {**_window(scope.day), "not_of_the_model": [reason.value for reason in NOT_OF_THE_MODEL]}
    by_model: dict[str, dict[date, tuple[int, int]]] = {}
    for model, day, attempts, succeeded in scope.database.fetch(_SUCCESS, parameters):
        by_model.setdefault(model, {})[day] = (attempts, succeeded)
    found = []
    for model, by_day in by_model.items():
        days = sorted(by_day)
        change = success_fell(
            [by_day[day][1] for day in days], [by_day[day][0] for day in days], series=len(by_model)
        )
        if change:
            found.append(
                {
                    "model": model,
                    "since": days[change.began],
                    "success before": change.before,
                    "success since": change.since,
                }
            )
    return Findings.of(found)


def _window(day: date) -> dict[str, Any]:
    return {"first": day - timedelta(days=TRAILING_DAYS), "day": day}


DRIFT_CHECKS = [
    Check(
        name="scored_tasks_are_like_those_before",
        description=f"Priorities, domains, complexities, risks, due dates (PSI) and scores (Kolmogorov-Smirnov) of the "
        f"day's tasks are like those of the {TRAILING_DAYS} days before.",
        search=drifted_features,
        severity=AssetCheckSeverity.WARN,
    ),
    Check(
        name="tokens_do_not_spike",
        description=f"No attempt of the day took far more tokens than its model did in its domain in the "
        f"{TRAILING_DAYS} days before (robust z of the logarithm).",
        search=spiking_tokens,
        severity=AssetCheckSeverity.WARN,
    ),
    Check(
        name="success_has_not_fallen",
        description=f"No model's success has fallen for good within the {TRAILING_DAYS} days before (CUSUM, one false "
        "alarm in a hundred windows for all models together).",
        search=fallen_success,
        severity=AssetCheckSeverity.WARN,
    ),
]
