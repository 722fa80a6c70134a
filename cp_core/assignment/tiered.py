"""Strategy `tiered`, the written policy: a task's value allows some tiers; within them the order is total.

Tasks are served by falling value score (ties: earlier deadline, then lower id), each taking from the balances
what it reserves, so that no task waits for one of lower value. A task gets the first of its options, in this
order, whose accounts can pay:

1. prepaid before money, in a band with `subscription_first`;
2. tier, in the band's order;
3. the preferred family, for the domain and the scores it is preferred for;
4. prepaid before money in every band, because prepaid quota lapses and money does not;
5. capability for the task's domain, higher first;
6. list price of the expected tokens, lower first;
7. name of the model, then the registry's order of what pays for it.

An account can pay if it holds what the task needs and is not, before the task draws on it, in a state that is
kept for more valuable tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment import explain
from cp_core.assignment.batch import Batch, prepare
from cp_core.assignment.capacity import Capacity, Shortage
from cp_core.assignment.decision import Decision, Outcome, Stage
from cp_core.assignment.eligibility import CODES, ELIGIBLE
from cp_core.assignment.explain import Candidate
from cp_core.assignment.options import Options, from_smallest_units
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.models.registry import ModelRegistry
from cp_core.quota.account import Account, Unit
from cp_core.tasks.reasons import Reason

NO_OPTION = -1
"""What `tiered_options` says of a task that gets nothing."""

_BREAKER_OPEN = CODES.index(Reason.BREAKER_OPEN)


def assign_tiered(
    tasks: pd.DataFrame,
    registry: ModelRegistry,
    accounts: Sequence[Account],
    policy: AssignmentPolicy,
    *,
    now: datetime,
    open_breakers: Collection[str] = (),
    rooms: Mapping[str, int] | None = None,
) -> list[Decision]:
    """Decide for each task by the written policy.

    Args:
        tasks: one row a task, in any order: task (id), task_id, value_score (0 to 100), domain, input_mean,
            input_high, output_mean, output_high (tokens), deadline (UTC or NaT), failed_models,
            dependencies_failed and dependencies_pending (lists or None); workspace, where `rooms` names any;
            tiers_either_side, where the policy is relaxed for some (see `policy.relaxed`).
        accounts: what the accounts hold. Every account of the registry must be among them.
        now: the instant that deadlines are compared with.
        open_breakers: names of models that are not to be called now.
        rooms: how many more tasks each capped workspace may have.

    Returns:
        One decision a task, in the order in which they were served.

    Raises:
        LookupError: an account that the registry names is not in `accounts`.
    """
    if tasks.empty:
        return []
    capacity = Capacity(accounts)
    batch = prepare(tasks, Options(registry), capacity, policy, now=now, open_breakers=open_breakers)
    return serve(batch, capacity, rooms or {})


def serve(batch: Batch, capacity: Capacity, rooms: Mapping[str, int]) -> list[Decision]:
    """Decide for each task of a batch in turn; see `assign_tiered`."""
    serving = _Serving(batch, capacity, dict(rooms))
    return [serving.decide(row) for row in range(len(batch.records))]


def tiered_options(
    tasks: pd.DataFrame,
    options: Options,
    accounts: Sequence[Account],
    policy: AssignmentPolicy,
    *,
    now: datetime,
) -> NDArray[np.intp]:
    """What `assign_tiered` would give, without saying why: positions in `options` or `NO_OPTION`, (n,).

    Args:
        tasks: by falling value score, as `batch.prepare` leaves them.
    """
    capacity = Capacity(accounts)
    serving = _Serving(prepare(tasks, options, capacity, policy, now=now), capacity, {})
    return np.array([serving.pick(row) for row in range(len(tasks))], dtype=np.intp)


class _Serving:
    """The tasks of a batch one after the other, and the balances as they fall."""

    def __init__(self, batch: Batch, capacity: Capacity, rooms: dict[str, int]) -> None:
        self._batch = batch
        self._capacity = capacity
        self._rooms = rooms
        self._keys = _keys(batch)
        self._order = np.lexsort(list(reversed(self._keys.values())), axis=-1)

    def decide(self, row: int) -> Decision:
        """Decide for the task in `row`, and take from the balances what it is given."""
        batch = self._batch
        standing = batch.standing[row]
        if standing is not None:
            outcome = Outcome.DEFERRED if standing is Reason.DEPENDENCY_PENDING else Outcome.REJECTED
            return self._turn_away(row, outcome, standing, explain.standing(batch, row))
        if batch.bands[row].defer:
            return self._turn_away(row, Outcome.DEFERRED, Reason.VALUE_TOO_LOW, explain.facts(batch, row))
        if self._rooms and self._rooms.get(batch.records[row]["workspace"]) == 0:
            return self._turn_away(row, Outcome.DEFERRED, Reason.WORKSPACE_CAP, explain.facts(batch, row))
        candidates = self._candidates(row)
        chosen = next((candidate for candidate in candidates if candidate.shortage is None), None)
        if chosen is None:
            return self._refuse(row, candidates)
        return self._grant(row, chosen, candidates)

    def pick(self, row: int) -> int:
        """Give the task in `row` its option as `decide` does, and tell which: `NO_OPTION` if none."""
        batch = self._batch
        if batch.standing[row] is None and not batch.bands[row].defer:
            codes = batch.eligible.codes[row]
            for column in self._order[row].tolist():
                if codes[column] == ELIGIBLE and self._shortage(row, column) is None:
                    self._capacity.take(batch.options[column].funding, int(batch.need[row, column]))
                    return int(column)
        return NO_OPTION

    def _candidates(self, row: int) -> list[Candidate]:
        """What the task may be given, most preferred first, each with why nothing can pay for it now."""
        codes = self._batch.eligible.codes[row]
        return [
            Candidate(column, self._shortage(row, column))
            for column in self._order[row].tolist()
            if codes[column] == ELIGIBLE
        ]

    def _shortage(self, row: int, column: int) -> Shortage | None:
        kept = self._batch.policy.kept_quota
        is_kept_for_it = self._batch.records[row]["value_score"] >= kept.at_least
        return self._capacity.shortage(
            self._batch.options[column].funding,
            int(self._batch.need[row, column]),
            closed=() if is_kept_for_it else kept.states,
        )

    def _grant(self, row: int, chosen: Candidate, candidates: list[Candidate]) -> Decision:
        batch = self._batch
        option = batch.options[chosen.column]
        need = int(batch.need[row, chosen.column])
        amount = from_smallest_units(need, option.funding.unit)
        explanation = explain.considered(batch, row, candidates, self._capacity)
        explanation["why"] = self._why(row, chosen, candidates)
        self._capacity.take(option.funding, need)
        if self._rooms and (workspace := batch.records[row]["workspace"]) in self._rooms:
            self._rooms[workspace] -= 1
        return Decision(
            task=batch.records[row]["task"],
            task_id=batch.records[row]["task_id"],
            value_score=batch.records[row]["value_score"],
            outcome=Outcome.ASSIGNED,
            plan=(
                Stage(
                    option.model.name,
                    option.funding.name,
                    dict.fromkeys(option.funding.accounts, amount),
                ),
            ),
            expected_cost_usd=from_smallest_units(int(batch.list_price[row, chosen.column]), Unit.USD),
            explanation=explanation,
        )

    def _why(self, row: int, chosen: Candidate, candidates: list[Candidate]) -> dict[str, str]:
        """The rule that put the chosen option before the next one that something could have paid for."""
        payable = [candidate for candidate in candidates if candidate.shortage is None]
        if len(payable) == 1:
            return {"rule": "only"}
        second = payable[1].column
        rule = next(name for name, key in self._keys.items() if key[row, chosen.column] != key[row, second])
        return {"rule": rule, "over": explain.label(self._batch.options[second])}

    def _refuse(self, row: int, candidates: list[Candidate]) -> Decision:
        """No option is left that something can pay for now: say whether waiting can help."""
        explanation = explain.considered(self._batch, row, candidates, self._capacity)
        if candidates:
            reason = self._lack(row, candidates)
        elif _BREAKER_OPEN in self._batch.eligible.codes[row]:
            reason = Reason.BREAKER_OPEN
        else:
            return self._turn_away(row, Outcome.REJECTED, Reason.NO_ELIGIBLE_PLAN, explanation)
        return self._turn_away(row, Outcome.DEFERRED, reason, explanation)

    def _lack(self, row: int, candidates: list[Candidate]) -> Reason:
        """What is lacking: quota kept for others, quota of the band's tiers, or quota altogether."""
        if any(_is_kept(candidate.shortage) for candidate in candidates):
            return Reason.QUOTA_KEPT_FOR_CRITICAL
        in_any_tier = np.flatnonzero(self._batch.eligible.codes_in_any_tier[row] == ELIGIBLE).tolist()
        if any(self._shortage(row, column) is None for column in in_any_tier):
            return Reason.INSUFFICIENT_TIER_CAPACITY
        return Reason.INSUFFICIENT_GLOBAL_CAPACITY

    def _turn_away(self, row: int, outcome: Outcome, reason: Reason, explanation: dict[str, Any]) -> Decision:
        task = self._batch.records[row]
        return Decision(
            task=task["task"],
            task_id=task["task_id"],
            value_score=task["value_score"],
            outcome=outcome,
            reason=reason,
            explanation=explanation,
        )


def _keys(batch: Batch) -> dict[str, NDArray[np.float64]]:
    """What the options of a task are ordered by, first things first: (n, m) each, lower goes first."""
    shape = batch.need.shape
    costs_money = np.broadcast_to(~batch.options.prepaid, shape)
    subscription_first = np.array([band.subscription_first for band in batch.bands], dtype=bool)
    keys = {
        "subscription_first": costs_money & subscription_first[:, None],
        "tier": batch.tier_position,
        "family": _is_of_another_family(batch),
        "prepaid": costs_money,
        "capability": -batch.capability,
        "cost": batch.list_price,
        "name": np.broadcast_to(np.arange(len(batch.options)), shape),
    }
    return {name: key.astype(np.float64) for name, key in keys.items()}


def _is_of_another_family(batch: Batch) -> NDArray[np.bool_]:
    """Where the task prefers a model family and the option is not of it."""
    preference = batch.policy.family_preference
    if preference is None:
        return np.zeros(batch.need.shape, dtype=bool)
    tasks = batch.tasks
    prefers = (tasks["domain"] == preference.domain) & (tasks["value_score"] >= preference.at_least)
    other = [option.model.family != preference.family for option in batch.options]
    return np.outer(np.asarray(prefers, dtype=bool), np.array(other, dtype=bool))


def _is_kept(shortage: Shortage | None) -> bool:
    return shortage is not None and shortage.reason is Reason.QUOTA_KEPT_FOR_CRITICAL
