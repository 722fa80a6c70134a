"""What the decisions of a batch, or of a whole run, come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from cp_core.assignment.decision import Decision, Outcome
from cp_core.assignment.grants import Grants
from cp_core.models.registry import ModelRegistry
from cp_core.tasks.reasons import Reason


@dataclass(slots=True)
class AssignmentSummary:
    """Counts and sums over decisions.

    Attributes:
        outcomes: tasks by outcome.
        reasons: tasks that were not assigned, by reason.
        models, tiers, fundings: assigned tasks by what they were given.
        reserved: tokens or US dollars by account.
        expected_cost_usd: list price of what was assigned, whoever pays.
        value_assigned: sum of the value scores of the assigned tasks.
        races_lost: reservations for which another process was faster; each was tried again.
        seconds: how long it took.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    fundings: Counter[str] = field(default_factory=Counter)
    reserved: dict[str, Decimal] = field(default_factory=dict)
    expected_cost_usd: Decimal = Decimal(0)
    value_assigned: float = 0.0
    races_lost: int = 0
    seconds: float = 0.0

    @property
    def decided(self) -> int:
        """How many tasks were decided, whatever the outcome."""
        return self.outcomes.total()

    def count(self, decisions: Iterable[Decision], registry: ModelRegistry) -> None:
        """Count decisions in."""
        kinds: Counter[tuple[Outcome, Reason | None, str | None, str | None]] = Counter()
        for decision in decisions:
            kinds[decision.outcome, decision.reason, decision.model, decision.funding] += 1
            if decision.expected_cost_usd is not None:
                self.expected_cost_usd += decision.expected_cost_usd
                self.value_assigned += decision.value_score
                self._reserve(decision.amounts)
        for (outcome, reason, model, funding), tasks in kinds.items():
            self.outcomes[outcome.value] += tasks
            if reason is not None:
                self.reasons[reason.value] += tasks
            if model is not None and funding is not None:
                self.models[model] += tasks
                self.tiers[registry.model(model).tier.value] += tasks
                self.fundings[funding] += tasks

    def count_granted(self, grants: Grants, registry: ModelRegistry) -> None:
        """Count assignments in that come as columns."""
        for plan, rows in grants.by_plan():
            first = grants.plans[plan][0]
            self.outcomes[Outcome.ASSIGNED.value] += len(rows)
            self.models[first.model] += len(rows)
            self.tiers[registry.model(first.model).tier.value] += len(rows)
            self.fundings[first.funding] += len(rows)
        self.expected_cost_usd += Decimal(int(grants.list_nanousd.sum())).scaleb(-9)
        self.value_assigned += float(grants.value.sum())
        self._reserve(grants.holds([]).totals)

    def add(self, other: AssignmentSummary) -> None:
        """Count another summary in."""
        for name in ("outcomes", "reasons", "models", "tiers", "fundings"):
            getattr(self, name).update(getattr(other, name))
        self._reserve(other.reserved)
        self.expected_cost_usd += other.expected_cost_usd
        self.value_assigned += other.value_assigned
        self.races_lost += other.races_lost
        self.seconds += other.seconds

    def as_json(self) -> dict[str, Any]:
        """The summary in plain JSON values."""
        return {
            "decided": self.decided,
            "outcomes": dict(self.outcomes),
            "reasons": dict(self.reasons),
            "models": dict(self.models),
            "tiers": dict(self.tiers),
            "fundings": dict(self.fundings),
            "reserved": {account: float(amount) for account, amount in self.reserved.items()},
            "expected_cost_usd": float(self.expected_cost_usd),
            "value_assigned": self.value_assigned,
            "races_lost": self.races_lost,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        return (
            f"{self.decided} decided"
            + (f": {outcomes}" if outcomes else "")
            + (f" ({reasons})" if reasons else "")
        )

    def _reserve(self, amounts: Mapping[str, Decimal]) -> None:
        for account, amount in amounts.items():
            self.reserved[account] = self.reserved.get(account, Decimal(0)) + amount
