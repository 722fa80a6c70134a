"""What follows from an experiment's outcomes, by the end of a day."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import pandas as pd
import pytest
from test_allotment import definition

from cp_core.learning.experiments.verdict import ExperimentResult, Verdict, judge

START = date(2026, 3, 1)


def look(
    successes: Mapping[str, int],
    *,
    per_day: int = 100,
    days: int = 10,
    cost: Mapping[str, float] | None = None,
    exposed: Mapping[str, int] | None = None,
    **changes: Any,
) -> ExperimentResult:
    """Every arm's `per_day` tasks a day, of which so many succeed."""
    ended = pd.DataFrame(
        [
            {
                "arm": arm,
                "day": START + timedelta(days=day),
                "success": float(number < successes[arm]),
                "cost_usd": (cost or {}).get(arm, 1.0) * (1 + number % 5),
            }
            for day in range(days)
            for arm in successes
            for number in range(per_day)
        ]
    )
    given = (
        ended
        if exposed is None
        else pd.DataFrame(
            [{"arm": arm, "day": START} for arm, count in exposed.items() for _ in range(count)]
        )
    )
    return judge(definition(**changes), START, START + timedelta(days=days - 1), given, ended)


def test_a_better_arm_graduates() -> None:
    result = look({"control": 60, "new": 75})
    assert (result.verdict, result.arm) == (Verdict.GRADUATE, "new")
    [comparison] = result.comparisons
    assert comparison.difference == pytest.approx(0.15)
    assert comparison.low is not None
    assert comparison.low > 0
    assert "0.75 against 0.6" in result.reason


def test_a_worse_arm_is_stopped() -> None:
    assert look({"control": 75, "new": 60}).verdict is Verdict.STOP


def test_no_difference_goes_on_and_ends_inconclusive() -> None:
    assert look({"control": 60, "new": 61}).verdict is Verdict.CONTINUE
    assert look({"control": 60, "new": 61}, days=30).verdict is Verdict.INCONCLUSIVE


def test_nothing_is_concluded_before_the_least_time_and_sample() -> None:
    assert look({"control": 20, "new": 80}, days=6).verdict is Verdict.CONTINUE
    assert look({"control": 1, "new": 5}, per_day=5).verdict is Verdict.CONTINUE


def test_a_better_goal_does_not_outweigh_a_guardrail_that_is_harmed() -> None:
    metrics = [{"measure": "success"}, {"measure": "cost_usd", "role": "guardrail"}]
    result = look({"control": 60, "new": 75}, cost={"new": 2.0}, metrics=metrics)
    assert result.verdict is Verdict.STOP
    assert "cost_usd" in result.reason


def test_a_lower_cost_is_better() -> None:
    result = look({"control": 60, "new": 60}, cost={"new": 0.7}, metrics=[{"measure": "cost_usd"}])
    assert (result.verdict, result.arm) == (Verdict.GRADUATE, "new")


def test_the_best_of_several_arms_graduates() -> None:
    arms = [{"name": "control"}, {"name": "new"}, {"name": "newer"}]
    result = look({"control": 50, "new": 65, "newer": 75}, arms=arms)
    assert (result.verdict, result.arm) == (Verdict.GRADUATE, "newer")


def test_a_wrong_sample_ratio_stops_whatever_the_metrics_say() -> None:
    result = look({"control": 60, "new": 75}, exposed={"control": 1_400, "new": 1_000})
    assert result.verdict is Verdict.STOP
    assert not result.has_right_ratio
    assert "weights" in result.reason


def test_outcomes_that_were_not_measured_do_not_count() -> None:
    ended = pd.DataFrame(
        [
            {"arm": "control", "day": START, "success": 1.0},
            {"arm": "new", "day": START, "success": float("nan")},
        ]
    )
    [comparison] = judge(definition(), START, START, ended, ended).comparisons
    assert (comparison.control_units, comparison.units) == (1, 0)
    assert comparison.sequence == ()


def test_an_experiment_without_any_unit_yet_goes_on() -> None:
    nothing = pd.DataFrame({"arm": [], "day": [], "success": []})
    assert judge(definition(), START, START, nothing, nothing).verdict is Verdict.CONTINUE
