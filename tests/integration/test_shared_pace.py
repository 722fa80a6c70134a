"""Two workers at one limit: what they send together, and what one tells the other of what it was told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from assigned_tasks import DAY, add_assigned, configuration
from stub_provider import Call, Reply, StubProvider, evidence_block, openai_answer, openai_error

from cp_core.models.registry import ModelRegistry
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.limiter import Limiter
from cp_resources.settings import Settings
from cp_resources.shares import Share
from cp_resources.simulator.journal import lines
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import running
from cp_resources.worker import drain

GOOD = openai_answer(f"Done.\n{evidence_block()}")
REQUESTS_PER_MINUTE = 600
TOKENS_PER_MINUTE = 3_000_000
AT_ONCE = 0.1
"""Share of a minute that may be used at once, as docs/execution.md says; the rest is spread."""
STALL_SECONDS = 3.0
"""By how much less than what was sent within them the journal's times may be apart, on a machine that stands still."""


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


def limited(**models: dict[str, object]) -> Configuration:
    config = configuration()
    body = config.registry.model_dump(exclude_defaults=True)
    for name, keys in models.items():
        body["models"][name] |= keys
    return Configuration(ModelRegistry.model_validate(body), config.scoring, config.policies)


def two_drains(database: Database, ledger: Ledger, url: str, config: Configuration) -> None:
    """Two workers at work at the same time, each with its own loop."""

    def run(name: str) -> None:
        settings, most = Settings(simulator_url=url), timedelta(seconds=90)
        drain(database, ledger, config, settings, DAY, worker_name=name, time_budget=most)

    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(run, name) for name in ("one", "two")]:
            one.result()


def sent(journal: Path, model: str) -> list[tuple[float, int]]:
    """When each call to a model was answered, in seconds, and its tokens, in order."""
    calls = [line for line in lines(journal) if line["model"] == model]
    assert {line["status"] for line in calls} == {200}
    tokens = [line["input_tokens"] + line["output_tokens"] for line in calls]
    return sorted(
        zip([datetime.fromisoformat(line["at"]).timestamp() for line in calls], tokens, strict=True)
    )


def windows(amounts: list[tuple[float, int]]) -> Iterator[tuple[float, int]]:
    """Seconds and sum of every run of calls, one after the other."""
    for first, (began, _) in enumerate(amounts):
        total = 0
        for at, amount in amounts[first:]:
            total += amount
            yield at - began, total


def test_two_workers_together_keep_to_the_requests_and_the_tokens_of_a_minute(
    database: Database, ledger: Ledger, tmp_path: Path
) -> None:
    add_assigned(database, ledger, 120, "mini")
    add_assigned(database, ledger, 120, "nano")
    config = limited(
        mini={"limits": {"requests_per_minute": REQUESTS_PER_MINUTE}},
        nano={"limits": {"tokens_per_minute": TOKENS_PER_MINUTE}},
    )
    journal = tmp_path / "journal.jsonl"
    options = Options(latency_ms=5, latency_spread=0, failure_share=0, refusal_share=0, journal=journal)
    with running(options) as url:
        two_drains(database, ledger, url, config)

    workers = database.fetch(
        "SELECT model, count(DISTINCT worker) FROM executions GROUP BY model ORDER BY model"
    )
    assert workers == [("mini", 2), ("nano", 2)]
    requests = [(at, 1) for at, _ in sent(journal, "mini-1")]
    tokens = sent(journal, "nano-1")
    # tokens count as estimated when a call begins: eight calls, the most at once, may turn out that much larger
    most_over = 8 * max(amount for _, amount in tokens)
    for amounts, limit, over in ((requests, REQUESTS_PER_MINUTE, 0), (tokens, TOKENS_PER_MINUTE, most_over)):
        rate, burst = limit * (1 - AT_ONCE) / 60, limit * AT_ONCE
        assert all(
            total <= burst + rate * (seconds + STALL_SECONDS) + over for seconds, total in windows(amounts)
        )
        # a bucket is empty at first, so until then there is nothing that could be used at once
        began, total = amounts[0][0], 0
        for at, amount in amounts:
            total += amount
            assert total <= rate * (at - began + STALL_SECONDS) + over


def test_all_workers_together_have_no_more_calls_under_way_than_the_platform_may(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 60, "mini")
    add_assigned(database, ledger, 60, "nano")

    with StubProvider(lambda _: Reply(GOOD, delay=0.15)) as provider:
        two_drains(database, ledger, provider.url, configuration(most_calls=3))
        busiest = provider.busiest

    assert busiest == 3
    assert database.fetch("SELECT state, count(*) FROM tasks GROUP BY state") == [("succeeded", 120)]
    assert database.fetch("SELECT count(DISTINCT worker) FROM executions") == [(2,)]


def test_a_worker_gives_back_only_what_it_can_no_longer_begin_with() -> None:
    """Calls may begin while a renewal is on its way: what they may use is kept from the others until then."""
    limiter = Limiter(configuration().registry, ["mini"], concurrency=8, most_calls=None)

    def kept() -> int:
        return limiter.wishes(["mini"])["model:mini"].in_use

    limiter.hold({"model:mini": Share(8, 8, 0.0)}, seconds=60)
    assert (kept(), limiter.share_of("mini")) == (8, 8)  # none is under way, and eight may be by then
    limiter.hold({"model:mini": Share(8, 4, 0.0)}, seconds=60)
    assert (kept(), limiter.share_of("mini")) == (4, 4)


def test_when_one_worker_is_told_to_wait_all_do(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 60, "mini", max_attempts=5)
    config = limited(mini={"max_concurrency": 2})  # one call at a time each
    wait, heard_within = 8.0, 4.0
    began: list[float] = []
    lock = threading.Lock()

    def answer(call: Call) -> Reply:
        with lock:
            began.append(time.monotonic())
            if len(began) == 6:
                body = openai_error("Slow down", "requests", "rate_limit_exceeded")
                return Reply(body, 429, {"retry-after": str(wait)})
        return Reply(GOOD, delay=0.3)

    with StubProvider(answer) as provider:
        two_drains(database, ledger, provider.url, config)

    told = began[5]
    assert not [at - told for at in began if heard_within < at - told < wait]
    assert len(began) == 61
    assert database.fetch("SELECT DISTINCT state FROM tasks") == [("succeeded",)]
