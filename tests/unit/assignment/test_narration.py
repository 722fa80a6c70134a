"""An explanation in words, as a person reads it."""

from __future__ import annotations

import json

from hand_made import NOW, accounts, frame, registry, task

from cp_core.assignment.decision import Decision
from cp_core.assignment.narration import in_words, meaning
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.tiered import assign_tiered
from cp_core.tasks.reasons import Reason


def decide(one: dict, **available: float) -> Decision:
    models = registry()
    (decision,) = assign_tiered(
        frame(one), models, accounts(models, **available), AssignmentPolicy(), now=NOW
    )
    return decision


def test_an_assignment_says_what_was_possible_what_was_not_and_why_the_first_won():
    decision = decide(task(value_score=80, failed_models=["argon"]))
    assert in_words(decision.explanation).splitlines() == [
        "value score 80 (backend): band 75 to below 90 allows premium or mid-premium, subscription first",
        "expected tokens: 20,000 in (up to 40,000), 2,000 out (up to 4,000)",
        "may be given, most preferred first:",
        "  opus (subscription:claude-max): premium, capability 0.9, $0.1500 at list price",
        "  sonnet (subscription:claude-max): mid-premium, capability 0.8, $0.0900 at list price",
        "  astra (budget:api): premium, capability 0.95, $0.3000 at list price",
        "  opus (budget:api): premium, capability 0.9, $0.1500 at list price",
        "  sonnet (budget:api): mid-premium, capability 0.8, $0.0900 at list price",
        "why the first and not sonnet (subscription:claude-max): this band prefers its tier",
        "may not be given:",
        "  FAILED_BEFORE, it failed at this task, and would again:",
        "    argon",
        "  TIER_NOT_ALLOWED, the band does not allow its tier:",
        "    haiku, luna, terra",
        "accounts before the decision:",
        "  claude-max/5-hour: 1,000,000 tokens left, FULL",
        "  claude-max/weekly: 4,000,000 tokens left, FULL",
        "  budget/api: $100.00 left, FULL",
    ]


def test_a_deferral_says_which_account_lacks_how_much():
    decision = decide(task(value_score=95), five_hour=21_000, api=0.1)
    words = in_words(decision.explanation, decision.reason).splitlines()
    assert (
        "not assigned: INSUFFICIENT_TIER_CAPACITY, "
        "the tiers of its band have no quota left for it; another tier has" in words
    )
    assert "  QUOTA_EXHAUSTED, less remains than the task needs:" in words
    assert "    opus: funding subscription:claude-max, account claude-max/5-hour, needed 22,000" in words
    assert "    astra: funding budget:api, account budget/api, needed 0.3" in words
    assert "  claude-max/5-hour: 21,000 tokens left, CRITICAL" in words
    assert "  budget/api: $0.10 left, CRITICAL" in words


def test_a_task_that_waits_names_what_it_waits_for():
    decision = decide(task(dependencies_pending=["T-7", "T-8"]))
    assert in_words(decision.explanation, decision.reason).splitlines()[2:] == [
        "not assigned: DEPENDENCY_PENDING, a task that it depends on has not succeeded yet",
        "depends on: T-7, T-8",
    ]


def test_a_task_that_is_too_late_names_its_deadline():
    decision = decide(task(deadline=NOW))
    assert "deadline: 2026-03-04T12:00:00+00:00" in in_words(decision.explanation, decision.reason)


def test_an_explanation_reads_the_same_once_it_was_stored():
    for one in (task(value_score=80), task(deadline=NOW), task(domain="astrology")):
        explanation = decide(one).explanation
        assert in_words(json.loads(json.dumps(explanation))) == in_words(explanation)


def test_every_reason_that_keeps_a_task_from_being_assigned_has_words():
    reasons = list(Reason)
    assert [reason for reason in reasons[: reasons.index(Reason.TIMEOUT)] if meaning(reason) == reason] == []


MARKET = {
    "strategy": "maximize_value",
    "value_score": 60.0,
    "aged_value": 62.5,
    "waiting_hours": 10.0,
    "required_success": 0.65,
    "risk": "staging",
    "domain": "backend",
    "complexity": "moderate",
    "input_mean": 20_000.0,
    "input_median": 18_000.0,
    "output_mean": 2_000.0,
    "output_median": 1_500.0,
    "excluded": {"CAPABILITY_MISSING": ["luna (budget:api)"]},
    "plan": {
        "plan": "haiku (budget:api) > opus (subscription:claude-max)",
        "success": 0.9,
        "list_usd": 0.05,
        "billed_usd": 0.01,
        "seconds": 30.0,
        "worth": 56.15,
        "net": 50.15,
    },
    "alternatives": [
        {
            "plan": "opus (subscription:claude-max)",
            "success": 0.9,
            "list_usd": 0.15,
            "billed_usd": 0.0,
            "seconds": 46.0,
            "worth": 56.25,
            "net": 45.25,
        }
    ],
    "decided_by": "exploration",
    "probabilities": {
        "opus (subscription:claude-max)": 0.93,
        "haiku (budget:api) > opus (subscription:claude-max)": 0.07,
    },
    "prices": {"claude-max/weekly": 0.0005, "budget/api": 12.5},
}


def test_a_decision_at_prices_says_what_was_weighed_and_what_settled_it():
    assert in_words(MARKET).splitlines() == [
        "value score 60, worth 62.50 points after waiting 10.0 h (backend, moderate, staging); "
        "strategy maximize_value",
        "expected tokens: 20,000 in (median 18,000), 2,000 out (median 1,500)",
        "chosen:",
        "  haiku (budget:api) > opus (subscription:claude-max): success 90.0%, $0.0500 at list price "
        "($0.0100 billed), 30 s; worth 56.15 - price 6.00 = 50.15",
        "why: drawn on purpose from an adjacent tier, so that outcomes show what it gives",
        "next best:",
        "  opus (subscription:claude-max): success 90.0%, $0.1500 at list price ($0.0000 billed), 46 s; "
        "worth 56.25 - price 11.00 = 45.25",
        "drawn with probability:",
        "  opus (subscription:claude-max): 93.0%",
        "  haiku (budget:api) > opus (subscription:claude-max): 7.0%",
        "may not be given:",
        "  CAPABILITY_MISSING, it has no capability in the task's domain: luna (budget:api)",
        "prices (value points of one more unit):",
        "  claude-max/weekly: 500.00 a million tokens",
        "  budget/api: 12.50 a dollar",
    ]


def test_a_task_that_was_outbid_shows_the_plans_that_were_nearest():
    facts = {
        name: part for name, part in MARKET.items() if name not in ("plan", "decided_by", "probabilities")
    }
    lines = in_words(facts, Reason.OUTBID).splitlines()
    assert lines[2].startswith("not assigned: OUTBID, what it needs is worth more to other tasks now")
    assert lines[3] == "nearest to being given:"
