"""One fold: learn from its training part, and decide for its test part in every way that is compared.

Of the test part only texts, and which pairs have an outcome at all, are looked at here; what the outcomes are is the
business of `judging`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.plans import CheckPolicy
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.learning.backtest import difficulty
from cp_core.learning.backtest.choosing import (
    Expected,
    book_of,
    predict_plans,
    trust,
    within_budget,
    worth_choosing,
)
from cp_core.learning.backtest.costs import CostModel, CostRange
from cp_core.learning.backtest.outcomes import Outcomes, Positions
from cp_core.learning.backtest.sequences import Averages, Sequence_, averages, worth_trying
from cp_core.learning.success import SuccessModel
from cp_core.learning.tokens import TokenModel, TokenPredictions
from cp_core.models.registry import Tier

Doubles = NDArray[np.float64]

_MOST_PLANS = 120
_GROUPS = 3


@dataclass(frozen=True)
class Choice:
    """A way to decide: the plan of each test task."""

    plans: tuple[Sequence_, ...]
    choice: NDArray[np.intp]
    budget_usd: float | None = None


@dataclass(frozen=True)
class Terms:
    """How a backtest is run.

    Attributes:
        check: how good the check between stages is.
        budgets: mean US dollars a task; empty: `settings` of them, from the cheapest model's cost in training on.
        tiers: of each model, (m,); empty: from the costs in training.
        seed: of every random choice.
    """

    check: CheckPolicy
    budgets: tuple[float, ...] = ()
    settings: int = 16
    tiers: tuple[Tier, ...] = ()
    seed: int = 7


@dataclass(frozen=True)
class Decided:
    """What a fold decided and predicted for its test part.

    Attributes:
        success: predicted, (m, n); rates: of the training part, (m,).
        cost, tokens: predicted; tokens is None where none are known.
        tiers: of each model, (m,).
        loadings: see `difficulty`.
        ours, ours_with_escalation, fixed: a choice for each budget.
    """

    success: Doubles
    rates: Doubles
    cost: CostRange
    tokens: TokenPredictions | None
    tiers: tuple[Tier, ...]
    loadings: Doubles
    tiered: Choice
    ours: tuple[Choice, ...]
    ours_with_escalation: tuple[Choice, ...]
    fixed: tuple[Choice, ...]
    accurate: Choice
    frugal: Choice


@dataclass(frozen=True)
class Learned:
    """What a fold learned from its training part, whatever the check.

    Attributes:
        filled, spent: success and cost in training, (m, n); where not known, as predicted.
        in_training, cost_in_training: predicted for it without its own outcomes, (m, n).
        success, cost: predicted for the test part.
        observed: which pairs of the test part have an outcome.
        value_scores: of the tasks of the test part.
    """

    filled: Doubles
    spent: Doubles
    in_training: Doubles
    cost_in_training: Doubles
    shared: difficulty.SharedDifficulty
    success: Doubles
    cost: CostRange
    tokens: TokenPredictions | None
    observed: NDArray[np.bool_]
    value_scores: Doubles


def learn(
    tasks: pd.DataFrame, outcomes: Outcomes, train: Positions, test: Positions, *, seed: int
) -> Learned:
    """Learn from `train`, and predict for `test`.

    Args:
        tasks: one row a task of `outcomes`, in its order and indexed by its ids, with title, description, domain,
            complexity and value_score.
    """
    known, texts, unseen = outcomes.of(train), tasks.iloc[train], tasks.iloc[test]
    model, held_out = SuccessModel.cross_fit(texts, known.rows(success=known.success), seed=seed)
    success, in_training = (_by_model(found, known.models) for found in (model.predict(unseen), held_out))
    costs = CostModel.fit(texts, known.cost_usd, seed=seed)
    relative = known.cost_usd / np.where(costs.out_of_fold > 0, costs.out_of_fold, 1.0)
    return Learned(
        filled=np.where(known.observed, known.success, in_training),
        spent=np.where(np.isfinite(known.cost_usd), known.cost_usd, costs.out_of_fold),
        in_training=in_training,
        cost_in_training=costs.out_of_fold,
        shared=difficulty.fit(in_training, known.success, relative),
        success=success,
        cost=costs.predict(unseen),
        tokens=_tokens(texts, unseen, known, seed),
        observed=outcomes.of(test).observed,
        value_scores=unseen["value_score"].to_numpy(),
    )


def decide(learned: Learned, terms: Terms) -> Decided:
    """Decide for the test part in every way."""
    filled, spent, shared = learned.filled, learned.spent, learned.shared
    models = worth_trying(filled, spent)
    every = averages(filled, spent, terms.check, models=models)
    modelled = averages(shared.drawn(learned.in_training, terms.seed), spent, terms.check, models=models)
    likely = replace(every, accuracy=(every.accuracy + modelled.accuracy) / 2)
    budgets = terms.budgets or _budgets(spent, every, terms.settings)

    def choose(plans: Sequence[Sequence_]) -> tuple[Choice, ...]:
        book = book_of(plans, len(filled))
        seen = predict_plans(book, learned.in_training, learned.cost_in_training, shared, terms.check)
        believed = trust(plans, seen, filled, spent, terms.check).apply(
            predict_plans(book, learned.success, learned.cost.mean, shared, terms.check)
        )
        possible = _only_observed(believed, plans, learned.observed)
        return tuple(
            Choice(tuple(plans), within_budget(possible, budget, seed=terms.seed), budget)
            for budget in budgets
        )

    singles: list[Sequence_] = [(model,) for model in range(len(filled))]
    groups = [every, likely, *_by_difficulty(filled, spent, learned.in_training, terms.check, models)]
    accuracies = filled.mean(axis=1)
    best = max(range(len(accuracies)), key=lambda model: (accuracies[model], -spent[model].mean()))
    tiers = terms.tiers or tiers_by_cost(spent.mean(axis=1))

    def fixed(sequence: int, budget: float | None = None) -> Choice:
        return Choice((every.sequences[sequence],), np.zeros(learned.success.shape[1], dtype=np.intp), budget)

    return Decided(
        success=learned.success,
        rates=accuracies,
        cost=learned.cost,
        tokens=learned.tokens,
        tiers=tiers,
        loadings=shared.loadings,
        tiered=_tiered(learned.value_scores, tiers, accuracies),
        ours=choose(singles),
        ours_with_escalation=choose(worth_choosing(groups, _MOST_PLANS)),
        fixed=tuple(fixed(every.best_within(budget), budget) for budget in budgets),
        accurate=fixed(every.best_within(np.inf)),
        frugal=fixed(every.cheapest_of(float(accuracies[best]))),
    )


def tiers_by_cost(cost_usd: Doubles) -> tuple[Tier, ...]:
    """Tiers of models by their mean costs: the dearest quarter is premium and so on; the dearest one always is."""
    ranks = np.argsort(np.argsort(-cost_usd, kind="stable"))
    last = max(len(cost_usd) - 1, 1)
    tiers = list(Tier)
    return tuple(tiers[min(int(rank * len(tiers) / (last + 1)), 3) if rank < last else 3] for rank in ranks)


def _by_model(predicted: pd.DataFrame, models: Sequence[str]) -> Doubles:
    """(m, n); a model that was not met in training is thought to be as the mean of the others."""
    usual = predicted.mean(axis=1)
    columns = [predicted.get(name, usual) for name in models]
    return np.array([np.asarray(column, dtype=np.float64) for column in columns])


def _tokens(
    tasks: pd.DataFrame, unseen: pd.DataFrame, outcomes: Outcomes, seed: int
) -> TokenPredictions | None:
    usage = outcomes.rows(input_tokens=outcomes.input_tokens, output_tokens=outcomes.output_tokens)
    usage = usage.dropna(subset=["input_tokens", "output_tokens"], how="all")
    return TokenModel.fit(tasks, usage, seed=seed).predict(unseen) if len(usage) else None


def _budgets(cost_usd: Doubles, every: Averages, settings: int) -> tuple[float, ...]:
    """From the cheapest single model's cost to the dearest one's, or that of the most accurate sequence.

    The first is half the cheapest: too little for anything but the cheapest plan, so that every curve begins there.
    """
    singles = cost_usd.mean(axis=1)
    dearest = max(float(singles.max()), float(every.cost_usd[every.best_within(np.inf)]))
    cheapest = max(float(singles.min()), dearest * 1e-4)
    return (cheapest / 2, *np.geomspace(cheapest, dearest, settings - 1).tolist())


def _by_difficulty(
    success: Doubles, cost_usd: Doubles, predicted: Doubles, check: CheckPolicy, models: Sequence[int]
) -> list[Averages]:
    """Averages over the tasks that are predicted to be hard, to be easy, and between."""
    order = np.argsort(predicted.mean(axis=0), kind="stable")
    parts = [part for part in np.array_split(order, _GROUPS) if len(part) >= 2 * _GROUPS]
    return [averages(success[:, part], cost_usd[:, part], check, models=models) for part in parts]


def _only_observed(expected: Expected, plans: Sequence[Sequence_], observed: NDArray[np.bool_]) -> Expected:
    """A plan may be chosen only where the outcome of each of its stages is known."""
    possible = np.array([observed[list(plan)].all(axis=0) for plan in plans])
    if possible.all():
        return expected
    return Expected(
        np.where(possible, expected.success, -np.inf), np.where(possible, expected.cost_usd, _UNPAYABLE)
    )


_UNPAYABLE = 1e9  # US dollars


def _tiered(value_scores: Doubles, tiers: Sequence[Tier], accuracies: Doubles) -> Choice:
    """The bands of the written policy, without quotas: the best model of the tier nearest to what a band prefers."""
    bands = sorted(AssignmentPolicy().bands, key=lambda band: band.at_least)
    band_of = np.searchsorted([band.at_least for band in bands], value_scores, side="right") - 1
    ranks = np.array([tier.rank for tier in tiers])
    by_band = [
        min(
            range(len(ranks)),
            key=lambda model: (
                min((abs(int(ranks[model]) - tier.rank), place) for place, tier in enumerate(band.tiers)),
                -accuracies[model],
            ),
        )
        for band in bands
    ]
    singles: tuple[Sequence_, ...] = tuple((model,) for model in range(len(ranks)))
    return Choice(singles, np.array(by_band, dtype=np.intp)[band_of])
