"""A made-up matrix of outcomes: many models on many tasks, in the shape of a real leaderboard.

No public matrix of many models comes with the data this is measured on, only a table of whole-benchmark figures
(aider's polyglot leaderboard). Models are drawn from it with their pass rate and cost a case; what a table cannot show
is assumed, with numbers fixed before anything was measured:

- A task has a difficulty ~ N(0, 1). Models share it with loadings of 0.55 to 0.9: they mostly fail on the same tasks.
- Each model is better in some of six domains and worse in others (deviation 0.25 on the probit scale).
- The text shows `visible` of the difficulty's variance, through how often words of effort stand in it; and the domain.
- A task's cost goes with its size and its difficulty, and differs by model (deviations 0.5, 0.3 and 0.4 of the log).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import ndtri

from cp_core.learning.backtest.outcomes import Outcomes

_DOMAINS = ("backend", "frontend", "infrastructure", "ml", "testing", "documentation")
_WORDS = 60
_VISIBLE_WORDS = 12


def made_up_matrix(
    leaderboard: pd.DataFrame, *, models: int, tasks: int, visible: float, seed: int
) -> tuple[pd.DataFrame, Outcomes]:
    """Tasks as a backtest takes them, and their outcomes.

    Args:
        leaderboard: pass_rate_2 (per cent), total_cost (US dollars) and test_cases of each of its models.
        visible: share of the difficulty's variance that the text shows, 0 to 1.
    """
    rng = np.random.default_rng(seed)
    real = leaderboard[(leaderboard["total_cost"] > 0.2) & (leaderboard["pass_rate_2"] > 10)]
    chosen = real.drop_duplicates("model").sample(models, random_state=seed)
    rates = chosen["pass_rate_2"].to_numpy() / 100
    prices = (chosen["total_cost"] / chosen["test_cases"]).to_numpy()

    shown, hidden, size = rng.standard_normal((3, tasks))
    difficulty = np.sqrt(visible) * shown + np.sqrt(1 - visible) * hidden
    domain = rng.integers(len(_DOMAINS), size=tasks)
    loading = rng.uniform(0.55, 0.9, models)[:, None]
    bent = rng.normal(0, 0.25, (models, len(_DOMAINS)))[:, domain]
    ability = ndtri(rates)[:, None] * np.sqrt(1 + 0.25**2) + bent
    own = np.sqrt(1 - loading**2) * rng.standard_normal((models, tasks))
    success = (ability - loading * difficulty + own > 0).astype(np.float64)
    noise = rng.normal(0, 0.4, (models, tasks))
    cost = prices[:, None] * np.exp(0.5 * size + 0.3 * difficulty + noise - (0.5**2 + 0.3**2 + 0.4**2) / 2)

    ids = tuple(f"task-{number:05}" for number in range(tasks))
    frame = pd.DataFrame(
        {
            "title": [f"{_DOMAINS[d]} change" for d in domain],
            "description": _texts(rng, domain, shown, size),
            "domain": [_DOMAINS[d] for d in domain],
            "complexity": "moderate",
            "value_score": rng.uniform(0, 100, tasks),
        },
        index=list(ids),
    )
    unknown = np.full(success.shape, np.nan)
    moments = pd.date_range("2026-01-01", periods=tasks, freq="h", tz="UTC")
    names = tuple(f"model-{number:02}" for number in range(models))
    return frame, Outcomes(ids, names, success, cost, unknown, unknown, unknown, moments)


def _texts(rng: np.random.Generator, domain: np.ndarray, shown: np.ndarray, size: np.ndarray) -> list[str]:
    """Words without meaning; how many of the twelve words of effort stand in a text goes with the shown difficulty."""
    texts = []
    for d, effort, length in zip(domain, shown, size, strict=True):
        count = max(10, int(_WORDS * np.exp(0.5 * length)))
        words = [f"word{n}" for n in rng.zipf(1.5, count) if n < 3000]
        words += [f"{_DOMAINS[d]}{n}" for n in rng.integers(30, size=count // 4)]
        efforts = rng.poisson(count / 10 * np.exp(0.7 * effort))
        words += [f"effort{n}" for n in rng.integers(_VISIBLE_WORDS, size=efforts)]
        texts.append(" ".join(rng.permutation(words)))
    return texts
