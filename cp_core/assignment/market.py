"""A market: some tasks, every plan they might be given, and what is left in the accounts at one moment.

The batch and the inline path share it. A batch clears the whole market: the solver finds the assignment and the prices.
An inline decision opens a market of one task and takes its best plan at the prices of the latest batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cp_core.assignment.calibration import Calibration
from cp_core.assignment.eligibility import CODES, ELIGIBLE
from cp_core.assignment.options import Options
from cp_core.assignment.plans import Outlook, Plan, PlanBook, PlanPolicy, plan_book
from cp_core.assignment.predict import Columns, PredictionPolicy, Predictor
from cp_core.assignment.solver import Problem, Solution, solve
from cp_core.assignment.strategies import ObjectivePolicy, Setting, Strategy, worth
from cp_core.models.registry import ModelRegistry
from cp_core.quota.account import Account
from cp_core.quota.windows import Window

Doubles = NDArray[np.float64]

NOT_IN_MARKET = -1
"""Code of pairs of tasks that are not decided here: turned away, or served already."""

_SINGLE_PRECISION = 1 - 1e-7
"""Share of a money account that the solver may give away: single-precision sums are off by less. Tokens are exact."""

_WINDOW_SECONDS = {
    Window.FIVE_HOUR: 5 * 3600.0,
    Window.DAILY: 86_400.0,
    Window.WEEKLY: 7 * 86_400.0,
    Window.MONTHLY: 30.4 * 86_400.0,
}


class Catalogue:
    """What can be given to tasks under one configuration: made once, used for every market.

    Args:
        registry: models, subscriptions and budgets.
        calibration: what was learned; empty for priors only.
        among: the plans to have; left out, those that are best by what is predicted.

    Attributes:
        options, predictor, check, objective, book: what the arguments come to.
        accounts: ids of the A accounts that plans draw on.
        draws: whether each stage of each plan draws on each account, (R, A).
        prepaid_of_charge: whether a subscription pays for each stage, (R,).
        is_money: whether each account holds money, (A,).
        plan_tier: rank of the tier of each plan's first stage, (K,).
        labels: each plan in words.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        prediction: PredictionPolicy,
        plans: PlanPolicy,
        objective: ObjectivePolicy,
        calibration: Calibration,
        *,
        among: Sequence[Plan] | None = None,
    ) -> None:
        self.options = Options(registry)
        self.predictor = Predictor([option.model for option in self.options], prediction, calibration)
        self.check = plans.check
        self.objective = objective
        self.book: PlanBook = (
            plan_book(self.options, self.predictor, plans) if among is None else PlanBook(among, self.options)
        )
        self.accounts = tuple(
            dict.fromkeys(account for option in self.options for account in option.funding.accounts)
        )
        self.draws = self.book.draws(self.accounts)
        self.prepaid_of_charge = self.options.prepaid[self.book.stage_option]
        self.is_money = (self.draws[~self.prepaid_of_charge] > 0).any(axis=0)
        self.plan_tier = self.options.tier[[plan[0] for plan in self.book.plans]]
        self.labels = tuple(self.book.label(plan) for plan in range(len(self.book)))


@dataclass(frozen=True)
class Market:
    """n tasks and the K plans of a catalogue.

    Attributes:
        values: value of each task, (n,).
        required_success: success that each task's band asks for, (n,).
        codes: why each plan may not be given to each task, positions in `eligibility.CODES`, (K, n); 0 if it may.
        outlook: what each plan is expected to give.
        capacity: what is left of each of the catalogue's accounts, tokens or US dollars, (A,).
        lapsing: how near each account's window is to its end, (A,): 0 just opened, closed, or money; 1 ending.
    """

    catalogue: Catalogue
    values: Doubles
    required_success: Doubles
    codes: NDArray[np.int8]
    outlook: Outlook
    capacity: Doubles
    lapsing: Doubles

    @cached_property
    def eligible(self) -> NDArray[np.bool_]:
        """Whether each plan may be given to each task, (K, n)."""
        return np.asarray(self.codes == ELIGIBLE)

    def worth(self, strategy: Strategy) -> Doubles:
        """What each plan is worth for each task, (K, n); -inf where it may not be given."""
        book = self.catalogue.book
        prepaid_lapsing = np.where(self.catalogue.draws > 0, self.lapsing, 0.0).max(axis=1, initial=0.0)
        setting = Setting(self.values, self.required_success, self.eligible, book, prepaid_lapsing)
        return worth(strategy, self.outlook, setting, self.catalogue.objective)

    def clear(self, worth: Doubles, *, seed: int, start: Doubles | None = None, threads: int = 1) -> Solution:
        """Assign plans so that the whole market is worth most."""
        problem = Problem(
            values=worth.astype(np.float32),
            charges=self.outlook.charges.astype(np.float32),
            charge_plan=self.catalogue.book.charge_plan,
            draws=self.catalogue.draws,
            capacity=np.where(self.catalogue.is_money, self.capacity * _SINGLE_PRECISION, self.capacity),
        )
        return solve(problem, seed=seed, start=start, threads=threads)

    def price(self, prices: Doubles) -> Doubles:
        """What each plan's draws cost at `prices` of the accounts, (K, n), value points."""
        rates = self.catalogue.draws @ prices
        return self.catalogue.book.sum_by_plan(rates[:, None] * self.outlook.charges)

    def need_of(self, task: int) -> Doubles:
        """What each plan takes of each account for one task, (K, A)."""
        return self.catalogue.book.sum_by_plan(self.outlook.charges[:, task, None] * self.catalogue.draws)

    def fits(self, left: Doubles) -> NDArray[np.bool_]:
        """Whether what is `left` of every account suffices for each plan by itself, (K, n)."""
        fitting = np.ones(self.codes.shape, dtype=bool)
        largest = self.outlook.charges.max(axis=1, initial=0.0)
        for draws, amount in zip(self.catalogue.draws.T, left, strict=True):
            if self.catalogue.book.sum_by_plan(draws * largest).max(initial=0.0) <= amount:
                continue  # every pair fits: there is no need to look at each
            fitting &= self.catalogue.book.sum_by_plan(draws[:, None] * self.outlook.charges) <= amount
        return fitting

    def use_of(self, choice: NDArray[np.int16]) -> Doubles:
        """What `choice`, a plan or `NO_PLAN` for each task, takes of each account, (A,)."""
        taken = self.catalogue.book.charge_plan[:, None] == choice[None, :]
        return np.asarray(self.outlook.charges.sum(axis=1, where=taken) @ self.catalogue.draws)

    def with_less(self, use: Doubles) -> Market:
        """The market when `use` has been taken of the accounts."""
        return replace(self, capacity=np.maximum(self.capacity - use, 0.0))

    def of(self, tasks: NDArray[np.intp], share: float = 1.0) -> Market:
        """The market of some of the tasks, by position, with a share of what is left in the accounts."""
        outlook = self.outlook
        return replace(
            self,
            values=self.values[tasks],
            required_success=self.required_success[tasks],
            codes=self.codes.take(tasks, axis=1),
            outlook=Outlook(
                success=outlook.success.take(tasks, axis=1),
                list_usd=outlook.list_usd.take(tasks, axis=1),
                billed_usd=outlook.billed_usd.take(tasks, axis=1),
                seconds=outlook.seconds.take(tasks, axis=1),
                charges=outlook.charges.take(tasks, axis=1),
                charge_list_usd=outlook.charge_list_usd.take(tasks, axis=1),
            ),
            capacity=self.capacity * share,
        )

    def without(self, tasks: NDArray[np.bool_]) -> Market:
        """The market in which some tasks may not be given anything, (n,)."""
        if not tasks.any():
            return self
        return replace(self, codes=np.where(tasks, np.int8(NOT_IN_MARKET), self.codes))

    def pruned(self) -> dict[str, int]:
        """How many pairs of plan and task were ruled out, by reason."""
        counts = np.bincount(self.codes[self.codes > ELIGIBLE].ravel(), minlength=len(CODES))
        return {str(CODES[code]): int(count) for code, count in enumerate(counts) if count and code}


def open_market(
    tasks: Columns,
    catalogue: Catalogue,
    accounts: Sequence[Account],
    option_codes: NDArray[np.int8],
    required_success: Doubles,
    *,
    now: datetime,
) -> Market:
    """Set a market up.

    Args:
        tasks: n rows with value_score, and what `Predictor.predict` reads.
        accounts: what the accounts hold; every account of the catalogue must be among them.
        option_codes: why each option may not be given to each task, (n, m), see `eligibility.Eligibility`.
        required_success: see `Market`.

    Raises:
        LookupError: an account of the catalogue is not in `accounts`.
    """
    held = {account.account: account for account in accounts}
    missing = [name for name in catalogue.accounts if name not in held]
    if missing:
        raise LookupError(
            f"the ledger has no account {', '.join(missing)}: open the registry's accounts first"
        )
    standing = [held[name] for name in catalogue.accounts]
    return market_of(
        tasks,
        catalogue,
        option_codes,
        required_success,
        capacity=np.array([float(account.available) for account in standing]),
        lapsing=np.array([lapsing_of(account, now) for account in standing]),
    )


def market_of(
    tasks: Columns,
    catalogue: Catalogue,
    option_codes: NDArray[np.int8],
    required_success: Doubles,
    *,
    capacity: Doubles,
    lapsing: Doubles,
) -> Market:
    """Set a market up over accounts of which `capacity` is left; for the rest see `open_market` and `Market`."""
    outlook = catalogue.book.outlook(catalogue.predictor.predict(tasks), catalogue.check)
    return Market(
        catalogue=catalogue,
        values=np.asarray(tasks["value_score"], dtype=np.float64),
        required_success=required_success,
        codes=_plan_codes(catalogue.book, option_codes.T),
        outlook=_in_whole_tokens(outlook, catalogue),
        capacity=capacity,
        lapsing=lapsing,
    )


def lapsing_of(account: Account, now: datetime) -> float:
    """How near an account's window is to its end: 0 just opened, closed, or money; 1 ending."""
    if account.unit != "tokens" or account.window_ends_at is None:
        return 0.0
    left = (account.window_ends_at - now).total_seconds()
    return min(max(1.0 - left / _WINDOW_SECONDS[account.window], 0.0), 1.0)


def _in_whole_tokens(outlook: Outlook, catalogue: Catalogue) -> Outlook:
    """The same with prepaid charges rounded up, as they are reserved: so that what fits here fits in the ledger."""
    prepaid = catalogue.prepaid_of_charge
    outlook.charges[prepaid] = np.ceil(outlook.charges[prepaid])
    return outlook


def _plan_codes(book: PlanBook, option_codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """The reason of the first stage that may not be given, or 0."""
    codes = np.full((len(book), option_codes.shape[1]), ELIGIBLE, dtype=np.int8)
    for stage in reversed(book.stages):
        found = option_codes[stage.options]
        codes[stage.plans] = np.where(found == ELIGIBLE, codes[stage.plans], found)
    return codes
