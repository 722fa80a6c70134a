"""Exploration end to end: who is drawn, how often, with which probability, and that a repeat draws the same."""

from __future__ import annotations

from uuid import UUID, uuid5

import numpy as np
import pytest
from market_tasks import IDS, decide, market_task

from cp_core.assignment.exploration import ExplorationPolicy, uniform
from cp_core.assignment.optimal import Round
from cp_core.assignment.strategies import OBJECTIVES

AMPLE = {"five_hour": 1e6, "api": 100}
TASKS = [market_task(n, 50.0, input_mean=200.0, output_mean=20.0) for n in range(2_000)]


def explored(found: Round) -> set[int]:
    return {one.task for one in found.decisions if one.explanation.get("decided_by") == "exploration"}


@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_about_the_configured_share_explores(rate):
    found = decide(*TASKS, held=AMPLE, exploration=ExplorationPolicy(rate=rate))
    have_alternative = [one for one in found.decisions if "probabilities" in one.explanation]
    assert len(have_alternative) == 2_000
    expected, spread = rate * 2_000, np.sqrt(2_000 * rate * (1 - rate))
    assert abs(len(explored(found)) - expected) < 3 * spread


def test_a_repeat_draws_the_same_and_other_decision_ids_draw_others():
    policy = ExplorationPolicy(rate=0.1)
    first = decide(*TASKS[:500], held=AMPLE, exploration=policy)
    assert explored(first) == explored(decide(*TASKS[:500], held=AMPLE, exploration=policy, seed=99))
    others = [{**task, "decision_id": uuid5(IDS, f"other {task['task']}")} for task in TASKS[:500]]
    assert explored(first) != explored(decide(*others, held=AMPLE, exploration=policy))


def test_critical_and_production_tasks_never_explore():
    tasks = [{**task, "value_score": 90.0} for task in TASKS[:300]]
    tasks += [{**task, "risk": "production"} for task in TASKS[300:600]]
    found = decide(*tasks, held=AMPLE, exploration=ExplorationPolicy(rate=0.1))
    assert explored(found) == set()
    assert {one.propensity for one in found.decisions} == {1.0}


def test_overdue_tasks_never_explore():
    tasks = [{**task, "waiting_hours": 100.0} for task in TASKS[:200]]
    assert explored(decide(*tasks, held=AMPLE, exploration=ExplorationPolicy(rate=0.1))) == set()


def test_what_is_drawn_is_in_an_adjacent_tier_and_its_probability_is_stored():
    tier = {
        "opus": 0, "astra": 0, "sonnet": 1, "argon": 1, "terra": 2, "haiku": 3, "luna": 3,
    }  # fmt: skip
    policy = ExplorationPolicy(rate=0.1)
    found = decide(*TASKS[:500], held=AMPLE, exploration=policy)
    usual = {one.task: one.model for one in decide(*TASKS[:500], held=AMPLE).decisions}
    for one in found.decisions:
        probabilities = one.explanation["probabilities"]
        assert sum(probabilities.values()) == pytest.approx(1)
        assert one.propensity == probabilities[one.explanation["plan"]["plan"]]
        away = abs(tier[one.model] - tier[usual[one.task]])
        assert away == (1 if one.task in explored(found) else 0)
        assert one.propensity == pytest.approx(0.9 if away == 0 else 0.1 / (len(probabilities) - 1))


@pytest.mark.parametrize("strategy", OBJECTIVES)
def test_only_plans_that_are_worth_something_to_the_strategy_are_drawn(strategy):
    """A band that asks for much success leaves minimize_cost and fastest few plans, in few tiers."""
    tasks = [{**task, "value_score": 85.0, "complexity": "highly_complex"} for task in TASKS[:300]]
    found = decide(*tasks, strategy=strategy, held=AMPLE, exploration=ExplorationPolicy(rate=0.1))
    assert all(np.isfinite(one.explanation["plan"]["worth"]) for one in found.decisions)


def test_what_no_longer_fits_is_taken_back_and_has_no_propensity():
    # the subscription has just what its tasks take, money for one more: whoever is drawn second finds nothing
    tasks = [market_task(n, 50.0) for n in range(40)]
    found = decide(
        *tasks, held={"five_hour": 40 * 22_000, "api": 0.12}, exploration=ExplorationPolicy(rate=0.1)
    )
    spent = sum(float(one.amounts.get("budget/api", 0)) for one in found.decisions)
    assert spent <= 0.12
    for one in found.decisions:
        if one.propensity is None:
            assert one.explanation["decided_by"] != "exploration"


def test_the_draw_is_uniform_over_ids():
    numbers = uniform(UUID(int=n) for n in range(20_000))
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    chi_squared = float(((counts - 1_000) ** 2 / 1_000).sum())
    assert chi_squared < 43.8  # the 0.999 quantile with 19 degrees of freedom
