"""The solver's strategies through the assigner, against a real PostgreSQL: rounds, races, caps, replays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from test_assigner import DAY, TOKENS, RacedLedger, account, add_task, configuration, count, states

from cp_core.assignment.decision import Decision, Outcome, Stage
from cp_core.assignment.exploration import ExplorationPolicy
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.narration import in_words
from cp_core.assignment.plans import PlanPolicy
from cp_core.assignment.strategies import OBJECTIVES, Strategy
from cp_core.policy.policies import Policies
from cp_core.tasks.reasons import Reason
from cp_resources import assigner as assigner_module
from cp_resources.assigner import Assigner
from cp_resources.assignment_batches import AssignmentBatches, Prices, seed_of
from cp_resources.assignment_replay import Replay, ReplayError
from cp_resources.assignment_store import spelled_out
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.planner import Planner

PATIENT = FairnessPolicy(overdue_hours=1e6, points_per_hour=0)
"""The tasks here were submitted on a day of the past: none is to be overdue for that."""


def market(
    strategy: str = "maximize_value",
    *,
    rate: float = 0.0,
    fairness: FairnessPolicy = PATIENT,
    stages: int = 1,
    **other: Any,
) -> Configuration:
    made = configuration(strategy=strategy, **other)
    policies = Policies(
        assignment=made.policies.assignment,
        fairness=fairness,
        exploration=ExplorationPolicy(rate=rate),
        plans=PlanPolicy(most_stages=stages),
    )
    return replace(made, policies=policies)


def assign(database: Database, config: Configuration, **options: Any) -> Any:
    return Assigner(database, Ledger(database), config).assign_day(DAY, **options)


@pytest.mark.parametrize("strategy", OBJECTIVES)
def test_a_round_is_decided_reserved_and_stored_with_its_prices(database: Database, strategy: str) -> None:
    for number in range(30):
        add_task(database, f"T{number}", 40 + number)
    config = market(strategy, tokens=10 * TOKENS, usd=0.001)
    summary = assign(database, config, run_id="run-1")
    assert summary.outcomes == {"assigned": 10, "deferred": 20}
    assert account(database, "claude-max/weekly").available == 0
    [row] = database.fetch(
        """SELECT id, strategy, seed, tasks, assigned, gap <= 1, objective <= bound, run_id, submission_day,
               available -> 'claude-max/weekly', alternatives -> 'tasks' FROM assignment_batches"""
    )
    batch, *rest = row
    assert rest == [strategy, seed_of(DAY, 0), 30, 10, True, True, "run-1", DAY, 10 * TOKENS, 30]
    assert database.fetch("SELECT DISTINCT batch, path, strategy, config_hash FROM assignments") == [
        (batch, "batch", strategy, config.content_hash)
    ]
    assert database.fetch("SELECT DISTINCT propensity FROM assignments WHERE outcome = 'assigned'") == [
        (1.0,)
    ]
    assert count(database, "outbox") == 10
    assert Ledger(database).verify().balanced


def test_scarce_quota_goes_to_the_most_valuable_tasks(database: Database) -> None:
    for number in range(10):
        add_task(database, f"T{number}", 50 + 4 * number)
    assign(database, market(tokens=3 * TOKENS, usd=0.001))
    assert {task for task, (state, _) in states(database).items() if state == "assigned"} == {
        "T7",
        "T8",
        "T9",
    }
    assert states(database)["T0"] == ("deferred", "OUTBID")


def test_a_round_records_what_every_strategy_would_have_given(database: Database) -> None:
    for number in range(12):
        add_task(database, f"T{number}", 40 + 5 * number)
    assign(database, market(tokens=4 * TOKENS, usd=0.5))
    [(alternatives, forecast)] = database.fetch("SELECT alternatives, forecast FROM assignment_batches")
    assert set(alternatives["strategies"]) == {"tiered", *OBJECTIVES}
    assert alternatives["of"] == 12
    assert alternatives["strategies"]["maximize_value"]["value"] == pytest.approx(forecast["value"])
    assert alternatives["strategies"]["tiered"]["value"] <= forecast["value"]


def test_a_round_of_the_written_policy_records_them_too_and_prices_nothing_inline(database: Database) -> None:
    config = configuration()
    for number in range(6):
        add_task(database, f"T-{number}", 40.0 + 10 * number)
    assign(database, config)
    [(strategy, tasks, assigned, gap, alternatives)] = database.fetch(
        "SELECT strategy, tasks, assigned, gap, alternatives FROM assignment_batches"
    )
    assert (strategy, tasks, assigned) == (
        "tiered",
        6,
        4,
    )  # 60 and 70 may have tiers that there is no model of
    assert 0 <= gap <= 1
    assert set(alternatives["strategies"]) == {one.value for one in Strategy}
    assert alternatives["strategies"]["tiered"]["assigned"] == 4
    add_task(database, "alone", 50.0)
    alone = Planner(database, Ledger(database), config).decide("alone")
    assert alone.batch is None


def test_the_next_round_starts_at_the_prices_of_the_one_before(database: Database) -> None:
    config = market(tokens=3 * TOKENS, usd=0.001)
    for number in range(10):
        add_task(database, f"T{number}", 50 + number)
    assign(database, config)
    add_task(database, "late", 99)
    assign(database, config)
    rows = database.fetch("SELECT id, started_from, seed FROM assignment_batches ORDER BY decided_at")
    assert (rows[0][1], rows[1][1]) == (None, rows[0][0])
    assert (rows[0][2], rows[1][2]) == (seed_of(DAY, 0), seed_of(DAY, 10))


def test_a_repeat_decides_nothing_anew(database: Database) -> None:
    add_task(database, "A", 95)
    config = market()
    assert assign(database, config).decided == 1
    assert assign(database, config).decided == 0
    assert (count(database, "assignments"), count(database, "assignment_batches")) == (1, 1)


def test_deadlines_and_dependencies_are_honoured(database: Database) -> None:
    add_task(database, "late", 95, deadline=datetime(2026, 3, 4, 13, tzinfo=UTC))
    add_task(database, "gone", 95, state="dead")
    add_task(database, "open", 95, state="succeeded")
    add_task(database, "after gone", 95, dependencies=["gone"])
    add_task(database, "after nobody", 95, dependencies=["nobody"])
    add_task(database, "after open", 95, dependencies=["open"])
    assign(database, market())
    found = states(database)
    assert found["late"] == ("dead", "DEADLINE_PASSED")
    assert found["after gone"] == ("dead", "DEPENDENCY_FAILED")
    assert found["after nobody"] == ("deferred", "DEPENDENCY_PENDING")
    assert found["after open"] == ("assigned", None)


def test_chunks_are_stored_beside_each_other_and_nothing_is_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assigner_module, "_CHUNK", 7)
    for number in range(60):
        add_task(database, f"T{number}", 40 + number % 60)
    summary = assign(database, market(batch_size=7, stages=2, rate=0.1))
    assert summary.outcomes == {"assigned": 60}
    assert summary.races_lost == 0
    assert count(database, "assignments") == 60
    assert Ledger(database).verify().balanced
    [(payload,)] = database.fetch("SELECT payload FROM events WHERE kind = 'assign.summary'")
    assert payload["outcomes"] == {"assigned": 60}
    assert payload["gap"] is not None
    assert set(payload["seconds"]) == {"read", "decide", "store", "total"}


def test_a_task_whose_quota_others_took_is_replanned_in_the_next_round(database: Database) -> None:
    add_task(database, "A", 95)
    add_task(database, "B", 96)
    raced = RacedLedger(database, tokens=TOKENS, times=1)
    config = market(tokens=2 * TOKENS)
    summary = Assigner(database, raced, config).assign_day(DAY)
    assert summary.outcomes == {"assigned": 2}
    assert summary.races_lost >= 1
    assert count(database, "assignment_batches") == 2
    assert Ledger(database).verify().balanced


def test_two_assigners_at_once_assign_no_task_twice_and_overdraw_nothing(database: Database) -> None:
    for number in range(120):
        add_task(database, f"T{number}", 40 + number % 60)
    config = market(tokens=50 * TOKENS, usd=0.001)

    def run() -> Any:
        own = Database(database.url)
        try:
            return Assigner(own, Ledger(own), config).assign_day(DAY)
        finally:
            own.close()

    with ThreadPoolExecutor(3) as pool:
        summaries = [future.result() for future in [pool.submit(run) for _ in range(3)]]
    assert sum(summary.outcomes["assigned"] for summary in summaries) == 50
    assert count(database, "assignments WHERE outcome = 'assigned'") == 50
    assert count(database, "(SELECT task FROM assignments GROUP BY task HAVING count(*) > 1) AS twice") == 0
    assert Ledger(database).verify().balanced


def test_a_task_that_changed_after_it_was_read_is_left_to_the_next_round(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_task(database, "A", 95)
    add_task(database, "B", 95)
    original = Assigner._solve

    def cancel_meanwhile(self: Assigner, *arguments: Any) -> Any:
        with psycopg.connect(database.url) as other:
            other.execute("UPDATE cp.tasks SET state = 'cancelled' WHERE task_id = 'A'")
        return original(self, *arguments)

    monkeypatch.setattr(Assigner, "_solve", cancel_meanwhile)
    assert assign(database, market()).outcomes == {"assigned": 1}
    assert states(database) == {"A": ("cancelled", None), "B": ("assigned", None)}


def test_a_crash_before_the_commit_leaves_the_chunk_as_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_task(database, "A", 95)

    def crash(*_: object, **__: object) -> None:
        raise ConnectionError("the process died here")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "hold_all", crash)
        with pytest.raises(ConnectionError):
            assign(database, market())
    assert states(database)["A"] == ("queued", None)
    assert (count(database, "assignments"), count(database, "outbox")) == (0, 0)
    assert account(database, "claude-max/weekly").pending == 0
    assert assign(database, market()).outcomes == {"assigned": 1}


@pytest.mark.parametrize("strategy", ["tiered", "maximize_value"])
def test_a_workspace_never_holds_more_than_its_cap_however_many_assign(
    database: Database, strategy: str
) -> None:
    capped = PATIENT.model_copy(update={"workspace_caps": {"here": 4}})
    for number in range(10):
        add_task(database, f"T{number}", 90 + number)
    config = market(strategy, fairness=capped)

    def run() -> None:
        own = Database(database.url)
        Assigner(own, Ledger(own), config).assign_day(DAY)
        own.close()

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(run) for _ in range(3)]:
            future.result()
    found = list(states(database).values())
    assert found.count(("assigned", None)) == 4
    assert found.count(("deferred", "WORKSPACE_CAP")) == 6
    assert account(database, "claude-max/weekly").pending == 4 * TOKENS


def test_one_task_is_decided_at_the_prices_of_the_latest_round_and_says_which(database: Database) -> None:
    config = market(tokens=3 * TOKENS, usd=0.001)
    for number in range(10):
        add_task(database, f"T{number}", 50 + number)
    assign(database, config)
    add_task(database, "poor", 10)
    poor = Planner(database, Ledger(database), config).decide("poor")
    assert poor.outcome is Outcome.DEFERRED
    [(batch, prices)] = database.fetch("SELECT id, prices FROM assignment_batches")
    assert prices["claude-max/weekly"] > 0
    assert database.fetch(
        "SELECT batch, path FROM assignments JOIN tasks ON tasks.id = task WHERE task_id = 'poor'"
    ) == [(batch, "inline")]


def explanations(database: Database, condition: LiteralString = "true") -> list[dict[str, Any]]:
    """The stored explanations as they are read, in the order of the decisions."""
    rows = database.fetch(
        f"""SELECT explanation, figures, legend
            FROM assignments LEFT JOIN assignment_batches ON assignment_batches.id = batch
            WHERE {condition} ORDER BY assignments.id"""
    )
    return [spelled_out(*row) for row in rows]


def test_the_explanation_in_words_says_what_settled_it(database: Database) -> None:
    for number in range(10):
        add_task(database, f"T{number}", 50 + number)
    config = market(tokens=6 * TOKENS, usd=0.5)
    assign(database, config)
    shown = Planner(database, Ledger(database), config).decide("T9")
    text = in_words(shown.explanation, shown.reason)
    assert "strategy maximize_value" in text
    assert "chosen:\n  " in text
    assert "next best:" in text
    assert "a million tokens" in text
    outbid = explanations(database, "outcome = 'deferred'")
    if outbid:
        assert "nearest to being given:" in in_words(outbid[0], Reason.OUTBID)


@pytest.mark.parametrize("strategy", OBJECTIVES)
def test_stored_decisions_and_whole_rounds_are_made_again_to_the_same_plans(
    database: Database, strategy: str
) -> None:
    for number in range(80):
        add_task(database, f"T{number}", 20 + number, input_mean=5_000 + 531 * (number % 40))
    config = market(strategy, tokens=400_000, usd=3, rate=0.1, stages=2)
    assign(database, config)
    stored = [
        (task, identity, explanation.get("plan", {}).get("plan"), explanation.get("decided_by"), batch)
        for (task, identity, batch), explanation in zip(
            database.fetch("SELECT task, decision_id, batch FROM assignments ORDER BY id"),
            explanations(database),
            strict=True,
        )
    ]
    replay = Replay(database)
    [batch] = {row[4] for row in stored}
    assert replay.round(batch) == {task: plan for task, _, plan, _, _ in stored}
    settled = [(identity, plan) for _, identity, plan, by, _ in stored if by == "prices"]
    assert settled
    assert [replay.plan(identity) for identity, _ in settled] == [plan for _, plan in settled]


def test_a_small_late_round_does_not_undo_the_prices_that_the_day_found(database: Database) -> None:
    for number in range(40):
        add_task(database, f"T{number}", 20 + number)
    config = market(tokens=20 * TOKENS, usd=0.0001)
    assign(database, config)
    found = latest_prices(database, config)
    assert found.by_account["claude-max/weekly"] > 0
    with database.transaction() as connection:  # nothing is scarce for who comes late
        connection.execute(
            "UPDATE quota_accounts SET credits_posted = credits_posted + 1e7 WHERE account = 'claude-max/weekly'"
        )
    add_task(database, "late", 60)
    assign(database, config)
    late = latest_prices(database, config)
    assert late.batch != found.batch
    assert late.by_account["claude-max/weekly"] == 0
    quote, before = late.quotes["claude-max/weekly"], found.quotes["claude-max/weekly"]
    assert (quote.tasks, quote.until) == (before.tasks + late_tasks(database), before.until)
    assert quote.price == pytest.approx(before.price * before.tasks / quote.tasks)


def latest_prices(database: Database, config: Configuration) -> Prices:
    return AssignmentBatches(database).latest("maximize_value", config.content_hash)


def late_tasks(database: Database) -> int:
    [(tasks,)] = database.fetch("SELECT tasks FROM assignment_batches ORDER BY decided_at DESC LIMIT 1")
    return int(tasks)


def test_what_is_not_stored_cannot_be_made_again(database: Database) -> None:
    with pytest.raises(ReplayError, match="is not stored"):
        Replay(database).plan(uuid4())
    with pytest.raises(ReplayError, match="is not stored"):
        Replay(database).round(uuid4())


def test_a_plan_of_two_stages_reserves_the_first_and_what_is_expected_of_the_second(
    database: Database,
) -> None:
    for number in range(5):
        add_task(database, f"T{number}", 85)
    assign(database, market("minimize_cost", stages=2))
    stored = database.fetch(
        """SELECT plan, array_agg(transfer_id)
           FROM assignments JOIN quota_transfers ON reservation = decision_id GROUP BY decision_id, plan"""
    )
    for plan, transfers in stored:
        first = plan[0]["amounts"]
        assert Decimal(next(iter(first.values()))) in (Decimal(TOKENS), Decimal("0.3"))
        assert len(transfers) == len({account for stage in plan for account in stage["amounts"]})


@pytest.mark.parametrize("in_columns", [True, False], ids=["in columns", "one by one"])
def test_what_is_stored_is_what_was_decided(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, in_columns: bool
) -> None:
    decided: dict[int, Decision] = {}
    original = Assigner._make_real

    def keep(self: Assigner, facts: Any, decisions: Any, *others: Any) -> None:
        decided.update({decision.task: decision for decision in decisions})
        original(self, facts, decisions, *others)

    monkeypatch.setattr(Assigner, "_make_real", keep)
    if not in_columns:
        monkeypatch.setattr(Ledger, "hold_all", lambda *_, **__: False)
    for number in range(40):
        add_task(database, f"T{number}", 40 + number, input_mean=20_000 + number / 3)
    config = market(stages=2, rate=0.1, tokens=20 * TOKENS)
    assert assign(database, config, run_id="run-1").outcomes == {"assigned": 40}
    stored = database.fetch(
        """SELECT task, plan, expected_cost_usd, a.propensity, a.model, funding, outcome, a.reason, strategy,
               config_hash, run_id, path, a.submission_day, explanation, t.model, t.state, t.value_score,
               t.assignment = a.id
           FROM assignments a JOIN tasks t ON t.id = a.task"""
    )
    assert len(stored) == 40
    for task, plan, cost, propensity, *rest in stored:
        decision = decided[task]
        assert tuple(Stage.from_json(stage) for stage in plan) == decision.plan
        assert (cost, propensity) == (decision.expected_cost_usd, decision.propensity)
        names = [decision.model, decision.funding, "assigned", None, "maximize_value", config.content_hash]
        moved = [decision.model, "assigned", decision.value_score, True]
        assert rest == [*names, "run-1", "batch", DAY, {}, *moved]
    assert any(len(decision.plan) == 2 for decision in decided.values())
    assert any(decision.funding == "budget:api" for decision in decided.values())
    held = database.fetch(
        "SELECT task, debit_account, amount FROM quota_transfers WHERE phase = 'pending' AND expires_at > now()"
    )
    assert sorted(held) == sorted(
        (task, account, amount)
        for task, decision in decided.items()
        for account, amount in decision.amounts.items()
    )
    assert Ledger(database).verify().balanced
