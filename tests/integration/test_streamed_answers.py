"""Answers that providers stream, from the simulator: worked off and priced as those that come at once."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from assigned_tasks import DAY, add_assigned, configuration

from cp_core.models.registry import Wire
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import running
from cp_resources.simulator.weather import Failure, Storm
from cp_resources.worker import drain

TASKS = 12


def streaming(wire: Wire) -> Configuration:
    """Every provider streams, and those of OpenAI speak `wire`."""
    given = configuration(concurrency=TASKS)
    providers = {
        name: provider.model_copy(
            update={"stream": True, "wire": wire if name == "openai" else provider.wire}
        )
        for name, provider in given.registry.providers.items()
    }
    registry = given.registry.model_copy(update={"providers": providers})
    return Configuration(registry, given.scoring, given.policies)


@pytest.mark.parametrize(
    ("wire", "model"),
    [
        (Wire.OPENAI_CHAT, "mini"),
        (Wire.OPENAI_RESPONSES, "mini"),
        (Wire.ANTHROPIC_MESSAGES, "sonnet"),
    ],
    ids=["chat", "responses", "messages"],
)
@pytest.mark.parametrize("broken", [0.0, 1.0], ids=["calm", "breaking"])
def test_what_is_recorded_is_what_was_billed_also_where_streams_break(
    database: Database, tmp_path: Path, wire: Wire, model: str, broken: float
) -> None:
    journal = tmp_path / "journal.jsonl"
    storms = (Storm(start=0, seconds=3600, share=broken, kind=Failure.MID_STREAM),) if broken else ()
    options = Options(latency_ms=5, failure_share=0, refusal_share=0, storms=storms, journal=journal)
    ledger, config = Ledger(database), streaming(wire)
    ledger.open_accounts(config.registry)
    add_assigned(database, ledger, TASKS, model, max_attempts=1)
    with running(options) as url:
        drain(
            database,
            ledger,
            config,
            Settings(simulator_url=url),
            DAY,
            worker_name="test",
            time_budget=timedelta(seconds=60),
        )
    billed = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(billed) == TASKS
    assert all(call["streamed"] for call in billed)
    recorded = database.fetch(
        "SELECT sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(output_tokens), "
        "count(*) FILTER (WHERE reason = 'OVERLOADED' OR reason = 'SERVER_ERROR') FROM executions"
    )
    names = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens")
    *tokens, failed = recorded[0]
    assert tokens == [Decimal(sum(call[name] for call in billed)) for name in names]
    assert (failed > 0) == (broken > 0)
    assert ledger.verify().balanced
