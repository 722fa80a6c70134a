"""Keys that make decisions and reservations repeatable, and what a plan reserves in all."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID, uuid5

import pytest

from cp_core.assignment.decision import Decision, Outcome, Stage, decision_id, reservation_key
from cp_core.tasks.reasons import Reason

ASSIGNED = Decision(
    task=1,
    task_id="T-1",
    value_score=95.0,
    outcome=Outcome.ASSIGNED,
    plan=(
        Stage("haiku", "subscription:claude-max", {"claude-max/weekly": Decimal(100)}),
        Stage("opus", "subscription:claude-max", {"claude-max/weekly": Decimal(30)}),
    ),
    expected_cost_usd=Decimal("0.5"),
    explanation={"value_score": 95.0, "why": {"rule": "only"}},
)


def test_the_same_decision_always_has_the_same_id():
    assert decision_id("T-1", 0, "hash") == decision_id("T-1", 0, "hash")


@pytest.mark.parametrize("other", [("T-2", 0, "hash"), ("T-1", 1, "hash"), ("T-1", 0, "other")])
def test_another_task_number_or_configuration_gives_another_id(other):
    assert decision_id(*other) != decision_id("T-1", 0, "hash")


def test_the_first_attempt_is_reserved_under_the_decision_and_each_retry_under_its_own_key():
    decision = UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
    assert reservation_key(decision, 1) == decision
    assert reservation_key(decision, 2) == uuid5(decision, "2")
    assert reservation_key(decision, 3) == uuid5(decision, "3")


def test_attempts_count_from_one():
    with pytest.raises(ValueError, match="count from 1, got 0"):
        reservation_key(decision_id("T-1", 0, "hash"), 0)


def test_a_plan_starts_with_its_first_stage_and_reserves_for_all_of_them():
    assert (ASSIGNED.model, ASSIGNED.funding) == ("haiku", "subscription:claude-max")
    assert ASSIGNED.amounts == {"claude-max/weekly": Decimal(130)}


def test_an_outrun_assignment_becomes_a_deferral_that_gives_nothing():
    outrun = ASSIGNED.outrun()
    assert (outrun.task_id, outrun.outcome, outrun.reason) == (
        "T-1",
        Outcome.DEFERRED,
        Reason.QUOTA_EXHAUSTED,
    )
    assert (outrun.model, outrun.amounts, outrun.expected_cost_usd) == (None, {}, None)
    assert outrun.explanation == {"value_score": 95.0}
