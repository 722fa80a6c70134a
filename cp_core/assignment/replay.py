"""Decisions made again from what was stored with them: the facts in their explanations, and the round they fell in.

Nothing of today is looked at: not the clock, not the accounts, not the tasks. A plan settled by prices follows from its
own facts and the round's prices; a whole round follows from the facts of all its tasks, the seed and the prices it
started from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.clearing import Rules, clear
from cp_core.assignment.eligibility import CODES
from cp_core.assignment.exploration import ExplorationPolicy
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.market import Catalogue, Market, market_of
from cp_core.assignment.plans import Outlook
from cp_core.assignment.solver import NO_PLAN
from cp_core.assignment.strategies import Strategy
from cp_core.assignment.verdicts import FEATURES
from cp_core.tasks.reasons import Reason

Doubles = NDArray[np.float64]

_NOT_IN_MARKET = frozenset(
    {Reason.DEADLINE_PASSED, Reason.DEPENDENCY_FAILED, Reason.DEPENDENCY_PENDING, Reason.WORKSPACE_CAP}
)


@dataclass(frozen=True)
class StoredRound:
    """What `assignment_batches` holds of a round.

    Attributes:
        prices: what the round came to; `start`: what it began with.
        available, lapsing: of each account, before the round.
    """

    strategy: Strategy
    seed: int
    prices: Mapping[str, float]
    start: Mapping[str, float]
    available: Mapping[str, float]
    lapsing: Mapping[str, float]


@dataclass(frozen=True)
class StoredDecision:
    """What `assignments` and `tasks` hold of a decision."""

    task: int
    decision_id: UUID
    reason: Reason | None
    deadline: datetime | None
    explanation: Mapping[str, Any]


def replay_plan(facts: Mapping[str, Any], catalogue: Catalogue, stored: StoredRound) -> str | None:
    """The plan that is worth most after prices; None where none is worth its price.

    Args:
        facts: the explanation of a decision that prices settled.
        catalogue: of the configuration it was made under.
        stored: the round whose prices it was made at.
    """
    market = _market([facts], catalogue, stored)
    net = market.worth(stored.strategy) - market.price(_by_account(stored.prices, catalogue))
    net = np.where(market.fits(market.capacity), net, -np.inf)[:, 0]
    best = int(net.argmax())
    return catalogue.labels[best] if net[best] > 0 else None


def plans_at_prices(
    facts: Sequence[Mapping[str, Any]], catalogue: Catalogue, stored: StoredRound
) -> tuple[Outlook, Doubles]:
    """What every plan is expected to give, and what it is worth after prices, (K, n), under some configuration.

    Args:
        facts: explanations of decisions of one round.
        catalogue: of the configuration to judge by, which need not be the one they were made under.

    Raises:
        KeyError: a decision excluded an option that the catalogue does not have.
    """
    market = _market(facts, catalogue, stored)
    return market.outlook, market.worth(stored.strategy) - market.price(_by_account(stored.prices, catalogue))


def replay_round(
    decisions: Sequence[StoredDecision],
    catalogue: Catalogue,
    stored: StoredRound,
    fairness: FairnessPolicy,
    exploration: ExplorationPolicy,
) -> dict[int, str | None]:
    """The plan of every task of a round, by task; None for those that got none.

    Args:
        decisions: all of the round's, in any order. A deferral that repeated an earlier one was not stored: with such
            in it, a round can't be replayed as a whole.
    """
    tasks = _in_the_order_of_the_round(decisions)
    market = _market(tasks["explanation"].tolist(), catalogue, stored)
    market = market.without(tasks["reason"].isin(_NOT_IN_MARKET).to_numpy())
    rules = Rules(stored.strategy, fairness, exploration, seed=stored.seed, start=stored.start)
    choice = clear(market, tasks, rules).choice.tolist()
    labels = [None if plan == NO_PLAN else catalogue.labels[plan] for plan in choice]
    return dict(zip(tasks["task"].tolist(), labels, strict=True))


def _in_the_order_of_the_round(decisions: Sequence[StoredDecision]) -> pd.DataFrame:
    facts = [decision.explanation for decision in decisions]
    frame = pd.DataFrame(
        {
            "task": [decision.task for decision in decisions],
            "decision_id": pd.Series([decision.decision_id for decision in decisions], dtype=object),
            "reason": pd.Series([decision.reason for decision in decisions], dtype=object),
            "deadline": pd.to_datetime(pd.Series([decision.deadline for decision in decisions]), utc=True),
            "explanation": pd.Series(facts, dtype=object),
            "workspace": "",
            **{name: [one[name] for one in facts] for name in ("value_score", "waiting_hours", "risk")},
        }
    )
    return frame.sort_values(
        ["value_score", "deadline", "task"],
        ascending=[False, True, True],
        na_position="last",
        ignore_index=True,
    )


def _market(facts: Sequence[Mapping[str, Any]], catalogue: Catalogue, stored: StoredRound) -> Market:
    columns: dict[str, Any] = {name: [one[name] for one in facts] for name in FEATURES}
    columns["traits"] = [one.get("traits") for one in facts]
    return market_of(
        {**columns, "value_score": [one["aged_value"] for one in facts]},
        catalogue,
        _codes(facts, catalogue),
        np.array([one["required_success"] for one in facts], dtype=np.float64),
        capacity=_by_account(stored.available, catalogue),
        lapsing=_by_account(stored.lapsing, catalogue),
    )


def _codes(facts: Sequence[Mapping[str, Any]], catalogue: Catalogue) -> NDArray[np.int8]:
    """Why each option may not be given to each task, (n, m), as it was stored."""
    column = {
        f"{option.model.name} ({option.funding.name})": at for at, option in enumerate(catalogue.options)
    }
    codes = np.zeros((len(facts), len(column)), dtype=np.int8)
    for row, one in enumerate(facts):
        for reason, labels in one["excluded"].items():
            codes[row, [column[label] for label in labels]] = CODES.index(Reason(reason))
    return codes


def _by_account(figures: Mapping[str, float], catalogue: Catalogue) -> NDArray[np.float64]:
    return np.array([figures.get(account, 0.0) for account in catalogue.accounts], dtype=np.float64)
