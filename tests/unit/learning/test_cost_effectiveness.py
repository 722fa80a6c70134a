"""What money and quota bought, added up by hand."""

from __future__ import annotations

from datetime import date

import pandas as pd
import pytest

from cp_core.learning.cost_effectiveness import (
    bought_by_band,
    escalation_savings,
    price_of,
    utilisation,
)


def attempt(task: int, model: str, *, won: bool, usd: float, **more: object) -> dict[str, object]:
    return {
        "task": task,
        "model": model,
        "score": 50.0,
        "complexity": "simple",
        "stage": 0,
        "plan_stages": 1,
        "has_succeeded": won,
        "cost_usd": usd,
        **more,
    }


def test_value_is_that_of_tasks_done_and_cost_that_of_all_attempts():
    rows = pd.DataFrame(
        [
            attempt(1, "opus", won=True, usd=2.0, score=95.0),
            attempt(2, "opus", won=False, usd=3.0, score=92.0),
            attempt(3, "opus", won=True, usd=1.0, score=89.9),
            attempt(4, "free", won=True, usd=0.0, score=0.0),
        ]
    )
    free, opus_75, opus_90 = bought_by_band(rows, [90, 75, 60, 40, 0])

    assert (opus_90.band, opus_90.attempts, opus_90.succeeded, opus_90.value, opus_90.usd) == (
        90,
        2,
        1,
        95,
        5,
    )
    assert opus_90.value_per_usd == pytest.approx(19)
    assert (opus_75.band, opus_75.value_per_usd) == (75, pytest.approx(89.9))
    assert (free.band, free.value_per_usd) == (0, None)


def test_no_attempts_bought_nothing():
    assert bought_by_band(pd.DataFrame([attempt(1, "m", won=True, usd=1.0)]).iloc[:0], [0, 90]) == ()


def test_what_lapsed_is_a_share_of_what_was_granted():
    assert utilisation("max/weekly", "token", granted=200.0, used=150.0, lapsed=50.0).unused == 0.25
    assert utilisation("max/weekly", "token", granted=0.0, used=0.0, lapsed=0.0).unused is None


def _cheap_then_dear(tasks: int) -> list[dict[str, object]]:
    """Every second task is done by the cheap model for 1 $, the others by the dear one after it for 10 $ more."""
    rows = []
    for task in range(tasks):
        first = attempt(task, "haiku", won=task % 2 == 0, usd=1.0, plan_stages=2)
        rows.append(first)
        if not first["has_succeeded"]:
            rows.append(attempt(task, "opus", won=True, usd=10.0, plan_stages=2, stage=1))
    return rows


def test_escalation_is_held_against_the_cheapest_model_that_is_as_good():
    alone = [attempt(1000 + n, "opus", won=True, usd=10.0) for n in range(20)]
    (found,) = escalation_savings(pd.DataFrame(_cheap_then_dear(40) + alone))

    # 40 tasks of 1 $ and 20 of another 10 $: 6 $ a task, where opus alone would have cost 10 $.
    assert (found.tasks, found.success, found.usd_per_task) == (40, 1.0, 6.0)
    assert (found.alternative, found.alternative_usd_per_task) == ("opus", 10.0)
    assert found.saved_usd == pytest.approx(160)


def test_where_no_single_model_is_as_good_the_most_successful_one_is_named():
    (found,) = escalation_savings(pd.DataFrame(_cheap_then_dear(40)))

    assert (found.alternative, found.alternative_success) == ("haiku", 0.5)
    assert found.saved_usd == pytest.approx((1 - 6) * 40)


def test_without_plans_of_several_stages_nothing_was_saved():
    rows = pd.DataFrame([attempt(n, "opus", won=True, usd=1.0) for n in range(30)])

    assert escalation_savings(rows) == ()


def test_prices_are_of_amounts_that_people_count_in():
    day = date(2026, 3, 1)

    assert price_of("claude-max/weekly", day, 2e-6).value == pytest.approx(2.0)
    assert price_of("budget/api", day, 3.0).value == 3.0
