"""All kinds of workers behind one drain, and the Responses wire against the simulator."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from assigned_tasks import DAY, add_assigned, configuration
from claimed_tasks import claimed, registry
from reference_worker import KEY, ReferenceWorker
from stub_provider import evidence_block

from cp_core.execution.policy import ExecutionPolicy
from cp_core.models.registry import ModelRegistry
from cp_core.tasks.reasons import Reason
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import running
from cp_resources.worker import Ended, drain
from cp_resources.worker_kinds.chat import ChatWorker


def with_own_workers(url: str, folder: Path) -> Configuration:
    """As `configuration`, but sonnet is a command and mini is an endpoint."""
    config = configuration()
    content = config.registry.model_dump(mode="json")
    program = f"print({evidence_block()!r})"
    content["providers"] = {
        "anthropic": {
            "wire": "command",
            "command": [sys.executable, "-c", program],
            "workspaces": {"acme/web": str(folder)},
        },
        "openai": {
            "wire": "endpoint",
            "base_url": url,
            "api_key_env": "WORKER_KEY",
            "allow_addresses": ["127.0.0.1"],
        },
    }
    return replace(config, registry=ModelRegistry.model_validate(content))


def test_one_drain_has_commands_and_endpoints_do_their_tasks(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKER_KEY", KEY)
    with ReferenceWorker() as reference:
        config = with_own_workers(reference.url, tmp_path)
        ledger = Ledger(database)
        ledger.open_accounts(config.registry)
        add_assigned(database, ledger, 3, "sonnet")
        add_assigned(database, ledger, 2, "mini")
        summary = drain(
            database,
            ledger,
            config,
            Settings(),
            DAY,
            worker_name="test",
            time_budget=timedelta(seconds=60),
        )

    assert summary.ended is Ended.DRAINED
    rows = database.fetch("SELECT state, model FROM tasks")
    assert Counter(rows) == {("succeeded", "sonnet"): 3, ("succeeded", "mini"): 2}
    assert len(reference.tasks) == 2
    assert ledger.verify().balanced


def test_the_responses_wire_is_understood_by_the_simulator() -> None:
    content = {"wire": "openai-responses", "base_url": "https://api.example/v1", "api_key_env": "NO_KEY"}

    async def run(url: str) -> None:
        async with ChatWorker(registry(content), ExecutionPolicy(), Settings(simulator_url=url)) as kind:
            result = await kind.attempt(claimed(attempt=1), seconds=30)
        assert result.reason in (None, Reason.LOW_QUALITY)
        assert result.evidence is not None
        assert result.evidence["schema_valid"]
        assert result.usage.input_tokens > 300
        assert result.usage.output_tokens > 0

    with running(Options(latency_ms=5)) as url:
        asyncio.run(run(url))
