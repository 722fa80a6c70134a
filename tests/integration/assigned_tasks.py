"""Tasks that stand assigned, with quota reserved: written as the assigner leaves them."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from cp_core.assignment.decision import Stage, sum_of
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.execution.policy import ExecutionPolicy
from cp_core.models.registry import ModelRegistry
from cp_core.policy.policies import Policies
from cp_core.scoring.config import Domain, ScoringConfig
from cp_resources.configuration import Configuration, load_file
from cp_resources.database import Database
from cp_resources.ledger import Ledger, Reservation
from cp_resources.settings import PROJECT_ROOT

DAY = date(2026, 3, 4)
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
TOKENS = Decimal(22_000)
"""Reserved for each task that a subscription pays for."""
DOLLARS = Decimal("0.05")
"""Reserved for each task that the budget pays for."""
FUNDINGS: dict[str, tuple[str, dict[str, Decimal]]] = {
    "sonnet": ("subscription:plan", {"plan/5-hour": TOKENS, "plan/weekly": TOKENS}),
    "mini": ("budget:api", {"budget/api": DOLLARS}),
    "nano": ("budget:api", {"budget/api": DOLLARS}),
}


def configuration(
    *, tokens: int = 10_000_000, concurrency: int = 8, enforce_deadlines: bool = True, **execution: Any
) -> Configuration:
    """Three models in three tiers: sonnet on a subscription of two windows, mini and nano on a budget."""
    model = {
        "context_window": 200_000,
        "max_output_tokens": 50_000,
        "capability": dict.fromkeys(Domain, 0.8),
        "max_concurrency": concurrency,
    }
    registry = ModelRegistry.model_validate(
        {
            "providers": {
                "anthropic": {
                    "wire": "anthropic-messages",
                    "base_url": "https://api.anthropic.example",
                    "api_key_env": "ANTHROPIC_TEST_KEY",
                },
                "openai": {
                    "wire": "openai-chat",
                    "base_url": "https://api.openai.example/v1",
                    "api_key_env": "OPENAI_TEST_KEY",
                },
            },
            "models": {
                "sonnet": {
                    **model,
                    "provider": "anthropic",
                    "api_name": "sonnet-1",
                    "tier": "mid-premium",
                    "family": "claude",
                    "input_usd_per_million": 3,
                    "cached_input_usd_per_million": "0.3",
                    "output_usd_per_million": 15,
                },
                "mini": {
                    **model,
                    "provider": "openai",
                    "api_name": "mini-1",
                    "tier": "mid-range",
                    "family": "gpt",
                    "input_usd_per_million": 1,
                    "cached_input_usd_per_million": "0.1",
                    "output_usd_per_million": 4,
                },
                "nano": {
                    **model,
                    "provider": "openai",
                    "api_name": "nano-1",
                    "tier": "budget",
                    "family": "gpt",
                    "input_usd_per_million": "0.1",
                    "output_usd_per_million": "0.4",
                },
            },
            "subscriptions": {
                "plan": {
                    "family": "claude",
                    "models": ["sonnet"],
                    "windows": [
                        {"window": "5-hour", "tokens": tokens},
                        {"window": "weekly", "tokens": tokens},
                    ],
                }
            },
            "budgets": {"api": {"window": "monthly", "usd": 100, "models": ["mini", "nano"]}},
        }
    )
    return Configuration(
        registry=registry,
        scoring=load_file(PROJECT_ROOT / "config" / "scoring.yaml", ScoringConfig),
        policies=Policies(
            assignment=AssignmentPolicy(enforce_deadlines=enforce_deadlines),
            execution=ExecutionPolicy(**execution),
        ),
    )


def add_task(
    database: Database,
    task_id: str | None = None,
    *,
    value_score: float = 50.0,
    state: str = "queued",
    deadline_in: timedelta | None = None,
    max_attempts: int = 3,
) -> int:
    """A scored task of DAY; returns its `tasks.id`."""
    with database.transaction() as connection:
        [(task,)] = connection.execute(
            """INSERT INTO tasks (task_id, submitted_at, priority, workspace, state, value_score, deadline,
                   max_attempts)
               VALUES (%s, %s, 2, 'acme/web', %s, %s, clock_timestamp() + %s::interval, %s) RETURNING id""",
            (task_id or uuid4().hex, NOON, state, value_score, deadline_in, max_attempts),
        ).fetchall()
        connection.execute(
            """INSERT INTO task_payloads (task, title, description, labels)
               VALUES (%s, 'A title', 'What to do', '{bug}')""",
            (task,),
        )
        connection.execute(
            """INSERT INTO task_scores (task, submission_day, files, lines, size_source, complexity,
                   complexity_factor, priority_points, time_bonus, time_bonus_reason, domain, domain_factor,
                   domain_source, risk, risk_factor, score, input_mean, input_median, input_low, input_high,
                   output_mean, output_median, output_low, output_high, config_hash)
               VALUES (%s, %s, 1, 1, 'given', 'simple', 1, 1, 0, 'none', 'backend', 1, 'default',
                   'development', 1, %s, 20000, 20000, 10000, 40000, 2000, 2000, 1000, 4000, 'hash')""",
            (task, DAY, value_score),
        )
    return task


def assign(database: Database, ledger: Ledger, task: int, *models: str) -> None:
    """Decide for `models` in order, sonnet if none is named: what the first costs is reserved, of the others half."""
    first, *others = models or ("sonnet",)
    stages = [Stage(first, *FUNDINGS[first])]
    for model in others:
        funding, needs = FUNDINGS[model]
        stages.append(Stage(model, funding, {name: need / 2 for name, need in needs.items()}, needs))
    decision, amounts = uuid4(), sum_of(stage.amounts for stage in stages)
    (model, funding), plan = (first, stages[0].funding), [stage.as_json() for stage in stages]
    with database.transaction() as connection:
        [granted] = ledger.reserve(
            connection, [Reservation(decision, amounts, task)], expires_in=timedelta(hours=6)
        )
        assert granted
        [(assignment,)] = connection.execute(
            """INSERT INTO assignments (decision_id, task, submission_day, strategy, outcome, model, funding,
                   plan, explanation, config_hash)
               VALUES (%s, %s, %s, 'tiered', 'assigned', %s, %s, %s::jsonb, '{}', 'hash') RETURNING id""",
            (decision, task, DAY, model, funding, json.dumps(plan)),
        ).fetchall()
        connection.execute(
            "UPDATE tasks SET state = 'assigned', assignment = %s, model = %s WHERE id = %s",
            (assignment, model, task),
        )


def add_assigned(
    database: Database, ledger: Ledger, count: int = 1, model: str = "sonnet", *later: str, **task: Any
) -> list[int]:
    """`count` tasks of DAY, assigned to `model`, and to `later` models should its work not do."""
    tasks = [add_task(database, **task) for _ in range(count)]
    for one in tasks:
        assign(database, ledger, one, model, *later)
    return tasks
