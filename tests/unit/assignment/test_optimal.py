"""Whole batches by the solver's strategies: who gets what, in which order, and what is said about it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hand_made import NOW, accounts
from market_tasks import CATALOGUE, REGISTRY, SINGLES, decide, market_task

from cp_core.assignment import optimal
from cp_core.assignment.decision import Outcome
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.strategies import OBJECTIVES, Strategy
from cp_core.tasks.reasons import Reason

TOKENS = 22_000
ONE_TASK = {"five_hour": TOKENS, "api": 0}
"""Accounts that hold what one task needs, and no money."""


def by_task(found: optimal.Round) -> dict[int, object]:
    return {decision.task: decision for decision in found.decisions}


def test_scarce_quota_goes_where_it_is_worth_most():
    found = by_task(decide(*[market_task(n, 10.0 * n) for n in range(1, 6)], held=ONE_TASK))
    assert found[5].outcome is Outcome.ASSIGNED
    assert {found[n].reason for n in range(1, 5)} == {Reason.OUTBID}


def test_nothing_is_given_beyond_what_accounts_hold():
    found = decide(*[market_task(n, 50 + n % 50) for n in range(200)], held={"five_hour": 500_000, "api": 1})
    used: dict[str, float] = {}
    for decision in found.decisions:
        for account, amount in decision.amounts.items():
            used[account] = used.get(account, 0) + float(amount)
    assert used["claude-max/5-hour"] <= 500_000
    assert used["budget/api"] <= 1
    assert used["claude-max/5-hour"] > 500_000 - TOKENS


def test_the_batch_is_worth_at_most_its_bound_and_says_how_near_it_came():
    found = decide(*[market_task(n, 50 + n % 50) for n in range(200)], held={"five_hour": 500_000, "api": 1})
    assert found.objective <= found.bound
    assert found.gap == pytest.approx(1 - found.objective / found.bound)
    assert found.gap < 0.02


def test_a_limiting_account_has_a_price_and_an_ample_one_has_none():
    found = decide(*[market_task(n, 50 + n % 50) for n in range(200)], held={"five_hour": 500_000, "api": 0})
    assert found.prices["claude-max/5-hour"] > 0
    assert found.prices["claude-max/weekly"] == 0


def test_cheapest_is_the_cheapest_that_reaches_the_band_and_fastest_is_not_slower():
    tasks = [market_task(n, 65.0) for n in range(20)]
    cheap = decide(*tasks, strategy=Strategy.MINIMIZE_COST)
    fast = decide(*tasks, strategy=Strategy.FASTEST)
    valuable = decide(*tasks, strategy=Strategy.MAXIMIZE_VALUE)
    assert cheap.forecast.billed_usd <= valuable.forecast.billed_usd
    assert fast.forecast.seconds <= valuable.forecast.seconds
    required = AssignmentPolicy().bands[2].required_success
    assert all(decision.explanation["plan"]["success"] >= required for decision in cheap.decisions)


def test_a_later_stage_reserves_what_is_expected_of_it_and_says_what_it_takes_when_reached():
    [decision] = decide(market_task(1, 95), held={"api": 0}, models=CATALOGUE).decisions
    first, second = decision.plan
    accounts = ("claude-max/5-hour", "claude-max/weekly")
    assert (first.model, first.amounts, first.needs) == ("sonnet", dict.fromkeys(accounts, 22_000), None)
    # sonnet does it with 0.8: accepted with 0.8 x 0.9 + 0.2 x 0.2 = 0.76, so opus is reached with 0.24
    assert (second.model, second.amounts) == ("opus", dict.fromkeys(accounts, 5_280))
    assert second.needs == dict.fromkeys(accounts, 22_000)
    assert decision.amounts == dict.fromkeys(accounts, 27_280)


def test_prepaid_tokens_that_are_about_to_lapse_are_used_before_money():
    tasks = [market_task(n, 30.0) for n in range(20)]
    found = decide(*tasks, strategy=Strategy.MAXIMIZE_SUBSCRIPTION_USAGE)
    assert found.forecast.tokens >= decide(*tasks, strategy=Strategy.MINIMIZE_COST).forecast.tokens


@pytest.mark.parametrize("strategy", OBJECTIVES)
def test_what_cannot_be_decided_now_is_turned_away_as_by_the_written_policy(strategy):
    found = by_task(
        decide(
            market_task(1, deadline=NOW - timedelta(hours=1)),
            market_task(2, dependencies_failed=["A"]),
            market_task(3, dependencies_pending=["B"]),
            market_task(4, failed_models=["opus", "astra", "sonnet", "argon", "terra", "haiku", "luna"]),
            market_task(5, input_mean=5e6, input_high=5e6),
            strategy=strategy,
        )
    )
    assert [(found[n].outcome, found[n].reason) for n in range(1, 6)] == [
        (Outcome.REJECTED, Reason.DEADLINE_PASSED),
        (Outcome.REJECTED, Reason.DEPENDENCY_FAILED),
        (Outcome.DEFERRED, Reason.DEPENDENCY_PENDING),
        (Outcome.REJECTED, Reason.NO_ELIGIBLE_PLAN),
        (Outcome.REJECTED, Reason.NO_ELIGIBLE_PLAN),
    ]


def test_a_model_that_failed_at_a_task_is_not_given_to_it_again():
    [decision] = decide(market_task(1, 95, failed_models=["astra", "argon"])).decisions
    assert decision.model not in ("astra", "argon")
    assert set(decision.explanation["excluded"]["FAILED_BEFORE"]) == {
        "astra (budget:api)",
        "argon (budget:api)",
    }


def test_nothing_left_anywhere_is_said_to_be_so():
    [decision] = decide(market_task(1), held={"five_hour": 10, "api": 0}).decisions
    assert decision.reason is Reason.INSUFFICIENT_GLOBAL_CAPACITY


def test_a_task_worth_less_than_any_plan_costs_waits():
    [decision] = decide(market_task(1, 0.0), held={"five_hour": 0}).decisions
    assert decision.reason is Reason.COST_ABOVE_VALUE


def test_the_same_batch_and_seed_give_the_same_decisions_whatever_the_order_of_rows():
    tasks = [market_task(n, 40 + n % 60) for n in range(150)]
    held = {"five_hour": 400_000, "api": 0.5}
    first = decide(*tasks, held=held, models=CATALOGUE, exploration=optimal.ExplorationPolicy(rate=0.1))
    again = decide(*tasks[::-1], held=held, models=CATALOGUE, exploration=optimal.ExplorationPolicy(rate=0.1))
    assert first == again


# --- fairness ---


def test_overdue_tasks_are_served_first_and_the_oldest_of_them_before_the_others():
    fair = FairnessPolicy(overdue_hours=72)
    tasks = [
        *[market_task(n, 100) for n in range(1, 20)],
        market_task(50, 1, waiting_hours=80),
        market_task(51, 2, waiting_hours=75),
    ]
    found = decide(*tasks, held=ONE_TASK, fairness=fair)
    assert (found.decisions[0].task, found.decisions[0].outcome) == (50, Outcome.ASSIGNED)
    assert found.decisions[0].explanation["decided_by"] == "overdue"
    assert by_task(found)[51].reason is Reason.INSUFFICIENT_GLOBAL_CAPACITY  # never outbid by the fresh
    assert {by_task(found)[n].reason for n in range(1, 20)} <= {Reason.OUTBID}


def test_a_worthless_task_under_a_flood_of_fresh_ones_waits_no_longer_than_the_stated_bound():
    """Every hour as much quota as one task needs, and ten fresh tasks of 100 points: the old ones still get theirs."""
    fair = FairnessPolicy(overdue_hours=24, points_per_hour=0.25)
    waiting = {1: -2.0, 2: -1.0}  # hour of submission of two tasks of 1 point
    assigned_at: dict[int, float] = {}
    for hour in range(40):
        tasks = [
            market_task(n, 1, waiting_hours=hour - since)
            for n, since in waiting.items()
            if n not in assigned_at
        ]
        tasks += [market_task(1000 + 10 * hour + n, 100) for n in range(10)]
        for decision in decide(*tasks, held=ONE_TASK, fairness=fair).decisions:
            if decision.outcome is Outcome.ASSIGNED:
                assigned_at[decision.task] = hour
    assert [assigned_at[n] - waiting[n] for n in (1, 2)] == [24, 24]


def test_waiting_adds_value_before_a_task_is_overdue():
    fair = FairnessPolicy(overdue_hours=1000, points_per_hour=0.25)
    found = by_task(
        decide(market_task(1, 50, waiting_hours=60), market_task(2, 60), held=ONE_TASK, fairness=fair)
    )
    assert found[1].outcome is Outcome.ASSIGNED  # 50 + 15 against 60
    assert found[1].explanation["aged_value"] == 65
    assert found[1].value_score == 50


def test_a_clock_that_ran_backwards_takes_no_value_away():
    [decision] = decide(market_task(1, 50, waiting_hours=-5)).decisions
    assert decision.explanation["aged_value"] == 50


@pytest.mark.parametrize("strategy", OBJECTIVES)
def test_a_workspace_gets_no_more_than_its_cap_and_the_others_say_so(strategy):
    fair = FairnessPolicy(workspace_caps={"acme/web": 3})
    tasks = [market_task(n, 50 + n) for n in range(6)]
    tasks += [market_task(10 + n, 40, workspace="acme/shop") for n in range(4)]
    found = by_task(decide(*tasks, strategy=strategy, fairness=fair, busy={"acme/web": 1}))
    assert [n for n in range(6) if found[n].outcome is Outcome.ASSIGNED] == [4, 5]
    assert {found[n].reason for n in range(4)} == {Reason.WORKSPACE_CAP}
    assert all(found[10 + n].outcome is Outcome.ASSIGNED for n in range(4))


def test_a_cap_is_not_spent_on_tasks_that_nothing_can_be_given_to():
    fair = FairnessPolicy(workspace_caps={"acme/web": 1})
    hopeless = market_task(1, 99, input_mean=5e6, input_high=5e6)
    found = by_task(decide(hopeless, market_task(2, 20), fairness=fair))
    assert found[1].reason is Reason.NO_ELIGIBLE_PLAN
    assert found[2].outcome is Outcome.ASSIGNED


# --- alternatives ---


def test_a_batch_says_what_every_strategy_would_have_given():
    found = decide(*[market_task(n, 40 + n) for n in range(40)], compare=True)
    assert set(found.alternatives) == {strategy.value for strategy in Strategy}
    assert found.compared == 40
    assert asdict(found.alternatives["maximize_value"]) == pytest.approx(asdict(found.forecast))
    assert all(one.value <= found.forecast.value + 1e-6 for one in found.alternatives.values())


def test_what_the_written_policy_would_have_given_is_its_own_decisions():
    tasks = [market_task(1, 95), market_task(2, 50)]
    tiered = decide(*tasks, compare=True).alternatives["tiered"]
    # opus (0.90, premium, prepaid) and terra (0.70, mid-range): 95 * 0.90 + 50 * 0.70, moderate tasks
    assert tiered.value == pytest.approx(95 * 0.90 + 50 * 0.70)
    assert tiered.tokens == TOKENS


def test_a_large_batch_is_compared_on_a_sample_with_its_share_of_the_accounts(monkeypatch):
    monkeypatch.setattr(optimal, "COMPARED_WHOLE", 100)
    monkeypatch.setattr(optimal, "COMPARED_SAMPLE", 50)
    tasks = [market_task(n, 50 + n % 50) for n in range(200)]
    found = decide(*tasks, compare=True, held={"five_hour": 40 * TOKENS, "api": 0})
    assert found.compared == 50
    assert found.alternatives["maximize_value"].tasks == 50
    assert found.alternatives["maximize_value"].assigned == 10  # a quarter of 40
    assert found.forecast.assigned == 40


def test_the_written_policy_is_measured_against_the_best_that_there_is():
    tasks = pd.DataFrame([market_task(1, 95), market_task(2, 50)])
    found = optimal.compare_policy(
        tasks,
        2,
        SINGLES,
        accounts(REGISTRY),
        AssignmentPolicy(),
        fairness=FairnessPolicy(),
        now=NOW,
        seed=1,
    )
    assert list(found.decisions) == []
    assert (found.assigned, found.compared) == (2, 2)
    assert found.forecast == found.alternatives["tiered"]
    assert set(found.alternatives) == {strategy.value for strategy in Strategy}
    best = decide(*[dict(row) for _, row in tasks.iterrows()])
    assert found.objective <= best.objective <= found.bound + 1e-6
    assert found.gap == pytest.approx(1 - found.objective / found.bound)


def test_a_sample_of_a_batch_is_given_its_share_of_the_accounts():
    tasks = pd.DataFrame([market_task(n, 95) for n in range(10)])
    held = accounts(REGISTRY, five_hour=40 * TOKENS, api=0)
    found = optimal.compare_policy(
        tasks, 20, SINGLES, held, AssignmentPolicy(), fairness=FairnessPolicy(), now=NOW, seed=1
    )
    assert found.available["claude-max/5-hour"] == 20 * TOKENS


# --- capacity checks before the search ---


def test_a_task_that_no_account_can_pay_for_is_turned_away_before_the_search_with_the_figures():
    small, large = market_task(1, 50), market_task(2, 60, input_mean=60_000.0, input_high=90_000.0)
    found = decide(small, large, held={"five_hour": 30_000, "api": 0})
    turned_away, given = found.decisions
    assert given.outcome is Outcome.ASSIGNED
    assert (turned_away.outcome, turned_away.reason) == (
        Outcome.DEFERRED,
        Reason.INSUFFICIENT_GLOBAL_CAPACITY,
    )
    lacking = {lack["account"]: lack for lack in turned_away.explanation["lacking"]}
    assert lacking["claude-max/5-hour"]["available"] == 30_000
    assert lacking["claude-max/5-hour"]["needed_at_least"] == 62_000
    assert found.pruned["INSUFFICIENT_GLOBAL_CAPACITY"] == len(SINGLES.book)
    assert "alternatives" not in turned_away.explanation


def test_an_empty_batch_is_no_work():
    found = optimal.assign_optimal(
        pd.DataFrame(),
        SINGLES,
        accounts(REGISTRY),
        AssignmentPolicy(),
        Strategy.MAXIMIZE_VALUE,
        fairness=FairnessPolicy(),
        exploration=optimal.ExplorationPolicy(),
        now=NOW,
        seed=1,
    )
    assert found.decisions == []


def test_amounts_are_whole_tokens_rounded_up_and_cover_what_is_expected():
    [decision] = decide(market_task(1, 50, input_mean=20_000.2), held={"api": 0}).decisions
    assert decision.plan[0].amounts == {"claude-max/5-hour": 22_001, "claude-max/weekly": 22_001}
    assert np.isfinite(float(decision.expected_cost_usd))
