"""The assignments of a round as columns: what is stored and reserved in bulk, without an object for every task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_core.quota.account import Unit
from cp_core.quota.holds import Holds

Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]

_NANO = 1_000_000_000


class Terms(NamedTuple):
    """One stage of a plan: what is the same for every task that is given it."""

    model: str
    funding: str
    accounts: tuple[str, ...]
    unit: Unit


@dataclass(frozen=True, eq=False)
class Grants:
    """n tasks and the plans they get, in the order in which quota is reserved for them.

    Attributes:
        task: internal ids, (n,).
        value: value scores, (n,).
        plans: the stages of each plan.
        plan: which of them each task gets, (n,).
        reserved: what each stage reserves in each of its accounts, (n, stages), in whole smallest units: tokens or
            nanodollars. 0 beyond a plan's end.
        needed: what each stage takes once it is reached, (n, stages), likewise.
        list_nanousd: list price of the plan's expected tokens, (n,).
        propensity: probability with which the plan was drawn, (n,); 0: not known.
        figures: of their explanations, see `packed.FIGURES`, (n, FIGURES), and traits if there are any.
    """

    task: Integers
    value: Doubles
    plans: Sequence[tuple[Terms, ...]]
    plan: Integers
    reserved: Integers
    needed: Integers
    list_nanousd: Integers
    propensity: Doubles
    figures: Doubles

    def __len__(self) -> int:
        return len(self.task)

    def at(self, which: slice | NDArray[np.bool_]) -> Grants:
        """Some of them, in the same order."""
        return Grants(
            self.task[which],
            self.value[which],
            self.plans,
            self.plan[which],
            self.reserved[which],
            self.needed[which],
            self.list_nanousd[which],
            self.propensity[which],
            self.figures[which],
        )

    def by_plan(self) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Each plan that is given, and where: its position, and those of the tasks that get it."""
        for plan in np.unique(self.plan).tolist():
            yield plan, np.flatnonzero(self.plan == plan)

    def holds(self, keys: Sequence[bytes]) -> Holds:
        """What is reserved for them, under a key each."""
        accounts: dict[str, int] = {}
        parts: list[tuple[Integers, ...]] = []
        for plan, rows in self.by_plan():
            of_account: dict[str, list[int]] = {}
            for stage, terms in enumerate(self.plans[plan]):
                for account in terms.accounts:
                    of_account.setdefault(account, []).append(stage)
            for account, stages in of_account.items():
                amounts = self.reserved[rows][:, stages].sum(axis=1)
                whole, nano = split(amounts, self.plans[plan][stages[0]].unit)
                position = accounts.setdefault(account, len(accounts))
                parts.append((rows.astype(np.int64), np.full(len(rows), position), whole, nano))
        columns = zip(*parts, strict=True) if parts else [[np.empty(0, dtype=np.int64)]] * 4
        return Holds(keys, self.task, tuple(accounts), *(np.concatenate(list(column)) for column in columns))


def split(amounts: Integers, unit: Unit) -> tuple[Integers, Integers]:
    """Amounts in smallest units as whole units, and billionths of one beside them."""
    if unit is Unit.TOKENS:
        return amounts, np.zeros_like(amounts)
    whole, nano = np.divmod(amounts, _NANO)
    return whole, nano
