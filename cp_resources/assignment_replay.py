"""Stored decisions made again: reads what `cp_core.assignment.replay` needs, from the tables alone."""

from __future__ import annotations

from typing import Any, LiteralString
from uuid import UUID

from cp_core.assignment.market import Catalogue
from cp_core.assignment.replay import StoredDecision, StoredRound, replay_plan, replay_round
from cp_core.assignment.strategies import Strategy
from cp_core.learning.learned import Learned
from cp_core.models.registry import ModelRegistry
from cp_core.policy.policies import Policies
from cp_core.tasks.reasons import Reason
from cp_resources.assignment_store import spelled_out
from cp_resources.database import Database
from cp_resources.errors import UserError


class ReplayError(UserError):
    """A decision or a round is not stored, or not such that it can be made again."""


class Replay:
    """Makes stored decisions again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def plan(self, decision_id: UUID) -> str | None:
        """The plan that the prices of its round give to a decision that prices settled.

        Raises:
            ReplayError: there is no such decision, or it was not made at the prices of a round.
        """
        found = self._database.fetch(_DECISION, [decision_id])
        if not found or found[0][0] is None:
            raise ReplayError(
                f"decision {decision_id} is not stored, or was not made at the prices of a round"
            )
        [(batch, *stored_explanation)] = found
        explanation = spelled_out(*stored_explanation)
        stored, _, catalogue = self._round(batch)
        return replay_plan(explanation, catalogue, stored)

    def round(self, batch: UUID) -> dict[int, str | None]:
        """The plan of every task of a round, by `tasks.id`.

        Raises:
            ReplayError: there is no such round, or not all of its decisions are stored.
        """
        stored, policies, catalogue = self._round(batch)
        decisions = [
            StoredDecision(task, identity, reason and Reason(reason), deadline, spelled_out(*explained))
            for task, identity, reason, deadline, *explained in self._database.fetch(_DECISIONS, [batch])
        ]
        [(tasks,)] = self._database.fetch("SELECT tasks FROM cp.assignment_batches WHERE id = %s", [batch])
        if len(decisions) != tasks:
            raise ReplayError(
                f"round {batch} decided {tasks} tasks, but {len(decisions)} of the decisions are stored: others "
                "repeated what stood, or were undone because another process was faster"
            )
        return replay_round(decisions, catalogue, stored, policies.fairness, policies.exploration)

    def _round(self, batch: UUID) -> tuple[StoredRound, Policies, Catalogue]:
        found = self._database.fetch(_ROUND, [batch])
        if not found:
            raise ReplayError(f"round {batch} is not stored")
        [(strategy, seed, prices, start, available, lapsing, content)] = found
        policies = Policies.model_validate(content["policies"])
        stored = StoredRound(Strategy(strategy), seed, prices, start or {}, available, lapsing)
        return stored, policies, _catalogue(content, policies)


def _catalogue(content: dict[str, Any], policies: Policies) -> Catalogue:
    registry = ModelRegistry.model_validate(content["models"])
    learned = Learned.model_validate(content.get("learned", {}))
    return Catalogue(registry, policies.prediction, policies.plans, policies.objective, learned.calibration)


_DECISION: LiteralString = """
SELECT a.batch, a.explanation, a.figures, b.legend
FROM cp.assignments a LEFT JOIN cp.assignment_batches b ON b.id = a.batch
WHERE a.decision_id = %s
"""

_DECISIONS: LiteralString = """
SELECT a.task, a.decision_id, a.reason, t.deadline, a.explanation, a.figures, b.legend
FROM cp.assignments a JOIN cp.tasks t ON t.id = a.task JOIN cp.assignment_batches b ON b.id = a.batch
WHERE a.batch = %s AND a.path = 'batch'
"""

_ROUND: LiteralString = """
SELECT b.strategy, b.seed, b.prices, before.prices, b.available, b.lapsing, version.content
FROM cp.assignment_batches b
JOIN cp.config_versions version ON version.config_hash = b.config_hash
LEFT JOIN cp.assignment_batches before ON before.id = b.started_from
WHERE b.id = %s
"""
