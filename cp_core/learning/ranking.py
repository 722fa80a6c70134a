"""Which model is best at a kind of task, and how sure that is."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cp_core.learning.performance import ALL

_DRAWS = 20_000


def rank_models(estimates: pd.DataFrame, domain: str, complexity: str, *, seed: int = 0) -> pd.DataFrame:
    """Models by their expected success on tasks of a kind, best first.

    Args:
        estimates: what `estimate_performance` gave.
        domain, complexity: of the tasks; `ALL` for any.

    Returns:
        One row a model: model, success, low and high (80 % interval), effective_n, based_on ("domain and complexity",
        "domain", "complexity" or "model": the closest group with an estimate) and probability_best: the chance that
        no other model's success rate is higher, by draws from the posterior Beta distributions.
    """
    groups = (
        (domain, complexity, "domain and complexity"),
        (domain, ALL, "domain"),
        (ALL, complexity, "complexity"),
        (ALL, ALL, "model"),
    )
    found = pd.concat(
        [
            estimates[(estimates["domain"] == at) & (estimates["complexity"] == how)].assign(
                based_on="model" if (at, how) == (ALL, ALL) else name
            )
            for at, how, name in groups
        ]
    ).drop_duplicates("model")
    found = found.sort_values(["success", "model"], ascending=[False, True], ignore_index=True)
    strength = found["success_strength"].to_numpy(np.float64)
    mean = found["success"].to_numpy(np.float64)
    draws = np.random.default_rng(seed).beta(mean * strength, (1 - mean) * strength, (_DRAWS, len(found)))
    best = np.bincount(draws.argmax(axis=1), minlength=len(found)) if len(found) else np.zeros(0)
    return found.assign(probability_best=best / _DRAWS, low=found["success_low"], high=found["success_high"])[
        ["model", "success", "low", "high", "probability_best", "effective_n", "based_on"]
    ]
