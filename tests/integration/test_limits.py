"""Limits that all workers share, against a real PostgreSQL and a provider on loopback."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Lock

import pytest
from assigned_tasks import DAY, add_assigned, configuration
from stub_provider import Call, Reply, StubProvider, evidence_block, openai_answer, openai_error

from cp_core.models.registry import ModelRegistry
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.shares import ShareStore, Wish
from cp_resources.worker import DrainSummary, drain

GOOD = openai_answer(f"Done.\n{evidence_block()}")


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


def limited(section: str, name: str, **keys: object) -> Configuration:
    """The hand-made configuration with more keys in one entry of its registry."""
    config = configuration()
    body = config.registry.model_dump(exclude_defaults=True)
    body[section][name] |= keys
    return Configuration(ModelRegistry.model_validate(body), config.scoring, config.policies)


def run(database: Database, ledger: Ledger, url: str, config: Configuration) -> DrainSummary:
    return drain(
        database,
        ledger,
        config,
        Settings(simulator_url=url),
        DAY,
        worker_name="test",
        time_budget=timedelta(seconds=60),
    )


def test_shares_renewed_by_many_at_once_never_exceed_the_limit(database: Database) -> None:
    store = ShareStore(database, seconds=60)
    held: dict[str, int] = {}
    lock, most = Lock(), 0

    def renew(worker: str) -> None:
        nonlocal most
        for _ in range(15):
            store.renew(worker, {"model:m": Wish(5, 5)})
            with lock:
                [(total,)] = database.fetch("SELECT sum(held)::int FROM worker_shares")
                most = max(most, total)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(renew, "abcd"))
    held = dict(database.fetch("SELECT worker, held FROM worker_shares"))

    assert most <= 5
    assert sorted(held.values()) == [1, 1, 1, 2]


def test_what_a_dead_worker_held_goes_to_the_others(database: Database) -> None:
    ShareStore(database, seconds=0.3).renew("dead", {"model:m": Wish(4, 4)})
    store = ShareStore(database, seconds=60)

    assert store.renew("alive", {"model:m": Wish(4, 4)})["model:m"].held == 0
    time.sleep(0.3)
    assert store.renew("alive", {"model:m": Wish(4, 4)})["model:m"].held == 4


def test_what_a_provider_asked_one_worker_reaches_all(database: Database) -> None:
    store = ShareStore(database, seconds=60)
    store.renew("told", {"model:m": Wish(4, 4, paused_seconds=30)})

    paused = store.renew("other", {"model:m": Wish(4, 4)})["model:m"].paused_seconds

    assert 25 < paused <= 30


@pytest.mark.parametrize(
    ("section", "name", "keys"),
    [
        ("models", "mini", {"max_concurrency": 3}),
        ("providers", "openai", {"limits": {"max_concurrency": 3}}),
        ("budgets", "api", {"max_concurrency": 3}),
    ],
    ids=["model", "provider", "funding"],
)
def test_workers_together_keep_to_a_limit(
    database: Database, ledger: Ledger, section: str, name: str, keys: dict[str, object]
) -> None:
    add_assigned(database, ledger, 40, "mini")
    if section != "models":
        add_assigned(database, ledger, 20, "nano")
    config = limited(section, name, **keys)

    with StubProvider(lambda _: Reply(GOOD, delay=0.08)) as provider, ThreadPoolExecutor(2) as pool:
        drains = [pool.submit(run, database, ledger, provider.url, config) for _ in range(2)]
        done = sum(one.result().succeeded for one in drains)
        busiest = provider.busiest

    assert busiest == 3
    assert done == (40 if section == "models" else 60)
    assert database.fetch("SELECT count(*) FROM worker_shares") == [(0,)]


def test_requests_a_minute_are_spread(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 6, "mini")
    config = limited("models", "mini", limits={"requests_per_minute": 120})
    began: list[float] = []

    def answer(_: Call) -> Reply:
        began.append(time.monotonic())
        return Reply(GOOD)

    with StubProvider(answer) as provider:
        run(database, ledger, provider.url, config)

    # 108 a minute beside the burst: one in 0.55 s, the first ones too, as a new bucket is empty.
    assert began[-1] - began[0] >= 5 * 0.55 - 0.3
    assert len(began) == 6


def test_a_worker_that_is_told_to_wait_sends_nothing_more_to_the_model_meanwhile(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 10, "mini")
    config = limited("models", "mini", max_concurrency=1)
    began: list[float] = []

    def answer(call: Call) -> Reply:
        began.append(time.monotonic())
        if len(began) == 1:
            return Reply(
                openai_error("Slow down", "requests", "rate_limit_exceeded"), 429, {"retry-after": "2"}
            )
        if len(began) == 4:
            headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s500ms"}
            return Reply(GOOD, headers=headers)
        return Reply(GOOD)

    with StubProvider(answer) as provider:
        run(database, ledger, provider.url, config)

    assert began[1] - began[0] >= 2
    assert began[4] - began[3] >= 1.5
    assert len(began) == 11
    assert database.fetch("SELECT DISTINCT state FROM tasks") == [("succeeded",)]
