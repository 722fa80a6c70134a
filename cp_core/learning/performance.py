"""The performance of each model: what came of its attempts, by domain and complexity and over all of them."""

from __future__ import annotations

import pandas as pd

ALL = "all"
"""Stands for every domain, or every complexity, in the row that describes a model as a whole."""

KEYS = ["model", "domain", "complexity"]
MEASURES = [
    "attempts",
    "tasks",
    "succeeded",
    "success_rate",
    "quality_mean",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cost_usd",
    "value_delivered",
    "value_per_usd",
    "latency_p50_ms",
    "latency_p95_ms",
    "input_error_ratio",
    "output_error_ratio",
]


def measure_performance(attempts: pd.DataFrame) -> pd.DataFrame:
    """Sum up ended attempts per model, domain and complexity, and per model as a whole.

    Args:
        attempts: one row an ended attempt, with columns
            model, domain, complexity (text); task (id); has_succeeded (bool);
            score (effective value score of its task, 0..100); quality (0..10, or missing);
            input_tokens, cached_tokens, output_tokens (counts; cached ones are part of the input);
            cost_usd (Decimal, list price); latency_ms (or missing);
            expected_input_tokens, expected_output_tokens (means of the task's estimate).

    Returns:
        One row a (model, domain, complexity) that occurs, and one a model with domain and complexity `ALL`,
        in that order of keys. Columns are `KEYS` and `MEASURES`. Rates are per attempt. `value_delivered`
        counts the scores of attempts that succeeded (a task succeeds once); `value_per_usd` is missing where
        nothing was paid. The error ratios are total actual over total expected tokens of successful attempts,
        missing where none succeeded: above 1, the estimate was too low.
    """
    as_a_whole = attempts.assign(domain=ALL, complexity=ALL)
    cells = pd.concat([attempts, as_a_whole], ignore_index=True)
    won = cells["has_succeeded"].astype(bool)
    cells = cells.assign(
        has_succeeded=won.astype("int64"),
        value=cells["score"].where(won, 0.0),
        quality=cells["quality"].astype("float64"),
        latency_ms=cells["latency_ms"].astype("float64"),
        won_input=cells["input_tokens"].where(won, 0),
        won_output=cells["output_tokens"].where(won, 0),
        won_expected_input=cells["expected_input_tokens"].where(won, 0.0),
        won_expected_output=cells["expected_output_tokens"].where(won, 0.0),
    )
    groups = cells.groupby(KEYS, sort=True)
    summed = groups.agg(
        attempts=("task", "size"),
        tasks=("task", "nunique"),
        succeeded=("has_succeeded", "sum"),
        quality_mean=("quality", "mean"),
        input_tokens=("input_tokens", "sum"),
        cached_tokens=("cached_tokens", "sum"),
        output_tokens=("output_tokens", "sum"),
        cost_usd=("cost_usd", "sum"),
        value_delivered=("value", "sum"),
        won_input=("won_input", "sum"),
        won_output=("won_output", "sum"),
        won_expected_input=("won_expected_input", "sum"),
        won_expected_output=("won_expected_output", "sum"),
    )
    latency = groups["latency_ms"]
    measured = summed.assign(
        success_rate=summed["succeeded"] / summed["attempts"],
        value_per_usd=_ratio(summed["value_delivered"], summed["cost_usd"].astype("float64")),
        latency_p50_ms=latency.quantile(0.50),
        latency_p95_ms=latency.quantile(0.95),
        input_error_ratio=_ratio(summed["won_input"], summed["won_expected_input"]),
        output_error_ratio=_ratio(summed["won_output"], summed["won_expected_output"]),
    )
    return measured.reset_index()[KEYS + MEASURES]


def _ratio(numerator: pd.Series[float], denominator: pd.Series[float]) -> pd.Series[float]:
    """`numerator / denominator`, missing where the denominator is zero."""
    return numerator / denominator.where(denominator > 0)
