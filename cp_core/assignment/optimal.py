"""The strategies that the solver serves: a whole batch decided at once, at prices of the accounts.

Tasks that cannot be decided now, or that capacity lacks for whatever they are given (`precheck`), are turned away
before any search, the market of the rest is cleared (`clearing`), and every task gets
its decision with what it was weighed against (`verdicts`). What the other strategies would have given is forecast
beside it, on the batch itself or on a sample of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.batch import Batch, prepare
from cp_core.assignment.capacity import Capacity
from cp_core.assignment.clearing import Rules, clear, starting_prices
from cp_core.assignment.decision import Decision
from cp_core.assignment.eligibility import ELIGIBLE
from cp_core.assignment.exploration import ExplorationPolicy
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.market import Catalogue, Market, open_market
from cp_core.assignment.packed import Legend
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.precheck import Precheck
from cp_core.assignment.solver import NO_PLAN
from cp_core.assignment.strategies import OBJECTIVES, Strategy
from cp_core.assignment.tiered import tiered_options
from cp_core.assignment.verdicts import Verdicts
from cp_core.quota.account import Account
from cp_core.tasks.reasons import Reason

Doubles = NDArray[np.float64]
Choice = NDArray[np.int16]

COMPARED_WHOLE = 10_000
"""The largest batch on which the other strategies are forecast as a whole."""
COMPARED_SAMPLE = 2_000
"""Tasks of a larger batch on which they are, each account holding its share."""


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
        decisions: one a task, in the order in which quota is reserved for them; `Verdicts` unless there is no task.
        assigned: how many of them give a plan.
        legend: what their explanations share.
        prices: value points of one more token or dollar of each account.
        available, lapsing: what each account held before, and how near its window was to its end (0 to 1).
        objective, bound, gap: what the solver reached, what nothing can exceed, and the fraction between.
        evaluations: the solver's passes over the batch.
        forecast: what these decisions are expected to come to.
        compared: tasks on which strategies were compared: all, or a sample of a large batch.
        alternatives: what each strategy was expected to come to on those tasks, without exploration and without
            serving overdue tasks first.
        considered: pairs of task and plan; `pruned`: those that were ruled out, by reason.
    """

    decisions: Sequence[Decision]
    assigned: int = 0
    legend: Legend | None = None
    prices: dict[str, float] = field(default_factory=dict)
    available: dict[str, float] = field(default_factory=dict)
    lapsing: dict[str, float] = field(default_factory=dict)
    objective: float = 0.0
    bound: float = 0.0
    gap: float = 0.0
    evaluations: int = 0
    forecast: Forecast | None = None
    compared: int = 0
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
    start: Mapping[str, float] | None = None,
    busy: Mapping[str, int] | None = None,
    open_breakers: Collection[str] = (),
    threads: int = 1,
    compare: bool = True,
) -> Round:
    """Decide a batch for one of the strategies that the solver serves.

    Args:
        tasks: as for `tiered.assign_tiered`, with complexity, input_median, output_median, risk, workspace, decision_id
            (UUID) and waiting_hours (since submission).
        catalogue: of the configuration in force.
        start: prices to start from: those of the batch before.
        busy: tasks assigned or running now, by workspace; only those of capped workspaces matter.
        compare: whether to forecast every strategy too.

    Raises:
        LookupError: an account of the catalogue is not in `accounts`.
        ValueError: `tiered`, which is no objective.
    """
    if tasks.empty:
        return Round([])
    capacity = Capacity(accounts)
    batch = prepare(tasks, catalogue.options, capacity, policy, now=now, open_breakers=open_breakers)
    market = _market(batch, catalogue, accounts, fairness)
    check = _precheck(batch, market)
    lacking = check.codes().astype(bool) & _is_open(batch)
    market, batch = market.without(lacking), _turn_away(batch, lacking)
    rules = Rules(
        strategy,
        fairness,
        exploration,
        seed=seed,
        threads=threads,
        rooms=fairness.rooms(busy or {}),
        start=start,
    )
    cleared = clear(market, batch.tasks, rules)
    names, solution = catalogue.accounts, cleared.solution
    compared = compared_tasks(len(tasks), seed) if compare else np.empty(0, dtype=np.intp)
    decided = Verdicts(batch, market, strategy, cleared, check)
    return Round(
        decisions=decided,
        assigned=decided.assigned,
        legend=decided.legend,
        prices=dict(zip(names, solution.prices.tolist(), strict=True)),
        available=dict(zip(names, market.capacity.tolist(), strict=True)),
        lapsing=dict(zip(names, market.lapsing.tolist(), strict=True)),
        objective=solution.objective,
        bound=solution.bound,
        gap=solution.gap,
        evaluations=solution.evaluations,
        forecast=forecast(market, cleared.choice, _values(batch)),
        compared=len(compared),
        alternatives=_alternatives(batch, market, accounts, compared, len(tasks), rules) if compare else {},
        considered=int(market.codes.size),
        pruned=_pruned(market, lacking),
    )


def compare_policy(
    tasks: pd.DataFrame,
    of: int,
    catalogue: Catalogue,
    accounts: Sequence[Account],
    policy: AssignmentPolicy,
    *,
    fairness: FairnessPolicy,
    now: datetime,
    seed: int,
    open_breakers: Collection[str] = (),
    threads: int = 1,
) -> Round:
    """What the written policy is expected to come to, beside the other strategies and the best that there is.

    Args:
        tasks: as for `assign_optimal`, n of the `of` tasks of a batch; every account holds its share for them.

    Returns:
        A round without decisions, about the n tasks: the objective is that of maximize_value, reached by the policy's
        plans; prices and bound are those of the best assignment.
    """
    batch = prepare(
        tasks, catalogue.options, Capacity(accounts), policy, now=now, open_breakers=open_breakers
    )
    market = _market(batch, catalogue, accounts, fairness)
    rules = Rules(
        Strategy.MAXIMIZE_VALUE, fairness, ExplorationPolicy(rate=0), seed=seed, threads=threads, rooms={}
    )
    every = np.arange(len(tasks))
    part = market.of(every, len(tasks) / of)
    choice = _tiered_choice(batch, market, accounts, every, of)
    worth = part.worth(Strategy.MAXIMIZE_VALUE)
    best = part.clear(worth, seed=seed, start=starting_prices(market, rules), threads=threads)
    given = np.flatnonzero(choice != NO_PLAN)
    objective = float(worth[choice[given], given].sum())
    names = catalogue.accounts
    return Round(
        decisions=[],
        assigned=len(given),
        prices=dict(zip(names, best.prices.tolist(), strict=True)),
        available=dict(zip(names, part.capacity.tolist(), strict=True)),
        lapsing=dict(zip(names, part.lapsing.tolist(), strict=True)),
        objective=objective,
        bound=best.bound,
        gap=min(max(1 - objective / best.bound, 0.0), 1.0) if best.bound > 0 else 0.0,
        evaluations=best.evaluations,
        forecast=forecast(part, choice, _values(batch)),
        compared=len(tasks),
        alternatives=_alternatives(batch, market, accounts, every, of, rules),
        considered=int(market.codes.size),
        pruned=market.pruned(),
    )


def compared_tasks(tasks: int, seed: int) -> NDArray[np.intp]:
    """Positions of the tasks of a batch on which strategies are compared, ascending: all, or a sample."""
    if tasks <= COMPARED_WHOLE:
        return np.arange(tasks)
    return np.sort(np.random.default_rng(seed).choice(tasks, COMPARED_SAMPLE, replace=False))


def forecast(market: Market, choice: Choice, values: Doubles) -> Forecast:
    """What `choice` is expected to come to, with tasks worth `values` (not aged), (n,)."""
    tasks = np.flatnonzero(choice != NO_PLAN)
    plans = choice[tasks]
    outlook = market.outlook
    success = outlook.success[plans, tasks]
    prepaid = market.catalogue.prepaid_of_charge
    taken = market.catalogue.book.charge_plan[prepaid, None] == choice[None, :]
    return Forecast(
        tasks=len(choice),
        assigned=len(tasks),
        value=float((values[tasks] * success).sum()),
        successes=float(success.sum()),
        list_usd=float(outlook.list_usd[plans, tasks].sum()),
        billed_usd=float(outlook.billed_usd[plans, tasks].sum()),
        tokens=float(outlook.charges[prepaid].sum(where=taken)),
        seconds=float(outlook.seconds[plans, tasks].mean()) if len(tasks) else 0.0,
    )


def _market(
    batch: Batch, catalogue: Catalogue, accounts: Sequence[Account], fairness: FairnessPolicy
) -> Market:
    waiting = batch.tasks["waiting_hours"].to_numpy(dtype=np.float64)
    aged = batch.tasks.assign(value_score=fairness.aged(_values(batch), waiting))
    turned_away = np.array([reason is not None for reason in batch.standing])
    required = np.array([band.required_success for band in batch.bands])
    codes = batch.eligible.codes_in_any_tier
    market = open_market(aged, catalogue, accounts, codes, required, now=batch.now)
    return market.without(turned_away)


def _values(batch: Batch) -> Doubles:
    return batch.tasks["value_score"].to_numpy(dtype=np.float64)


def _precheck(batch: Batch, market: Market) -> Precheck:
    """What each option would take alone, against what the accounts hold. The solver's strategies know no tiers."""
    catalogue, book = market.catalogue, market.catalogue.book
    alone = [book.charge_of_alone(option) for option in range(len(batch.options))]
    possible = batch.eligible.codes_in_any_tier == ELIGIBLE
    return Precheck(
        need=market.outlook.charges[alone].T,
        possible=possible,
        in_tier=possible,
        draws=catalogue.draws[alone] > 0,
        available=market.capacity,
        accounts=catalogue.accounts,
    )


def _is_open(batch: Batch) -> NDArray[np.bool_]:
    return np.array([reason is None for reason in batch.standing])


def _turn_away(batch: Batch, lacking: NDArray[np.bool_]) -> Batch:
    """The batch in which tasks that capacity lacks for, whatever they are given, need not be looked at further."""
    if not lacking.any():
        return batch
    standing = [
        Reason.INSUFFICIENT_GLOBAL_CAPACITY if is_lacking else reason
        for is_lacking, reason in zip(lacking.tolist(), batch.standing, strict=True)
    ]
    return replace(batch, standing=standing)


def _pruned(market: Market, lacking: NDArray[np.bool_]) -> dict[str, int]:
    """How many pairs of plan and task were ruled out, by reason."""
    pairs = int(lacking.sum()) * len(market.codes)
    found = {str(Reason.INSUFFICIENT_GLOBAL_CAPACITY): pairs} if pairs else {}
    return market.pruned() | found


def _alternatives(
    batch: Batch,
    market: Market,
    accounts: Sequence[Account],
    compared: NDArray[np.intp],
    of: int,
    rules: Rules,
) -> dict[str, Forecast]:
    """What each strategy would have come to on some of `of` tasks, with a proportional part of every account."""
    part = market if len(compared) == of else market.of(compared, len(compared) / of)
    values = _values(batch)[compared]
    choices: dict[Strategy, Choice] = {Strategy.TIERED: _tiered_choice(batch, market, accounts, compared, of)}
    start = starting_prices(market, rules)
    for strategy in OBJECTIVES:
        solution = part.clear(part.worth(strategy), seed=rules.seed, start=start, threads=rules.threads)
        choices[strategy] = solution.choice
    return {strategy.value: forecast(part, choice, values) for strategy, choice in choices.items()}


def _tiered_choice(
    batch: Batch, market: Market, accounts: Sequence[Account], compared: NDArray[np.intp], of: int
) -> Choice:
    """Plans that the written policy would give to some of `of` tasks."""
    share = Decimal(len(compared)) / of
    part = [
        replace(account, limit=account.limit * share, available=account.available * share)
        for account in accounts
    ]
    plan_of = {plan: number for number, plan in enumerate(market.catalogue.book.plans)}
    single = np.array([plan_of.get((option,), NO_PLAN) for option in range(len(batch.options))] + [NO_PLAN])
    options = tiered_options(batch.tasks.iloc[compared], batch.options, part, batch.policy, now=batch.now)
    return single[options].astype(np.int16)
