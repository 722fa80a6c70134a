"""The registry of models: what it answers, and what it refuses with which words."""

from __future__ import annotations

import csv
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cp_core.models.registry import Model, ModelRegistry, Tier
from cp_core.quota.account import AccountKind, Unit
from cp_core.quota.windows import Window

MODELS_FILE = Path(__file__).parents[3] / "config" / "models.yaml"
PRICES_FILE = "litellm_prices.csv"
PRICES_READ_ON = date(2026, 11, 21)


@cache
def _shipped() -> ModelRegistry:
    return ModelRegistry.model_validate(yaml.safe_load(MODELS_FILE.read_text(encoding="utf-8")))


def _small() -> dict[str, Any]:
    """A registry of one provider, two models, one subscription and one budget, as YAML gives it."""
    model = {
        "provider": "maker",
        "api_name": "maker-large-1",
        "tier": "premium",
        "family": "maker",
        "input_usd_per_million": 3,
        "cached_input_usd_per_million": 0.3,
        "cache_write_usd_per_million": 3.75,
        "output_usd_per_million": 15,
        "context_window": 200_000,
        "max_output_tokens": 64_000,
        "capability": dict.fromkeys(
            ("infrastructure", "backend", "ml", "frontend", "testing", "documentation"), 0.5
        ),
    }
    return {
        "providers": {
            "maker": {"wire": "openai-chat", "base_url": "https://api.example/v1", "api_key_env": "MAKER_KEY"}
        },
        "models": {"large": model, "small": {**deepcopy(model), "tier": "budget"}},
        "subscriptions": {
            "plan": {
                "family": "maker",
                "models": ["large"],
                "windows": [{"window": "5-hour", "tokens": 1_000}, {"window": "weekly", "tokens": 9_000}],
            }
        },
        "budgets": {"api": {"window": "monthly", "usd": 12.5}},
    }


def _with(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    content: Any = _small()
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content  # type: ignore[no-any-return]


def _problem(content: dict[str, Any]) -> tuple[tuple[str | int, ...], str]:
    with pytest.raises(ValidationError) as raised:
        ModelRegistry.model_validate(content)
    problems = raised.value.errors()
    assert len(problems) == 1, problems
    return problems[0]["loc"], problems[0]["msg"]


def test_a_subscription_pays_before_a_budget() -> None:
    registry = ModelRegistry.model_validate(_small())
    subscription, budget = registry.fundings("large")
    assert (subscription.name, subscription.accounts, subscription.unit) == (
        "subscription:plan",
        ("plan/5-hour", "plan/weekly"),
        Unit.TOKENS,
    )
    assert (budget.name, budget.accounts, budget.unit) == ("budget:api", ("budget/api",), Unit.USD)
    assert [funding.name for funding in registry.fundings("small")] == ["budget:api"]


def test_a_budget_for_some_models_pays_for_no_other() -> None:
    registry = ModelRegistry.model_validate(_with(("budgets", "api", "models"), ["small"]))
    assert [funding.name for funding in registry.fundings("large")] == ["subscription:plan"]
    assert [funding.name for funding in registry.fundings("small")] == ["budget:api"]


def test_every_window_and_budget_is_an_account() -> None:
    accounts = ModelRegistry.model_validate(_small()).accounts()
    assert [(a.account, a.kind, a.unit, a.window, a.limit) for a in accounts] == [
        ("plan/5-hour", AccountKind.WINDOW, Unit.TOKENS, Window.FIVE_HOUR, 1_000),
        ("plan/weekly", AccountKind.WINDOW, Unit.TOKENS, Window.WEEKLY, 9_000),
        ("budget/api", AccountKind.BUDGET, Unit.USD, Window.MONTHLY, Decimal("12.5")),
    ]


def test_an_unknown_model_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(LookupError, match="unknown model 'larg': did you mean 'large'"):
        ModelRegistry.model_validate(_small()).model("larg")


def test_tiers_rank_from_premium_to_budget() -> None:
    assert sorted(Tier, key=lambda tier: tier.rank) == [
        Tier.PREMIUM,
        Tier.MID_PREMIUM,
        Tier.MID_RANGE,
        Tier.BUDGET,
    ]


def test_a_cache_without_a_price_costs_what_input_costs() -> None:
    content = _small()
    del content["models"]["large"]["cached_input_usd_per_million"]
    del content["models"]["large"]["cache_write_usd_per_million"]
    model = ModelRegistry.model_validate(content).model("large")
    assert model.cached_input_usd_per_million == model.cache_write_usd_per_million == 3


def test_what_a_registry_says_of_itself_is_a_registry_again() -> None:
    registry = ModelRegistry.model_validate(_small())
    assert ModelRegistry.model_validate(registry.model_dump(mode="json")) == registry


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("models", "large", "provider"), "makre", "unknown provider: did you mean 'maker'?"),
        (("models", "large", "provider"), "zzz", "unknown provider: one of maker is needed"),
        (("models", "large", "tier"), "mid", "'premium', 'mid-premium', 'mid-range' or 'budget'"),
        (("models", "large", "input_usd_per_million"), -1, "greater than or equal to 0"),
        (("models", "large", "output_usd_per_million"), "cheap", "valid decimal"),
        (("models", "large", "cached_input_usd_per_million"), 4, "at most input_usd_per_million (3)"),
        (("models", "large", "max_output_tokens"), 200_001, "at most context_window (200000)"),
        (("models", "large", "context_window"), True, "valid integer"),
        (("models", "large", "capability"), {"backend": 0.5}, "missing: infrastructure, ml, frontend"),
        (("models", "large", "capability", "backend"), 1.1, "less than or equal to 1"),
        (("models", "large", "max_concurrency"), 0, "greater than 0"),
        (("models", "large", "tire"), "premium", "Extra inputs are not permitted"),
        (("models", "large", "name"), "larger", "the name is the key itself, 'large'"),
        (
            ("providers", "maker", "wire"),
            "soap",
            "'anthropic-messages', 'command' or 'endpoint'",
        ),
        (("providers", "maker", "base_url"), "http://api.example/v1", "https:// address is needed"),
        (("providers", "maker", "base_url"), "", "Field required"),
        (("providers", "maker", "api_key_env"), "", "Field required"),
        (("providers", "maker", "command"), ["agent"], "a provider of wire 'openai-chat' has no command"),
        (("providers", "maker", "allow_addresses"), ["10.0.0.0/8"], "has no allow_addresses"),
        (("providers", "maker", "timeout_seconds"), 5, "has no timeout_seconds"),
        (("providers", "maker", "base_url"), "https://user:pw@api.example", "without user, password"),
        (("providers", "maker", "base_url"), "api.example", "https:// address is needed"),
        (("providers", "maker", "api_key_env"), "sk-0123456789", "NAME of an environment variable"),
        (("subscriptions", "plan", "models", 0), "lage", "unknown model: did you mean 'large'?"),
        (("subscriptions", "plan", "windows", 1, "window"), "hourly", "'5-hour', 'daily', 'weekly' or"),
        (("subscriptions", "plan", "windows", 1, "window"), "5-hour", "named twice"),
        (("subscriptions", "plan", "windows", 0, "tokens"), 0, "greater than 0"),
        (("subscriptions", "plan", "windows"), [], "at least 1 item"),
        (("budgets", "api", "usd"), float("inf"), "finite number"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_is_allowed(
    path: tuple[str | int, ...], value: object, says: str
) -> None:
    place, message = _problem(_with(path, value))
    assert place == path
    assert says in message


def _agent(**changes: object) -> dict[str, Any]:
    agent = {
        "wire": "command",
        "command": ["agent", "--prompt", "{prompt_file}"],
        "workspaces": {"acme/web": "/srv/web"},
        "environment": ["PATH", "AGENT_KEY"],
        "timeout_seconds": 1800,
    }
    return _with(("providers", "maker"), {**agent, **changes})


def _endpoint(**changes: object) -> dict[str, Any]:
    endpoint = {
        "wire": "endpoint",
        "base_url": "https://agents.example/v1",
        "api_key_env": "AGENTS_KEY",
        "allow_addresses": ["10.1.0.0/16", "::1"],
    }
    return _with(("providers", "maker"), {**endpoint, **changes})


def test_commands_and_endpoints_are_providers_with_keys_of_their_own() -> None:
    for content in (_agent(), _endpoint()):
        registry = ModelRegistry.model_validate(content)
        assert ModelRegistry.model_validate(registry.model_dump(mode="json")) == registry


@pytest.mark.parametrize(
    ("content", "key", "says"),
    [
        (_agent(command=[]), "command", "Field required"),
        (_agent(workspaces={}), "workspaces", "Field required"),
        (_agent(command=["{model}"]), "command", "the first word is the program"),
        (
            _agent(command=["agent", "{title}"]),
            "command",
            "unknown placeholder {title}; known: {prompt_file}",
        ),
        (_agent(workspaces={"web": "srv/web"}), "workspaces", "absolute path"),
        (_agent(environment=["AGENT_KEY=abc"]), "environment", "NAMES of environment variables"),
        (
            _agent(base_url="https://agents.example"),
            "base_url",
            "a provider of wire 'command' has no base_url",
        ),
        (_agent(timeout_seconds=0), "timeout_seconds", "greater than 0"),
        (_endpoint(base_url="http://10.1.0.1"), "base_url", "https:// address is needed"),
        (_endpoint(allow_addresses=["10.1.0.1/16"]), "allow_addresses", "no bits below the mask"),
        (_endpoint(allow_addresses=["localhost"]), "allow_addresses", "addresses or networks such as"),
        (
            _endpoint(workspaces={"web": "/srv"}),
            "workspaces",
            "a provider of wire 'endpoint' has no workspaces",
        ),
    ],
)
def test_what_is_wrong_with_a_command_or_endpoint_is_named(
    content: dict[str, Any], key: str, says: str
) -> None:
    place, message = _problem(content)
    assert place == ("providers", "maker", key)
    assert says in message


def test_a_subscription_takes_models_of_its_family_once() -> None:
    content = _with(("subscriptions", "plan", "models"), ["large", "large"])
    assert _problem(content) == (("subscriptions", "plan", "models", 1), "named twice")
    place, message = _problem(_with(("subscriptions", "plan", "family"), "other"))
    assert place == ("subscriptions", "plan", "models", 0)
    assert message == "a model of family 'other' is needed, this one is of family 'maker'"


def test_names_that_the_ledger_uses_for_itself_are_refused() -> None:
    content = _small()
    content["subscriptions"]["budget"] = content["subscriptions"].pop("plan")
    assert _problem(content)[0] == ("subscriptions", "budget")


def test_every_dangling_reference_is_told_at_once() -> None:
    content = _with(("models", "large", "provider"), "x")
    content["models"]["small"]["provider"] = "y"
    content["budgets"]["api"]["models"] = ["z"]
    with pytest.raises(ValidationError) as raised:
        ModelRegistry.model_validate(content)
    assert [problem["loc"] for problem in raised.value.errors()] == [
        ("models", "large", "provider"),
        ("models", "small", "provider"),
        ("budgets", "api", "models", 0),
    ]


def test_plain_http_is_allowed_on_loopback_only() -> None:
    for address in ("http://127.0.0.1:8080/v1", "http://localhost:1/v1", "http://[::1]:1"):
        content = _with(("providers", "maker", "base_url"), address)
        assert ModelRegistry.model_validate(content).providers["maker"].base_url == address
    assert _problem(_with(("providers", "maker", "base_url"), "http://10.0.0.1/v1"))


def test_the_shipped_registry_has_ten_models_in_four_tiers_three_subscriptions_and_a_budget() -> None:
    registry = _shipped()
    assert len(registry.models) >= 10
    assert {model.tier for model in registry.models.values()} == set(Tier)
    assert len(registry.subscriptions) == 3
    assert list(registry.budgets) == ["api"]
    assert all(registry.fundings(model)[-1].name == "budget:api" for model in registry.models)


@pytest.mark.parametrize("name", sorted(_shipped().models))
def test_shipped_models_have_the_price_and_size_of_the_public_list(
    name: str, shared_data: Callable[[str], Path]
) -> None:
    model = _shipped().model(name)
    row = _listed(model, shared_data(PRICES_FILE))
    assert model.input_usd_per_million == _per_million(row["input_cost_per_token"])
    assert model.output_usd_per_million == _per_million(row["output_cost_per_token"])
    assert model.cached_input_usd_per_million == _per_million(row["cache_read_input_token_cost"])
    # A provider that asks nothing for a write charges the written token as input.
    write = row["cache_creation_input_token_cost"]
    assert model.cache_write_usd_per_million == (
        _per_million(write) if float(write or 0) else model.input_usd_per_million
    )
    assert model.context_window == int(row["max_input_tokens"])
    assert model.max_output_tokens == int(row["max_output_tokens"])
    assert row["mode"] == "chat"
    retired = row["deprecation_date"]
    assert not retired or date.fromisoformat(retired) > PRICES_READ_ON


def _listed(model: Model, path: Path) -> dict[str, str]:
    names = {model.api_name, f"{model.provider}/{model.api_name}"}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["model"] in names]
    rows = [row for row in rows if row["litellm_provider"] == model.provider]
    assert rows, f"{path} has no {model.api_name} of {model.provider}"
    return rows[0]


def _per_million(cost_per_token: str) -> Decimal:
    return Decimal(cost_per_token) * 1_000_000
