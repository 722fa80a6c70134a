"""Sequences of models, tried in order with a check between: what they come to on known outcomes.

A sequence is a plan without a thought for the task: up to three different models. `carry_out` draws the check;
`Averages` has the expected result of every sequence over known tasks, which is what the best fixed one is picked by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from cp_core.assignment.plans import CheckPolicy

Doubles = NDArray[np.float64]
Sequence_ = tuple[int, ...]
"""Models in the order in which they are tried: rows of the matrix."""

MOST_STAGES = 3
_MOST_MODELS = 40  # that sequences are made of; of more, those that are best at some price of money


@dataclass(frozen=True)
class Averages:
    """Expected results of s sequences, as averages over known tasks.

    Attributes:
        sequences: the sequences.
        accuracy, cost_usd: mean success and mean cost of all stages that run, (s,).
    """

    sequences: tuple[Sequence_, ...]
    accuracy: Doubles
    cost_usd: Doubles

    def best_within(self, budget: float) -> int:
        """The most accurate sequence of at most `budget`, the cheaper of equals; the cheapest one if none is."""
        affordable = np.flatnonzero(self.cost_usd <= budget)
        if not len(affordable):
            return int(np.argmin(self.cost_usd))
        return int(affordable[np.lexsort((self.cost_usd[affordable], -self.accuracy[affordable]))[0]])

    def cheapest_of(self, accuracy: float) -> int:
        """The cheapest sequence that is at least so accurate; the most accurate one if none is."""
        enough = np.flatnonzero(self.accuracy >= accuracy)
        return int(enough[np.argmin(self.cost_usd[enough])]) if len(enough) else self.best_within(np.inf)


def averages(
    success: Doubles,
    cost_usd: Doubles,
    check: CheckPolicy,
    most_stages: int = MOST_STAGES,
    models: Sequence[int] = (),
) -> Averages:
    """Work every sequence out on known outcomes.

    Args:
        success, cost_usd: without gaps, (m, n); success may be a probability.
        models: that sequences are made of; left out: all, or of very many those that are worth trying.
    """
    rejected = 1 - success * check.sensitivity - (1 - success) * (1 - check.specificity)
    models = models or worth_trying(success, cost_usd)
    sequences: list[Sequence_] = []
    accuracy, cost = [], []
    for stages in range(1, most_stages + 1):
        for head in permutations(models, stages - 1):
            reach = rejected[list(head)].prod(axis=0)
            before = _ahead(head, success, cost_usd, rejected, check)
            last = [model for model in models if model not in head]
            sequences += [(*head, model) for model in last]
            accuracy.append(before[0] + success[last] @ reach / len(reach))
            cost.append(before[1] + cost_usd[last] @ reach / len(reach))
    return Averages(tuple(sequences), np.concatenate(accuracy), np.concatenate(cost))


def worth_trying(success: Doubles, cost_usd: Doubles) -> list[int]:
    """The models that sequences are made of: all, or of very many those that are best at some price of money."""
    if len(success) <= _MOST_MODELS:
        return list(range(len(success)))
    accuracy, cost = success.mean(axis=1), cost_usd.mean(axis=1)
    prices = np.concatenate([[0.0], np.geomspace(0.01, 100, 20) / max(float(cost.mean()), 1e-12)])
    ranks = [np.argsort(np.argsort(-(accuracy - price * cost), kind="stable")) for price in prices]
    return sorted(np.argsort(np.min(ranks, axis=0), kind="stable")[:_MOST_MODELS].tolist())


def expected(
    sequence: Sequence_, success: Doubles, cost_usd: Doubles, check: CheckPolicy
) -> tuple[Doubles, Doubles]:
    """Success and cost of one sequence for each task whose outcomes are known, over the check's errors, (n,) each."""
    reach, right, spent = np.ones((3, success.shape[1]))
    right, spent = np.zeros_like(reach), np.zeros_like(reach)
    for stage, model in enumerate(sequence):
        is_last = stage + 1 == len(sequence)
        right += reach * success[model] * (1.0 if is_last else check.sensitivity)
        spent += reach * cost_usd[model]
        reach = reach * (
            1 - success[model] * check.sensitivity - (1 - success[model]) * (1 - check.specificity)
        )
    return right, spent


def carry_out(
    choice: NDArray[np.intp],
    plans: tuple[Sequence_, ...],
    success: Doubles,
    cost_usd: Doubles,
    check: CheckPolicy,
    luck: NDArray[np.floating],
) -> tuple[Doubles, Doubles]:
    """Try each task's plan on known outcomes, the check drawn.

    Args:
        choice: plan of each task, (n,).
        luck: uniform draws of the check, by repeat, model and task, (d, m, n): the same model's work on the same task
            meets the same check whatever plan it is in.

    Returns:
        Success of the work that was taken and cost of all stages that ran, (n,) each, as means over the repeats.
    """
    tasks = np.arange(len(choice))
    right, spent = np.zeros((2, len(luck), len(choice)))
    under_way = np.ones(right.shape, dtype=bool)
    for stage in range(max(map(len, plans))):
        models = np.array([plan[min(stage, len(plan) - 1)] for plan in plans])[choice]
        exists = np.array([stage < len(plan) for plan in plans])[choice]
        is_last = np.array([stage + 1 == len(plan) for plan in plans])[choice]
        runs = under_way & exists
        good = success[models, tasks]
        accepted = luck[:, models, tasks] < np.where(good > 0.5, check.sensitivity, 1 - check.specificity)
        taken = runs & (accepted | is_last)
        right += np.where(taken, good, 0.0)
        spent += np.where(runs, cost_usd[models, tasks], 0.0)
        under_way &= ~taken
    return right.mean(axis=0), spent.mean(axis=0)


def _ahead(
    head: Sequence_, success: Doubles, cost_usd: Doubles, rejected: Doubles, check: CheckPolicy
) -> tuple[float, float]:
    """Mean success and cost of the stages before the last."""
    reach = np.ones(success.shape[1])
    right = spent = 0.0
    for model in head:
        right += float(reach @ success[model]) * check.sensitivity / len(reach)
        spent += float(reach @ cost_usd[model]) / len(reach)
        reach = reach * rejected[model]
    return right, spent
