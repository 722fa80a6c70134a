"""The worker against a real PostgreSQL and a provider on loopback: a day is drained, whatever goes wrong."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from assigned_tasks import DAY, add_assigned, add_task, configuration
from stub_provider import (
    Call,
    Reply,
    StubProvider,
    anthropic_answer,
    anthropic_error,
    evidence_block,
    openai_answer,
    openai_error,
)

from cp_core.execution.outcome import AttemptResult
from cp_resources.assigner import Assigner
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.executions import ClaimedTask, ExecutionStore
from cp_resources.ledger import Ledger
from cp_resources.providers.endpoint import ProviderKeyError
from cp_resources.settings import Settings
from cp_resources.worker import DrainSummary, Ended, drain
from cp_resources.worker_kinds.chat import ChatWorker

QUICK: dict[str, Any] = {"backoff_base_seconds": 0.02, "backoff_cap_seconds": 0.05, "drain_seconds": 0.2}


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


def good(call: Call) -> Reply:
    text = f"Done.\n{evidence_block()}"
    return Reply(anthropic_answer(text) if call.path.endswith("/messages") else openai_answer(text))


def run(
    database: Database,
    ledger: Ledger,
    url: str,
    config: Configuration | None = None,
    *,
    seconds: float = 60,
    **options: Any,
) -> DrainSummary:
    return drain(
        database,
        ledger,
        config or configuration(**QUICK),
        Settings(simulator_url=url),
        DAY,
        worker_name="test",
        time_budget=timedelta(seconds=seconds),
        **options,
    )


def states(database: Database) -> Counter[str]:
    return Counter(state for (state,) in database.fetch("SELECT state FROM tasks"))


PRICES = {"sonnet-1": ("3", "0.3", "15"), "mini-1": ("1", "0.1", "4"), "nano-1": ("0.1", "0.1", "0.4")}
"""Of an uncached, a cached and an output token, in US dollars per million."""


class Trouble:
    """Answers by task and attempt, in every way that is not a timeout, and keeps what it billed."""

    def __init__(self) -> None:
        self.billed = Decimal(0)

    def __call__(self, call: Call) -> Reply:
        kind, is_first = int(call.task.split("-")[1]) % 8, call.attempt == 1
        is_openai = call.path.endswith("/chat/completions")
        if kind == 0 and is_first:
            return Reply(openai_error("Oops", "server_error"), 500)
        if kind == 1 and is_first:
            return Reply(anthropic_error("Overloaded", "overloaded_error"), 529, {"retry-after-ms": "30"})
        if kind == 2 and is_first:
            return Reply(openai_answer("x" * 500), cut_after=50)
        if kind == 3:
            return Reply(openai_error("maximum context length is 5 tokens", "x"), 400)
        text = f"Done.\n{evidence_block(failed=9 if kind == 4 and is_first else 0)}"
        if kind == 5:
            text = "Done, trust me."
        prompt, cached, output = 1000 + 7 * kind, 300, 200 + kind
        fresh, read, out = (Decimal(price) for price in PRICES[call.body["model"]])
        self.billed += ((prompt - cached) * fresh + cached * read + output * out) / 1_000_000
        if is_openai:
            return Reply(openai_answer(text, prompt=prompt, cached=cached, completion=output))
        return Reply(anthropic_answer(text, fresh=prompt - cached, read=cached, output=output))


def test_a_day_of_tasks_and_troubles_is_drained_and_every_token_paid_for(
    database: Database, ledger: Ledger
) -> None:
    config = configuration(**QUICK)
    for index in range(64):
        add_task(database, f"task-{index}", value_score=65.0 if index % 2 else 50.0)
    assigner = Assigner(database, ledger, config)
    assigner.assign_day(DAY)
    trouble = Trouble()

    with StubProvider(trouble) as provider:
        summary = run(database, ledger, provider.url, config, assign_again=lambda: assigner.assign_day(DAY))

    by_kind: dict[int, Counter[str]] = {}
    for task_id, state in database.fetch("SELECT task_id, state FROM tasks"):
        by_kind.setdefault(int(task_id.split("-")[1]) % 8, Counter())[state] += 1
    assert by_kind == {
        0: {"succeeded": 8},
        1: {"succeeded": 8},
        2: {"succeeded": 8},
        3: {"dead": 8},  # every model refuses it
        4: {"succeeded": 8},  # by the second model
        5: {"failed": 8},  # no model shows evidence
        6: {"succeeded": 8},
        7: {"succeeded": 8},
    }
    assert summary.ended is Ended.DRAINED
    assert summary.open == {}
    [(attempts, cost, charged)] = database.fetch(
        """SELECT count(*), sum(cost_usd), sum(billed_usd) FILTER (WHERE funding = 'budget:api')
           FROM executions"""
    )
    assert attempts == summary.attempts == len(provider.calls)
    assert cost == summary.cost_usd == trouble.billed
    [budget] = [account for account in ledger.accounts() if account.account == "budget/api"]
    assert (budget.used, budget.pending) == (charged, 0)
    assert ledger.verify().balanced


def test_a_task_that_depends_on_another_follows_it_in_the_same_drain(
    database: Database, ledger: Ledger
) -> None:
    config = configuration(**QUICK)
    for task_id in ("first", "second", "third"):
        add_task(database, task_id)
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET dependencies = '{first}' WHERE task_id = 'second'")
        connection.execute("UPDATE tasks SET dependencies = '{second}' WHERE task_id = 'third'")
    assigner = Assigner(database, ledger, config)
    assigner.assign_day(DAY)

    with StubProvider(good) as provider:
        run(database, ledger, provider.url, config, assign_again=lambda: assigner.assign_day(DAY))

    assert [call.task for call in provider.calls] == ["first", "second", "third"]
    assert states(database) == {"succeeded": 3}


def test_calls_stay_within_the_limit_of_each_model_and_of_the_worker(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 12, "sonnet")
    add_assigned(database, ledger, 12, "mini")
    add_assigned(database, ledger, 12, "nano")

    def slowly(call: Call) -> Reply:
        reply = good(call)
        return Reply(reply.body, delay=0.05)

    with StubProvider(slowly) as provider:
        run(database, ledger, provider.url, configuration(concurrency=3, **QUICK))
        assert provider.busiest <= 9
    assert states(database) == {"succeeded": 36}

    add_assigned(database, ledger, 20, "mini")
    config = configuration(concurrency=8, **QUICK)
    narrow = config.policies.execution.model_copy(update={"concurrency": 2})
    policies = config.policies.model_copy(update={"execution": narrow})
    with StubProvider(slowly) as provider:
        run(database, ledger, provider.url, Configuration(config.registry, config.scoring, policies))
        assert provider.busiest == 2


def test_a_call_longer_than_the_lease_keeps_its_lease_by_heartbeats(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 2)
    config = configuration(lease_seconds=2, heartbeat_seconds=0.4, **QUICK)

    def slow(call: Call) -> Reply:
        return Reply(good(call).body, delay=3.5)

    with StubProvider(slow) as provider, ThreadPoolExecutor(2) as pool:
        drains = [pool.submit(run, database, ledger, provider.url, config) for _ in range(2)]
        attempts = sum(done.result().attempts for done in drains)

    assert attempts == len(provider.calls) == 2
    assert states(database) == {"succeeded": 2}


def test_two_drains_of_one_day_share_it_and_do_nothing_twice(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 40, "mini")

    with StubProvider(good) as provider, ThreadPoolExecutor(2) as pool:
        drains = [pool.submit(run, database, ledger, provider.url) for _ in range(2)]
        summaries = [done.result() for done in drains]

    assert len(provider.calls) == len({call.task for call in provider.calls}) == 40
    assert sum(summary.succeeded for summary in summaries) == 40
    assert {summary.ended for summary in summaries} == {Ended.DRAINED}


def test_what_a_killed_worker_left_behind_is_taken_over_when_its_lease_runs_out(
    database: Database, ledger: Ledger
) -> None:
    [task] = add_assigned(database, ledger)
    config = configuration(lease_seconds=1, heartbeat_seconds=0.5, **QUICK)
    ExecutionStore(database, ledger, config).claim(DAY, "killed", 10, {"sonnet": 10})

    with StubProvider(good) as provider:
        run(database, ledger, provider.url, config)

    assert [call.attempt for call in provider.calls] == [2]
    assert database.fetch("SELECT state, attempts FROM tasks WHERE id = %s", [task]) == [("succeeded", 2)]
    assert ledger.verify().balanced


def test_a_drain_does_not_wait_for_what_cannot_move_within_its_budget(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, model="mini")

    with StubProvider(
        lambda _: Reply(openai_error("Later", "requests"), 429, {"retry-after": "600"})
    ) as provider:
        summary = run(database, ledger, provider.url, seconds=30)

    assert summary.ended is Ended.WAITING
    assert summary.open == {"assigned": 1}
    assert summary.seconds < 10
    [(wait,)] = database.fetch("SELECT extract(epoch FROM available_at - now())::float8 FROM tasks")
    assert wait > 590


def test_at_the_end_of_the_budget_calls_are_cut_off_and_every_lease_is_given_back(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 6, "mini")

    with StubProvider(lambda _: Reply(delay=60)) as provider:
        summary = run(database, ledger, provider.url, configuration(concurrency=2, **QUICK), seconds=3)

    assert summary.ended is Ended.TIME_BUDGET
    assert summary.seconds < 10
    assert states(database) == {"assigned": 6}
    # Two calls were made and count as lost attempts; the others are as if they had never been claimed.
    assert database.fetch("SELECT state, reason FROM executions") == [("lost", "LEASE_EXPIRED")] * 2
    assert sorted(database.fetch("SELECT attempts FROM tasks")) == [(0,)] * 4 + [(1,)] * 2
    assert ledger.verify().balanced


def test_no_call_is_made_after_the_deadline_however_long_it_would_take(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, model="mini", deadline_in=timedelta(seconds=3))

    with StubProvider(lambda _: Reply(delay=60)) as provider:
        summary = run(database, ledger, provider.url, seconds=30)

    assert summary.ended is Ended.DRAINED
    assert summary.seconds < 10
    assert database.fetch("SELECT state, reason FROM tasks") == [("dead", "DEADLINE_PASSED")]
    assert database.fetch("SELECT reason FROM executions") == [("TIMEOUT",)]


def test_a_missing_key_is_told_before_any_call_and_changes_nothing(
    database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_assigned(database, ledger, 2, "mini")
    add_assigned(database, ledger, 2, "sonnet")
    monkeypatch.setenv("ANTHROPIC_TEST_KEY", "there")
    monkeypatch.delenv("OPENAI_TEST_KEY", raising=False)

    with pytest.raises(ProviderKeyError, match=r"OPENAI_TEST_KEY \(for mini\)"):
        drain(
            database,
            ledger,
            configuration(),
            Settings(),
            DAY,
            worker_name="test",
            time_budget=timedelta(seconds=30),
        )

    assert states(database) == {"assigned": 4}
    assert database.fetch("SELECT count(*) FROM executions") == [(0,)]


def test_connections_that_the_database_cuts_lose_nothing(
    database: Database, ledger: Ledger, database_url: str
) -> None:
    add_assigned(database, ledger, 30, "mini")
    others = Database(database_url)

    def cut(call: Call) -> Reply:
        if len(provider.calls) in (5, 15):
            others.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        return Reply(good(call).body, delay=0.02)

    with StubProvider(cut) as provider:
        run(
            database,
            ledger,
            provider.url,
            configuration(concurrency=3, lease_seconds=2, heartbeat_seconds=0.5, **QUICK),
        )
    others.close()

    assert states(database) == {"succeeded": 30}
    assert ledger.verify().balanced


def test_a_task_that_breaks_the_worker_fails_by_itself(
    database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_assigned(database, ledger, model="mini", task_id="poison", max_attempts=1)
    add_assigned(database, ledger, 3, "mini")
    real = ChatWorker.attempt

    async def attempt(self: ChatWorker, claimed: ClaimedTask, *, seconds: float) -> AttemptResult:
        if claimed.task_id == "poison":
            raise ZeroDivisionError("a mistake of ours")
        return await real(self, claimed, seconds=seconds)

    monkeypatch.setattr(ChatWorker, "attempt", attempt)
    with StubProvider(good) as provider:
        run(database, ledger, provider.url)

    assert states(database) == {"succeeded": 3, "dead": 1}
    [(error,)] = database.fetch("SELECT error FROM executions WHERE state = 'failed'")
    assert "ZeroDivisionError at" in error


def test_progress_is_reported_and_ends_with_the_whole(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 5, "mini")
    seen: list[int] = []

    with StubProvider(good) as provider:
        summary = run(
            database, ledger, provider.url, on_progress=lambda progress: seen.append(progress.attempts)
        )

    assert seen[-1] == summary.attempts == 5
    assert summary.moved_to == {"succeeded": 5}


def test_garbage_collector_and_threads_are_as_before_when_a_drain_is_over(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 1)

    def interpreter() -> tuple[float, int]:
        return sys.getswitchinterval(), gc.get_freeze_count()

    before, within = interpreter(), []
    with StubProvider(good) as provider:
        run(database, ledger, provider.url, on_progress=lambda _: within.append(interpreter()))

    assert interpreter() == before
    assert within[-1][0] < before[0]
    assert within[-1][1] > before[1]


def test_the_last_of_several_drains_in_a_process_leaves_threads_as_they_were(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 40)
    before = sys.getswitchinterval()

    with StubProvider(good) as provider, ThreadPoolExecutor() as pool:
        drains = [pool.submit(run, database, ledger, provider.url) for _ in range(3)]
        assert sum(drain.result().attempts for drain in drains) == 40

    assert sys.getswitchinterval() == before
    assert gc.get_freeze_count() == 0


def test_log_lines_carry_the_ids_and_neither_prompt_nor_answer(
    database: Database, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    add_assigned(database, ledger, model="mini", task_id="web-7")

    with caplog.at_level(logging.DEBUG, "cp_resources"), StubProvider(good) as provider:
        run(database, ledger, provider.url, run_id="run-42")

    lines = [record.getMessage() for record in caplog.records if record.name == "cp_resources.worker"]
    [line] = [line for line in lines if "attempt recorded" in line]
    assert "task='web-7'" in line
    assert "run='run-42'" in line
    assert "execution=" in line
    assert not any("What to do" in line or "Done." in line or "simulated" in line for line in lines)


DRAIN_IN_A_PROCESS = """
import sys
from datetime import timedelta
sys.path.insert(0, sys.argv[3])
from assigned_tasks import DAY, configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.settings import Settings
from cp_resources.worker import drain

database = Database(sys.argv[1])
drain(
    database, Ledger(database), configuration(concurrency=2, drain_seconds=3),
    Settings(simulator_url=sys.argv[2]), DAY, worker_name="child", time_budget=timedelta(seconds=60),
)
"""


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "the condition did not come true"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_drain_with_every_lease_given_back(
    database: Database, ledger: Ledger, database_url: str, number: signal.Signals
) -> None:
    add_assigned(database, ledger, 6, "mini")

    told_to_stop = threading.Event()

    def answer(call: Call) -> Reply:
        # The first call ends while the worker drains, the second never does.
        return Reply(good(call).body, after=told_to_stop) if len(provider.calls) == 1 else Reply(delay=60)

    with StubProvider(answer) as provider:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                DRAIN_IN_A_PROCESS,
                database_url,
                provider.url,
                str(Path(__file__).parent),
            ],
            stderr=subprocess.DEVNULL,
            env={**os.environ},
        )
        wait_for(lambda: len(provider.calls) == 2)
        child.send_signal(number)
        time.sleep(0.5)  # for the signal to be heard before the call ends and makes room for another
        told_to_stop.set()
        assert child.wait(20) == -number

    assert states(database) == {"succeeded": 1, "assigned": 5}
    assert sorted(database.fetch("SELECT state FROM executions")) == [("lost",), ("succeeded",)]
    assert database.fetch("SELECT count(*) FROM tasks WHERE lease_owner IS NOT NULL") == [(0,)]
    assert ledger.verify().balanced


def test_a_second_signal_cuts_the_calls_off_at_once(
    database: Database, ledger: Ledger, database_url: str
) -> None:
    add_assigned(database, ledger, 2, "mini")
    patient = DRAIN_IN_A_PROCESS.replace("drain_seconds=3", "drain_seconds=600")

    with StubProvider(lambda _: Reply(delay=600)) as provider:
        child = subprocess.Popen(
            [sys.executable, "-c", patient, database_url, provider.url, str(Path(__file__).parent)],
            stderr=subprocess.DEVNULL,
            env={**os.environ},
        )
        wait_for(lambda: len(provider.calls) == 2)
        child.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # two signals at once would be heard as one
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == -signal.SIGTERM

    assert states(database) == {"assigned": 2}
    assert database.fetch("SELECT state FROM executions") == [("lost",)] * 2
    assert database.fetch("SELECT ended FROM drains") == [("stopped",)]
    assert ledger.verify().balanced
