"""One task decided at once: as a batch at the same prices would decide it, remembered or not."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hand_made import MODELS, NOW, accounts, registry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from market_tasks import CATALOGUE, REGISTRY, decide, market_task
from pandas import DataFrame

from cp_core.assignment.cache import PlannerCache
from cp_core.assignment.calibration import Calibration
from cp_core.assignment.decision import Outcome
from cp_core.assignment.exploration import ExplorationPolicy
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.inline import Answer, Circumstances, Desk
from cp_core.assignment.market import Catalogue, Market
from cp_core.assignment.narration import in_words
from cp_core.assignment.optimal import assign_optimal
from cp_core.assignment.plans import PlanPolicy
from cp_core.assignment.policy import AssignmentPolicy, Band, relaxed
from cp_core.assignment.predict import PredictionPolicy
from cp_core.assignment.solver import NO_PLAN, Solution
from cp_core.assignment.strategies import OBJECTIVES, ObjectivePolicy, Strategy
from cp_core.assignment.tiered import assign_tiered
from cp_core.models.registry import ModelRegistry, Tier
from cp_core.tasks.reasons import Reason


def desk(
    strategy: Strategy = Strategy.MAXIMIZE_VALUE,
    *,
    cache: PlannerCache[Answer] | None = None,
    models: ModelRegistry = REGISTRY,
    catalogue: Catalogue = CATALOGUE,
    **policy: Any,
) -> Desk:
    return Desk(
        models, catalogue, AssignmentPolicy(strategy=strategy, **policy), FairnessPolicy(), "hash", cache
    )


def at(
    prices: dict[str, float] | None = None, *, held: dict[str, float] | None = None, **other: Any
) -> Circumstances:
    return Circumstances(accounts(REGISTRY, **(held or {})), NOW, prices or {}, **other)


def decided(task: dict[str, Any], now_at: Circumstances, **other: Any) -> Any:
    return desk(**other).decide(task, now_at, tick=0.0).decision


def test_at_no_prices_the_plan_of_most_worth_is_taken():
    decision = decided(market_task(value_score=95), at())
    assert decision.outcome is Outcome.ASSIGNED
    assert decision.explanation["decided_by"] == "prices"
    assert decision.explanation["plan"]["net"] >= max(
        other["net"] for other in decision.explanation["alternatives"]
    )


def test_a_price_on_the_subscription_sends_a_task_to_money():
    dear = at({"claude-max/weekly": 1.0})  # 22,000 tokens would cost 22,000 points
    assert {stage.funding for stage in decided(market_task(value_score=95), dear).plan} == {"budget:api"}


def test_a_task_that_is_outbid_on_every_account_waits_and_an_overdue_one_does_not():
    dear = at({"claude-max/weekly": 1.0, "budget/api": 1e6})
    decision = decided(market_task(value_score=50), dear)
    assert (decision.outcome, decision.reason) == (Outcome.DEFERRED, Reason.OUTBID)
    overdue = decided(market_task(value_score=50, waiting_hours=100.0), dear)
    assert overdue.explanation["decided_by"] == "overdue"


def test_what_is_lacking_is_found_before_any_search_and_proven():
    answer = desk().decide(
        market_task(), at(held={"five_hour": 9_999, "weekly": 500_000, "api": 0.001}), tick=0.0
    )
    assert answer.decision.reason is Reason.INSUFFICIENT_GLOBAL_CAPACITY
    assert answer.decision.explanation["lacking"] == [
        # luna: 20,000 x $0.1 + 2,000 x $0.5 a million
        {"account": "budget/api", "needed_at_least": pytest.approx(0.003), "available": 0.001},
        {"account": "claude-max/5-hour", "needed_at_least": 22_000.0, "available": 9_999.0},
    ]
    assert answer.pruned == {"INSUFFICIENT_GLOBAL_CAPACITY": len(CATALOGUE.book)}
    words = in_words(answer.decision.explanation, answer.decision.reason)
    assert "claude-max/5-hour: at least 22,000 tokens needed, 9,999 tokens available" in words


def test_the_written_policy_proves_what_its_tiers_lack():
    short = at(held={"five_hour": 1_000, "api": 0.1})
    decision = decided(market_task(value_score=95), short, strategy=Strategy.TIERED)
    assert decision.reason is Reason.INSUFFICIENT_TIER_CAPACITY
    assert decision.explanation["lacking"] == [
        # opus: 20,000 x $5 + 2,000 x $25 a million
        {"account": "budget/api", "needed_at_least": pytest.approx(0.15), "available": 0.1},
        {"account": "claude-max/5-hour", "needed_at_least": 22_000.0, "available": 1_000.0},
    ]
    assert "budget/api: at least $0.1500 needed, $0.1000 available" in in_words(
        decision.explanation, decision.reason
    )


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("value_score", float("nan")),
        ("value_score", -1.0),
        ("input_mean", float("nan")),
        ("output_high", -0.1),
        ("input_median", float("inf")),
        ("waiting_hours", float("nan")),
        ("domain", "poetry"),
        ("complexity", "impossible"),
    ],
)
def test_figures_that_cannot_be_are_named(strategy, column, value):
    decision = decided(market_task(**{column: value}), at(), strategy=strategy)
    assert (decision.outcome, decision.reason) == (Outcome.REJECTED, Reason.INVALID_REQUEST)
    assert decision.explanation["invalid"]["column"] == column
    assert decision.explanation["invalid"]["value"] == str(value)
    json.dumps(decision.explanation, allow_nan=False)
    assert in_words(decision.explanation, decision.reason).startswith(
        f"not assigned: {column} of the task is {value}"
    )


@pytest.mark.parametrize("price", [float("nan"), -1.0, float("inf")])
def test_a_price_that_cannot_be_is_an_error_that_names_the_account(price):
    with pytest.raises(ValueError, match=r"the price of budget/api is .*: run the batch again"):
        decided(market_task(), at({"budget/api": price}))


def test_prices_and_failures_of_what_is_no_longer_configured_change_nothing():
    plain = decided(market_task(), at())
    other = decided(market_task(failed_models=["vanished"]), at({"gone/weekly": 5.0}))
    assert (other.plan, other.expected_cost_usd) == (plain.plan, plain.expected_cost_usd)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_an_account_that_is_closed_pays_for_nothing(strategy):
    open_ones = [one for one in accounts(REGISTRY) if one.account != "claude-max/weekly"]
    decision = decided(market_task(), Circumstances(open_ones, NOW), strategy=strategy)
    assert {stage.funding for stage in decision.plan} == {"budget:api"}


def test_a_negative_balance_is_no_balance():
    broken = [replace(one, available=Decimal(-5)) for one in accounts(REGISTRY)]
    assert decided(market_task(), Circumstances(broken, NOW)).reason is Reason.INSUFFICIENT_GLOBAL_CAPACITY


def test_without_any_model_there_is_a_reason():
    none = registry(**{name: {"enabled": False} for name in MODELS})
    empty = Catalogue(none, PredictionPolicy(), PlanPolicy(), ObjectivePolicy(), Calibration())
    for strategy in (Strategy.TIERED, Strategy.MAXIMIZE_VALUE):
        decision = decided(market_task(), at(), strategy=strategy, models=none, catalogue=empty)
        assert decision.reason is Reason.NO_ELIGIBLE_PLAN
    assert [made.reason for made in decide(market_task(), models=empty).decisions] == [
        Reason.NO_ELIGIBLE_PLAN
    ]


def test_a_clock_that_ran_backwards_adds_nothing_to_a_value():
    assert decided(market_task(waiting_hours=-50.0), at()).explanation["aged_value"] == 50.0


@pytest.mark.parametrize("strategy", [Strategy.TIERED, Strategy.MAXIMIZE_VALUE])
def test_what_cannot_be_decided_now_is_turned_away(strategy):
    def reason(**column: Any) -> Reason | None:
        return decided(market_task(**column), at(), strategy=strategy).reason

    assert reason(deadline=NOW - timedelta(seconds=1)) is Reason.DEADLINE_PASSED
    assert reason(dependencies_pending=["B"]) is Reason.DEPENDENCY_PENDING
    assert reason(dependencies_failed=["B"]) is Reason.DEPENDENCY_FAILED
    assert reason(input_high=1e9) is Reason.NO_ELIGIBLE_PLAN
    assert decided(market_task(), at(has_room=False), strategy=strategy).reason is Reason.WORKSPACE_CAP


def test_a_relaxed_policy_allows_one_tier_either_side_after_its_own():
    policy = AssignmentPolicy()
    assert relaxed(policy, 0) == policy
    assert [band.tiers for band in relaxed(policy, 1).bands] == [
        (Tier.PREMIUM, Tier.MID_PREMIUM),
        (Tier.PREMIUM, Tier.MID_PREMIUM, Tier.MID_RANGE),
        (Tier.MID_PREMIUM, Tier.MID_RANGE, Tier.PREMIUM, Tier.BUDGET),
        (Tier.MID_RANGE, Tier.BUDGET, Tier.MID_PREMIUM),
        (Tier.BUDGET, Tier.MID_RANGE),
    ]
    assert set(relaxed(policy, 3).bands[0].tiers) == set(Tier)
    assert [band.at_least for band in relaxed(policy, 1).bands] == [90, 75, 60, 40, 0]
    assert (
        relaxed(AssignmentPolicy(bands=(Band(at_least=0, tiers=(Tier.BUDGET,), defer=True),)), 1)
        .bands[0]
        .defer
    )


def test_relaxed_the_written_policy_takes_the_tier_beside_only_when_its_own_cannot():
    poor = at(held={"five_hour": 0, "api": 0.07}, tiers_either_side=1)
    decision = decided(market_task(value_score=95), poor, strategy=Strategy.TIERED)
    assert (
        decision.model == "argon"
    )  # mid-premium: 20,000 x $2 + 2,000 x $10 a million is $0.06; premium costs more
    assert decision.explanation["tiers_either_side"] == 1
    assert "relaxed because the last attempt ran out of time" in in_words(decision.explanation)
    rich = decided(market_task(value_score=95), at(tiers_either_side=1), strategy=Strategy.TIERED)
    assert rich.model == "opus"


VALUES = st.sampled_from([0.0, 12.5, 45.0, 60.0, 89.9, 95.0, 100.0])
PRICES = st.fixed_dictionaries(
    {
        "claude-max/5-hour": st.sampled_from([0.0, 1e-4, 1e-3]),
        "claude-max/weekly": st.sampled_from([0.0, 1e-4]),
        "budget/api": st.sampled_from([0.0, 1.0, 50.0]),
    }
)
HELD = st.fixed_dictionaries(
    {
        "five_hour": st.sampled_from([0, 21_999, 22_000, 30_000, 60_000, 400_000, 1_000_000]),
        "weekly": st.sampled_from([0, 22_000, 50_000, 500_000, 4_000_000]),
        "api": st.sampled_from([0, 0.003, 0.0599, 0.06, 0.15, 1, 100]),
    }
)
TASKS = st.fixed_dictionaries(
    {
        "value_score": VALUES,
        "waiting_hours": st.sampled_from([0.0, 1.0, 30.0, 100.0]),
        "domain": st.sampled_from(["backend", "infrastructure"]),
        "complexity": st.sampled_from(["simple", "highly_complex"]),
        "failed_models": st.sampled_from([None, ["opus"], ["haiku", "luna"]]),
        "deadline": st.sampled_from([None, NOW + timedelta(seconds=10), NOW + timedelta(days=1)]),
    }
)


def at_the_prices_it_starts_from(market: Market, worth: Any, *, start: Any, **_: Any) -> Solution:
    """In place of the solver: of the plans that fit, the only task gets the one of most worth less price, if any."""
    net = {
        plan: worth[plan, 0] - market.price(start)[plan, 0]
        for plan in range(len(worth))
        if (market.need_of(0)[plan] <= market.capacity).all()
    }
    best = max(net, key=lambda plan: net[plan], default=NO_PLAN)
    choice = np.array([best if best != NO_PLAN and net[best] > 0 else NO_PLAN], dtype=np.int16)
    return Solution(choice, start, 0.0, 0.0, market.use_of(choice), 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TASKS, PRICES, HELD, st.sampled_from(OBJECTIVES))
def test_one_task_gets_what_a_batch_at_the_same_prices_would_give_it(
    monkeypatch, features, prices, held, strategy
):
    task = market_task(**features)
    monkeypatch.setattr(Market, "clear", at_the_prices_it_starts_from)
    [batch] = assign_optimal(
        DataFrame([task]),
        CATALOGUE,
        accounts(REGISTRY, **held),
        AssignmentPolicy(strategy=strategy),
        strategy,
        fairness=FairnessPolicy(),
        exploration=ExplorationPolicy(rate=0),
        now=NOW,
        seed=1,
        start=prices,
        compare=False,
    ).decisions
    inline = decided(task, at(prices, held=held), strategy=strategy)
    assert (inline.outcome, inline.reason, inline.plan) == (batch.outcome, batch.reason, batch.plan)
    assert inline.expected_cost_usd == batch.expected_cost_usd
    if inline.outcome is Outcome.ASSIGNED:
        assert {**inline.explanation, "probabilities": 0} == {**batch.explanation, "probabilities": 0}


@settings(max_examples=60, deadline=None)
@given(TASKS, HELD)
def test_one_task_gets_what_the_written_policy_gives_it_in_a_batch(features, held):
    task = market_task(**features)
    policy = AssignmentPolicy()
    [batch] = assign_tiered(DataFrame([task]), REGISTRY, accounts(REGISTRY, **held), policy, now=NOW)
    inline = decided(task, at(held=held), strategy=Strategy.TIERED)
    assert (inline.outcome, inline.reason, inline.plan) == (batch.outcome, batch.reason, batch.plan)
    assert {name: part for name, part in inline.explanation.items() if name != "lacking"} == batch.explanation


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_remembered_answer_is_the_one_that_would_be_found_again(data):
    """Balances, hours and deadlines differ between the two; where the keys are equal, so are the answers."""
    strategy = data.draw(st.sampled_from(list(Strategy)))
    cache = PlannerCache[Answer](ttl_seconds=10, most_entries=10)
    remembering, fresh = desk(strategy, cache=cache), desk(strategy)
    features, prices = data.draw(TASKS), data.draw(PRICES)
    windows = st.sampled_from([None, timedelta(hours=1), timedelta(hours=1, seconds=20), timedelta(hours=4)])

    def circumstances() -> Circumstances:
        ends = data.draw(windows)
        held = [
            replace(one, window_ends_at=ends and NOW + ends) for one in accounts(REGISTRY, **data.draw(HELD))
        ]
        return Circumstances(held, NOW, prices, prices_of=1)

    for number in range(6):
        task = market_task(number, **features)
        now_at = circumstances()
        answer = remembering.decide(task, now_at, tick=0.0)
        assert answer.decision == fresh.decide(task, now_at, tick=0.0).decision
    assert cache.hits + cache.misses == 6


def test_a_full_account_that_loses_a_little_still_answers_from_memory_and_a_scarce_one_does_not():
    cache = PlannerCache[Answer](ttl_seconds=10, most_entries=10)
    remembering = desk(cache=cache)
    remembering.decide(market_task(1), at(), tick=0.0)
    again = remembering.decide(market_task(2), at(held={"five_hour": 900_000, "api": 99}), tick=1.0)
    assert (again.is_cached, again.decision.task_id) == (True, "T-2")
    scarce = remembering.decide(market_task(3), at(held={"five_hour": 22_000}), tick=1.0)
    assert not scarce.is_cached


def test_failures_are_remembered_too_and_everything_only_for_a_while():
    cache = PlannerCache[Answer](ttl_seconds=10, most_entries=10)
    remembering = desk(cache=cache)
    poor = at(held={"five_hour": 5, "api": 0})
    assert not remembering.decide(market_task(1), poor, tick=0.0).is_cached
    again = remembering.decide(market_task(2), poor, tick=9.0)
    assert (again.is_cached, again.decision.reason) == (True, Reason.INSUFFICIENT_GLOBAL_CAPACITY)
    assert not remembering.decide(market_task(3), poor, tick=10.0).is_cached


def test_what_another_configuration_or_batch_decided_is_not_taken_over():
    cache = PlannerCache[Answer](ttl_seconds=10, most_entries=10)
    first = desk(cache=cache)
    first.decide(market_task(), at({"budget/api": 1.0}, prices_of="monday"), tick=0.0)
    other_prices = first.decide(market_task(), at({"budget/api": 2.0}, prices_of="tuesday"), tick=0.0)
    assert not other_prices.is_cached
    policy = AssignmentPolicy(strategy=Strategy.MAXIMIZE_VALUE)
    second = Desk(REGISTRY, CATALOGUE, policy, FairnessPolicy(), "another hash", cache)
    assert not second.decide(market_task(), at({"budget/api": 1.0}, prices_of="monday"), tick=0.0).is_cached
