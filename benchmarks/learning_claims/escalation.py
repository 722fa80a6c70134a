"""Claim: plans chosen task by task, with escalation, beat the best fixed sequence of up to three models.

On made-up matrices (see `_made_up_matrix`, which says what is assumed), full, five random folds, texts that show little
or a fair part of a task's difficulty. Both get the same budgets and the same check, 80/80 and 90/90; both are picked on
the training part. The sequence is the most accurate one within each budget. AIQ is over the same range of costs.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.learning_claims._made_up_matrix import made_up_matrix
from benchmarks.report import note, report
from cp_core.assignment.plans import CheckPolicy
from cp_core.learning.backtest.deciding import Terms
from cp_core.learning.backtest.judging import backtest
from cp_core.learning.backtest.outcomes import folds
from cp_core.learning.routing import cost_at

DATA = Path(os.environ.get("CP_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
FILE = "aider_polyglot_leaderboard.csv"
MODELS, TASKS, FOLDS = 12, 300, 5
SEEDS = range(2)
VISIBLE = (0.05, 0.3)
CHECKS = (0.8, 0.9)


def measure() -> None:
    """Backtest some matrices, and compare areas and costs."""
    path = DATA / FILE
    if not path.exists():
        raise SystemExit(f"{path} is missing; CP_SHARED_DATA may name the folder that holds {FILE}")
    leaderboard = pd.read_csv(path)
    note(
        f"escalation: {len(SEEDS)} made-up matrices of {MODELS} models x {TASKS} tasks for each case, {FOLDS} folds"
    )
    for visible in VISIBLE:
        for quality in CHECKS:
            with threadpool_limits(1):
                found = [_compare(leaderboard, visible, quality, seed) for seed in SEEDS]
            gain, single, accurate = np.mean(found, axis=0)
            case = f"check {quality:.0%}, texts show {visible:.0%}"
            report("learning", case, "aiq_gain", float(gain), "AIQ", "> 0", bool(gain > 0))
            report("learning", case, "cost_ratio", float(single), "ratio", "< 1", bool(single < 1))
            report(
                "learning",
                case,
                "cost_ratio_at_sequence",
                float(accurate),
                "ratio",
                "< 1",
                bool(accurate < 1),
            )


def _compare(
    leaderboard: pd.DataFrame, visible: float, quality: float, seed: int
) -> tuple[float, float, float]:
    """Gain of area; cost ratios at the best single model's accuracy, and at 98 % of the fixed sequence's best."""
    tasks, outcomes = made_up_matrix(leaderboard, models=MODELS, tasks=TASKS, visible=visible, seed=seed)
    terms = Terms(CheckPolicy(sensitivity=quality, specificity=quality), seed=seed)
    found = backtest(tasks, outcomes, folds(TASKS, FOLDS, seed=seed), terms, split=f"{FOLDS} folds")
    ours, fixed = found.ours_with_escalation, found.best_fixed_sequence
    best = max(point.accuracy for point in found.singles)
    near_top = 0.98 * max(point.accuracy for point in fixed.points)
    ratios = []
    for accuracy in (best, near_top):
        costs = [
            cost_at([p.cost_usd for p in curve.points], [p.accuracy for p in curve.points], accuracy)
            for curve in (ours, fixed)
        ]
        ratios.append(np.inf if costs[0] is None else 0.0 if costs[1] is None else costs[0] / costs[1])
    return ours.aiq_shared - fixed.aiq_shared, ratios[0], ratios[1]
