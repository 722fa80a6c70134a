"""A claimed task by hand, for tests of one kind of worker that need no database."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from cp_core.models.registry import ModelRegistry
from cp_core.scoring.config import Domain
from cp_resources.executions import ClaimedTask

DECISION = UUID("11111111-2222-3333-4444-555555555555")


def registry(provider: dict[str, Any]) -> ModelRegistry:
    """One model, `agent`, of one provider, `worker`: 1 dollar per million tokens in, 4 out."""
    return ModelRegistry.model_validate(
        {
            "providers": {"worker": provider},
            "models": {
                "agent": {
                    "provider": "worker",
                    "api_name": "agent-1",
                    "tier": "premium",
                    "family": "agents",
                    "input_usd_per_million": 1,
                    "output_usd_per_million": 4,
                    "context_window": 200_000,
                    "max_output_tokens": 50_000,
                    "capability": dict.fromkeys(Domain, 0.8),
                }
            },
            "budgets": {"api": {"window": "monthly", "usd": 100}},
        }
    )


def claimed(**changes: Any) -> ClaimedTask:
    """Task t-1 of workspace acme/web, claimed for its second attempt."""
    task: dict[str, Any] = {
        "task": 1,
        "task_id": "t-1",
        "execution": 7,
        "attempt": 2,
        "decision_id": DECISION,
        "decision_attempt": 2,
        "model": "agent",
        "provider": "worker",
        "funding": "budget:api",
        "amounts": {},
        "title": "A title",
        "description": "What to do",
        "workspace": "acme/web",
        "labels": ["bug"],
        "output_high": 1000.0,
        "deadline_in": None,
    }
    return ClaimedTask(**{**task, **changes})
