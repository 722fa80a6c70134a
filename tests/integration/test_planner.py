"""Inline decisions against a real PostgreSQL: made real in one transaction, under a deadline, or nothing changes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from assigned_tasks import DAY, add_task, assign, configuration
from psycopg.types.json import Jsonb

from cp_core.assignment.cache import PlannerCache
from cp_core.assignment.decision import Outcome, decision_id
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.inline import InlinePolicy
from cp_core.assignment.retry import AssignmentRetryPolicy, Stop
from cp_core.assignment.strategies import Strategy
from cp_core.policy.policies import Flags
from cp_core.quota.account import Account
from cp_core.tasks.reasons import Reason
from cp_resources.assigner import Assigner
from cp_resources.configuration import Configuration
from cp_resources.database import Database, DatabaseUnavailableError
from cp_resources.ledger import Ledger, Reservation, Settlement, reservation_transfers
from cp_resources.planner import (
    Planner,
    PlannerTimeoutError,
    TaskNeverDecidedError,
    TaskNotFoundError,
    TaskNotScoredError,
)

UNHURRIED = FairnessPolicy(points_per_hour=0, overdue_hours=1e9)  # the tasks here were submitted long ago
TOKENS = 22_000  # expected by each task here, input and output together


def configured(
    strategy: Strategy = Strategy.MAXIMIZE_VALUE, *, tokens: int = 10_000_000, **changes: Any
) -> Configuration:
    """sonnet on a subscription, mini and nano on a budget; `changes` are sections of the policies."""
    whole = configuration(tokens=tokens)
    changes.setdefault("fairness", UNHURRIED)
    assignment = whole.policies.assignment.model_copy(
        update={"strategy": strategy, **changes.pop("assignment", {})}
    )
    policies = whole.policies.model_copy(update={"assignment": assignment, **changes})
    return Configuration(registry=whole.registry, scoring=whole.scoring, policies=policies)


def only_sonnet(tokens: int, **changes: Any) -> Configuration:
    """Nothing but the subscription can pay: its tokens are all there is."""
    whole = configured(tokens=tokens, **changes)
    content = whole.registry.model_dump(mode="json")
    content["budgets"] = {}
    registry = type(whole.registry).model_validate(content)
    return Configuration(registry=registry, scoring=whole.scoring, policies=whole.policies)


def planner(database: Database, config: Configuration | None = None, **other: Any) -> Planner:
    return Planner(database, Ledger(database), config or configured(), **other)


def add_batch(
    database: Database, config: Configuration, prices: dict[str, float], *, minutes_ago: int = 0
) -> Any:
    batch = uuid4()
    with database.transaction() as connection:
        connection.execute(
            """INSERT INTO assignment_batches (id, submission_day, decided_at, strategy, seed, tasks, assigned,
                   objective, bound, gap, evaluations, seconds, prices, available, lapsing, forecast, alternatives,
                   pruned, considered, config_hash)
               VALUES (%s, %s, now() - make_interval(mins => %s), %s, 1, 1, 1, 1, 1, 0, 1, 1, %s, '{}', '{}', '{}',
                   '{}', '{}', 1, %s)""",
            (
                batch,
                DAY,
                minutes_ago,
                config.policies.assignment.strategy,
                Jsonb(prices),
                config.content_hash,
            ),
        )
    return batch


def task_row(database: Database, task: int) -> dict[str, Any]:
    [row] = database.fetch(
        "SELECT state, reason, model, assignment_attempts_left FROM tasks WHERE id = %s", [task]
    )
    return dict(zip(("state", "reason", "model", "left"), row, strict=True))


def attempts(database: Database) -> list[tuple[Any, ...]]:
    return database.fetch(
        "SELECT path, outcome, reason, tiers_either_side FROM assignment_attempts ORDER BY id"
    )


def stops(database: Database) -> list[tuple[Any, ...]]:
    return database.fetch(
        "SELECT subject, payload ->> 'reason', payload ->> 'because' FROM events WHERE kind = 'assign.stop' ORDER BY id"
    )


def count(database: Database, table: str) -> int:
    [(rows,)] = database.fetch(f"SELECT count(*) FROM {table}")
    return rows


def account(database: Database, name: str) -> Account:
    return next(account for account in Ledger(database).accounts() if account.account == name)


def close_account(database: Database, name: str) -> None:
    """What becomes of an account that is declared no longer: it grants nothing."""
    with database.transaction() as connection:
        connection.execute("UPDATE quota_accounts SET quota_limit = 0 WHERE account = %s", (name,))


def test_a_decision_is_reserved_stored_and_told_in_one_go(database: Database) -> None:
    config = configured()
    task = add_task(database, "A", value_score=50)
    made = planner(database, config).decide("A")

    assert (made.outcome, made.state, made.is_new) == (Outcome.ASSIGNED, "assigned", True)
    assert task_row(database, task)["state"] == "assigned"
    [row] = database.fetch(
        "SELECT decision_id, path, batch, propensity, plan, strategy, config_hash FROM assignments"
    )
    identity, path, batch, propensity, plan, strategy, config_hash = row
    assert (identity, path, batch, propensity) == (
        decision_id("A", 0, config.content_hash),
        "inline",
        None,
        1.0,
    )
    assert (plan, strategy, config_hash) == (made.plan, "maximize_value", config.content_hash)
    assert {
        transfer
        for (transfer,) in database.fetch("SELECT transfer_id FROM quota_transfers WHERE task IS NOT NULL")
    } == set(reservation_transfers(identity, {name for stage in plan for name in stage["amounts"]}))
    assert attempts(database) == [("inline", "assigned", None, 0)]
    assert database.fetch("SELECT kind FROM outbox") == [("assigned",)]
    [(event,)] = database.fetch("SELECT payload FROM events WHERE kind = 'assign.inline'")
    assert (event["path"], event["tasks"], event["outcomes"]) == ("inline", 1, {"assigned": 1})
    assert (event["cache_misses"], event["considered"] > 0) == (1, True)
    assert Ledger(database).verify().balanced


def test_a_scored_row_is_decided_by_what_is_stored_under_its_id(database: Database) -> None:
    add_task(database, "A")
    assert planner(database).decide({"task_id": "A", "value_score": float("nan")}).outcome is Outcome.ASSIGNED


def test_prices_of_the_latest_batch_of_the_same_configuration_decide(database: Database) -> None:
    config = configured()
    add_batch(database, config, {"plan/weekly": 0.0}, minutes_ago=9)
    latest = add_batch(database, config, {"plan/5-hour": 1.0, "plan/weekly": 0.0}, minutes_ago=1)
    add_batch(database, configured(tokens=10_000_001), {"budget/api": 1e6})
    add_task(database, "A")
    made = planner(database, config).decide("A")
    # a token costs a point there, and the task is worth 50 at most: nothing that draws on the subscription is worth it
    assert {stage["funding"] for stage in made.plan} == {"budget:api"}
    assert made.batch == latest
    assert database.fetch("SELECT batch FROM assignments") == [(latest,)]


def test_a_task_whose_quota_is_worth_more_to_others_waits(database: Database) -> None:
    config = only_sonnet(10_000_000)
    add_batch(database, config, {"plan/weekly": 1.0})
    task = add_task(database, "A")
    made = planner(database, config).decide("A")
    assert (made.outcome, made.reason) == (Outcome.DEFERRED, Reason.OUTBID)
    assert task_row(database, task)["state"] == "deferred"


def test_the_written_policy_works_inline(database: Database) -> None:
    add_task(database, "A", value_score=50)
    made = planner(database, configured(Strategy.TIERED)).decide("A")
    assert [stage["model"] for stage in made.plan] == ["mini"]  # 40 to 59: mid-range before budget
    assert made.explanation["why"] == {"rule": "tier", "over": "nano (budget:api)"}


@pytest.mark.parametrize("strategy", list(Strategy))
def test_an_assigned_task_keeps_its_decision_whoever_asks(database: Database, strategy: Strategy) -> None:
    config = configured(strategy)
    task = add_task(database, "A")
    first = planner(database, config).decide("A")
    again = planner(database, config).decide("A")
    assert (again.is_new, again.plan, again.explanation.items() >= first.explanation.items()) == (
        False,
        first.plan,
        True,
    )
    assert count(database, "assignments") == 1
    assert stops(database) == [("A", Stop.ALREADY_ASSIGNED, None)]
    assert [outcome for _, outcome, _, _ in attempts(database)] == ["assigned", "already_assigned"]
    assert count(database, "outbox") == 1
    assert task_row(database, task)["left"] == 3


def test_a_rehearsal_tells_what_would_be_decided_and_changes_nothing(database: Database) -> None:
    config = configured()
    batch = add_batch(database, config, {"budget/api": 1.0})
    task = add_task(database, "A")
    with psycopg.connect(database.url) as other:  # whoever is deciding it now is no hindrance
        other.execute("SELECT FROM cp.tasks FOR NO KEY UPDATE")
        told = planner(database, config).rehearse("A")
    assert (told.is_new, told.outcome, told.state, told.batch) == (True, Outcome.ASSIGNED, "queued", batch)
    assert task_row(database, task)["state"] == "queued"
    assert [
        count(database, table) for table in ("assignments", "assignment_attempts", "events", "outbox")
    ] == [0] * 4
    assert account_total(database) == 0
    made = planner(database, config).decide("A")
    assert (made.plan, made.explanation) == (told.plan, told.explanation)
    assert planner(database, config).rehearse("A").is_new is False
    with pytest.raises(TaskNotFoundError, match="no task has the id 'nobody'"):
        planner(database, config).rehearse("nobody")


def test_the_prices_that_decided_are_told_at_once_and_afterwards(database: Database) -> None:
    config = configured()
    add_batch(database, config, {"budget/api": 1.5})
    add_task(database, "A")
    made = planner(database, config).decide("A")
    shown = planner(database, config).decide("A")
    assert made.explanation["prices"] == {"budget/api": 1.5}
    assert (shown.is_new, shown.explanation) == (False, made.explanation)
    assert shown.expected_cost_usd == made.expected_cost_usd


def test_a_task_that_waits_for_another_may_be_asked_for_before_its_time(database: Database) -> None:
    add_task(database, "A")
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET dependencies = '{B}'")
    assert planner(database).decide("A").reason is Reason.DEPENDENCY_PENDING
    add_task(database, "B", state="succeeded")
    assert planner(database).decide("A").outcome is Outcome.ASSIGNED


@pytest.mark.parametrize("state", ["running", "succeeded", "failed"])
def test_a_task_that_runs_or_is_over_keeps_its_decision(database: Database, state: str) -> None:
    config = configured()
    ledger = Ledger(database)
    ledger.open_accounts(config.registry)
    task = add_task(database, "A")
    assign(database, ledger, task)
    lease = "'w', now() + interval '1 hour'" if state == "running" else "NULL, NULL"
    with database.transaction() as connection:
        connection.execute(
            f"UPDATE tasks SET state = %s, (lease_owner, lease_expires_at) = ({lease})", (state,)
        )
    made = planner(database, config).decide("A")
    assert (made.is_new, made.state, made.plan[0]["model"]) == (False, state, "sonnet")
    assert task_row(database, task)["state"] == state


def test_a_task_that_cannot_be_decided_is_a_clear_error(database: Database) -> None:
    add_task(database, "gone", state="cancelled")
    unscored = add_task(database, "unscored")
    with database.transaction() as connection:
        connection.execute("DELETE FROM task_scores WHERE task = %s", (unscored,))
    deciding = planner(database)
    with pytest.raises(TaskNotFoundError, match="no task has the id 'nobody'"):
        deciding.decide("nobody")
    with pytest.raises(TaskNotScoredError, match="task unscored has no value score yet"):
        deciding.decide("unscored")
    with pytest.raises(TaskNeverDecidedError, match="task gone ended before"):
        deciding.decide("gone")
    assert [outcome for _, outcome, _, _ in attempts(database)] == ["failed", "already_assigned"]


def test_two_planners_race_for_the_last_tokens_and_one_wins(database: Database) -> None:
    config = only_sonnet(TOKENS)
    rounds = 8
    Ledger(database).open_accounts(config.registry)
    for number in range(2 * rounds):
        add_task(database, f"T{number}")
    own = [Database(database.url) for _ in range(2)]
    planners = [planner(one, config) for one in own]
    for first in range(0, 2 * rounds, 2):
        barrier = threading.Barrier(2)

        def race(number: int, first: int = first, barrier: threading.Barrier = barrier) -> Any:
            barrier.wait()
            return planners[number].decide(f"T{first + number}")

        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(race, range(2)))
        assert sorted(one.outcome for one in made) == ["assigned", "deferred"]
        [loser] = [one for one in made if one.outcome is Outcome.DEFERRED]
        assert loser.reason in (Reason.INSUFFICIENT_GLOBAL_CAPACITY, Reason.QUOTA_EXHAUSTED)
        assert account(database, "plan/weekly").available == 0
        with database.transaction() as connection:  # the winner gives back what it has
            winner = connection.execute(
                "SELECT decision_id FROM assignments a JOIN tasks t ON t.assignment = a.id WHERE t.state = 'assigned'"
            ).fetchone()
            Ledger(database).settle(connection, [Settlement(winner[0], {})])
            connection.execute("UPDATE tasks SET state = 'cancelled' WHERE state IN ('assigned', 'deferred')")
    for one in own:
        one.close()
    assert Ledger(database).verify().balanced


class RivalledLedger(Ledger):
    """A ledger in which something happens right after the balances were read, so many times."""

    def __init__(self, database: Database, happens: Any, times: int) -> None:
        super().__init__(database)
        self._happens, self._times = happens, times

    def accounts(self, within: psycopg.Connection | None = None) -> list[Account]:
        found = super().accounts(within)
        if within is not None and self._times:
            self._times -= 1
            self._happens()
        return found


def rival(database: Database, tokens: int) -> Any:
    def take() -> None:
        with database.transaction() as connection:
            taken = Reservation(uuid4(), {"plan/weekly": Decimal(tokens), "plan/5-hour": Decimal(tokens)})
            assert Ledger(database).reserve(connection, [taken], expires_in=timedelta(hours=1)) == [True]

    return take


def test_the_loser_of_a_race_replans_with_the_balances_of_then(database: Database) -> None:
    config = configured(tokens=TOKENS)
    Ledger(database).open_accounts(config.registry)
    add_batch(database, config, {"budget/api": 1.0})
    add_task(database, "A", value_score=90)
    ledger = RivalledLedger(database, rival(database, TOKENS), times=1)
    made = Planner(database, ledger, config).decide("A")
    assert (made.outcome, made.replans) == (Outcome.ASSIGNED, 1)
    assert {stage["funding"] for stage in made.plan} == {"budget:api"}
    [(event,)] = database.fetch("SELECT payload FROM events WHERE kind = 'assign.inline'")
    assert event["races_lost"] == 1
    assert Ledger(database).verify().balanced


def test_who_loses_every_race_gets_the_reason(database: Database) -> None:
    config = only_sonnet(TOKENS + 3)
    Ledger(database).open_accounts(config.registry)
    task = add_task(database, "A")

    class Hidden(RivalledLedger):
        """Shows the balances of before the race, however late they are read."""

        def accounts(self, within: psycopg.Connection | None = None) -> list[Account]:
            self._shown = getattr(self, "_shown", None) or super().accounts(within)
            return self._shown

    made = Planner(database, Hidden(database, rival(database, TOKENS), times=1), config).decide("A")
    assert (made.outcome, made.reason, made.replans) == (Outcome.DEFERRED, Reason.QUOTA_EXHAUSTED, 3)
    assert task_row(database, task)["state"] == "deferred"
    assert account(database, "plan/weekly").pending == TOKENS  # the rival's, and nothing else


def test_an_account_that_is_closed_before_the_reservation_is_not_used(database: Database) -> None:
    config = configured()
    Ledger(database).open_accounts(config.registry)
    add_batch(database, config, {"budget/api": 1.0})
    add_task(database, "A", value_score=90)

    def close() -> None:
        with database.transaction() as connection:
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute("DELETE FROM quota_accounts WHERE account = 'plan/weekly'")

    made = Planner(database, RivalledLedger(database, close, times=1), config).decide("A")
    assert (made.outcome, made.replans) == (Outcome.ASSIGNED, 1)
    assert {stage["funding"] for stage in made.plan} == {"budget:api"}


def test_what_lacks_is_told_with_figures(database: Database) -> None:
    config = only_sonnet(TOKENS)
    Ledger(database).open_accounts(config.registry)
    rival(database, 1_000)()
    add_task(database, "A")
    made = planner(database, config).decide("A")
    assert made.reason is Reason.INSUFFICIENT_GLOBAL_CAPACITY
    assert made.explanation["lacking"] == [
        {"account": "plan/5-hour", "needed_at_least": 22_000.0, "available": 21_000.0}
    ]


def test_a_deadline_cancels_at_once_and_leaves_nothing_but_the_attempt(database: Database) -> None:
    task = add_task(database, "A")
    with psycopg.connect(database.url) as other:
        other.execute("SELECT FROM cp.tasks WHERE id = %s FOR NO KEY UPDATE", (task,))
        with pytest.raises(
            PlannerTimeoutError, match=r"task A was not decided within 0.15 s .it came to: find"
        ) as late:
            planner(database).decide("A", deadline_seconds=0.15)
        assert late.value.seconds < 1.0
        assert count(database, "assignments") == 0
        assert account_total(database) == 0
        assert task_row(database, task)["state"] == "queued"
        assert attempts(database) == [("inline", "timeout", "TIMEOUT", 0)]
    made = planner(database).decide("A")
    assert made.outcome is Outcome.ASSIGNED


def account_total(database: Database) -> int:
    return count(database, "quota_transfers WHERE task IS NOT NULL")


def test_a_deadline_that_passes_after_the_reservation_takes_it_back(database: Database) -> None:
    config = configured()
    Ledger(database).open_accounts(config.registry)
    add_task(database, "A")

    class Slow(Ledger):
        def reserve(
            self, connection: psycopg.Connection, reservations: Sequence[Reservation], **other: Any
        ) -> Any:
            made = super().reserve(connection, reservations, **other)
            now[0] += 3.0
            return made

    now = [100.0]
    with pytest.raises(PlannerTimeoutError, match="commit"):
        Planner(database, Slow(database), config, clock=lambda: now[0]).decide("A", deadline_seconds=2)
    assert account_total(database) == 0
    assert count(database, "assignments") == 0
    assert attempts(database) == [("inline", "timeout", "TIMEOUT", 0)]


def test_a_server_that_takes_too_long_is_cancelled(database: Database) -> None:
    config = configured()
    Ledger(database).open_accounts(config.registry)
    add_task(database, "A")

    class Stuck(Ledger):
        def reserve(
            self, connection: psycopg.Connection, reservations: Sequence[Reservation], **other: Any
        ) -> Any:
            connection.execute("SELECT pg_sleep(60)").fetchone()
            raise AssertionError("it should have been cancelled")

    with pytest.raises(PlannerTimeoutError, match="reserve") as late:
        Planner(database, Stuck(database), config).decide("A", deadline_seconds=0.4)
    assert late.value.seconds < 2


def test_no_free_connection_within_the_deadline_is_a_timeout(database: Database) -> None:
    add_task(database, "A")
    narrow = Database(database.url, max_connections=1)
    with narrow.transaction(), pytest.raises(PlannerTimeoutError, match="wait for a connection") as late:
        planner(narrow).decide("A", deadline_seconds=0.1)
    narrow.close()
    assert late.value.__notes__[0].startswith("the attempt could not be kept")


def test_a_clock_that_jumps_forth_or_back_ends_in_a_reason_or_a_decision(database: Database) -> None:
    task = add_task(database, "A")
    ahead, back = iter([0.0, 1e9]), iter([1e9, 0.0])
    with pytest.raises(PlannerTimeoutError):
        planner(database, clock=lambda: next(ahead, 1e9)).decide("A")
    assert task_row(database, task)["state"] == "queued"
    assert planner(database, clock=lambda: next(back, 0.0)).decide("A").outcome is Outcome.ASSIGNED

    add_task(database, "B")
    with database.transaction() as connection:  # submitted tomorrow, by a clock that was wrong
        connection.execute("UPDATE tasks SET submitted_at = now() + interval '1 day' WHERE task_id = 'B'")
    made = planner(database, configured(fairness=FairnessPolicy())).decide("B")
    assert (made.outcome, made.explanation["aged_value"]) == (Outcome.ASSIGNED, 50.0)


def test_a_timeout_relaxes_the_next_decision_by_one_tier_either_side(database: Database) -> None:
    config = configured(Strategy.TIERED)
    Ledger(database).open_accounts(config.registry)
    with database.transaction() as connection:
        connection.execute(
            "UPDATE quota_accounts SET credits_posted = 0 WHERE account = 'budget/api'",
        )
    task = add_task(database, "A", value_score=50)  # mid-range or budget: both draw on the empty budget
    refused = planner(database, config).decide("A")
    assert refused.reason is Reason.INSUFFICIENT_TIER_CAPACITY
    [lack] = refused.explanation["lacking"]
    # nano is the cheaper of the two: 20,000 tokens in at $0.1 a million, and 2,000 out at $0.4
    assert lack == {"account": "budget/api", "needed_at_least": pytest.approx(0.0028), "available": 0.0}

    with psycopg.connect(database.url) as other:
        other.execute("SELECT FROM cp.tasks FOR NO KEY UPDATE")
        with pytest.raises(PlannerTimeoutError):
            planner(database, config).decide("A", deadline_seconds=0.1)
    assert task_row(database, task)["left"] == 2
    made = planner(database, config).decide("A")
    assert [stage["model"] for stage in made.plan] == ["sonnet"]  # mid-premium, one tier above
    assert attempts(database)[-1] == ("inline", "assigned", None, 1)


def test_a_passing_reason_backs_off_and_the_third_attempt_stops_with_one_event(database: Database) -> None:
    config = only_sonnet(TOKENS, assignment_retry=AssignmentRetryPolicy(backoff_base_seconds=1))
    Ledger(database).open_accounts(config.registry)
    rival(database, TOKENS)()
    task = add_task(database, "A")
    deciding = planner(database, config)
    waits = []
    for left in (2, 1, 0, 0):
        made = deciding.decide("A")
        assert task_row(database, task)["left"] == left
        [(wait,)] = database.fetch("SELECT extract(epoch FROM available_at - now()) FROM tasks")
        waits.append(wait)
    assert waits[0] <= 1
    assert waits[1] <= 2
    assert waits[2] > 200  # no retry any more: when the batches come to it
    assert stops(database) == [("A", Stop.EXHAUSTED, "INSUFFICIENT_GLOBAL_CAPACITY")]
    assert made.outcome is Outcome.DEFERRED


def test_a_lasting_reason_ends_it_at_once(database: Database) -> None:
    task = add_task(database, "A")
    with database.transaction() as connection:
        connection.execute("UPDATE task_scores SET input_high = 9e8")  # no context window is as long
    made = planner(database).decide("A")
    assert (made.outcome, made.reason) == (Outcome.REJECTED, Reason.NO_ELIGIBLE_PLAN)
    assert task_row(database, task) == {
        "state": "dead",
        "reason": "NO_ELIGIBLE_PLAN",
        "model": None,
        "left": 0,
    }
    assert stops(database) == [("A", Stop.DETERMINISTIC, "NO_ELIGIBLE_PLAN")]


def test_a_retry_that_would_come_after_the_deadline_is_cut_off(database: Database) -> None:
    config = only_sonnet(
        TOKENS,
        assignment={"deadline_margin_seconds": 0.0},
        assignment_retry=AssignmentRetryPolicy(backoff_base_seconds=1e9, backoff_cap_seconds=1e9),
    )
    Ledger(database).open_accounts(config.registry)
    rival(database, TOKENS)()
    add_task(database, "A", deadline_in=timedelta(seconds=60))
    planner(database, config).decide("A")
    assert stops(database) == [("A", Stop.CUTOFF, "INSUFFICIENT_GLOBAL_CAPACITY")]


def test_without_the_flag_nothing_stops(database: Database) -> None:
    config = only_sonnet(TOKENS, flags=Flags(retry_policy_v2=False))
    Ledger(database).open_accounts(config.registry)
    rival(database, TOKENS)()
    task = add_task(database, "A")
    for _ in range(4):
        planner(database, config).decide("A")
    assert stops(database) == []
    assert task_row(database, task)["left"] == 3


@pytest.mark.parametrize("strategy", [Strategy.TIERED, Strategy.MAXIMIZE_VALUE])
@pytest.mark.parametrize("wrong", ["'NaN'", "-1", "'Infinity'"])
def test_figures_that_cannot_be_are_a_clear_reason(
    database: Database, strategy: Strategy, wrong: str
) -> None:
    task = add_task(database, "A")
    with database.transaction() as connection:
        connection.execute(f"UPDATE task_scores SET input_mean = {wrong}::float8")
    made = planner(database, configured(strategy)).decide("A")
    assert (made.outcome, made.reason) == (Outcome.REJECTED, Reason.INVALID_REQUEST)
    assert made.explanation["invalid"]["column"] == "input_mean"
    assert task_row(database, task)["state"] == "dead"


def test_a_model_that_is_no_longer_in_the_registry_troubles_nobody(database: Database) -> None:
    config = configured()
    ledger = Ledger(database)
    ledger.open_accounts(config.registry)
    decided = add_task(database, "A")
    assign(database, ledger, decided)
    content = config.registry.model_dump(mode="json")
    del content["models"]["sonnet"], content["subscriptions"]["plan"]
    without = Configuration(
        registry=type(config.registry).model_validate(content),
        scoring=config.scoring,
        policies=config.policies,
    )
    add_batch(database, without, {"plan/weekly": 3.0})
    assert planner(database, without).decide("A").plan[0]["model"] == "sonnet"
    add_task(database, "B")
    assert planner(database, without).decide("B").plan[0]["model"] in ("mini", "nano")


def test_equal_tasks_are_remembered_and_each_gets_its_own_reservation(database: Database) -> None:
    deciding = planner(database)
    assert isinstance(deciding.cache, PlannerCache)
    deciding.cache.clear()
    hits, misses = deciding.cache.hits, deciding.cache.misses
    for number in range(3):
        add_task(database, f"T{number}")
    made = [deciding.decide(f"T{number}") for number in range(3)]
    assert [one.is_cached for one in made] == [False, True, True]
    assert made[0].plan == made[2].plan
    assert (deciding.cache.hits - hits, deciding.cache.misses - misses) == (2, 1)
    assert count(database, "assignments") == 3
    assert Ledger(database).verify().balanced


def test_the_planners_of_a_process_share_what_they_remember(database: Database) -> None:
    first, second = planner(database), planner(database)
    assert first.cache is not None
    first.cache.clear()
    add_task(database, "A")
    add_task(database, "B")
    assert not first.rehearse("A").is_cached
    assert second.decide("B").is_cached


def test_the_flag_switches_the_cache_off(database: Database) -> None:
    deciding = planner(database, configured(flags=Flags(planner_cache_enabled=False)))
    for number in range(2):
        add_task(database, f"T{number}")
        assert not deciding.decide(f"T{number}").is_cached
    assert deciding.cache is None


def test_a_workspace_that_has_its_share_waits(database: Database) -> None:
    config = configured(
        fairness=FairnessPolicy(points_per_hour=0, overdue_hours=1e9, workspace_caps={"acme/web": 1})
    )
    add_task(database, "A")
    add_task(database, "B")
    assert planner(database, config).decide("A").outcome is Outcome.ASSIGNED
    assert planner(database, config).decide("B").reason is Reason.WORKSPACE_CAP


def test_a_batch_never_repeats_what_was_decided_inline(database: Database) -> None:
    config = configured(Strategy.TIERED)
    add_task(database, "A", value_score=50)
    planner(database, config).decide("A")
    assert Assigner(database, Ledger(database), config).assign_day(DAY).decided == 0
    assert count(database, "outbox") == 1


def test_a_failure_inside_leaves_nothing_but_the_attempt(database: Database) -> None:
    config = configured()
    Ledger(database).open_accounts(config.registry)
    add_task(database, "A")

    class Broken(Ledger):
        def reserve(self, *_: Any, **__: Any) -> Any:
            raise ConnectionError("the process died here")

    with pytest.raises(ConnectionError):
        Planner(database, Broken(database), config).decide("A")
    assert account_total(database) == 0
    assert database.fetch("SELECT outcome, detail ->> 'error' FROM assignment_attempts") == [
        ("failed", "the process died here")
    ]


def test_a_connection_that_is_lost_takes_everything_with_it(database: Database) -> None:
    config = configured()
    Ledger(database).open_accounts(config.registry)
    task = add_task(database, "A")

    class Killed(Ledger):
        def reserve(
            self, connection: psycopg.Connection, reservations: Sequence[Reservation], **other: Any
        ) -> Any:
            database.fetch("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
            return super().reserve(connection, reservations, **other)

    with pytest.raises(DatabaseUnavailableError, match=r"the connection to the database at .* was lost"):
        Planner(database, Killed(database), config).decide("A")
    assert (task_row(database, task)["state"], account_total(database)) == ("queued", 0)
    assert [count(database, table) for table in ("assignments", "events", "outbox")] == [0] * 3
    assert attempts(database) == [("inline", "failed", None, 0)]
    assert planner(database, config).decide("A").outcome is Outcome.ASSIGNED


def test_decisions_at_once_in_many_threads_never_promise_more_than_there_is(database: Database) -> None:
    affordable, asked = 7, 12
    config = only_sonnet(affordable * TOKENS, inline=InlinePolicy(deadline_seconds=20))
    for number in range(asked):
        add_task(database, f"T{number}")
    deciding = planner(database, config)
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda number: deciding.decide(f"T{number}"), range(asked)))
    assert sum(one.outcome is Outcome.ASSIGNED for one in made) == affordable
    assert account(database, "plan/weekly").available == 0
    assert Ledger(database).verify().balanced


def test_an_overdue_task_is_served_whatever_the_prices(database: Database) -> None:
    config = only_sonnet(10_000_000, fairness=FairnessPolicy(overdue_hours=72))
    add_batch(database, config, {"plan/weekly": 1.0})
    add_task(database, "A")
    made = planner(database, config).decide("A")
    assert (made.outcome, made.explanation["decided_by"]) == (Outcome.ASSIGNED, "overdue")


def run_out_of_time(database: Database, config: Configuration, task_id: str) -> None:
    with psycopg.connect(database.url) as other:
        other.execute("SELECT FROM cp.tasks WHERE task_id = %s FOR NO KEY UPDATE", (task_id,))
        with pytest.raises(PlannerTimeoutError):
            planner(database, config).decide(task_id, deadline_seconds=0.1)


def test_the_batch_relaxes_the_written_policy_for_what_ran_out_of_time_inline(database: Database) -> None:
    config = configured(Strategy.TIERED)
    Ledger(database).open_accounts(config.registry)
    with database.transaction() as connection:
        connection.execute("UPDATE quota_accounts SET credits_posted = 0 WHERE account = 'budget/api'")
    late, other = add_task(database, "late", value_score=50), add_task(database, "other", value_score=50)
    run_out_of_time(database, config, "late")
    Assigner(database, Ledger(database), config).assign_day(DAY)
    assert task_row(database, late) == {"state": "assigned", "reason": None, "model": "sonnet", "left": 3}
    assert task_row(database, other)["reason"] == "INSUFFICIENT_TIER_CAPACITY"
    [(inline,)] = database.fetch("SELECT payload -> 'inline' FROM events WHERE kind = 'assign.summary'")
    assert inline == {"timeout": 1}


def test_the_batch_stops_with_one_event_and_looks_at_the_task_in_its_own_time(database: Database) -> None:
    config = configured(Strategy.TIERED, tokens=1)
    Ledger(database).open_accounts(config.registry)
    with database.transaction() as connection:
        connection.execute("UPDATE quota_accounts SET credits_posted = 0 WHERE account = 'budget/api'")
    task = add_task(database, "A", value_score=50)
    for left in (2, 1, 0, 0):
        with database.transaction() as connection:
            connection.execute("UPDATE tasks SET available_at = now()")
        Assigner(database, Ledger(database), config).assign_day(DAY)
        assert task_row(database, task)["left"] == left
    assert stops(database) == [("A", Stop.EXHAUSTED, "INSUFFICIENT_GLOBAL_CAPACITY")]
