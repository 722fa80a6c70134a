"""What a configuration would have earned on decisions that were logged, told in three ways beside what was earned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cp_core.learning.offpolicy import Estimate, doubly_robust, importance_weighted, self_normalised


@dataclass(frozen=True)
class Evaluation:
    """Mean reward of a decision: value delivered, less what was paid in value points.

    Attributes:
        decisions: that were looked at.
        earned: by what was decided.
        agrees: share of decisions in which the configuration would have decided the same.
        ips, snips, dr: estimates of what it would have earned; see `cp_core.learning.offpolicy`.
    """

    decisions: int
    earned: float | None
    agrees: float | None
    ips: Estimate
    snips: Estimate
    dr: Estimate


def evaluate(selections: pd.DataFrame, *, confidence: float = 0.95, seed: int = 0) -> Evaluation:
    """Estimate what was not tried.

    Args:
        selections: a row a decision with reward, propensity, target, predicted and predicted_target, as
            `cp_core.learning.selections.selections_of` gives them.
        confidence: of the two-sided intervals.
        seed: of the bootstrap.
    """
    names = ("reward", "propensity", "target", "predicted", "predicted_target")
    logged = [selections[name].to_numpy(dtype=np.float64) for name in names]
    reward, propensity, target, *predicted = logged
    alpha = 1 - confidence
    return Evaluation(
        decisions=len(selections),
        earned=float(reward.mean()) if len(reward) else None,
        agrees=float(target.mean()) if len(target) else None,
        ips=importance_weighted(reward, propensity, target, alpha=alpha, seed=seed),
        snips=self_normalised(reward, propensity, target, alpha=alpha, seed=seed),
        dr=doubly_robust(reward, propensity, target, *predicted, alpha=alpha, seed=seed),
    )
