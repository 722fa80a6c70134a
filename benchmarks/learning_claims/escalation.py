"""Claim: plans chosen task by task, with escalation, beat the best fixed sequence of up to three models.

On made-up matrices of eight shapes (`_made_up_matrix` says what is assumed) and three with real texts (`_real_matrix`),
full, five random folds. Both ways get the same budgets and the same check, 80/80 and 90/90, and both are picked on the
training part: the sequence is the most accurate one within each budget. Each case is the mean over two seeds, which
were fixed with the cases before anything was measured; all are reported.

AIQ is over the costs from the cheapest to the dearest single model. Costs are compared at the accuracy of the best
single model, and at 98 % of the fixed sequences' best; both curves may be mixed (hulls).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.learning_claims._made_up_matrix import Shape, made_up_matrix
from benchmarks.learning_claims._real_matrix import data_file, mmlu, router_arena, swe_bench
from benchmarks.report import note, report
from cp_core.assignment.plans import CheckPolicy
from cp_core.learning.backtest.deciding import Learned, Terms, learn
from cp_core.learning.backtest.judging import Fold, backtest
from cp_core.learning.backtest.outcomes import Outcomes, folds
from cp_core.learning.backtest.report import Curve
from cp_core.learning.routing import cost_at

FOLDS = 5
SEEDS = (0, 1)
CHECKS = (0.8, 0.9)
_NEVER = 10.0  # ratio that is reported where ours never reaches an accuracy
SHAPES = {
    "texts show 5 %": Shape(12, 300, 0.05),
    "texts show 30 %": Shape(12, 300, 0.3),
    "no texts": Shape(20, 500, None),
    "families": Shape(24, 500, 0.05, families=6, failure_cost=2.0),
    "specialists": Shape(11, 1_000, 0.1, directions=3, bent=0.6, rates=(0.35, 0.8)),
    "cheap ones near": Shape(15, 600, 0.1, directions=2, rates=(0.6, 0.75)),
    "many models, few tasks": Shape(30, 300, 0.3, directions=2, families=8, rates=(0.2, 0.75)),
    "costs by difficulty": Shape(12, 1_500, 0.15, directions=2, cost_by_difficulty=0.8),
}
METRICS = {
    "aiq_gain": ("AIQ", "> 0"),
    "cost_ratio": ("ratio", "< 1"),
    "cost_ratio_at_sequence": ("ratio", "< 1"),
}

Make = Callable[[int], tuple[pd.DataFrame, Outcomes]]


def measure() -> None:
    """Backtest each matrix with each check, and compare areas and costs."""
    won = dict.fromkeys(METRICS, 0)
    cases = _cases()
    for name, make in cases.items():
        with threadpool_limits(1):
            found = np.mean([_compare(*make(seed), seed) for seed in SEEDS], axis=0)
        for (place, quality), (number, metric) in product(enumerate(CHECKS), enumerate(METRICS)):
            value, (unit, goal) = float(found[place, number]), METRICS[metric]
            met = value > 0 if metric == "aiq_gain" else value < 1
            won[metric] += met
            report("learning", f"{name}, check {quality:.0%}", metric, value, unit, goal, met)
    for metric, number in won.items():
        report(
            "learning", "escalation, all cases", f"{metric}_won", number / len(cases) / len(CHECKS), "share"
        )
    note(
        "escalation: where texts say nothing of a task, what is best on average is best for each: a draw is expected"
    )


def _cases() -> dict[str, Make]:
    leaderboard = pd.read_csv(data_file("aider_polyglot_leaderboard.csv"))

    def made_up(shape: Shape) -> Make:
        return lambda seed: made_up_matrix(leaderboard, shape, seed=seed)

    made = {f"made up, {name}": made_up(shape) for name, shape in SHAPES.items()}
    return {**made, "RouterArena": router_arena, "MMLU": mmlu, "SWE-bench issues": swe_bench}


def _compare(tasks: pd.DataFrame, outcomes: Outcomes, seed: int) -> list[tuple[float, float, float]]:
    """For each check: gain of area; cost ratios at the best single model's accuracy and near the sequences' best."""
    parts = folds(len(tasks), FOLDS, seed=seed)
    learned = [learn(tasks, outcomes, *part, seed=seed) for part in parts]
    return [_gains(tasks, outcomes, parts, learned, quality, seed) for quality in CHECKS]


def _gains(
    tasks: pd.DataFrame,
    outcomes: Outcomes,
    parts: list[Fold],
    learned: list[Learned],
    quality: float,
    seed: int,
) -> tuple[float, float, float]:
    terms = Terms(CheckPolicy(sensitivity=quality, specificity=quality), seed=seed)
    found = backtest(tasks, outcomes, parts, terms, split=f"{FOLDS} folds", learned=learned)
    ours, fixed = found.ours_with_escalation, found.best_fixed_sequence
    best = max(found.singles, key=lambda point: (point.accuracy, -point.cost_usd))
    near_top = 0.98 * max(point.accuracy for point in fixed.points)
    alone = (
        _cost_at(fixed, best.accuracy) or best.cost_usd
    )  # where no sequence reaches it, the model itself does
    near = _cost_at(fixed, near_top) or best.cost_usd
    return (
        ours.aiq_shared - fixed.aiq_shared,
        (_cost_at(ours, best.accuracy) or _NEVER * alone) / alone,
        (_cost_at(ours, near_top) or _NEVER * near) / near,
    )


def _cost_at(curve: Curve, accuracy: float) -> float | None:
    return cost_at(
        [point.cost_usd for point in curve.points], [point.accuracy for point in curve.points], accuracy
    )
