"""Prompt caching against the simulator, on all wires; its journal says what was read and written.

The simulator counts four characters a token, caches from 1,024 tokens on, and OpenAI's wires in steps of 128.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from assigned_tasks import DAY, add_assigned, configuration

from cp_core.execution.prompt import PromptPolicy, chat_prompt
from cp_core.models.registry import Wire
from cp_core.policy.policies import Flags
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import running
from cp_resources.worker import DrainSummary, drain

TASKS = 12
TEXT = "Every module opens with a docstring that says what belongs in it. " * 100
PROMPT = chat_prompt("", "", "acme/web", [], policy=PromptPolicy(workspaces={"acme/web": TEXT}))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
def simulator(journal: Path) -> Iterator[str]:
    options = Options(latency_ms=30, failure_share=0, refusal_share=0, token_scale=0, journal=journal)
    with running(options) as url:
        yield url


def prompting(
    *, text: str = TEXT, prime_seconds: float = 30, caching: bool = True, openai: Wire = Wire.OPENAI_CHAT
) -> Configuration:
    """The configuration of the tests, with a text for the workspace; sonnet costs 3.75 USD per million written."""
    given = configuration(concurrency=TASKS)
    models = {
        **given.registry.models,
        "sonnet": given.registry.models["sonnet"].model_copy(
            update={"cache_write_usd_per_million": Decimal("3.75")}
        ),
    }
    providers = {
        **given.registry.providers,
        "openai": given.registry.providers["openai"].model_copy(update={"wire": openai}),
    }
    registry = given.registry.model_copy(update={"models": models, "providers": providers})
    prompt = PromptPolicy(workspaces={"acme/web": text} if text else {}, prime_seconds=prime_seconds)
    policies = given.policies.model_copy(update={"prompt": prompt, "flags": Flags(prompt_caching=caching)})
    return Configuration(registry, given.scoring, policies)


def work(database: Database, simulator: str, config: Configuration, model: str) -> DrainSummary:
    ledger = Ledger(database)
    ledger.open_accounts(config.registry)
    add_assigned(database, ledger, TASKS, model, max_attempts=1)
    summary = drain(
        database,
        ledger,
        config,
        Settings(simulator_url=simulator),
        DAY,
        worker_name="test",
        time_budget=timedelta(seconds=60),
    )
    assert ledger.verify().balanced
    return summary


def calls(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def test_one_call_writes_the_prefix_and_all_others_read_it(
    database: Database, simulator: str, journal: Path
) -> None:
    # two blocks, each counted by itself
    prefix = math.ceil(len(PROMPT.system) / 4) + math.ceil(len(PROMPT.shared) / 4)

    summary = work(database, simulator, prompting(), "sonnet")

    written = [call["cache_write_tokens"] for call in calls(journal)]
    read = [call["cached_tokens"] for call in calls(journal)]
    assert sorted(written) == [0] * (TASKS - 1) + [prefix]
    assert sorted(read) == [0] + [prefix] * (TASKS - 1)
    cache = summary.cache
    assert (cache.primed, cache.waited) == (1, TASKS - 1)
    assert (cache.written_tokens, cache.read_tokens) == (prefix, (TASKS - 1) * prefix)
    assert cache.saved_usd == (TASKS - 1) * prefix * Decimal("2.7") / 1_000_000
    assert cache.surcharge_usd == prefix * Decimal("0.75") / 1_000_000
    assert cache.too_short == {}
    assert database.fetch("SELECT sum(cached_tokens), sum(cache_write_tokens) FROM executions") == [
        ((TASKS - 1) * prefix, prefix)
    ]
    [(cost,)] = database.fetch("SELECT sum(cost_usd) FROM executions")
    assert cost == sum(price(call) for call in calls(journal))


def price(call: dict[str, Any]) -> Decimal:
    fresh = call["input_tokens"] - call["cached_tokens"] - call["cache_write_tokens"]
    parts = (
        fresh * Decimal(3),
        call["cached_tokens"] * Decimal("0.3"),
        call["cache_write_tokens"] * Decimal("3.75"),
        call["output_tokens"] * Decimal(15),
    )
    return sum(parts, Decimal(0)) / 1_000_000


@pytest.mark.parametrize("wire", [Wire.OPENAI_CHAT, Wire.OPENAI_RESPONSES], ids=["chat", "responses"])
def test_openai_caches_by_itself_and_the_first_call_fills_the_cache_for_the_others(
    database: Database, simulator: str, journal: Path, wire: Wire
) -> None:
    shared = len(PROMPT.prefix) // 4 // 128 * 128  # what is read is cut to a step of 128

    summary = work(database, simulator, prompting(openai=wire), "mini")

    read = sorted(call["cached_tokens"] for call in calls(journal))
    assert read[0] == 0
    assert all(tokens >= shared for tokens in read[1:])
    assert summary.cache.read_tokens == sum(read)
    assert summary.cache.saved_usd == sum(read) * Decimal("0.9") / 1_000_000
    assert (summary.cache.primed, summary.cache.surcharge_usd) == (1, 0)


def test_without_the_flag_nothing_is_marked_and_nobody_waits(
    database: Database, simulator: str, journal: Path
) -> None:
    summary = work(database, simulator, prompting(caching=False), "sonnet")

    assert {(call["cache_write_tokens"], call["cached_tokens"]) for call in calls(journal)} == {(0, 0)}
    assert (summary.cache.primed, summary.cache.waited, summary.cache.too_short) == (0, 0, {})
    assert summary.succeeded == TASKS - summary.moved_to["failed"]


def test_a_prefix_below_the_minimum_is_told_once_a_run_and_nobody_waits(
    database: Database, simulator: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "cp_resources"):
        summary = work(database, simulator, prompting(text=""), "sonnet")

    told = [line for line in caplog.messages if "shorter than the provider's minimum" in line]
    assert len(told) == 1
    assert "model='sonnet'" in told[0]
    assert "minimum=1024" in told[0]
    assert {name: prefix.tokens for name, prefix in summary.cache.too_short.items()} == {
        "sonnet": len(PROMPT.system) // 4
    }
    assert (summary.cache.primed, summary.cache.read_tokens) == (0, 0)
