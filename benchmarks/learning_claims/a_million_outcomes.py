"""Claim: what a night learns from 1,000,000 outcomes of performance and success takes seconds, and little memory.

The rows are made up, in the columns that `Observations.window` gives: 12 models, every domain and complexity, 120 days.
Measured are the pure steps, in this process; the reading of the rows from PostgreSQL is not among them.
"""

from __future__ import annotations

import resource
import sys
from time import perf_counter

import numpy as np
import pandas as pd

from benchmarks.report import report
from cp_core.learning.estimates import estimate_performance
from cp_core.learning.performance import ALL
from cp_core.learning.ranking import rank_models
from cp_core.learning.success_cells import find_success
from cp_core.scoring.config import Complexity, Domain

OUTCOMES = 1_000_000
MODELS = 12
DAYS = 120


def measure() -> None:
    """Report the seconds of each step, of all, and the most memory that the process held."""
    rows = observations(OUTCOMES, seed=7)
    start = perf_counter()
    estimates = estimate_performance(rows)
    rank_models(estimates, ALL, ALL)
    estimated = perf_counter()
    find_success(estimates, rows)
    ended = perf_counter()
    report("learning", "performance estimates and ranking", "seconds", estimated - start, "s")
    report("learning", "success table, judged on held out tasks", "seconds", ended - estimated, "s")
    report(
        "learning",
        "performance and success, without reading",
        "seconds_1m_outcomes",
        ended - start,
        "s",
        "<= 25",
    )
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    report("learning", "performance and success", "memory", held, "GB", "<= 2")


def observations(rows: int, *, seed: int) -> pd.DataFrame:
    """Made-up outcomes: success by model and complexity, log-normal tokens, times and costs, reasons of failure."""
    rng = np.random.default_rng(seed)
    model, domain, complexity = (
        rng.integers(0, size, rows) for size in (MODELS, len(Domain), len(Complexity))
    )
    won = rng.random(rows) < 0.9 - 0.03 * model - 0.08 * complexity
    reasons = np.array(["LOW_QUALITY", "TIMEOUT", "RATE_LIMITED"])[rng.integers(0, 3, rows)]
    input_expected, output_expected = 20_000.0 * 2.0**complexity, 2_000.0 * 2.0**complexity
    return pd.DataFrame(
        {
            "execution": np.arange(rows),
            "task": np.arange(rows),
            "model": pd.Categorical.from_codes(model, [f"model-{number}" for number in range(MODELS)]),
            "model_version": pd.Categorical(np.repeat("1", rows)),
            "domain": pd.Categorical.from_codes(domain, [one.value for one in Domain]),
            "complexity": pd.Categorical.from_codes(complexity, [one.value for one in Complexity]),
            "age_days": rng.integers(0, DAYS, rows),
            "score": rng.uniform(0, 100, rows),
            "has_succeeded": won,
            "quality": np.where(won, rng.uniform(6, 10, rows), rng.uniform(0, 6, rows)),
            "reason": pd.Categorical(np.where(won, None, reasons)),
            "is_censored": ~won & (reasons == "TIMEOUT"),
            "expected_input_tokens": input_expected,
            "expected_output_tokens": output_expected,
            "input_tokens": (input_expected * rng.lognormal(0, 0.6, rows)).astype(np.int64),
            "output_tokens": (output_expected * rng.lognormal(0, 0.6, rows)).astype(np.int64),
            "cost_usd": rng.lognormal(-3, 1, rows),
            "latency_ms": rng.lognormal(9, 0.7, rows),
        }
    )
