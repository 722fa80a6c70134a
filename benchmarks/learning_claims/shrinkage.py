"""Claim: with few outcomes a cell, shrunk success rates are much nearer to the truth than plain ones.

The simulation: 8 models x 6 domains x 4 complexities. The log-odds of a cell's true rate are a sum of normal effects:
all 0.8, the model 0.5, model and domain 0.35, model and complexity 0.25, the cell 0.15 (deviations). That is, models
span about 50 to 85 %, as the pass rates of public leaderboards do, and a model differs from itself by domain by some
eight points. Each cell gets n outcomes. Nothing of this is known to the estimate. The mean of 200 simulations.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit

from benchmarks.report import report
from cp_core.learning.estimates import estimate_performance
from cp_core.learning.performance import ALL

GOALS = {3: 0.6, 5: 0.7, 10: 0.8, 20: 0.9}
SIMULATIONS = 200
MODELS, DOMAINS, COMPLEXITIES = 8, 6, 4


def measure() -> None:
    """Report the ratio of root mean squared errors for each number of outcomes a cell."""
    rng = np.random.default_rng(20_260_301)
    for outcomes, goal in GOALS.items():
        squares = np.array([_squared_errors(outcomes, rng) for _ in range(SIMULATIONS)]).mean(axis=0)
        report(
            "learning",
            f"n={outcomes}",
            "rmse_ratio",
            float(np.sqrt(squares[0] / squares[1])),
            "of the plain mean's",
            f"<= {goal}",
        )


def _squared_errors(outcomes: int, rng: np.random.Generator) -> tuple[float, float]:
    """Mean squared error of the shrunk rates of the cells, and of the plain ones."""
    truth = expit(
        0.8
        + rng.normal(0, 0.5, (MODELS, 1, 1))
        + rng.normal(0, 0.35, (MODELS, DOMAINS, 1))
        + rng.normal(0, 0.25, (MODELS, 1, COMPLEXITIES))
        + rng.normal(0, 0.15, (MODELS, DOMAINS, COMPLEXITIES))
    )
    won = rng.random((*truth.shape, outcomes)) < truth[..., None]
    cells = np.array(list(np.ndindex(truth.shape))).repeat(outcomes, axis=0)
    found = estimate_performance(_observations(cells, won.ravel()))
    shrunk = found[(found["domain"] != ALL) & (found["complexity"] != ALL)].sort_values(
        ["model", "domain", "complexity"]
    )["success"]
    return (
        float(np.mean((shrunk.to_numpy() - truth.ravel()) ** 2)),
        float(np.mean((won.mean(axis=-1) - truth) ** 2)),
    )


def _observations(cells: np.ndarray, won: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "execution": np.arange(len(won)),
            "model": np.char.add("m", cells[:, 0].astype(str)),
            "domain": np.char.add("d", cells[:, 1].astype(str)),
            "complexity": np.char.add("c", cells[:, 2].astype(str)),
            "model_version": "1",
            "reason": None,
            "age_days": 0,
            "has_succeeded": won,
            "is_censored": False,
            "quality": np.nan,
            "latency_ms": 1000.0,
            "score": 50.0,
            "cost_usd": 0.01,
            **dict.fromkeys(
                ["input_tokens", "output_tokens", "expected_input_tokens", "expected_output_tokens"], 100.0
            ),
        }
    )
