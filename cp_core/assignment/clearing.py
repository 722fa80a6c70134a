"""One round of the market: who is served first, who has had enough, what the solver gives to the rest, who explores.

1. Tasks behind what their workspace has room for are set aside.
2. Overdue tasks are served, oldest first, each with its best plan that fits.
3. The solver clears the market of the rest; for a task alone, the prices of the latest batch do.
4. Exploration draws which tasks go to an adjacent tier, where that fits too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.exploration import Drawn, ExplorationPolicy, explore, uniform
from cp_core.assignment.fairness import FairnessPolicy, beyond_room
from cp_core.assignment.market import Market
from cp_core.assignment.solver import NO_PLAN, Solution
from cp_core.assignment.strategies import Strategy

Doubles = NDArray[np.float64]
Choice = NDArray[np.int16]


@dataclass(frozen=True)
class Rules:
    """What a round goes by, beside the market.

    Attributes:
        seed, threads: for the solver; threads change nothing but the time.
        rooms: how many more tasks each capped workspace may have.
        start: prices that the solver starts from, by account: those of the batch before.
    """

    strategy: Strategy
    fairness: FairnessPolicy
    exploration: ExplorationPolicy
    seed: int = 0
    threads: int = 1
    rooms: Mapping[str, int] | None = None
    start: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Cleared:
    """What a round came to, for n tasks and K plans.

    Attributes:
        drawn: the plans, and what exploration might have drawn instead. The probabilities of a task are NaN where
            what it drew did not fit any more.
        late: which tasks have waited too long, (n,).
        overdue: which of them were served for that; the others found too little left, (n,).
        beyond_room: which tasks were set aside for their workspace, (n,).
        worth: what each plan is worth for each task, (K, n); -inf where it may not be given.
        net: worth less the price of what the plan draws, (K, n).
        solution: what the solver found for those that were neither overdue nor set aside.
    """

    drawn: Drawn
    late: NDArray[np.bool_]
    overdue: NDArray[np.bool_]
    beyond_room: NDArray[np.bool_]
    worth: Doubles
    net: Doubles
    solution: Solution

    @property
    def choice(self) -> Choice:
        """Plan of each task or `NO_PLAN`, (n,)."""
        return self.drawn.choice


def clear(market: Market, tasks: pd.DataFrame, rules: Rules) -> Cleared:
    """Hold a round.

    Args:
        market: n tasks, valued as aged.
        tasks: n rows with value_score, waiting_hours, risk, workspace and decision_id.
    """
    worth = market.worth(rules.strategy)
    start = starting_prices(market, rules)
    waiting = tasks["waiting_hours"].to_numpy(dtype=np.float64)
    late = rules.fairness.overdue(waiting)
    is_late = np.zeros(len(tasks), dtype=bool)
    is_late[late] = True
    set_aside = _beyond_room(market, worth, tasks["workspace"], late, is_late, rules.rooms or {})
    first = _serve(market, np.where(set_aside, -np.inf, worth - market.price(start)), late)
    is_served = first != NO_PLAN
    rest = market.with_less(market.use_of(first)) if is_served.any() else market
    open_to_rest = np.where(is_served | set_aside, -np.inf, worth)
    solution = rest.clear(open_to_rest, seed=rules.seed, start=start, threads=rules.threads)
    net = worth - market.price(solution.prices)
    choice = np.where(is_served, first, solution.choice)
    may_explore = (
        (tasks["value_score"] < rules.exploration.below).to_numpy()
        & (tasks["risk"] != "production").to_numpy()
        & ~is_served
    )
    slack = np.maximum(rest.capacity - solution.use, 0.0)
    drawn = _explore(market, choice, net, may_explore, tasks, slack, rules.exploration.rate)
    return Cleared(drawn, is_late, is_served, set_aside, worth, net, solution)


def starting_prices(market: Market, rules: Rules) -> Doubles:
    """Prices that a round starts from, in the order of the market's accounts, (A,)."""
    start = rules.start or {}
    return np.array([start.get(account, 0.0) for account in market.catalogue.accounts])


def _serve(market: Market, net: Doubles, order: NDArray[np.intp]) -> Choice:
    """Give each task in `order` the best of its plans that fit into what those before it left."""
    choice = np.full(net.shape[1], NO_PLAN, dtype=np.int16)
    left = market.capacity.copy()
    for task in order.tolist():
        need = market.need_of(task)
        fitting = np.where((need <= left).all(axis=1), net[:, task], -np.inf)
        plan = int(fitting.argmax())
        if np.isfinite(fitting[plan]):
            choice[task] = plan
            left -= need[plan]
    return choice


def _beyond_room(
    market: Market,
    worth: Doubles,
    workspaces: pd.Series,
    late: NDArray[np.intp],
    is_late: NDArray[np.bool_],
    rooms: Mapping[str, int],
) -> NDArray[np.bool_]:
    """Which tasks stand behind what their workspace has room for: the overdue come first, then the more valuable."""
    if not rooms:
        return np.zeros(len(workspaces), dtype=bool)
    wants = np.asarray(((worth > 0) & market.fits(market.capacity)).any(axis=0))
    by_value = np.argsort(-market.values, kind="stable")
    order = np.concatenate([late, by_value[~is_late[by_value]]])
    return beyond_room(workspaces, rooms, order[wants[order]])


def _explore(
    market: Market,
    choice: Choice,
    net: Doubles,
    may_explore: NDArray[np.bool_],
    tasks: pd.DataFrame,
    slack: Doubles,
    rate: float,
) -> Drawn:
    """Draw, and take back what then does not fit: such a decision has no probability to learn from."""
    possible = np.isfinite(net) & market.fits(slack) if rate else np.zeros(net.shape, dtype=bool)
    draw = uniform(tasks["decision_id"])
    drawn = explore(choice, net, possible, market.catalogue.plan_tier, may_explore, draw, rate)
    kept = drawn.choice.copy()
    for task in np.flatnonzero(drawn.explored).tolist():
        need = market.need_of(task)
        extra = need[kept[task]] - need[choice[task]]
        if (extra <= slack).all():
            slack = slack - extra
        else:
            kept[task] = choice[task]
    probabilities = np.where(kept == drawn.choice, drawn.probabilities, np.nan)
    return Drawn(kept, drawn.candidates, probabilities)
