"""Which stage follows which, and what an attempt at each reserves."""

from __future__ import annotations

from decimal import Decimal

from cp_core.assignment.decision import Stage
from cp_core.execution.stages import following_stage, reserved_at

MONEY, TOKENS = "budget/api", "plan/weekly"
PLAN = (
    Stage("nano", "budget:api", {MONEY: Decimal(4)}),
    Stage("mini", "budget:api", {MONEY: Decimal(3)}, {MONEY: Decimal(10)}),
    Stage("sonnet", "subscription:plan", {TOKENS: Decimal(100)}, {TOKENS: Decimal(900)}),
)


def test_stages_follow_each_other_until_the_last() -> None:
    assert [following_stage(PLAN, stage) for stage in range(3)] == [1, 2, None]


def test_a_stage_with_the_same_model_is_no_escalation() -> None:
    again = Stage("nano", "subscription:plan", {TOKENS: Decimal(1)})

    assert following_stage((PLAN[0], again, PLAN[2]), 0) == 2
    assert following_stage((PLAN[0], again), 0) is None


def test_an_attempt_reserves_its_stage_in_full_and_what_is_expected_of_the_rest() -> None:
    assert reserved_at(PLAN, 0) == {MONEY: 7, TOKENS: 100}
    assert reserved_at(PLAN, 1) == {MONEY: 10, TOKENS: 100}
    assert reserved_at(PLAN, 2) == {TOKENS: 900}


def test_a_plan_is_read_as_it_was_stored_and_without_needs_reserves_what_it_did() -> None:
    assert tuple(Stage.from_json(stage.as_json()) for stage in PLAN) == PLAN
    stored = {"model": "nano", "funding": "budget:api", "amounts": {MONEY: "0.050000000"}}
    assert Stage.from_json(stored).in_full == {MONEY: Decimal("0.05")}
