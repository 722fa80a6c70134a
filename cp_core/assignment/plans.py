"""Plans: one option, or two or three tried in order with a check of the work between them.

The check accepts good work with its sensitivity and rejects bad work with its specificity. The last stage's work is
taken as it is. After a rejection the task is more likely a hard one, so each rejection lowers the log-odds of the
stages after it by `rejection_log_odds`.

With p the success of a stage and r the chance that it is reached, a plan is expected to give::

    accepted_s = p_s * sensitivity + (1 - p_s) * (1 - specificity)
    r_1 = 1        r_(s+1) = r_s * (1 - accepted_s)
    success = sum over s of r_s * p_s * (sensitivity, or 1 for the last stage)
    tokens, price, time = sum over s of r_s * that of the stage
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cp_core.assignment.options import Options
from cp_core.assignment.predict import Predictions, Predictor, shift_log_odds
from cp_core.scoring.config import Complexity, Domain

Doubles = NDArray[np.float64]
Plan = tuple[int, ...]
"""Options in the order in which they are tried: positions in `Options`."""

_REFERENCE_VALUES = (5.0, 20.0, 40.0, 60.0, 80.0, 95.0)
_REFERENCE_TOKENS = {  # input, output: the prior of each complexity
    "simple": (7_500.0, 1_250.0),
    "moderate": (27_500.0, 3_500.0),
    "complex": (70_000.0, 10_000.0),
    "highly_complex": (150_000.0, 27_500.0),
}
_REFERENCE_POINTS_PER_USD = (0.0, 1.0, 4.0, 16.0, 64.0, 256.0)


class CheckPolicy(BaseModel):
    """Section `check` of policies.yaml: how good the check between two stages is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sensitivity: float = Field(default=0.9, ge=0, le=1, description="Share of good work that is accepted.")
    specificity: float = Field(default=0.8, ge=0, le=1, description="Share of bad work that is rejected.")
    rejection_log_odds: float = Field(
        default=-0.5, le=0, description="What each rejection adds to the log-odds of the stages after it."
    )


class PlanPolicy(BaseModel):
    """Section `plans` of policies.yaml: which plans may be given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    most_stages: int = Field(default=2, ge=1, le=3, description="Most models tried in order for one task.")
    most_plans: int = Field(default=32, ge=1, le=200, description="Plans that a batch chooses from.")
    check: CheckPolicy = CheckPolicy()


@dataclass(frozen=True)
class Outlook:
    """What K plans with R stages in all are expected to give for n tasks.

    Attributes:
        success: probability that the task ends with good work, (K, n).
        list_usd, billed_usd: price at list, and the part of it that is money because nothing prepaid pays, (K, n).
        seconds: time, (K, n).
        charges: what each stage takes of its accounts: tokens when prepaid, else dollars; plan after plan, (R, n).
        charge_list_usd: list price of each charge, (R, n).
    """

    success: Doubles
    list_usd: Doubles
    billed_usd: Doubles
    seconds: Doubles
    charges: Doubles
    charge_list_usd: Doubles


class StageBook(NamedTuple):
    """What stands at one place in the order of the p plans that are long enough to have it.

    Attributes:
        plans: which plans, (p,), or all of them as a slice.
        options: their options there, (p,).
        is_last: whether each plan ends there, (p, 1).
        prepaid: whether a subscription pays, (p, 1).
        rows: rows of the charges, (p,).
    """

    plans: NDArray[np.intp] | slice
    options: NDArray[np.intp]
    is_last: NDArray[np.bool_]
    prepaid: NDArray[np.bool_]
    rows: NDArray[np.intp]


class PlanBook:
    """The plans that may be given, with what does not depend on a task.

    Attributes:
        plans: the K plans.
        charge_plan: plan of each of the R stages, plan after plan, (R,).
        stage_option: option of each stage, (R,).
        stages: the first stages, the second and so on.
    """

    def __init__(self, plans: Sequence[Plan], options: Options) -> None:
        self.plans = tuple(plans)
        self.options = options
        self.charge_plan = np.repeat(np.arange(len(plans)), [len(plan) for plan in plans])
        self.stage_option = np.array([option for plan in plans for option in plan], dtype=np.intp)
        most = max((len(plan) for plan in plans), default=0)
        self._first = np.searchsorted(self.charge_plan, np.arange(len(plans)))
        self.stages = tuple(self._stage(number) for number in range(most))
        self._alone = {
            plan[0]: int(first) for plan, first in zip(self.plans, self._first, strict=True) if len(plan) == 1
        }

    def __len__(self) -> int:
        return len(self.plans)

    def charge_of_alone(self, option: int) -> int:
        """The stage at which an option is tried alone, and so is reached for certain.

        Raises:
            KeyError: no plan consists of this option alone.
        """
        return self._alone[option]

    def label(self, plan: int) -> str:
        """The plan's models in order, such as `haiku > opus`, with what pays for each."""
        stages = [self.options[option] for option in self.plans[plan]]
        return " > ".join(f"{stage.model.name} ({stage.funding.name})" for stage in stages)

    def draws(self, accounts: Sequence[str]) -> Doubles:
        """Whether each stage draws on each account: (R, A) of 0 and 1."""
        fundings = [self.options[option].funding.accounts for option in self.stage_option]
        rows = [[float(account in funding) for account in accounts] for funding in fundings]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(accounts))

    def sum_by_plan(self, rows: Doubles) -> Doubles:
        """Sums over each plan's stages: (R, ...) to (K, ...)."""
        return np.add.reduceat(rows, self._first, axis=0)

    def outlook(self, predictions: Predictions, check: CheckPolicy) -> Outlook:
        """What each plan is expected to give for each task.

        Args:
            predictions: one row an option, n tasks.
        """
        shape = (len(self), predictions.success.shape[1])
        reach = np.ones(shape)
        success, list_usd, billed_usd, seconds = (np.zeros(shape) for _ in range(4))
        charges, charge_list_usd = np.empty((2, len(self.stage_option), shape[1]))
        tokens = predictions.tokens
        for number, (plans, options, is_last, prepaid, rows) in enumerate(self.stages):
            able = predictions.success[options]
            if number:
                able = shift_log_odds(able, number * check.rejection_log_odds)
            reached = reach[plans]
            price = reached * predictions.list_usd[options]
            success[plans] += reached * able * np.where(is_last, 1.0, check.sensitivity)
            list_usd[plans] += price
            billed_usd[plans] += np.where(prepaid, 0.0, price)
            seconds[plans] += reached * predictions.seconds[options]
            charges[rows] = np.where(prepaid, reached * tokens[options], price)
            charge_list_usd[rows] = price
            if number + 1 < len(self.stages):
                accepted = able * check.sensitivity + (1 - able) * (1 - check.specificity)
                reach[plans] = reached * (1 - accepted)
        return Outlook(success, list_usd, billed_usd, seconds, charges, charge_list_usd)

    def _stage(self, number: int) -> StageBook:
        plans = np.array(
            [plan for plan, stages in enumerate(self.plans) if len(stages) > number], dtype=np.intp
        )
        rows = self._first[plans] + number
        options = self.stage_option[rows]
        last = np.array([len(self.plans[plan]) == number + 1 for plan in plans])
        is_everywhere = len(plans) == len(self.plans)
        return StageBook(
            slice(None) if is_everywhere else plans,
            options,
            last[:, None],
            self.options.prepaid[options][:, None],
            rows,
        )


def escalations(options: Options, most_stages: int) -> list[Plan]:
    """Every single enabled option, and every sequence of up to `most_stages` that rises in tier at each stage."""
    cheapest_first = sorted(
        np.flatnonzero(options.enabled).tolist(), key=lambda option: -int(options.tier[option])
    )
    return [
        plan
        for stages in range(1, most_stages + 1)
        for plan in combinations(cheapest_first, stages)
        if all(options.tier[earlier] > options.tier[later] for earlier, later in pairwise(plan))
    ]


def plan_book(options: Options, predictor: Predictor, policy: PlanPolicy) -> PlanBook:
    """The plans worth choosing from: every single option, and the escalations that are best for some task.

    With many models there are hundreds of escalations, and most are never the best. They are tried on reference
    tasks (each domain, complexity and a range of values) at a range of prices of money and of prepaid tokens; those
    that are best most often are kept, `most_plans` in all. The choice does not depend on a batch, so an inline
    decision and a batch choose from the same plans.

    Raises:
        ValueError: the single options alone are more than `most_plans`.
    """
    every = escalations(options, policy.most_stages)
    singles = sum(len(plan) == 1 for plan in every)
    if singles > policy.most_plans:
        raise ValueError(f"most_plans is {policy.most_plans}, but {singles} single options are enabled")
    if not every:
        return PlanBook([(option,) for option in range(len(options))], options)  # all disabled: each says so
    wins = _times_best(PlanBook(every, options), predictor, policy.check)
    ranked = sorted(range(singles, len(every)), key=lambda plan: (-wins[plan], plan))
    kept = [plan for plan in ranked[: policy.most_plans - singles] if wins[plan] > 0]
    return PlanBook([every[plan] for plan in [*range(singles), *sorted(kept)]], options)


def _times_best(book: PlanBook, predictor: Predictor, check: CheckPolicy) -> NDArray[np.intp]:
    cells = [(d, c, value) for d in Domain for c in Complexity for value in _REFERENCE_VALUES]
    domains, complexities, values = zip(*cells, strict=True)
    tokens = np.array([_REFERENCE_TOKENS[complexity] for complexity in complexities])
    outlook = book.outlook(
        predictor.predict(
            {
                "domain": domains,
                "complexity": complexities,
                "input_mean": tokens[:, 0],
                "input_median": tokens[:, 0],
                "output_mean": tokens[:, 1],
                "output_median": tokens[:, 1],
            }
        ),
        check,
    )
    wins = np.zeros(len(book), dtype=np.intp)
    prepaid_usd = outlook.list_usd - outlook.billed_usd
    for money, prepaid in product(_REFERENCE_POINTS_PER_USD, repeat=2):
        worth = np.array(values) * outlook.success - money * outlook.billed_usd - prepaid * prepaid_usd
        wins += np.bincount(worth.argmax(axis=0), minlength=len(book))
    return wins
