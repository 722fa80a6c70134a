"""The strategies that the solver serves: a whole batch decided at once, at prices of the accounts.

A round goes in this order:

1. tasks that cannot be decided now are turned away (`eligibility.standing_reasons`);
2. overdue tasks are served first, oldest first, each with its best plan that fits: so no task waits for ever;
3. the solver clears the market of the rest, whose values grow with the time they have waited;
4. exploration draws which decisions go to an adjacent tier, where that fits too.

What a task gets is the plan of most worth less the price of what it draws. What it does not get has a reason.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_UP, Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cp_core.assignment.batch import Batch, prepare
from cp_core.assignment.capacity import Capacity
from cp_core.assignment.decision import Decision, Outcome, Stage
from cp_core.assignment.eligibility import CODES
from cp_core.assignment.exploration import Drawn, ExplorationPolicy, explore, uniform
from cp_core.assignment.market import Catalogue, Market, open_market
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.solver import NO_PLAN, Solution
from cp_core.assignment.strategies import OBJECTIVES, Strategy
from cp_core.quota.account import Account
from cp_core.tasks.reasons import Reason

Doubles = NDArray[np.float64]
Choice = NDArray[np.int16]

_BREAKER_OPEN = CODES.index(Reason.BREAKER_OPEN)
_FOR_GOOD = frozenset({Reason.NO_ELIGIBLE_PLAN, Reason.DEADLINE_PASSED, Reason.DEPENDENCY_FAILED})
_ALTERNATIVES_KEPT = 4
_TIE = 1e-5  # two plans nearer than this are equal: the solver works in single precision
_FEATURES = ("domain", "complexity", "input_mean", "input_median", "output_mean", "output_median")
_SMALLEST = {True: Decimal(1), False: Decimal("1e-9")}  # prepaid: a token; else a nanodollar


class FairnessPolicy(BaseModel):
    """Section `fairness` of policies.yaml: what waiting is worth.

    A task that has waited `overdue_hours` is served before every task that has not, oldest first. So a task that fits
    into a fresh window waits at most `overdue_hours`, plus the windows that the overdue tasks before it fill.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    points_per_hour: float = Field(
        default=0.25, ge=0, description="Value points that an hour of waiting adds."
    )
    overdue_hours: float = Field(default=72.0, gt=0, description="After this wait a task is served first.")


@dataclass(frozen=True)
class Forecast:
    """What an assignment is expected to come to.

    Attributes:
        tasks, assigned: how many.
        value: expected value delivered, points.
        successes: expected number of tasks that succeed.
        list_usd, billed_usd: expected price at list, and the part of it that is money.
        tokens: expected tokens taken from subscriptions.
        seconds: expected time of an assigned task, mean.
    """

    tasks: int
    assigned: int
    value: float
    successes: float
    list_usd: float
    billed_usd: float
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Round:
    """What a batch was decided to.

    Attributes:
        decisions: one a task, in the order in which quota is reserved for them.
        prices: value points of one more token or dollar of each account.
        objective, bound, gap: what the solver reached, what nothing can exceed, and the fraction between.
        evaluations: the solver's passes over the batch.
        forecast: what these decisions are expected to come to.
        alternatives: what each other strategy was expected to come to on the same batch.
        considered: pairs of task and plan; `pruned`: those that were ruled out, by reason.
    """

    decisions: list[Decision]
    prices: dict[str, float] = field(default_factory=dict)
    objective: float = 0.0
    bound: float = 0.0
    gap: float = 0.0
    evaluations: int = 0
    forecast: Forecast | None = None
    alternatives: dict[str, Forecast] = field(default_factory=dict)
    considered: int = 0
    pruned: dict[str, int] = field(default_factory=dict)


def assign_optimal(
    tasks: pd.DataFrame,
    catalogue: Catalogue,
    accounts: Sequence[Account],
    policy: AssignmentPolicy,
    strategy: Strategy,
    *,
    fairness: FairnessPolicy,
    exploration: ExplorationPolicy,
    now: datetime,
    seed: int,
    start: dict[str, float] | None = None,
    open_breakers: Collection[str] = (),
    threads: int = 1,
    compare: bool = True,
) -> Round:
    """Decide a batch for one of the strategies that the solver serves.

    Args:
        tasks: as for `tiered.assign_tiered`, with complexity, input_median, output_median, risk, decision_id (UUID) and
            waiting_hours (since submission).
        catalogue: of the configuration in force.
        start: prices to start from: those of the batch before.
        compare: whether to forecast the other strategies too.

    Raises:
        LookupError: an account of the catalogue is not in `accounts`.
        ValueError: `tiered`, which is no objective.
    """
    if tasks.empty:
        return Round([])
    capacity = Capacity(accounts)
    batch = prepare(tasks, catalogue.options, capacity, policy, now=now, open_breakers=open_breakers)
    market = _market(batch, catalogue, accounts, fairness, now)
    return _Clearing(batch, market, strategy, fairness, exploration, seed, threads).run(start or {}, compare)


def forecast(market: Market, choice: Choice, values: Doubles) -> Forecast:
    """What `choice` is expected to come to, with tasks worth `values` (not aged), (n,)."""
    tasks = np.flatnonzero(choice != NO_PLAN)
    plans = choice[tasks]
    outlook = market.outlook
    success = outlook.success[plans, tasks]
    tokens = (market.catalogue.prepaid_of_charge[:, None] * outlook.charges).T  # (n, R)
    taken = market.catalogue.book.charge_plan[None, :] == choice[:, None]
    return Forecast(
        tasks=len(choice),
        assigned=len(tasks),
        value=float((values[tasks] * success).sum()),
        successes=float(success.sum()),
        list_usd=float(outlook.list_usd[plans, tasks].sum()),
        billed_usd=float(outlook.billed_usd[plans, tasks].sum()),
        tokens=float(tokens.sum(where=taken)),
        seconds=float(outlook.seconds[plans, tasks].mean()) if len(tasks) else 0.0,
    )


def _market(
    batch: Batch, catalogue: Catalogue, accounts: Sequence[Account], fairness: FairnessPolicy, now: datetime
) -> Market:
    waiting = batch.tasks["waiting_hours"].to_numpy(dtype=np.float64)
    aged = batch.tasks.assign(
        value_score=batch.tasks["value_score"] + fairness.points_per_hour * np.maximum(waiting, 0.0)
    )
    codes = batch.eligible.codes_in_any_tier.copy()
    turned_away = np.array([reason is not None for reason in batch.standing])
    required = np.array([band.required_success for band in batch.bands])
    market = open_market(aged, catalogue, accounts, codes, required, now=now)
    return market.without(turned_away)


class _Clearing:
    """One round: the market is cleared, and every task gets its decision."""

    def __init__(
        self,
        batch: Batch,
        market: Market,
        strategy: Strategy,
        fairness: FairnessPolicy,
        exploration: ExplorationPolicy,
        seed: int,
        threads: int,
    ) -> None:
        self._batch = batch
        self._market = market
        self._strategy = strategy
        self._fairness = fairness
        self._exploration = exploration
        self._seed = seed
        self._threads = threads
        self._worth = market.worth(strategy)

    def run(self, start: dict[str, float], compare: bool) -> Round:
        market, accounts = self._market, self._market.catalogue.accounts
        overdue = self._serve_overdue()
        rest = market.with_less(market.use_of(overdue)).without(overdue != NO_PLAN)
        solution = self._clear(rest, self._worth, start)
        solved = np.where(overdue != NO_PLAN, overdue, solution.choice)
        net = self._worth - market.price(solution.prices)
        drawn = self._explore(solved, overdue, net, rest.capacity - solution.use)
        return Round(
            decisions=self._decisions(drawn, overdue, net, solution),
            prices=dict(zip(accounts, solution.prices.tolist(), strict=True)),
            objective=solution.objective,
            bound=solution.bound,
            gap=solution.gap,
            evaluations=solution.evaluations,
            forecast=self._forecast(drawn.choice),
            alternatives=self._alternatives(start) if compare else {},
            considered=int(market.codes.size),
            pruned=market.pruned(),
        )

    def _clear(self, market: Market, worth: Doubles, start: dict[str, float]) -> Solution:
        prices = np.array([start.get(account, 0.0) for account in market.catalogue.accounts])
        worth = np.where(market.eligible, worth, -np.inf)
        return market.clear(worth, seed=self._seed, start=prices, threads=self._threads)

    def _serve_overdue(self) -> Choice:
        """Plans of the tasks that have waited too long, oldest first; what fits is theirs."""
        waiting = self._batch.tasks["waiting_hours"].to_numpy(dtype=np.float64)
        choice = np.full(len(waiting), NO_PLAN, dtype=np.int16)
        late = np.flatnonzero(waiting >= self._fairness.overdue_hours)
        left = self._market.capacity.copy()
        for task in late[np.argsort(-waiting[late], kind="stable")]:
            need = self._market.need_of(int(task))
            worth = np.where((need <= left).all(axis=1), self._worth[:, task], -np.inf)
            plan = int(worth.argmax())
            if np.isfinite(worth[plan]):
                choice[task] = plan
                left -= need[plan]
        return choice

    def _explore(self, choice: Choice, overdue: Choice, net: Doubles, slack: Doubles) -> Drawn:
        """Draw, and take back what then does not fit: such a decision has no probability to learn from."""
        tasks, policy = self._batch.tasks, self._exploration
        market = self._market
        may = (
            (tasks["value_score"] < policy.below).to_numpy()
            & (tasks["risk"] != "production").to_numpy()
            & (overdue == NO_PLAN)
        )
        drawn = explore(
            choice,
            net,
            market.eligible & market.fits(slack),
            market.catalogue.plan_tier,
            may,
            uniform(tasks["decision_id"]),
            policy.rate,
        )
        kept = drawn.choice.copy()
        for task in np.flatnonzero(drawn.explored):
            need = market.need_of(int(task))
            extra = need[kept[task]] - need[choice[task]]
            if (extra <= slack).all():
                slack = slack - extra
            else:
                kept[task] = NO_PLAN if choice[task] == NO_PLAN else choice[task]
        taken_back = kept != drawn.choice
        probabilities = np.where(taken_back, np.nan, drawn.probabilities)
        return Drawn(kept, drawn.candidates, probabilities)

    def _decisions(self, drawn: Drawn, overdue: Choice, net: Doubles, solution: Solution) -> list[Decision]:
        return [
            self._turn_away(row, reason)
            if (reason := self._why_not(row, drawn.choice)) is not None
            else self._grant(row, drawn, bool(overdue[row] != NO_PLAN), net, solution)
            for row in range(len(drawn.choice))
        ]

    def _why_not(self, row: int, choice: Choice) -> Reason | None:
        """Why a task gets nothing now; None when it gets a plan."""
        standing = self._batch.standing[row]
        if standing is not None:
            return standing
        if choice[row] != NO_PLAN:
            return None
        codes = self._batch.eligible.codes_in_any_tier[row]
        eligible = self._market.eligible[:, row]
        if not eligible.any():
            return Reason.BREAKER_OPEN if (codes == _BREAKER_OPEN).any() else Reason.NO_ELIGIBLE_PLAN
        need = self._market.need_of(row)[eligible]
        if not (need <= self._market.capacity).all(axis=1).any():
            return Reason.INSUFFICIENT_GLOBAL_CAPACITY
        if not (self._worth[:, row] > 0).any():
            return Reason.COST_ABOVE_VALUE
        return Reason.OUTBID

    def _grant(self, row: int, drawn: Drawn, is_overdue: bool, net: Doubles, solution: Solution) -> Decision:
        plan = int(drawn.choice[row])
        task, outlook = self._batch.records[row], self._market.outlook
        return Decision(
            task=task["task"],
            task_id=task["task_id"],
            value_score=task["value_score"],
            outcome=Outcome.ASSIGNED,
            plan=self._stages(plan, row),
            expected_cost_usd=_up(outlook.list_usd[plan, row], Decimal("1e-9")),
            explanation={
                **self._facts(row),
                "plan": self._weighed(plan, row, net),
                "alternatives": [
                    self._weighed(int(other), row, net) for other in self._best(row, net) if other != plan
                ],
                "decided_by": self._decided_by(row, drawn, is_overdue, net),
                "probabilities": {
                    self._market.catalogue.book.label(int(candidate)): float(probability)
                    for candidate, probability in zip(
                        drawn.candidates[:, row], drawn.probabilities[:, row], strict=True
                    )
                    if candidate != NO_PLAN and np.isfinite(probability)
                },
                "excluded": self._excluded(row),
                "prices": {
                    account: float(price)
                    for account, price in zip(self._market.catalogue.accounts, solution.prices, strict=True)
                    if price > 0
                },
            },
        )

    def _turn_away(self, row: int, reason: Reason) -> Decision:
        task = self._batch.records[row]
        return Decision(
            task=task["task"],
            task_id=task["task_id"],
            value_score=task["value_score"],
            outcome=Outcome.REJECTED if reason in _FOR_GOOD else Outcome.DEFERRED,
            reason=reason,
            explanation={**self._facts(row), "excluded": self._excluded(row)},
        )

    def _stages(self, plan: int, row: int) -> tuple[Stage, ...]:
        """The plan's stages with what each reserves: the first in full, the others as far as they are expected."""
        catalogue = self._market.catalogue
        charges = np.flatnonzero(catalogue.book.charge_plan == plan)
        stages = []
        for option_index, charge in zip(catalogue.book.plans[plan], charges, strict=True):
            option = catalogue.options[option_index]
            amount = _up(self._market.outlook.charges[charge, row], _SMALLEST[option.prepaid])
            stages.append(
                Stage(option.model.name, option.funding.name, dict.fromkeys(option.funding.accounts, amount))
            )
        return tuple(stages)

    def _facts(self, row: int) -> dict[str, Any]:
        """What was decided upon: with the configuration, prices and these, the decision can be made again."""
        task = self._batch.records[row]
        return {
            "strategy": self._strategy.value,
            "value_score": task["value_score"],
            "aged_value": float(self._market.values[row]),
            "required_success": float(self._market.required_success[row]),
            **{name: task[name] for name in _FEATURES},
        }

    def _weighed(self, plan: int, row: int, net: Doubles) -> dict[str, Any]:
        outlook = self._market.outlook
        return {
            "plan": self._market.catalogue.book.label(plan),
            "success": round(float(outlook.success[plan, row]), 4),
            "list_usd": round(float(outlook.list_usd[plan, row]), 6),
            "billed_usd": round(float(outlook.billed_usd[plan, row]), 6),
            "seconds": round(float(outlook.seconds[plan, row]), 1),
            "worth": round(float(self._worth[plan, row]), 4),
            "price": round(float(self._worth[plan, row] - net[plan, row]), 4),
            "net": round(float(net[plan, row]), 4),
        }

    def _best(self, row: int, net: Doubles) -> list[int]:
        """The plans of most worth less price, best first."""
        order = np.argsort(-net[:, row], kind="stable")[: _ALTERNATIVES_KEPT + 1]
        return [int(plan) for plan in order if np.isfinite(net[plan, row])][:_ALTERNATIVES_KEPT]

    def _decided_by(self, row: int, drawn: Drawn, is_overdue: bool, net: Doubles) -> str:
        """Which step of the round settled on the plan."""
        if is_overdue:
            return "overdue"
        if drawn.choice[row] != drawn.candidates[0, row]:
            return "exploration"
        best = np.nanmax(np.where(np.isfinite(net[:, row]), net[:, row], np.nan))
        return "prices" if net[drawn.choice[row], row] >= best - _TIE * max(1.0, abs(best)) else "rounding"

    def _excluded(self, row: int) -> dict[str, str]:
        """The reason of every option that may not be given, by its label."""
        codes = self._batch.eligible.codes_in_any_tier[row]
        options = self._market.catalogue.options
        return {
            f"{option.model.name} ({option.funding.name})": str(CODES[code])
            for option, code in zip(options, codes.tolist(), strict=True)
            if CODES[code] is not None
        }

    def _forecast(self, choice: Choice) -> Forecast:
        return forecast(self._market, choice, self._batch.tasks["value_score"].to_numpy(dtype=np.float64))

    def _alternatives(self, start: dict[str, float]) -> dict[str, Forecast]:
        """What the other strategies would have come to, without exploration."""
        return {
            other.value: self._forecast(self._clear(self._market, self._market.worth(other), start).choice)
            for other in OBJECTIVES
            if other is not self._strategy
        }


def _up(amount: float, smallest: Decimal) -> Decimal:
    return Decimal(repr(float(amount))).quantize(smallest, rounding=ROUND_UP)
