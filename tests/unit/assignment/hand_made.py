"""A small registry with a model for every purpose, and short ways to write tasks and accounts."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pandas as pd

from cp_core.models.registry import ModelRegistry
from cp_core.quota.account import Account
from cp_core.scoring.config import Domain

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


def model(tier: str, family: str, price: tuple[float, float], capability: float, **other: object) -> dict:
    return {
        "provider": "provider",
        "api_name": "name",
        "tier": tier,
        "family": family,
        "input_usd_per_million": price[0],
        "output_usd_per_million": price[1],
        "context_window": 200_000,
        "max_output_tokens": 50_000,
        "capability": dict.fromkeys(Domain, capability),
        **other,
    }


MODELS = {
    "opus": model("premium", "claude", (5, 25), 0.90),
    "astra": model("premium", "gpt", (10, 50), 0.95),
    "sonnet": model("mid-premium", "claude", (3, 15), 0.80),
    "argon": model("mid-premium", "gemini", (2, 10), 0.85),
    "terra": model("mid-range", "gpt", (1, 5), 0.70),
    "haiku": model("budget", "claude", (0.5, 2.5), 0.50),
    "luna": model("budget", "gpt", (0.1, 0.5), 0.50),
}
CLAUDE_MAX = {
    "family": "claude",
    "models": ["opus", "sonnet", "haiku"],
    "windows": [{"window": "5-hour", "tokens": 1_000_000}, {"window": "weekly", "tokens": 4_000_000}],
}
API = {"window": "monthly", "usd": 100}


def registry(
    models: dict[str, dict] = MODELS, *, subscription: bool = True, budget: bool = True, **changes: dict
) -> ModelRegistry:
    """The registry; `changes` are by model, such as `opus={"enabled": False}`."""
    return ModelRegistry.model_validate(
        {
            "providers": {
                "provider": {
                    "wire": "openai-chat",
                    "base_url": "https://models.example/v1",
                    "api_key_env": "KEY",
                }
            },
            "models": {name: {**body, **changes.get(name, {})} for name, body in models.items()},
            "subscriptions": {"claude-max": CLAUDE_MAX} if subscription else {},
            "budgets": {"api": API} if budget else {},
        }
    )


def accounts(registry: ModelRegistry, **available: float) -> list[Account]:
    """Every account of the registry, full but for what `available` says, by the account's last word."""
    return [
        Account(
            account=terms.account,
            kind=terms.kind,
            unit=terms.unit,
            window=terms.window,
            limit=terms.limit,
            used=Decimal(0),
            pending=Decimal(0),
            available=Decimal(str(available.get(_last_word(terms.account), terms.limit))),
        )
        for terms in registry.accounts()
    ]


def task(number: int = 1, value_score: float = 50.0, **other: object) -> dict:
    """One task of 20,000 + 2,000 expected tokens; `other` replaces any of its columns."""
    return {
        "task": number,
        "task_id": f"T-{number}",
        "value_score": value_score,
        "domain": "backend",
        "input_mean": 20_000.0,
        "input_high": 40_000.0,
        "output_mean": 2_000.0,
        "output_high": 4_000.0,
        "deadline": None,
        "failed_models": None,
        "dependencies_failed": None,
        "dependencies_pending": None,
        **other,
    }


def frame(*tasks: dict) -> pd.DataFrame:
    return pd.DataFrame(list(tasks))


def _last_word(account: str) -> str:
    return account.rsplit("/", 1)[1].replace("5-hour", "five_hour")
