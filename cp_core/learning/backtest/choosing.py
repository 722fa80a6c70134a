"""Which plan each task gets within a budget: the plans and the solver of production, on what was learned in training.

`PlanBook` and `solve` are those of `cp_core.assignment`. In place of a fixed effect of a rejection stands the
difficulty that models share: a plan's outlook is the mean of its outlooks at each difficulty, given which stages are
independent.

A prediction may be worth little, so it is held to what happened in training. Each plan's level moves toward its average
there, as far as such averages can be told from chance; and how much a task's own prediction sets plans apart counts as
far as it did there. With predictions that say nothing, what is left is the best mix of fixed sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from cp_core.assignment.options import Options
from cp_core.assignment.plans import CheckPolicy, PlanBook
from cp_core.assignment.predict import Predictions
from cp_core.assignment.solver import NO_PLAN, Problem, solve
from cp_core.learning.backtest.difficulty import SharedDifficulty
from cp_core.learning.backtest.sequences import Averages, Sequence_, expected
from cp_core.models.registry import ModelRegistry
from cp_core.scoring.config import Domain

Doubles = NDArray[np.float64]

_DONE_AT_ALL = (
    1.0  # what it is worth that a task is given any plan, beside its success: more than any upgrade
)
_PRICES = 24  # of money, at which plans are tried for the book
_BEST_AT_A_PRICE = 6
_NO_SPREAD = 1e-9  # of success: an axis on which plans do not differ
_LOG_VARIANCES = (np.log(1e-8), np.log(0.05))  # of the deviations of plans
_BLOCK = 4096  # tasks whose outlooks are worked out at once


@dataclass(frozen=True)
class Expected:
    """What plans are expected to give, (K, n) each."""

    success: Doubles
    cost_usd: Doubles


@dataclass(frozen=True)
class Trust:
    """What training says of the predictions for K plans.

    Attributes:
        level: added to each plan's success, (K,).
        cost_level: times each plan's cost, (K,).
        center: each plan's mean predicted success in training, (K,).
        contrast: how far a task's own prediction is believed about the differences between plans, 0 to 1.
    """

    level: Doubles
    cost_level: Doubles
    center: Doubles
    contrast: float

    def apply(self, predicted: Expected) -> Expected:
        """The expectations as far as they are believed."""
        apart = predicted.success - self.center[:, None]
        common = apart.mean(axis=0)
        success = self.center[:, None] + self.level[:, None] + common + self.contrast * (apart - common)
        return Expected(np.clip(success, 0.0, 1.0), predicted.cost_usd * self.cost_level[:, None])


def book_of(plans: Sequence[Sequence_], models: int) -> PlanBook:
    """Production's plan book for sequences over `models` models, all paid by one budget."""
    return PlanBook(plans, Options(_registry(models)))


def worth_choosing(known: Sequence[Averages], most: int) -> list[Sequence_]:
    """Every single model, and the sequences that are among the best at some price of money.

    Args:
        known: averages of the same sequences over all training tasks, and over some of them, such as the hard ones.
        most: plans in all, beside the single models.
    """
    sequences = known[0].sequences
    wins = np.zeros(len(sequences))
    for averages in known:
        usual = max(float(np.median(averages.cost_usd)), 1e-12)
        for price in [0.0, *(np.geomspace(0.02, 50, _PRICES) / usual)]:
            best = np.argsort(price * averages.cost_usd - averages.accuracy, kind="stable")[:_BEST_AT_A_PRICE]
            wins[best] += 1 / (1 + np.arange(len(best)))
    ranked = np.argsort(-wins, kind="stable")
    singles = [sequence for sequence in sequences if len(sequence) == 1]
    chosen = [sequences[place] for place in ranked if wins[place] > 0 and len(sequences[place]) > 1]
    return [*singles, *chosen[:most]]


def predict_plans(
    book: PlanBook, success: Doubles, cost_usd: Doubles, difficulty: SharedDifficulty, check: CheckPolicy
) -> Expected:
    """What each plan is expected to give each task.

    Args:
        success, cost_usd: predictions of single models, (m, n).
    """
    found = Expected(np.zeros((len(book), success.shape[1])), np.zeros((len(book), success.shape[1])))
    independent = check.model_copy(update={"rejection_log_odds": 0.0})
    for start in range(0, success.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        for node, weight in enumerate(difficulty.weights):
            able = difficulty.success_at(success[:, block], node)
            cost = cost_usd[:, block] * difficulty.cost_factors[:, node, None]
            outlook = book.outlook(_as_predictions(able, cost), independent)
            found.success[:, block] += weight * outlook.success
            found.cost_usd[:, block] += weight * outlook.list_usd
    return found


def trust(
    plans: Sequence[Sequence_], predicted: Expected, success: Doubles, cost_usd: Doubles, check: CheckPolicy
) -> Trust:
    """Hold predictions of training tasks, made without their outcomes, to what came of them.

    Args:
        predicted: for the training tasks, (K, n).
        success, cost_usd: known outcomes without gaps, (m, n).
    """
    results = [expected(plan, success, cost_usd, check) for plan in plans]
    right, spent = (np.array(part) for part in zip(*results, strict=True))
    off = right - predicted.success
    ratio = spent.mean(axis=1) / np.maximum(predicted.cost_usd.mean(axis=1), 1e-300)
    return Trust(
        level=_shrunk_levels(off),
        cost_level=np.clip(ratio, 0.1, 10.0),
        center=predicted.success.mean(axis=1),
        contrast=_believed(_interaction(predicted.success), _interaction(right)),
    )


def within_budget(expected_: Expected, budget: float, *, seed: int) -> NDArray[np.intp]:
    """The plan of each task so that most are expected to succeed and the mean expected cost is at most `budget`, (n,).

    A task for which nothing is left gets the plan that is cheapest for it.
    """
    plans, tasks = expected_.success.shape
    problem = Problem(
        values=expected_.success + _DONE_AT_ALL,
        charges=expected_.cost_usd / budget,
        charge_plan=np.arange(plans),
        draws=np.ones((plans, 1)),
        capacity=np.array([float(tasks)]),
    )
    choice = solve(problem, seed=seed).choice
    return np.where(choice == NO_PLAN, expected_.cost_usd.argmin(axis=0), choice).astype(np.intp)


def _as_predictions(success: Doubles, cost_usd: Doubles) -> Predictions:
    nothing = np.zeros_like(success)
    return Predictions(success, nothing, nothing, nothing, nothing, cost_usd, nothing)


def _interaction(values: Doubles) -> Doubles:
    """What is left of (K, n) values without each plan's mean and each task's mean."""
    return np.asarray(
        values - values.mean(axis=1, keepdims=True) - values.mean(axis=0, keepdims=True) + values.mean(),
        dtype=np.float64,
    )


def _believed(predicted: Doubles, happened: Doubles) -> float:
    """Slope of what happened on what was predicted, by least squares, less what chance would give it; 0 to 1.

    The slope's standard error counts tasks, not pairs. It is shrunk as by James and Stein: by 1 - 1 / t^2.
    """
    by_task = (predicted * happened).sum(axis=0)
    spread = (predicted**2).sum(axis=0)
    if spread.sum() <= 1e-12:
        return 0.0
    slope = float(by_task.sum() / spread.sum())
    variance = float(((by_task - slope * spread) ** 2).sum() / spread.sum() ** 2)
    if slope <= 0:
        return 0.0
    return float(np.clip(slope * max(0.0, 1 - variance / slope**2), 0.0, 1.0))


def _shrunk_levels(off: Doubles) -> Doubles:
    """How far each plan lies from what was predicted, beside what all have in common, so far as it is no chance, (K,).

    Deviations of plans are thought to come from one normal distribution; what chance makes of them, which plans with
    common stages share, is their covariance over tasks. The variance is that of greatest marginal likelihood.

    Args:
        off: what happened less what was predicted, (K, n).
    """
    apart = off - off.mean(axis=0)
    mean, tasks = apart.mean(axis=1), off.shape[1]
    axes, spread, _ = np.linalg.svd(
        (apart - mean[:, None]) / np.sqrt(tasks * max(tasks - 1, 1)), full_matrices=False
    )
    kept = spread > _NO_SPREAD
    axes, chance = axes[:, kept], spread[kept] ** 2
    along = axes.T @ mean

    def surprise(log_variance: float) -> float:
        total = np.exp(log_variance) + chance
        return float((np.log(total) + along**2 / total).sum())

    variance = float(np.exp(minimize_scalar(surprise, bounds=_LOG_VARIANCES, method="bounded").x))
    return np.asarray(axes @ (along * variance / (variance + chance)), dtype=np.float64)


def _registry(models: int) -> ModelRegistry:
    names = [f"m{number:04}" for number in range(models)]  # options come in the order of these names
    model = {
        "provider": "known",
        "tier": "budget",
        "family": "known",
        "input_usd_per_million": Decimal(0),
        "cached_input_usd_per_million": Decimal(0),
        "cache_write_usd_per_million": Decimal(0),
        "output_usd_per_million": Decimal(0),
        "context_window": 10**6,
        "max_output_tokens": 10**5,
        "capability": dict.fromkeys(Domain, 0.5),
    }
    return ModelRegistry.model_validate(
        {
            "providers": {
                "known": {"wire": "openai-chat", "base_url": "https://known.invalid", "api_key_env": "KNOWN"}
            },
            "models": {name: {**model, "api_name": name} for name in names},
            "budgets": {"known": {"window": "monthly", "usd": Decimal(1)}},
        }
    )
