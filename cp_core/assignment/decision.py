"""What a strategy decides for one task, and the keys that make a decision and its reservations repeatable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid5

from cp_core.tasks.reasons import Reason

_DECISIONS = UUID(
    "8f7f3c52-5b0c-5d0e-9c55-6a1f0c9f2d41"
)  # namespace of decision ids; changing it changes them all


class Outcome(StrEnum):
    """What became of a task when it was looked at.

    `deferred` waits for something that may change by itself; `rejected` cannot be done as things stand.
    """

    ASSIGNED = "assigned"
    DEFERRED = "deferred"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Stage:
    """One model to try, and what pays for it.

    Attributes:
        amounts: what the plan reserves for it when it is decided, by account (tokens or US dollars): of a stage
            that may not be reached only the part that is expected.
        needs: what it takes once it is reached; None: the same as `amounts`.
    """

    model: str
    funding: str
    amounts: Mapping[str, Decimal]
    needs: Mapping[str, Decimal] | None = None

    @property
    def in_full(self) -> Mapping[str, Decimal]:
        """What an attempt at this stage takes, by account."""
        return self.amounts if self.needs is None else self.needs

    def as_json(self) -> dict[str, Any]:
        """The stage as `assignments.plan` stores it; amounts as text, so that no digit is lost."""
        needs = {} if self.needs is None else {"needs": _as_text(self.needs)}
        return {"model": self.model, "funding": self.funding, "amounts": _as_text(self.amounts), **needs}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Stage:
        """The stage that `as_json` made."""
        needs = stored.get("needs")
        return cls(
            stored["model"],
            stored["funding"],
            _as_amounts(stored["amounts"]),
            None if needs is None else _as_amounts(needs),
        )


def _as_text(amounts: Mapping[str, Decimal]) -> dict[str, str]:
    return {account: str(amount) for account, amount in amounts.items()}


def _as_amounts(stored: Mapping[str, str]) -> dict[str, Decimal]:
    return {account: Decimal(amount) for account, amount in stored.items()}


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for one task.

    Attributes:
        task: `tasks.id`.
        task_id: the task's public id.
        value_score: 0 to 100, what the task was worth when it was decided.
        outcome: assigned, deferred or rejected.
        reason: why it was not assigned; None when it was.
        plan: the stages to try in order; empty unless assigned.
        expected_cost_usd: list price of the plan's expected tokens, whoever pays; None unless assigned.
        explanation: JSON-ready, see `cp_core.assignment.explain` and `cp_core.assignment.verdicts`; may be `packed`.
        propensity: probability with which this plan was drawn, where exploration had a say; None: not known.
    """

    task: int
    task_id: str
    value_score: float
    outcome: Outcome
    reason: Reason | None = None
    plan: tuple[Stage, ...] = ()
    expected_cost_usd: Decimal | None = None
    explanation: Mapping[str, Any] = field(default_factory=dict)
    propensity: float | None = None

    @property
    def model(self) -> str | None:
        """Model of the first stage."""
        return self.plan[0].model if self.plan else None

    @property
    def funding(self) -> str | None:
        """What pays for the first stage."""
        return self.plan[0].funding if self.plan else None

    @property
    def amounts(self) -> Mapping[str, Decimal]:
        """What the whole plan reserves, by account."""
        if len(self.plan) == 1:
            return self.plan[0].amounts
        return sum_of(stage.amounts for stage in self.plan)

    def outrun(self, reason: Reason = Reason.QUOTA_EXHAUSTED) -> Decision:
        """What becomes of an assignment when others have taken its quota, or its place, first."""
        explanation = self.explanation
        if "why" in explanation:
            explanation = {name: part for name, part in explanation.items() if name != "why"}
        return Decision(
            self.task,
            self.task_id,
            self.value_score,
            Outcome.DEFERRED,
            reason,
            explanation=explanation,
        )


def sum_of(parts: Iterable[Mapping[str, Decimal]]) -> dict[str, Decimal]:
    """Amounts by account, added up."""
    total: dict[str, Decimal] = {}
    for part in parts:
        for account, amount in part.items():
            total[account] = total.get(account, Decimal(0)) + amount
    return total


def decision_id(task_id: str, number: int, config_hash: str) -> UUID:
    """Id of the `number`-th decision (from 0) for a task under one configuration.

    The same three always give the same id, so that a decision made again after a crash is not stored twice.
    """
    return uuid5(_DECISIONS, f"{task_id}\n{number}\n{config_hash}")


def reservation_key(decision: UUID, attempt: int) -> UUID:
    """Key under which an attempt's quota is reserved and settled.

    Args:
        decision: `assignments.decision_id`.
        attempt: 1 for the first attempt made under this decision (the assigner reserves it), 2 for the next, a
            retry or the plan's next stage (whoever moves the task on reserves it), and so on. It is not
            `executions.attempt`, which goes on counting when a task gets another decision.
    """
    if attempt < 1:
        raise ValueError(f"attempts of a decision count from 1, got {attempt}")
    return decision if attempt == 1 else uuid5(decision, str(attempt))
