"""The written policy, worked by hand on a registry of seven models."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from hand_made import MODELS, NOW, accounts, frame, registry, task

from cp_core.assignment.decision import Decision, Outcome
from cp_core.assignment.policy import AssignmentPolicy, Band
from cp_core.assignment.tiered import assign_tiered
from cp_core.models.registry import ModelRegistry, Tier
from cp_core.tasks.reasons import Reason

WRITTEN = AssignmentPolicy()


def decide(
    *tasks: dict,
    models: ModelRegistry | None = None,
    policy: AssignmentPolicy = WRITTEN,
    open_breakers: tuple[str, ...] = (),
    **available: float,
) -> list[Decision]:
    models = models or registry()
    return assign_tiered(
        frame(*tasks), models, accounts(models, **available), policy, now=NOW, open_breakers=open_breakers
    )


def given(decision: Decision) -> tuple[str | None, str | None]:
    return decision.model, decision.funding


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (100, "astra"),
        (90, "astra"),
        (89.99, "astra"),
        (75, "astra"),
        (74.99, "argon"),
        (60, "argon"),
        (59.99, "terra"),
        (40, "terra"),
        (39.99, "luna"),
        (0, "luna"),
    ],
)
def test_each_band_gets_the_best_model_of_its_first_tier_where_money_pays_for_all(score, expected):
    (decision,) = decide(task(value_score=score), models=registry(subscription=False))
    assert given(decision) == (expected, "budget:api")


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (95, ("opus", "subscription:claude-max")),
        (80, ("opus", "subscription:claude-max")),
        (65, ("sonnet", "subscription:claude-max")),
        (50, ("terra", "budget:api")),  # the band's first tier has no prepaid model, and tier goes first
        (20, ("haiku", "subscription:claude-max")),
    ],
)
def test_within_a_tier_what_is_prepaid_goes_before_money(score, expected):
    (decision,) = decide(task(value_score=score))
    assert given(decision) == expected


def test_from_75_to_89_a_prepaid_mid_premium_model_goes_before_a_premium_one_for_money():
    assert given(*decide(task(value_score=80, failed_models=["opus"]))) == (
        "sonnet",
        "subscription:claude-max",
    )
    assert given(*decide(task(value_score=95, failed_models=["opus"]))) == ("astra", "budget:api")


def test_infrastructure_from_60_prefers_the_claude_family_within_the_tier():
    models = registry(subscription=False)
    assert given(*decide(task(value_score=65, domain="infrastructure"), models=models))[0] == "sonnet"
    assert given(*decide(task(value_score=95, domain="infrastructure"), models=models))[0] == "opus"
    assert given(*decide(task(value_score=65, domain="backend"), models=models))[0] == "argon"


@pytest.mark.parametrize(("score", "expected"), [(60, "haiku"), (59.99, "terra")])
def test_infrastructure_prefers_the_claude_family_from_60_on_and_not_below(score, expected):
    models = registry(
        subscription=False, haiku={"tier": "mid-range"}, sonnet={"enabled": False}, argon={"enabled": False}
    )
    assert given(*decide(task(value_score=score, domain="infrastructure"), models=models))[0] == expected


def test_of_equally_able_models_the_cheaper_is_taken_and_then_the_first_by_name():
    models = registry(subscription=False)
    assert given(*decide(task(value_score=20), models=models))[0] == "luna"
    same_price = {"input_usd_per_million": 0.1, "output_usd_per_million": 0.5}
    models = registry(subscription=False, haiku=same_price)
    assert given(*decide(task(value_score=20), models=models))[0] == "haiku"


def test_a_prepaid_plan_reserves_its_mean_tokens_in_every_window_and_tells_the_list_price():
    (decision,) = decide(task(value_score=95))
    assert decision.amounts == {"claude-max/5-hour": Decimal(22_000), "claude-max/weekly": Decimal(22_000)}
    assert decision.expected_cost_usd == Decimal("0.15")  # 20,000 x $5 + 2,000 x $25 per million


def test_a_plan_for_money_reserves_its_price():
    (decision,) = decide(task(value_score=50, input_mean=12_345.0, output_mean=678.9))
    assert decision.amounts == {"budget/api": Decimal("0.015739500")}  # 12,345 x $1 + 678.9 x $5 per million


def test_a_fraction_of_a_nanodollar_is_reserved_whole():
    (decision,) = decide(task(value_score=50, input_mean=100.0, output_mean=0.0001))
    assert decision.amounts == {"budget/api": Decimal("0.000100001")}  # $0.0001 and half a nanodollar


def test_the_last_token_of_an_account_can_be_given():
    (decision,) = decide(task(value_score=95), models=registry(budget=False), five_hour=22_000)
    assert decision.model == "opus"
    (decision,) = decide(task(value_score=95), models=registry(budget=False), five_hour=21_999)
    assert decision.outcome is Outcome.DEFERRED


def test_a_task_may_need_the_whole_of_a_full_window():
    (decision,) = decide(task(value_score=95, input_mean=998_000.0), models=registry(budget=False))
    assert decision.amounts["claude-max/5-hour"] == 1_000_000


def test_a_task_is_started_until_the_margin_before_its_deadline():
    (decision,) = decide(task(value_score=95, deadline=NOW + timedelta(seconds=30)))
    assert decision.outcome is Outcome.ASSIGNED


def test_a_fraction_of_a_token_is_reserved_whole():
    (decision,) = decide(task(value_score=95, input_mean=100.2, output_mean=0.3))
    assert decision.amounts["claude-max/weekly"] == Decimal(101)


def test_without_quota_in_the_preferred_tier_the_next_tier_of_the_band_is_taken():
    models = registry(sonnet={"enabled": False}, argon={"max_output_tokens": 100})
    assert given(*decide(task(value_score=65), models=models)) == ("terra", "budget:api")


def test_an_account_pays_for_tasks_below_90_only_while_more_than_half_remains():
    half, above_half = 500_000, 500_001
    assert given(*decide(task(value_score=89), five_hour=above_half))[0] == "opus"
    assert given(*decide(task(value_score=89), five_hour=half)) == ("astra", "budget:api")
    assert given(*decide(task(value_score=90), five_hour=half)) == ("opus", "subscription:claude-max")


def test_states_are_seen_anew_as_a_batch_draws_on_an_account():
    half_of_it = 500_000.0
    decisions = decide(
        task(1, 89, input_mean=half_of_it, input_high=1, output_mean=0.0),
        task(2, 88),
        models=registry(budget=False),
    )
    assert [decision.outcome for decision in decisions] == [Outcome.ASSIGNED, Outcome.DEFERRED]
    assert decisions[1].reason is Reason.QUOTA_KEPT_FOR_CRITICAL


def test_the_more_valuable_task_is_served_first_and_ties_go_by_deadline_then_id():
    soon = NOW + timedelta(hours=1)
    tasks = [task(3, 91), task(4, 95), task(2, 91), task(1, 91), task(5, 91, deadline=soon)]
    assert [decision.task for decision in decide(*tasks)] == [4, 5, 1, 2, 3]


def test_the_last_quota_goes_to_the_most_valuable_task():
    models = registry(subscription=False)
    first, second = decide(task(1, 91), task(2, 99), models=models, api=0.40)  # astra costs $0.30, opus $0.15
    assert (first.task, first.model) == (2, "astra")
    assert (second.task, second.outcome) == (1, Outcome.DEFERRED)
    assert second.reason is Reason.INSUFFICIENT_TIER_CAPACITY  # a budget model would cost less than $0.10


def test_quota_that_is_kept_for_critical_tasks_defers_and_says_so():
    (decision,) = decide(task(value_score=65), five_hour=400_000, api=40)
    assert (decision.outcome, decision.reason) == (Outcome.DEFERRED, Reason.QUOTA_KEPT_FOR_CRITICAL)
    assert {
        "reason": "QUOTA_KEPT_FOR_CRITICAL",
        "funding": "subscription:claude-max",
        "account": "claude-max/5-hour",
        "models": ["sonnet"],
    } in decision.explanation["excluded"]
    assert decision.explanation["accounts"]["claude-max/5-hour"] == {"remaining": 400_000, "state": "LOW"}


def test_without_quota_in_any_tier_the_task_is_deferred():
    (decision,) = decide(task(value_score=95), five_hour=21_999, api=0)
    assert (decision.outcome, decision.reason) == (Outcome.DEFERRED, Reason.INSUFFICIENT_GLOBAL_CAPACITY)


def test_a_task_that_a_full_window_cannot_pay_is_rejected_because_waiting_does_not_help():
    models = registry(budget=False)
    (decision,) = decide(task(value_score=95, input_mean=1_000_000.0), models=models)
    assert (decision.outcome, decision.reason) == (Outcome.REJECTED, Reason.NO_ELIGIBLE_PLAN)
    assert {
        "reason": "QUOTA_TOO_SMALL",
        "funding": "subscription:claude-max",
        "needed": 1_002_000,
        "full_window": 1_000_000,
        "models": ["opus"],
    } in decision.explanation["excluded"]


@pytest.mark.parametrize(
    ("change", "reason", "figures"),
    [
        (
            {"input_high": 186_001.0, "output_high": 4_000.0},
            "CONTEXT_TOO_SMALL",
            {"needed": 190_001, "allowed": 190_000},
        ),
        (
            {"output_high": 50_001.0},
            "CONTEXT_TOO_SMALL",
            {"output_needed": 50_001, "output_allowed": 50_000},
        ),
        ({"domain": "astrology"}, "CAPABILITY_MISSING", {}),
        ({"failed_models": ["luna", "haiku"]}, "FAILED_BEFORE", {}),
        ({"deadline": NOW + timedelta(seconds=29)}, "DEADLINE_TOO_CLOSE", {}),
    ],
)
def test_a_task_that_no_model_can_be_given_is_rejected_with_the_reason_of_each(change, reason, figures):
    (decision,) = decide(task(value_score=20, **change))
    assert (decision.outcome, decision.reason) == (Outcome.REJECTED, Reason.NO_ELIGIBLE_PLAN)
    assert decision.explanation["excluded"] == [
        {"reason": "TIER_NOT_ALLOWED", "models": ["argon", "astra", "opus", "sonnet", "terra"]},
        {"reason": reason, **figures, "models": ["haiku", "luna"]},
    ]


def test_the_context_just_fits():
    (decision,) = decide(task(value_score=20, input_high=186_000.0, output_high=4_000.0))
    assert decision.outcome is Outcome.ASSIGNED


def test_a_disabled_model_and_one_without_capability_are_never_given():
    models = registry(
        haiku={"enabled": False}, luna={"capability": {**MODELS["luna"]["capability"], "backend": 0}}
    )
    (decision,) = decide(task(value_score=20), models=models)
    assert decision.outcome is Outcome.REJECTED
    assert {"reason": "MODEL_DISABLED", "models": ["haiku"]} in decision.explanation["excluded"]
    assert {"reason": "CAPABILITY_MISSING", "models": ["luna"]} in decision.explanation["excluded"]


def test_an_open_breaker_turns_to_the_next_model_and_defers_when_there_is_none():
    assert given(*decide(task(value_score=20), open_breakers=("haiku",)))[0] == "luna"
    (decision,) = decide(task(value_score=20), open_breakers=("haiku", "luna"))
    assert (decision.outcome, decision.reason) == (Outcome.DEFERRED, Reason.BREAKER_OPEN)


@pytest.mark.parametrize(
    ("change", "outcome", "reason"),
    [
        ({"deadline": NOW}, Outcome.REJECTED, Reason.DEADLINE_PASSED),
        ({"dependencies_pending": ["T-9"]}, Outcome.DEFERRED, Reason.DEPENDENCY_PENDING),
        ({"dependencies_failed": ["T-9"]}, Outcome.REJECTED, Reason.DEPENDENCY_FAILED),
        (
            {"dependencies_failed": ["T-9"], "dependencies_pending": ["T-8"], "deadline": NOW},
            Outcome.REJECTED,
            Reason.DEPENDENCY_FAILED,
        ),
        (
            {"dependencies_pending": ["T-8"], "deadline": NOW - timedelta(days=1)},
            Outcome.REJECTED,
            Reason.DEADLINE_PASSED,
        ),
    ],
)
def test_a_task_that_is_too_late_or_waits_for_another_is_not_assigned(change, outcome, reason):
    (decision,) = decide(task(value_score=95, **change))
    assert (decision.outcome, decision.reason) == (outcome, reason)


def test_deadlines_do_not_count_where_the_policy_says_so():
    policy = AssignmentPolicy(enforce_deadlines=False)
    (decision,) = decide(task(value_score=95, deadline=NOW - timedelta(days=9)), policy=policy)
    assert decision.outcome is Outcome.ASSIGNED


def test_a_band_that_defers_assigns_nothing():
    policy = AssignmentPolicy(
        bands=(
            Band(at_least=40, tiers=(Tier.MID_RANGE,)),
            Band(at_least=0, tiers=(Tier.BUDGET,), defer=True),
        )
    )
    (decision,) = decide(task(value_score=39.9), policy=policy)
    assert (decision.outcome, decision.reason) == (Outcome.DEFERRED, Reason.VALUE_TOO_LOW)


def test_no_task_gives_no_decision():
    models = registry()
    assert assign_tiered(frame(task()).iloc[:0], models, accounts(models), WRITTEN, now=NOW) == []


def test_an_account_that_the_ledger_does_not_have_is_an_error_that_names_it():
    models = registry()
    known = [account for account in accounts(models) if account.account != "budget/api"]
    with pytest.raises(LookupError, match="no account budget/api for budget:api"):
        assign_tiered(frame(task()), models, known, WRITTEN, now=NOW)
