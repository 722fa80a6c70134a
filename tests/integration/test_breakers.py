"""Breakers in a real PostgreSQL: shared by all workers, trials handed out one by one, and seen by the planners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from assigned_tasks import DAY, add_assigned, add_task, configuration
from stub_provider import Call, Reply, StubProvider, evidence_block, openai_answer, openai_error

from cp_core.assignment.strategies import Strategy
from cp_core.execution.breaker import BreakerPolicy, BreakerState
from cp_core.execution.outcome import AttemptResult
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import TaskState
from cp_resources import worker
from cp_resources.assigner import Assigner
from cp_resources.breakers import BreakerStore, Ended, Scope, UnknownBreakerError
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.executions import ExecutionStore, Finished
from cp_resources.ledger import Ledger
from cp_resources.planner import Planner
from cp_resources.settings import Settings
from cp_resources.worker import DrainSummary, drain

MINI, OPENAI = Scope("openai", "mini"), Scope("openai", "*")


def with_breaker(**policy: Any) -> Configuration:
    config = configuration()
    policies = config.policies.model_copy(update={"breaker": BreakerPolicy(**policy)})
    return Configuration(config.registry, config.scoring, policies)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


def now(database: Database) -> datetime:
    [(moment,)] = database.fetch("SELECT clock_timestamp()")
    return moment


def fail(database: Database, store: BreakerStore, count: int = 12, model: str = "mini") -> None:
    store.learn([Ended(model, Reason.SERVER_ERROR, now(database))] * count)


def let_time_pass(database: Database) -> None:
    """The cool-down of every open breaker is over."""
    with database.transaction() as connection:
        connection.execute("UPDATE breakers SET retry_at = clock_timestamp() WHERE retry_at IS NOT NULL")


def left_alone(database: Database, store: BreakerStore) -> set[str]:
    with database.transaction() as connection:
        return set(store.unavailable(connection))


def test_what_one_worker_saw_keeps_every_worker_away(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 3, "mini")
    add_assigned(database, ledger, 3, "nano")
    mine, other = (ExecutionStore(database, ledger, with_breaker()) for _ in range(2))
    fail(database, mine.breakers)

    claimed = other.claim(DAY, "w", 100, {"mini": 10, "nano": 10})

    assert Counter(task.model for task in claimed) == {"nano": 3}
    assert other.breakers.is_open("mini")
    assert left_alone(database, other.breakers) == {"mini"}


def test_failures_of_several_workers_add_up_and_answers_count_against_them(database: Database) -> None:
    stores = [BreakerStore(database, with_breaker()) for _ in range(3)]
    good = Ended("mini", None, now(database))
    for store in stores[:2]:
        fail(database, store, 5)
        store.learn([good] * 5)

    assert stores[2].all()[MINI].recent == "xxxxx.....xxxxx....."
    fail(database, stores[2], 6)
    assert stores[2].all()[MINI].state is BreakerState.CLOSED  # 11 of the last 20
    fail(database, stores[2], 6)
    assert stores[2].all()[MINI].state is BreakerState.OPEN


def test_answers_of_a_model_without_trouble_are_not_written(database: Database) -> None:
    store = BreakerStore(database, with_breaker())

    store.learn([Ended("mini", None, now(database))] * 50)

    assert database.fetch("SELECT count(*) FROM breakers") == [(0,)]


def test_trials_never_exceed_their_number_however_many_workers_claim_at_once(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 60, "mini")
    config = with_breaker(trials=3)
    stores = [ExecutionStore(database, ledger, config) for _ in range(8)]
    fail(database, stores[0].breakers)
    let_time_pass(database)

    def claim(number: int) -> int:
        return sum(len(stores[number].claim(DAY, f"w{number}-{turn}", 20, {"mini": 20})) for turn in range(4))

    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(claim, range(8)))

    assert taken == 3
    assert database.fetch("SELECT count(*) FROM tasks WHERE state = 'running'") == [(3,)]
    assert stores[0].breakers.all()[MINI].state is BreakerState.HALF_OPEN


def test_a_trial_that_is_given_back_or_lost_makes_room_for_another(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 9, "mini")
    store = ExecutionStore(database, ledger, with_breaker(trials=2))
    fail(database, store.breakers)
    let_time_pass(database)
    first, second = store.claim(DAY, "w", 10, {"mini": 10})
    assert store.claim(DAY, "w", 10, {"mini": 10}) == []

    store.release("w", [first])
    assert len(store.claim(DAY, "w", 10, {"mini": 10})) == 1
    store.abandon("w", [second])
    assert len(store.claim(DAY, "w", 10, {"mini": 10})) == 1


def test_calls_from_before_the_outage_are_no_trials(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 9, "mini")
    store = ExecutionStore(database, ledger, with_breaker(trials=2))
    old = store.claim(DAY, "w", 4, {"mini": 4})
    fail(database, store.breakers)
    let_time_pass(database)

    trials = store.claim(DAY, "w", 10, {"mini": 10})
    store.breakers.learn([Ended("mini", Reason.TIMEOUT, task.started_at) for task in old if task.started_at])

    assert len(trials) == 2
    assert store.breakers.all()[MINI].state is BreakerState.HALF_OPEN


def test_every_move_is_an_event(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 4, "mini")
    store = ExecutionStore(database, ledger, with_breaker(trials=2))
    fail(database, store.breakers)
    let_time_pass(database)
    trials = store.claim(DAY, "w", 10, {"mini": 10})
    store.breakers.learn([Ended("mini", None, task.started_at) for task in trials if task.started_at])

    events = database.fetch(
        "SELECT kind, subject, payload ->> 'from', payload ->> 'to', payload ->> 'reason' "
        "FROM events WHERE kind LIKE 'breaker.%' ORDER BY id"
    )
    assert events == [
        ("breaker.opened", "openai/mini", "closed", "open", "SERVER_ERROR"),
        ("breaker.half_opened", "openai/mini", "open", "half-open", "SERVER_ERROR"),
        ("breaker.closed", "openai/mini", "half-open", "closed", None),
    ]


def test_a_refused_key_closes_off_all_that_the_provider_serves_and_exhausted_credit_the_model(
    database: Database, ledger: Ledger
) -> None:
    for model in ("mini", "nano", "sonnet"):
        add_assigned(database, ledger, 2, model)
    store = ExecutionStore(database, ledger, with_breaker())
    store.breakers.learn([Ended("sonnet", Reason.PROVIDER_QUOTA, now(database))])
    store.breakers.learn([Ended("mini", Reason.AUTH_FAILED, now(database))])

    assert store.claim(DAY, "w", 100, {"mini": 9, "nano": 9, "sonnet": 9}) == []
    assert left_alone(database, store.breakers) == {"mini", "nano", "sonnet"}
    assert set(store.breakers.all()) == {Scope("anthropic", "sonnet"), OPENAI}
    let_time_pass(database)
    trials = store.claim(DAY, "w", 100, {"mini": 9, "nano": 9})
    assert len(trials) == 2
    store.breakers.learn([Ended(task.model, None, task.started_at) for task in trials if task.started_at])
    assert store.breakers.all()[OPENAI].state is BreakerState.CLOSED


def test_a_reset_of_a_model_opens_the_way_and_says_who_and_why(database: Database) -> None:
    store = BreakerStore(database, with_breaker())
    store.learn([Ended("mini", Reason.AUTH_FAILED, now(database))])

    assert store.reset("mini", reason="new key", by="ada") == [OPENAI]
    assert left_alone(database, store) == set()
    assert store.reset("openai", reason="again", by="ada") == []
    [(payload,)] = database.fetch("SELECT payload FROM events WHERE kind = 'breaker.closed'")
    assert (payload["because"], payload["by"], payload["from"]) == ("new key", "ada", "open")
    with pytest.raises(UnknownBreakerError, match="no model or provider is called 'gpt'"):
        store.reset("gpt", reason="x", by="y")


def test_tasks_of_an_open_model_go_back_but_for_those_that_wait_for_the_trial(
    database: Database, ledger: Ledger
) -> None:
    add_assigned(database, ledger, 2, "mini", deadline_in=timedelta(hours=1))
    patient = add_assigned(database, ledger, 2, "mini")
    nano = add_assigned(database, ledger, 1, "nano")
    store = ExecutionStore(database, ledger, with_breaker(trials=2))
    fail(database, store.breakers)

    assert store.withdraw(DAY) == 2
    assert store.withdraw(DAY) == 0
    assert database.fetch("SELECT DISTINCT reason FROM tasks WHERE state = 'queued'") == [("BREAKER_OPEN",)]
    waiting = [
        task for (task,) in database.fetch("SELECT id FROM tasks WHERE state = 'assigned' ORDER BY id")
    ]
    assert waiting == [*patient, *nano]
    assert ledger.verify().balanced


def test_tasks_stay_with_a_model_that_is_soon_tried_again(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 5, "mini")
    store = ExecutionStore(database, ledger, with_breaker(cool_down_seconds=5, patience_seconds=10))
    fail(database, store.breakers)

    assert store.withdraw(DAY) == 0
    available_in = store.open_tasks(DAY)[TaskState.ASSIGNED].available_in
    assert available_in is not None
    assert 0 < available_in <= 5


def test_batches_give_tasks_to_others_or_let_them_wait(database: Database, ledger: Ledger) -> None:
    config = with_breaker()
    for number in range(4):
        add_task(database, f"task-{number}", value_score=50.0)  # mid-range or budget: mini or nano
    assigner = Assigner(database, ledger, config)
    store = BreakerStore(database, config)
    fail(database, store)

    assigner.assign_day(DAY)
    assert database.fetch("SELECT DISTINCT model FROM tasks") == [("nano",)]

    add_task(database, "late", value_score=50.0)
    fail(database, store, model="nano")
    assigner.assign_day(DAY)
    [(state, reason, wait)] = database.fetch(
        "SELECT state, reason, extract(epoch FROM available_at - now())::float8 FROM tasks "
        "WHERE task_id = 'late'"
    )
    assert (state, reason) == ("deferred", "BREAKER_OPEN")
    assert 0 < wait <= 2  # it is looked at again soon, and no attempt at assigning it is lost
    assert database.fetch("SELECT assignment_attempts_left FROM tasks WHERE task_id = 'late'") == [(3,)]
    store.reset("mini", reason="test", by="test")
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET available_at = now() WHERE task_id = 'late'")
    assigner.assign_day(DAY)
    assert database.fetch("SELECT model FROM tasks WHERE task_id = 'late'") == [("mini",)]


@pytest.mark.parametrize("strategy", [Strategy.MAXIMIZE_VALUE, Strategy.MINIMIZE_COST])
def test_the_solver_leaves_open_models_out(database: Database, ledger: Ledger, strategy: Strategy) -> None:
    config = with_breaker()
    assignment = config.policies.assignment.model_copy(update={"strategy": strategy})
    policies = config.policies.model_copy(update={"assignment": assignment})
    config = Configuration(config.registry, config.scoring, policies)
    store = BreakerStore(database, config)
    add_task(database, "first")
    Assigner(database, ledger, config).assign_day(DAY)
    [(favourite,)] = database.fetch("SELECT model FROM tasks")
    for model in {"sonnet", "mini", "nano"} - {"nano" if favourite != "nano" else "mini"}:
        fail(database, store, model=model)

    for number in range(3):
        add_task(database, f"task-{number}")
    Assigner(database, ledger, config).assign_day(DAY)

    given = {model for (model,) in database.fetch("SELECT model FROM tasks WHERE task_id <> 'first'")}
    assert given == {"nano" if favourite != "nano" else "mini"}


def test_inline_decisions_do_not_outlive_the_opening(database: Database, ledger: Ledger) -> None:
    config = with_breaker()
    planner = Planner(database, ledger, config)
    store = BreakerStore(database, config)
    for number in range(4):
        add_task(database, f"task-{number}")

    assert planner.decide("task-0").plan[0]["model"] == "mini"
    fail(database, store)
    assert planner.decide("task-1").plan[0]["model"] == "nano"
    fail(database, store, model="nano")
    waits = planner.decide("task-2")
    assert (waits.state, waits.reason) == (TaskState.DEFERRED, Reason.BREAKER_OPEN)
    store.reset("openai", reason="test", by="test")
    assert planner.decide("task-3").plan[0]["model"] == "mini"


def test_a_due_model_is_given_tasks_until_enough_wait_for_its_trials(
    database: Database, ledger: Ledger
) -> None:
    store = BreakerStore(database, with_breaker(trials=2))
    fail(database, store)
    assert left_alone(database, store) == {"mini"}
    let_time_pass(database)

    assert left_alone(database, store) == set()
    add_assigned(database, ledger, 1, "mini")
    assert left_alone(database, store) == set()
    add_assigned(database, ledger, 1, "mini")
    assert left_alone(database, store) == {"mini"}


def test_a_refused_key_does_not_bar_the_task_from_the_model_for_good(
    database: Database, ledger: Ledger
) -> None:
    config = with_breaker()
    add_assigned(database, ledger, 1, "mini", value_score=50.0)
    store = ExecutionStore(database, ledger, config)
    [claimed] = store.claim(DAY, "w", 1, {"mini": 1})
    store.complete("w", [Finished(claimed, AttemptResult(Reason.AUTH_FAILED, latency_ms=3.0))])

    Assigner(database, ledger, config).assign_day(DAY)

    assert database.fetch("SELECT state, model FROM tasks") == [("assigned", "mini")]


class Outage:
    """A provider whose model mini is down until it is mended, and that knows the most calls it ever had at once."""

    def __init__(self, answer: Callable[[Call], Reply]) -> None:
        self.answer = answer
        self.is_over = False
        self.calls_while_down = 0

    def __call__(self, call: Call) -> Reply:
        if call.body["model"] == "mini-1" and not self.is_over:
            self.calls_while_down += 1
            return self.answer(call)
        return Reply(openai_answer(f"Done.\n{evidence_block()}"))


def drained(
    database: Database, ledger: Ledger, url: str, config: Configuration, **options: Any
) -> DrainSummary:
    return drain(
        database,
        ledger,
        config,
        Settings(simulator_url=url),
        DAY,
        worker_name="test",
        time_budget=timedelta(seconds=60),
        **options,
    )


def test_in_an_outage_others_take_over_and_afterwards_the_model_is_trusted_again(
    database: Database, ledger: Ledger
) -> None:
    config = with_breaker(cool_down_seconds=1.5, patience_seconds=0, trials=2, failures=6, of_last=10)
    execution = config.policies.execution.model_copy(
        update={"backoff_base_seconds": 0.05, "backoff_cap_seconds": 0.1}
    )
    policies = config.policies.model_copy(update={"execution": execution})
    config = Configuration(config.registry, config.scoring, policies)
    for number in range(40):
        add_task(database, f"task-{number}", value_score=50.0)
    assigner = Assigner(database, ledger, config)
    assigner.assign_day(DAY)
    outage = Outage(lambda _: Reply(openai_error("Down", "server_error"), 500))

    def assign_again() -> None:
        outage.is_over = True  # it was opened, or nothing would be assigned anew before all were tried thrice
        assigner.assign_day(DAY)

    with StubProvider(outage) as provider:
        summary = drained(database, ledger, provider.url, config, assign_again=assign_again)

    assert summary.ended is worker.Ended.DRAINED
    by_model = dict(
        database.fetch("SELECT model, count(*) FROM executions WHERE state = 'succeeded' GROUP BY model")
    )
    assert by_model["nano"] >= 30  # took over
    assert by_model["mini"] >= 2  # was tried, and trusted again
    moves = [
        kind for (kind,) in database.fetch("SELECT kind FROM events WHERE kind LIKE 'breaker.%' ORDER BY id")
    ]
    assert moves == ["breaker.opened", "breaker.half_opened", "breaker.closed"]
    assert outage.calls_while_down < 30  # not forty tasks times three attempts
    assert database.fetch("SELECT DISTINCT state FROM tasks") == [("succeeded",)]
    assert ledger.verify().balanced


def test_a_refused_key_costs_a_few_attempts_and_not_those_of_every_task(
    database: Database, ledger: Ledger
) -> None:
    for number in range(60):
        add_task(database, f"task-{number}", value_score=50.0)
    config = with_breaker()
    assigner = Assigner(database, ledger, config)
    assigner.assign_day(DAY)
    refusal = openai_error("Incorrect API key provided", "invalid_request_error", "invalid_api_key")

    with StubProvider(lambda _: Reply(refusal, 401)) as provider:
        summary = drained(
            database, ledger, provider.url, config, assign_again=lambda: assigner.assign_day(DAY)
        )
        calls = len(provider.calls)

    assert summary.ended is worker.Ended.WAITING  # for longer than the drain may last
    assert calls <= 8  # as many as are under way at once
    assert database.fetch("SELECT count(*) FROM tasks WHERE state IN ('dead', 'failed')") == [(0,)]
    assert database.fetch("SELECT count(*) FROM tasks WHERE attempts > 0") == [(calls,)]
    assert ledger.verify().balanced
