"""The decisions of a cleared market: built from arrays, each with what it was weighed against.

An explanation holds the task's facts, its plan and the next best with success, price, time, worth and worth less price
(`net`), what could not be given, and the probabilities where there was a draw. One is stored with every decision, so it
is kept as numbers (`packed`). The prices of the accounts are stored once, with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.batch import Batch
from cp_core.assignment.clearing import Cleared
from cp_core.assignment.decision import Decision, Outcome, Stage
from cp_core.assignment.eligibility import CODES
from cp_core.assignment.grants import Grants, Integers, Terms
from cp_core.assignment.market import Market
from cp_core.assignment.options import from_smallest_units
from cp_core.assignment.packed import (
    FACTS,
    FIGURES,
    NAMES,
    NOT_GIVEN,
    SETTLED_BY,
    SHOWN,
    TURNED_AWAY,
    WEIGHED,
    Legend,
    Packed,
)
from cp_core.assignment.precheck import REASONS, Precheck
from cp_core.assignment.predict import trait_matrix
from cp_core.assignment.solver import NO_PLAN
from cp_core.assignment.strategies import Strategy
from cp_core.quota.account import Unit
from cp_core.tasks.reasons import Reason

Doubles = NDArray[np.float64]

FEATURES = ("domain", "complexity", "input_mean", "input_median", "output_mean", "output_median")
"""What predictions are made from."""

_PRICES, _ROUNDING, _EXPLORATION, _OVERDUE = range(len(SETTLED_BY))
_BREAKER_OPEN = CODES.index(Reason.BREAKER_OPEN)
_FOR_GOOD = frozenset({Reason.NO_ELIGIBLE_PLAN, Reason.DEADLINE_PASSED, Reason.DEPENDENCY_FAILED})
_NANO = 1e9
_DECIMALS = {"success": 4, "list_usd": 6, "billed_usd": 6, "seconds": 1, "worth": 4, "net": 4}


class Verdicts(Sequence[Decision]):
    """One decision a task, the overdue first, then by falling value. Each is made when it is asked for.

    Args:
        check: proves, for tasks turned away before the search, what capacity lacks.

    Attributes:
        legend: of the decisions' explanations, which are `Packed`.
        assigned: how many get a plan.
    """

    def __init__(
        self,
        batch: Batch,
        market: Market,
        strategy: Strategy,
        cleared: Cleared,
        check: Precheck | None = None,
    ) -> None:
        self._batch = batch
        self._check = check
        self._market = market
        self._choice = cleared.choice
        self._reasons = _reasons(batch, market, cleared)
        groups, excluded = _excluded(batch)
        names = {name: _coded(_column(batch, name)) for name in NAMES}
        self.legend = Legend(
            strategy.value,
            market.catalogue.labels,
            {name: found for name, (_, found) in names.items()},
            excluded,
        )
        self._figures = _figures(
            batch, market, cleared, self._reasons, [codes for codes, _ in names.values()], groups
        )
        self._tasks, self._task_ids, self._values = (
            _column(batch, name) for name in ("task", "task_id", "value_score")
        )
        self._cost = np.ceil(_chosen(market.outlook.list_usd, cleared.choice) * _NANO).astype(np.int64)
        self._propensity = _probability(cleared)
        self._order = np.concatenate([np.flatnonzero(cleared.overdue), np.flatnonzero(~cleared.overdue)])
        self.assigned = self._reasons.count(None)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, position: int) -> Decision: ...

    @overload
    def __getitem__(self, position: slice) -> list[Decision]: ...

    def __getitem__(self, position: int | slice) -> Decision | list[Decision]:
        if isinstance(position, slice):
            return [self._decision(row) for row in self._order[position].tolist()]
        return self._decision(int(self._order[position]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def _decision(self, row: int) -> Decision:
        reason = self._reasons[row]
        standing = self._batch.standing[row]
        own = None if standing is None else self._own_facts(standing, row)
        is_given = reason is None
        return Decision(
            int(self._tasks[row]),
            str(self._task_ids[row]),
            float(self._values[row]),
            Outcome.ASSIGNED if reason is None else _outcome(reason),
            reason,
            _stages(self._market, int(self._choice[row]), row),
            from_smallest_units(int(self._cost[row]), Unit.USD) if is_given else None,
            Packed(self._figures[row], self.legend, own),
            float(self._propensity[row]) or None if is_given else None,
        )

    def in_columns(self) -> tuple[Grants, NDArray[np.intp], NDArray[np.intp]]:
        """The decisions that give a plan as columns, the positions of these, and the positions of the others."""
        is_given = np.array([reason is None for reason in self._reasons])[self._order]
        rows = self._order[is_given]
        reserved, needed = _all_stages(self._market, self._choice[rows], rows)
        grants = Grants(
            self._tasks[rows].astype(np.int64),
            self._values[rows].astype(np.float64),
            [_terms(self._market, plan) for plan in range(len(self._market.catalogue.book))],
            self._choice[rows].astype(np.int64),
            reserved,
            needed,
            self._cost[rows],
            self._propensity[rows],
            self._figures[rows],
        )
        return grants, np.flatnonzero(is_given), np.flatnonzero(~is_given)

    def _own_facts(self, standing: Reason, row: int) -> dict[str, Any]:
        """Why a task is not to be decided now, where that cannot be said in the numbers that all have."""
        task = self._batch.records[row]
        match standing:
            case Reason.DEADLINE_PASSED:
                return {"deadline": task["deadline"].isoformat()}
            case Reason.DEPENDENCY_FAILED:
                return {"dependencies": task["dependencies_failed"]}
            case Reason.DEPENDENCY_PENDING:
                return {"dependencies": task["dependencies_pending"]}
            case Reason.INSUFFICIENT_GLOBAL_CAPACITY if self._check is not None:
                return {"lacking": self._check.figures(row, REASONS.index(standing))}
        return {}


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


def _excluded(batch: Batch) -> tuple[NDArray[np.intp], list[dict[str, list[str]]]]:
    """The group of each task, (n,), and by group the options that may not be given, by reason."""
    labels = [f"{option.model.name} ({option.funding.name})" for option in batch.options]
    different, groups = _distinct_rows(batch.eligible.codes_in_any_tier)
    excluded = []
    for codes in different.tolist():
        grouped: dict[str, list[str]] = {}
        for label, code in zip(labels, codes, strict=True):
            if CODES[code] is not None:
                grouped.setdefault(str(CODES[code]), []).append(label)
        excluded.append(grouped)
    return groups, excluded


def _distinct_rows(codes: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.intp]]:
    """The different rows, and which of them each row is, (n,)."""
    if len(codes) == 1:
        return codes, np.zeros(1, dtype=np.intp)
    whole = np.ascontiguousarray(codes).view(np.dtype((np.void, codes.shape[1]))).ravel()
    _, first, groups = np.unique(whole, return_index=True, return_inverse=True)
    return codes[first], groups


def _column(batch: Batch, name: str) -> NDArray[Any]:
    """A column of the tasks; a task that is decided alone has all of them in its record only."""
    if len(batch.records) == 1:
        return np.array([batch.records[0][name]])
    return np.asarray(batch.tasks[name])


def _coded(column: NDArray[Any]) -> tuple[NDArray[np.intp], list[str]]:
    """A column of names as positions among those that occur, and these."""
    if len(column) == 1:
        return np.zeros(1, dtype=np.intp), [str(column[0])]
    codes, names = pd.factorize(column.astype(object))
    return codes, [str(name) for name in names]


def _figures(
    batch: Batch,
    market: Market,
    cleared: Cleared,
    reasons: Sequence[Reason | None],
    names: Sequence[NDArray[np.intp]],
    excluded: NDArray[np.intp],
) -> Doubles:
    """The numbers of every task's explanation, see `packed.FIGURES`, (n, FIGURES and traits)."""
    is_given = np.array([reason is None for reason in reasons])
    is_turned_away = np.array([reason is not None for reason in batch.standing])
    settled = np.where(is_given, _settled_by(market, cleared), NOT_GIVEN)
    facts = {
        **{name: _column(batch, name) for name in ("value_score", "waiting_hours", *FEATURES[2:])},
        "aged_value": market.values,
        "required_success": market.required_success,
    }
    plans = _shown(cleared)
    traits = _traits(batch, market)
    figures = np.empty((len(reasons), FIGURES + len(traits)))
    columns: list[Any] = [
        *(facts[name] for name in FACTS),
        *names,
        excluded,
        np.where(is_turned_away, TURNED_AWAY, settled),
        *_weighed(market, cleared, plans),
        *_draws(cleared, is_given),
        *traits,
    ]
    for at, column in enumerate(columns):
        figures[:, at] = column
    return figures


def _traits(batch: Batch, market: Market) -> Doubles:
    """What predictions looked at in the texts, (traits, n), for who makes a decision again; (0, n) for nothing."""
    traits = market.catalogue.predictor.traits
    alone = batch.records[0] if len(batch.records) == 1 else {}
    if not traits or not ("traits" in batch.tasks or "traits" in alone):
        return np.zeros((0, len(batch.records)))
    column = [alone["traits"]] if "traits" in alone else batch.tasks["traits"]
    return trait_matrix(column, traits).T


def _shown(cleared: Cleared) -> NDArray[np.int16]:
    """The plan of each task and the best others, best first, (SHOWN, n); `NO_PLAN` where there are fewer."""
    best, choice = _best(cleared.net, SHOWN), cleared.choice
    is_past = np.cumsum(best == choice, axis=0)[:-1] > 0
    return np.concatenate([choice[None, :], np.where(is_past, best[1:], best[:-1])])


def _weighed(market: Market, cleared: Cleared, shown: NDArray[np.int16]) -> Iterator[Any]:
    """Each plan that is shown, and its figures: (1 + WEIGHED) columns a plan."""
    outlook, tasks = market.outlook, np.arange(shown.shape[1])
    figures = {
        "success": outlook.success,
        "list_usd": outlook.list_usd,
        "billed_usd": outlook.billed_usd,
        "seconds": outlook.seconds,
        "worth": cleared.worth,
        "net": cleared.net,
    }
    for plans in shown:
        is_none = plans == NO_PLAN
        yield np.where(is_none, -1, plans)
        for name in WEIGHED:
            found = np.where(is_none, 0.0, figures[name][plans, tasks])
            yield np.round(found, _DECIMALS[name])


def _draws(cleared: Cleared, is_given: NDArray[np.bool_]) -> Iterator[Any]:
    """The plans that exploration drew from and their probabilities, where it had a say."""
    drawn = cleared.drawn
    propensity = _probability(cleared)
    is_drawn = is_given & (propensity > 0) & (propensity < 1)
    for plans, probabilities in zip(drawn.candidates, drawn.probabilities, strict=True):
        is_there = is_drawn & (plans != NO_PLAN)
        yield np.where(is_there, plans, -1)
        yield np.where(is_there, probabilities, 0.0)


def _best(net: Doubles, count: int) -> NDArray[np.int16]:
    """The plans of most worth less price for each task, best first, (count, n); `NO_PLAN` where there are fewer."""
    left, tasks = net.copy(), np.arange(net.shape[1])
    best = np.empty((count, net.shape[1]), dtype=np.int16)
    for place in range(count):
        plan = left.argmax(axis=0)
        best[place] = np.where(np.isfinite(left[plan, tasks]), plan, NO_PLAN)
        left[plan, tasks] = -np.inf
    return best


def _stages(market: Market, plan: int, row: int) -> tuple[Stage, ...]:
    """The stages of a task's plan, as `_all_stages` measures them."""
    if plan == NO_PLAN:
        return ()
    reserved, needed = (part[0].tolist() for part in _all_stages(market, np.array([plan]), np.array([row])))
    stages = []
    for number, terms in enumerate(_terms(market, plan)):
        amount, in_full = (from_smallest_units(part[number], terms.unit) for part in (reserved, needed))
        needs = dict.fromkeys(terms.accounts, in_full) if number else None
        stages.append(Stage(terms.model, terms.funding, dict.fromkeys(terms.accounts, amount), needs))
    return tuple(stages)


def _terms(market: Market, plan: int) -> tuple[Terms, ...]:
    options = [market.catalogue.options[option] for option in market.catalogue.book.plans[plan]]
    return tuple(
        Terms(option.model.name, option.funding.name, option.funding.accounts, option.funding.unit)
        for option in options
    )


def _all_stages(
    market: Market, plans: NDArray[np.integer[Any]], tasks: NDArray[np.intp]
) -> tuple[Integers, Integers]:
    """What each stage of the plans of some tasks reserves, and what it takes once it is reached, see `Grants`.

    The first is reserved in full, the others as far as they are expected. What a later stage takes once it is reached
    is what its option takes alone.
    """
    book, charges = market.catalogue.book, market.outlook.charges
    reserved, needed = np.zeros((2, len(tasks), len(book.stages)), dtype=np.int64)
    for plan in np.unique(plans).tolist():
        given = np.flatnonzero(plans == plan)
        for number, charge in enumerate(np.flatnonzero(book.charge_plan == plan).tolist()):
            option = int(book.stage_option[charge])
            unit = market.catalogue.options[option].funding.unit
            reserved[given, number] = _smallest(charges[charge, tasks[given]], unit)
            if number:
                alone = charges[book.charge_of_alone(option), tasks[given]]
                needed[given, number] = _smallest(alone, unit)
    needed[:, :1] = reserved[:, :1]
    return reserved, needed


def _smallest(sizes: Doubles, unit: Unit) -> Integers:
    """Sizes in the ledger's smallest units, rounded up."""
    return np.ceil(sizes if unit is Unit.TOKENS else sizes * _NANO).astype(np.int64)


def _chosen(figures: Doubles, choice: NDArray[np.int16]) -> Doubles:
    """The figure of each task's plan; 0 without one."""
    return np.where(choice == NO_PLAN, 0.0, figures[choice, np.arange(len(choice))])


def _settled_by(market: Market, cleared: Cleared) -> NDArray[np.intp]:
    """Which step of the round settled each task's plan, positions in `packed.SETTLED_BY`, (n,)."""
    net = np.where(market.fits(market.capacity), cleared.net, -np.inf)
    is_best = (net.argmax(axis=0) == cleared.choice) & (net.max(axis=0) > 0)
    settled = np.where(is_best, _PRICES, _ROUNDING)
    settled = np.where(cleared.drawn.explored, _EXPLORATION, settled)
    return np.where(cleared.overdue, _OVERDUE, settled)


def _probability(cleared: Cleared) -> Doubles:
    """The probability with which each task's plan was drawn, (n,); 0 where what was drawn did not fit any more."""
    drawn = cleared.drawn
    is_drawn = (drawn.candidates == drawn.choice) & (drawn.probabilities > 0)
    return np.asarray(np.where(is_drawn, drawn.probabilities, 0.0).max(axis=0))
