"""What the decisions of all folds come to on the outcomes that they had not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cp_core.learning.backtest.deciding import Choice, Decided, Learned, Terms, decide, learn
from cp_core.learning.backtest.outcomes import Outcomes, Positions
from cp_core.learning.backtest.report import (
    AmountError,
    BacktestReport,
    Bin,
    Curve,
    Pair,
    Point,
    SuccessError,
)
from cp_core.learning.backtest.sequences import carry_out
from cp_core.learning.routing import area_under_hull, cost_at, pair_metrics

Doubles = NDArray[np.float64]
Fold = tuple[Positions, Positions]

_REPEATS = 25  # of the check, drawn
_MOST_PLANS_SHOWN = 5
_BINS = 10


def backtest(
    tasks: pd.DataFrame,
    outcomes: Outcomes,
    folds: Sequence[Fold],
    terms: Terms,
    *,
    split: str,
    notes: Sequence[str] = (),
    learned: Sequence[Learned] = (),
) -> BacktestReport:
    """Decide for the test part of every fold, and judge the decisions of all of them together.

    Args:
        tasks: see `deciding.learn`.
        folds: training and test parts, as positions; no task is in two test parts.
        split, notes: for the report.
        learned: of each fold, where that is known already: it does not depend on the check, nor on budgets.
    """
    learned = learned or [learn(tasks, outcomes, *fold, seed=terms.seed) for fold in folds]
    decided = [decide(one, terms) for one in learned]
    return _Judge(outcomes, [test for _, test in folds], decided, terms).report(split, notes)


class _Judge:
    """The test parts of all folds, one behind the other, and what was decided for them."""

    def __init__(
        self, outcomes: Outcomes, tests: Sequence[Positions], decided: Sequence[Decided], terms: Terms
    ) -> None:
        self._all = outcomes
        self._tests = tests
        self._decided = decided
        self._terms = terms
        self._known = outcomes.of(np.concatenate(tests))
        luck = np.random.default_rng(terms.seed).random((_REPEATS, *outcomes.success.shape), dtype=np.float32)
        self._luck = [luck[:, :, test] for test in tests]
        self._singles = [
            self._of_pairs(name, self._known.observed[model], model)
            for model, name in enumerate(outcomes.models)
            if self._known.observed[model].any()
        ]
        self._best = max(self._singles, key=lambda point: (point.accuracy, -point.cost_usd))
        costs = [point.cost_usd for point in self._singles]
        self._range = (min(costs), max(costs))

    def report(self, split: str, notes: Sequence[str]) -> BacktestReport:
        settings = range(len(self._decided[0].ours))
        observed = self._all.observed
        loadings = np.mean([one.loadings for one in self._decided], axis=0)
        last = self._decided[-1]
        return BacktestReport(
            tasks=len(self._all.tasks),
            tested=len(self._known.tasks),
            models=self._all.models,
            split=split,
            share_observed=float(observed.mean()),
            sensitivity=self._terms.check.sensitivity,
            specificity=self._terms.check.specificity,
            seed=self._terms.seed,
            singles=tuple(self._singles),
            best_single=self._best.name,
            random=self._random(),
            tiered=self._point("tiered", [one.tiered for one in self._decided]),
            tiers={name: str(tier) for name, tier in zip(self._all.models, last.tiers, strict=True)},
            oracle=self._oracle(),
            accurate_sequence=self._point("accurate sequence", [one.accurate for one in self._decided]),
            frugal_sequence=self._point("frugal sequence", [one.frugal for one in self._decided]),
            zero_router=self._curve("zero router", self._singles),
            ours=self._curve(
                "ours", [self._setting([one.ours[i] for one in self._decided]) for i in settings]
            ),
            ours_with_escalation=self._curve(
                "ours with escalation",
                [self._setting([one.ours_with_escalation[i] for one in self._decided]) for i in settings],
            ),
            best_fixed_sequence=self._curve(
                "best fixed sequence",
                [self._setting([one.fixed[i] for one in self._decided]) for i in settings],
            ),
            pair=self._pair(),
            success=self._success_error(),
            cost=self._cost_error(),
            input_tokens=self._token_error("input"),
            output_tokens=self._token_error("output"),
            loadings={
                name: round(float(loading), 3)
                for name, loading in zip(self._all.models, loadings, strict=True)
            },
            notes=tuple(notes),
        )

    def _of_pairs(self, name: str, chosen: NDArray[np.bool_], model: int) -> Point:
        return Point(
            name=name,
            accuracy=float(self._known.success[model, chosen].mean()),
            cost_usd=float(np.nanmean(self._known.cost_usd[model, chosen])),
        )

    def _point(self, name: str, choices: Sequence[Choice]) -> Point:
        """What a choice in each fold comes to, over the tasks for which the outcome of every stage is known."""
        right, spent = [], []
        plans: Counter[str] = Counter()
        for choice, test, luck in zip(choices, self._tests, self._luck, strict=True):
            known = self._all.of(test)
            results = carry_out(
                choice.choice, choice.plans, known.success, known.cost_usd, self._terms.check, luck
            )
            right.append(results[0])
            spent.append(results[1])
            counts = np.bincount(choice.choice, minlength=len(choice.plans))
            for plan, count in zip(choice.plans, counts.tolist(), strict=True):
                plans[self._label(plan)] += count
        accuracy, cost = np.concatenate(right), np.concatenate(spent)
        judged = np.isfinite(accuracy) & np.isfinite(cost)
        budgets = [choice.budget_usd for choice in choices if choice.budget_usd is not None]
        return Point(
            name=name,
            accuracy=float(accuracy[judged].mean()) if judged.any() else 0.0,
            cost_usd=float(cost[judged].mean()) if judged.any() else 0.0,
            budget_usd=float(np.mean(budgets)) if budgets else None,
            plans={
                plan: round(count / plans.total(), 4)
                for plan, count in plans.most_common(_MOST_PLANS_SHOWN)
                if count
            },
        )

    def _setting(self, choices: Sequence[Choice]) -> Point:
        return self._point(
            f"${np.mean([choice.budget_usd or 0.0 for choice in choices]):.4g} a task", choices
        )

    def _label(self, plan: Sequence[int]) -> str:
        return " > ".join(self._all.models[model] for model in plan)

    def _curve(self, name: str, points: Sequence[Point]) -> Curve:
        costs, accuracies = [p.cost_usd for p in points], [p.accuracy for p in points]
        cost = cost_at(costs, accuracies, self._best.accuracy)
        own = self._best.cost_usd
        return Curve(
            name=name,
            points=tuple(points),
            aiq=area_under_hull(costs, accuracies),
            aiq_shared=area_under_hull(costs, accuracies, between=self._range),
            cost_at_best_single=cost,
            cost_ratio_at_best_single=None if cost is None or own <= 0 else cost / own,
        )

    def _random(self) -> Point:
        """A model at random for each task, among those whose outcome is known: exact, nothing is drawn."""
        return Point(
            name="random",
            accuracy=float(np.nanmean(self._known.success, axis=0).mean()),
            cost_usd=float(_column_means(self._known.cost_usd, self._known.observed).mean()),
        )

    def _oracle(self) -> Point:
        """The cheapest model that succeeds; where none does, the cheapest one."""
        known = self._known
        cost = np.where(known.observed & np.isfinite(known.cost_usd), known.cost_usd, np.inf)
        right = np.where(known.success > 0.5, cost, np.inf)
        solved = np.isfinite(right).any(axis=0)
        spent = np.where(solved, right.min(axis=0), cost.min(axis=0))
        return Point(name="oracle", accuracy=float(solved.mean()), cost_usd=float(spent.mean()))

    def _pair(self) -> Pair | None:
        """RouteLLM's measures, where there are two models that are not equally good on tasks both tried."""
        if len(self._all.models) != 2:
            return None
        both = self._known.observed.all(axis=0)
        success = self._known.success[:, both]
        if not both.any() or success[0].mean() == success[1].mean():
            return None
        strong = int(success[1].mean() > success[0].mean())
        predicted = np.hstack([one.success for one in self._decided])[:, both]
        rate = 0.5 + (predicted[strong] - predicted[1 - strong]) / 2
        found = pair_metrics(rate, success[strong], success[1 - strong], seed=self._terms.seed)
        return Pair(
            strong=self._all.models[strong],
            weak=self._all.models[1 - strong],
            apgr=found.apgr,
            cpt_50=found.cpt_50,
            cpt_80=found.cpt_80,
            strong_percent=found.strong_percent,
            accuracy=found.accuracy,
        )

    def _success_error(self) -> SuccessError:
        observed = self._known.observed
        happened = self._known.success[observed]
        predicted = np.hstack([one.success for one in self._decided])[observed]
        rates = np.hstack(
            [np.repeat(one.rates[:, None], one.success.shape[1], axis=1) for one in self._decided]
        )[observed]
        place = np.minimum((predicted * _BINS).astype(int), _BINS - 1)
        bins = tuple(
            Bin(
                predicted=float(predicted[place == number].mean()),
                happened=float(happened[place == number].mean()),
                rows=int((place == number).sum()),
            )
            for number in np.unique(place)
        )
        differs = happened.min() < happened.max()
        return SuccessError(
            rows=len(happened),
            auc=float(roc_auc_score(happened, predicted)) if differs else None,
            brier=float(((predicted - happened) ** 2).mean()),
            brier_of_rates=float(((rates - happened) ** 2).mean()),
            calibration_error=sum(abs(b.predicted - b.happened) * b.rows for b in bins) / len(happened),
            calibration=bins,
        )

    def _cost_error(self) -> AmountError | None:
        mean, median, low, high = (
            np.hstack([getattr(one.cost, kind) for one in self._decided])
            for kind in ("mean", "median", "low", "high")
        )
        return amount_error(self._known.cost_usd, mean, median, low, high)

    def _token_error(self, kind: str) -> AmountError | None:
        actual = self._known.input_tokens if kind == "input" else self._known.output_tokens
        parts = [getattr(one.tokens, kind) for one in self._decided if one.tokens is not None]
        if len(parts) < len(self._decided):
            return None
        return amount_error(
            actual,
            *(
                np.hstack(
                    [
                        getattr(part, name).reindex(columns=list(self._all.models)).to_numpy().T
                        for part in parts
                    ]
                )
                for name in ("mean", "median", "low", "high")
            ),
        )


def amount_error(
    actual: Doubles, mean: Doubles, median: Doubles, low: Doubles, high: Doubles
) -> AmountError | None:
    """How predictions compare with what was used, all (m, n); pairs that are NaN, or used nothing, are left out.

    None where nothing is left.
    """
    known = np.isfinite(actual) & np.isfinite(mean) & (actual > 0)
    if not known.any():
        return None
    used = actual[known]
    off = np.abs(median[known] - used) / used
    return AmountError(
        rows=int(known.sum()),
        median_error=float(np.median(off)),
        total_ratio=float(mean[known].sum() / used.sum()),
        share_within_30=float((off <= 0.3).mean()),
        coverage=float(((low[known] <= used) & (used <= high[known])).mean()),
    )


def _column_means(values: Doubles, chosen: NDArray[np.bool_]) -> Doubles:
    kept = chosen & np.isfinite(values)
    return np.asarray(np.where(kept, values, 0.0).sum(axis=0) / np.maximum(kept.sum(axis=0), 1))
