"""Strategies: what a plan is worth to its owner, as terms of the one objective that the solver maximises.

A worth is in value points: what a task of that value score brings when it succeeds. `tiered` is no objective: it is
the written policy, in `cp_core.assignment.tiered`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cp_core.assignment.plans import Outlook, PlanBook

Doubles = NDArray[np.float64]

_TRACE = 1e-3  # share of its value that a task keeps however expensive it is
_MINOR = 0.1  # weight of what decides only between plans that are nearly equal in what the strategy is for


class Strategy(StrEnum):
    """What a batch is decided for."""

    TIERED = "tiered"
    MAXIMIZE_VALUE = "maximize_value"
    MAXIMIZE_SUBSCRIPTION_USAGE = "maximize_subscription_usage"
    MINIMIZE_COST = "minimize_cost"
    FASTEST = "fastest"


OBJECTIVES = tuple(strategy for strategy in Strategy if strategy is not Strategy.TIERED)
"""The strategies that the solver serves."""


class ObjectivePolicy(BaseModel):
    """Section `objective` of policies.yaml: how much other things weigh against value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    points_per_usd: float = Field(default=10.0, ge=0, description="Value points that one dollar is worth.")
    points_per_lapsing_usd: float = Field(
        default=5.0,
        ge=0,
        description="maximize_subscription_usage: points for a dollar's worth of prepaid tokens about to lapse.",
    )
    points_per_minute: float = Field(
        default=1.0, ge=0, description="fastest: points that one minute is worth."
    )


@dataclass(frozen=True)
class Setting:
    """What strategies need to know beside the outlook.

    Attributes:
        values: value of each task, (n,), >= 0.
        required_success: success that each task's band asks for, (n,), 0 to 1.
        eligible: whether each plan may be given to each task, (K, n).
        book: the K plans.
        lapsing: how near the soonest window of each charge is to its end, (R,): 0 not prepaid or just opened,
            1 about to end.
    """

    values: Doubles
    required_success: Doubles
    eligible: NDArray[np.bool_]
    book: PlanBook
    lapsing: Doubles


def worth(strategy: Strategy, outlook: Outlook, setting: Setting, policy: ObjectivePolicy) -> Doubles:
    """What each plan is worth for each task, (K, n); -inf where it may not be given.

    Raises:
        ValueError: `tiered`, which is no objective.
    """
    points = _points(strategy, outlook, setting, policy)
    return np.where(setting.eligible, points, -np.inf)


def _points(strategy: Strategy, outlook: Outlook, setting: Setting, policy: ObjectivePolicy) -> Doubles:
    if strategy is Strategy.MAXIMIZE_VALUE:
        return _value_less_money(outlook, setting, policy)
    if strategy is Strategy.MAXIMIZE_SUBSCRIPTION_USAGE:
        return _value_less_money(outlook, setting, policy) + _lapsing(outlook, setting, policy)
    if strategy is Strategy.MINIMIZE_COST:
        prepaid_usd = outlook.list_usd - outlook.billed_usd
        expense = policy.points_per_usd * (outlook.billed_usd + _MINOR * prepaid_usd)
        return _least(expense, outlook, setting)
    if strategy is Strategy.FASTEST:
        expense = policy.points_per_minute * outlook.seconds / 60
        return _least(expense + _MINOR * policy.points_per_usd * outlook.billed_usd, outlook, setting)
    raise ValueError(f"{strategy} is the written policy, not an objective")


def _value_less_money(outlook: Outlook, setting: Setting, policy: ObjectivePolicy) -> Doubles:
    return setting.values * outlook.success - policy.points_per_usd * outlook.billed_usd


def _lapsing(outlook: Outlook, setting: Setting, policy: ObjectivePolicy) -> Doubles:
    """Points for prepaid tokens, more the sooner they would lapse unused."""
    points = policy.points_per_lapsing_usd * setting.lapsing[:, None] * outlook.charge_list_usd
    return setting.book.sum_by_plan(points)


def _least(expense: Doubles, outlook: Outlook, setting: Setting) -> Doubles:
    """Worth that falls with `expense` alone, among the plans that reach the required success.

    Where none does, the plans of the highest success count. A task is worth its value whichever of them does it, and
    never less than a trace of it, so that an expensive task is still done where nothing else needs the quota.
    """
    success = np.where(setting.eligible, outlook.success, 0.0)
    reaches = success >= np.minimum(setting.required_success, success.max(axis=0, initial=0.0))
    trace = _TRACE * setting.values / (1 + expense)
    return np.where(reaches, np.maximum(setting.values - expense, trace), -np.inf)
