"""Exploration: now and then a task gets the best plan of an adjacent tier, so that learning sees what it would not.

Which task that is, and which plan, follows from a hash of the decision's id alone: a repeat of the decision draws the
same, and nobody can steer it. The probability of every plan that could have been drawn is kept with the decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cp_core.assignment.solver import NO_PLAN

Doubles = NDArray[np.float64]
Choice = NDArray[np.int16]


class ExplorationPolicy(BaseModel):
    """Section `exploration` of policies.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = Field(default=0.07, ge=0, le=0.1, description="Share of eligible decisions that explore.")
    below: float = Field(default=90, ge=0, le=100, description="Tasks of this value or more never explore.")


@dataclass(frozen=True)
class Drawn:
    """What n decisions became.

    Attributes:
        choice: plan of each task or `NO_PLAN`, (n,).
        candidates: the plan without exploration, then the best of the tier above and of the tier below; (3, n),
            `NO_PLAN` where there is none.
        probabilities: probability of each candidate, (3, n); 0 where there is none.
    """

    choice: Choice
    candidates: Choice
    probabilities: Doubles

    @property
    def explored(self) -> NDArray[np.bool_]:
        """Which tasks got another plan than they would have had without exploration."""
        return np.asarray(self.choice != self.candidates[0])


def uniform(ids: Iterable[UUID]) -> Doubles:
    """A number in [0, 1) for each decision id, by SHA-256."""
    digests = (hashlib.sha256(b"explore" + identity.bytes).digest() for identity in ids)
    return np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests], dtype=np.float64)


def explore(
    choice: Choice,
    net: Doubles,
    possible: NDArray[np.bool_],
    plan_tier: NDArray[np.int64],
    may_explore: NDArray[np.bool_],
    draw: Doubles,
    rate: float,
) -> Drawn:
    """Draw for each task whether it keeps its plan.

    Args:
        choice: plan of each task or `NO_PLAN`, (n,).
        net: worth of each plan less the price of what it draws, (K, n).
        possible: whether each plan may be given to each task in place of its own, (K, n).
        plan_tier: rank of the tier of each plan's first stage, (K,).
        may_explore: tasks that are not critical, (n,).
        draw: a number in [0, 1) for each task, (n,), see `uniform`.
        rate: probability of leaving the plan, where there is another to go to.
    """
    tasks = np.arange(len(choice))
    tier = plan_tier[np.maximum(choice, 0)]
    open_to = may_explore & (choice != NO_PLAN)
    neighbours = [_best_in_tier(tier + step, net, possible & open_to, plan_tier) for step in (-1, 1)]
    candidates = np.stack([choice, *neighbours])
    others = (candidates[1:] != NO_PLAN).astype(np.float64)
    share = rate / np.maximum(others.sum(axis=0), 1.0)
    leaving = others * share
    probabilities = np.concatenate([1.0 - leaving.sum(axis=0, keepdims=True), leaving])
    drawn = (draw[None, :] >= np.cumsum(probabilities, axis=0)).sum(axis=0).clip(max=2)
    return Drawn(candidates[drawn, tasks].astype(np.int16), candidates.astype(np.int16), probabilities)


def _best_in_tier(
    tier: NDArray[np.int64], net: Doubles, possible: NDArray[np.bool_], plan_tier: NDArray[np.int64]
) -> Choice:
    there = possible & (plan_tier[:, None] == tier[None, :])
    best = np.where(there, net, -np.inf).argmax(axis=0) if len(net) else np.zeros(len(tier), dtype=np.intp)
    return np.where(there.any(axis=0), best, NO_PLAN).astype(np.int16)
