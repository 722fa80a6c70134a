"""The decisions of a cleared market: built from arrays, each with what it was weighed against.

An explanation is stored with every decision, so it is kept small: the task's facts, its plan and the next best with
success, price, time, worth and worth less price (`net`), what could not be given, and the probabilities where there
was a draw. The prices of the accounts are stored once, with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cp_core.assignment.batch import Batch
from cp_core.assignment.clearing import Cleared
from cp_core.assignment.decision import Decision, Outcome, Stage
from cp_core.assignment.eligibility import CODES
from cp_core.assignment.market import Market
from cp_core.assignment.options import from_smallest_units
from cp_core.assignment.solver import NO_PLAN
from cp_core.assignment.strategies import Strategy
from cp_core.quota.account import Unit
from cp_core.tasks.reasons import Reason

Doubles = NDArray[np.float64]

ALTERNATIVES = 3
"""Other plans that an explanation shows."""

FEATURES = ("domain", "complexity", "input_mean", "input_median", "output_mean", "output_median")
"""What predictions are made from."""

_BREAKER_OPEN = CODES.index(Reason.BREAKER_OPEN)
_FOR_GOOD = frozenset({Reason.NO_ELIGIBLE_PLAN, Reason.DEADLINE_PASSED, Reason.DEPENDENCY_FAILED})
_NANO = 1e9
_DECIMALS = {"success": 4, "list_usd": 6, "billed_usd": 6, "seconds": 1, "worth": 4, "net": 4}


def decisions(batch: Batch, market: Market, strategy: Strategy, cleared: Cleared) -> list[Decision]:
    """One decision a task: the overdue first, then by falling value."""
    reasons = _reasons(batch, market, cleared)
    facts = _Facts(batch, market, strategy)
    weighed = _Weighed(market, cleared)
    plans = _stages(market, cleared.choice)
    cost = np.ceil(_chosen(market.outlook.list_usd, cleared.choice) * _NANO).astype(np.int64).tolist()
    settled = _settled_by(market, cleared)
    probabilities = cleared.drawn.probabilities.T.tolist()
    candidates = cleared.drawn.candidates.T.tolist()
    propensity = _propensity(cleared)
    labels = market.catalogue.labels
    order = np.concatenate([np.flatnonzero(cleared.overdue), np.flatnonzero(~cleared.overdue)]).tolist()
    made = []
    for row in order:
        task, explanation = batch.records[row], facts.of(row)
        reason = reasons[row]
        if reason is None:
            explanation["plan"], explanation["alternatives"] = weighed.chosen_and_others(row)
            explanation["decided_by"] = settled[row]
            if propensity[row] is not None and propensity[row] < 1:
                explanation["probabilities"] = {
                    labels[plan]: probability
                    for plan, probability in zip(candidates[row], probabilities[row], strict=True)
                    if plan != NO_PLAN
                }
        elif batch.standing[row] is None:
            explanation["alternatives"] = weighed.best(row)
        made.append(
            Decision(
                task["task"],
                task["task_id"],
                task["value_score"],
                Outcome.ASSIGNED if reason is None else _outcome(reason),
                reason,
                plans.get(row, ()),
                from_smallest_units(cost[row], Unit.USD) if reason is None else None,
                explanation,
                propensity[row] if reason is None else None,
            )
        )
    return made


def _outcome(reason: Reason) -> Outcome:
    return Outcome.REJECTED if reason in _FOR_GOOD else Outcome.DEFERRED


def _reasons(batch: Batch, market: Market, cleared: Cleared) -> list[Reason | None]:
    """Why each task gets nothing now; None for those that get a plan."""
    reasons = list(batch.standing)
    left = [row for row in np.flatnonzero(cleared.choice == NO_PLAN).tolist() if reasons[row] is None]
    if not left:
        return reasons
    rows = np.array(left)
    part = market.of(rows)
    fits = np.asarray((part.eligible & part.fits(part.capacity)).any(axis=0)).tolist()
    eligible = np.asarray(part.eligible.any(axis=0)).tolist()
    is_worth_it = np.asarray((cleared.worth[:, rows] > 0).any(axis=0)).tolist()
    paused = np.asarray((batch.eligible.codes_in_any_tier[rows] == _BREAKER_OPEN).any(axis=1)).tolist()
    for position, row in enumerate(left):
        if cleared.beyond_room[row]:
            reasons[row] = Reason.WORKSPACE_CAP
        elif not eligible[position]:
            reasons[row] = Reason.BREAKER_OPEN if paused[position] else Reason.NO_ELIGIBLE_PLAN
        elif not fits[position] or cleared.late[row]:  # what was left, the overdue before it took
            reasons[row] = Reason.INSUFFICIENT_GLOBAL_CAPACITY
        else:
            reasons[row] = Reason.OUTBID if is_worth_it[position] else Reason.COST_ABOVE_VALUE
    return reasons


class _Facts:
    """What was decided upon: with the configuration and the batch, the decision can be made again from these."""

    def __init__(self, batch: Batch, market: Market, strategy: Strategy) -> None:
        self._strategy = strategy.value
        self._aged = market.values.tolist()
        self._required = market.required_success.tolist()
        self._batch = batch
        self._codes = batch.eligible.codes_in_any_tier
        self._excluded: dict[bytes, dict[str, list[str]]] = {}
        self._labels = [f"{option.model.name} ({option.funding.name})" for option in batch.options]

    def of(self, row: int) -> dict[str, Any]:
        task = self._batch.records[row]
        facts = {
            "strategy": self._strategy,
            "value_score": task["value_score"],
            "aged_value": self._aged[row],
            "waiting_hours": task["waiting_hours"],
            "required_success": self._required[row],
            "risk": task["risk"],
            **{name: task[name] for name in FEATURES},
            "excluded": self._excluded_of(row),
        }
        match self._batch.standing[row]:
            case Reason.DEADLINE_PASSED:
                facts["deadline"] = task["deadline"].isoformat()
            case Reason.DEPENDENCY_FAILED:
                facts["dependencies"] = task["dependencies_failed"]
            case Reason.DEPENDENCY_PENDING:
                facts["dependencies"] = task["dependencies_pending"]
        return facts

    def _excluded_of(self, row: int) -> dict[str, list[str]]:
        """The options that may not be given, by reason. Many tasks share one answer."""
        codes = self._codes[row]
        key = codes.tobytes()
        if key not in self._excluded:
            grouped: dict[str, list[str]] = {}
            for label, code in zip(self._labels, codes.tolist(), strict=True):
                if CODES[code] is not None:
                    grouped.setdefault(str(CODES[code]), []).append(label)
            self._excluded[key] = grouped
        return self._excluded[key]


class _Weighed:
    """The plan of each task and the best others, with their figures."""

    def __init__(self, market: Market, cleared: Cleared) -> None:
        self._choice = cleared.choice.tolist()
        self._labels = market.catalogue.labels
        shown = _best(cleared.net, ALTERNATIVES + 1)
        plans = np.concatenate([cleared.choice[None, :], shown])
        tasks = np.arange(plans.shape[1])
        outlook = market.outlook
        arrays = {
            "success": outlook.success,
            "list_usd": outlook.list_usd,
            "billed_usd": outlook.billed_usd,
            "seconds": outlook.seconds,
            "worth": cleared.worth,
            "net": cleared.net,
        }
        figures = [
            np.round(array[plans, tasks], _DECIMALS[name]).T.tolist() for name, array in arrays.items()
        ]
        self._plans = plans.T.tolist()
        self._rows = list(zip(*figures, strict=True))

    def chosen_and_others(self, row: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The plan's figures, and those of the best others."""
        first, *others = self._weigh(row)
        return first, others[:ALTERNATIVES]

    def best(self, row: int) -> list[dict[str, Any]]:
        """The figures of the plans that were nearest to being given."""
        return list(self._weigh(row))[:ALTERNATIVES]

    def _weigh(self, row: int) -> Iterator[dict[str, Any]]:
        figures, choice = self._rows[row], self._choice[row]
        for position, plan in enumerate(self._plans[row]):
            if plan == NO_PLAN or (position and plan == choice):
                continue
            success, list_usd, billed_usd, seconds, worth, net = (values[position] for values in figures)
            yield {
                "plan": self._labels[plan],
                "success": success,
                "list_usd": list_usd,
                "billed_usd": billed_usd,
                "seconds": seconds,
                "worth": worth,
                "net": net,
            }


def _best(net: Doubles, count: int) -> NDArray[np.int16]:
    """The plans of most worth less price for each task, best first, (count, n); `NO_PLAN` where there are fewer."""
    left, tasks = net.copy(), np.arange(net.shape[1])
    best = np.empty((count, net.shape[1]), dtype=np.int16)
    for place in range(count):
        plan = left.argmax(axis=0)
        best[place] = np.where(np.isfinite(left[plan, tasks]), plan, NO_PLAN)
        left[plan, tasks] = -np.inf
    return best


def _stages(market: Market, choice: NDArray[np.int16]) -> dict[int, tuple[Stage, ...]]:
    """The stages of each task's plan: the first reserved in full, the others as far as they are expected.

    What a later stage takes once it is reached is what its option takes alone.
    """
    catalogue = market.catalogue
    plans: dict[int, tuple[Stage, ...]] = {}
    for plan in np.unique(choice[choice != NO_PLAN]).tolist():
        tasks = np.flatnonzero(choice == plan)
        columns: list[list[Stage]] = []
        for charge in np.flatnonzero(catalogue.book.charge_plan == plan).tolist():
            position = int(catalogue.book.stage_option[charge])
            option = catalogue.options[position]
            name, funding, accounts = option.model.name, option.funding.name, option.funding.accounts
            reserved = _amounts(market.outlook.charges[charge, tasks], option.funding.unit)
            if not columns:
                columns.append([Stage(name, funding, dict.fromkeys(accounts, amount)) for amount in reserved])
                continue
            in_full = market.outlook.charges[catalogue.book.charge_of_alone(position), tasks]
            columns.append(
                [
                    Stage(name, funding, dict.fromkeys(accounts, amount), dict.fromkeys(accounts, needed))
                    for amount, needed in zip(reserved, _amounts(in_full, option.funding.unit), strict=True)
                ]
            )
        plans.update(zip(tasks.tolist(), zip(*columns, strict=True), strict=True))
    return plans


def _amounts(sizes: Doubles, unit: Unit) -> list[Decimal]:
    """Sizes in the ledger's smallest units, rounded up."""
    whole = np.ceil(sizes if unit is Unit.TOKENS else sizes * _NANO).astype(np.int64)
    return [from_smallest_units(amount, unit) for amount in whole.tolist()]


def _chosen(figures: Doubles, choice: NDArray[np.int16]) -> Doubles:
    """The figure of each task's plan; 0 without one."""
    return np.where(choice == NO_PLAN, 0.0, figures[choice, np.arange(len(choice))])


def _settled_by(market: Market, cleared: Cleared) -> list[str]:
    """Which step of the round settled each task's plan."""
    net = np.where(market.fits(market.capacity), cleared.net, -np.inf)
    is_best = (net.argmax(axis=0) == cleared.choice) & (net.max(axis=0) > 0)
    settled = np.where(is_best, "prices", "rounding")
    settled = np.where(cleared.drawn.explored, "exploration", settled)
    return np.where(cleared.overdue, "overdue", settled).tolist()  # type: ignore[no-any-return]


def _propensity(cleared: Cleared) -> list[float | None]:
    """The probability with which each task's plan was drawn; None where what was drawn did not fit any more."""
    drawn = cleared.drawn
    is_drawn = (drawn.candidates == drawn.choice) & (drawn.probabilities > 0)
    probability = np.where(is_drawn, drawn.probabilities, 0.0).max(axis=0)
    return [value or None for value in probability.tolist()]
