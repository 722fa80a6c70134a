"""A backtest decides by what training says, and by nothing of the test part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cp_core.assignment.plans import CheckPolicy
from cp_core.learning.backtest.choosing import Expected, Trust, trust, within_budget
from cp_core.learning.backtest.deciding import Decided, Terms, decide, learn, tiers_by_cost
from cp_core.learning.backtest.judging import amount_error, backtest
from cp_core.learning.backtest.outcomes import Outcomes, Positions, folds, in_time_order
from cp_core.models.registry import Tier

TERMS = Terms(CheckPolicy(sensitivity=0.8, specificity=0.8), settings=4)
TASKS = 60


def _matrix(seed: int = 0, models: int = 3) -> tuple[pd.DataFrame, Outcomes]:
    """Tasks of two kinds that their words tell apart; dearer models succeed more often."""
    rng = np.random.default_rng(seed)
    hard = rng.random(TASKS) < 0.5
    chance = np.linspace(0.5, 0.9, models)[:, None] - 0.35 * hard
    success = (rng.random((models, TASKS)) < chance).astype(float)
    cost = np.geomspace(0.01, 1, models)[:, None] * rng.uniform(0.8, 1.2, (models, TASKS))
    ids = [f"t{number}" for number in range(TASKS)]
    tasks = pd.DataFrame(
        {
            "title": ["untangle deadlock" if one else "fix typo" for one in hard],
            "description": [f"number {number}" for number in range(TASKS)],
            "domain": "backend",
            "complexity": "moderate",
            "value_score": 50.0,
        },
        index=ids,
    )
    unknown = np.full(success.shape, np.nan)
    when = pd.date_range("2026-01-01", periods=TASKS, tz="UTC")
    names = tuple(f"model {number}" for number in range(models))
    return tasks, Outcomes(tuple(ids), names, success, cost, unknown, unknown, unknown, when)


def _decide(tasks: pd.DataFrame, outcomes: Outcomes, train: Positions, test: Positions) -> Decided:
    return decide(learn(tasks, outcomes, train, test, seed=TERMS.seed), TERMS)


def test_nothing_of_the_test_part_is_used_to_decide_it() -> None:
    """A planted answer: the test part's outcomes, costs and tokens are replaced, and no decision may change."""
    tasks, outcomes = _matrix()
    (train, test), *_ = folds(TASKS, 3, seed=1)
    planted = replace(outcomes, success=outcomes.success.copy(), cost_usd=outcomes.cost_usd.copy())
    planted.success[:, test] = 1 - planted.success[:, test]
    planted.cost_usd[:, test] *= 1000
    planted.input_tokens[:, test] = 5.0
    before, after = (_decide(tasks, one, train, test) for one in (outcomes, planted))
    assert np.array_equal(before.success, after.success)
    assert np.array_equal(before.cost.mean, after.cost.mean)
    ways = zip(
        (*before.ours, *before.ours_with_escalation, *before.fixed, before.tiered, before.frugal),
        (*after.ours, *after.ours_with_escalation, *after.fixed, after.tiered, after.frugal),
        strict=True,
    )
    for one, other in ways:
        assert (one.plans, one.budget_usd) == (other.plans, other.budget_usd)
        assert np.array_equal(one.choice, other.choice)


def test_a_word_that_gives_the_answer_away_in_the_test_part_only_is_not_believed() -> None:
    tasks, outcomes = _matrix()
    (train, test), *_ = folds(TASKS, 3, seed=1)
    told = tasks.copy()
    answers = np.where(outcomes.success[0] > 0.5, "solved", "unsolved")
    column = told.columns.get_loc("description")
    for place in test:
        told.iloc[place, column] += f" {answers[place]}"
    found = _decide(told, outcomes, train, test).success[0]
    right = outcomes.success[0, test] > 0.5
    plain = _decide(tasks, outcomes, train, test).success[0]
    gap = (found[right].mean() - found[~right].mean()) - (plain[right].mean() - plain[~right].mean())
    assert abs(gap) < 0.05


def test_report_of_a_full_matrix_has_every_way_to_decide_and_its_singles_are_plain_means() -> None:
    tasks, outcomes = _matrix()
    report = backtest(tasks, outcomes, folds(TASKS, 3, seed=1), TERMS, split="3 folds")
    assert report.tested == TASKS
    for model, point in enumerate(report.singles):
        assert point.accuracy == pytest.approx(outcomes.success[model].mean())
        assert point.cost_usd == pytest.approx(outcomes.cost_usd[model].mean())
    assert report.oracle.accuracy == pytest.approx(outcomes.success.max(axis=0).mean())
    assert report.random.accuracy == pytest.approx(outcomes.success.mean())
    assert len(report.ours.points) == len(report.ours_with_escalation.points) == 4
    assert report.ours_with_escalation.points[-1].accuracy > max(p.accuracy for p in report.singles) - 0.1
    assert report.pair is None
    assert report.input_tokens is None


def test_two_models_are_measured_as_routellm_does_too() -> None:
    tasks, outcomes = _matrix(models=2)
    report = backtest(tasks, outcomes, folds(TASKS, 3, seed=1), TERMS, split="3 folds")
    assert report.pair is not None
    assert (report.pair.strong, report.pair.weak) == ("model 1", "model 0")


def test_partial_matrix_is_decided_within_what_is_known() -> None:
    tasks, outcomes = _matrix()
    gaps = np.random.default_rng(2).random(outcomes.success.shape) < 0.3
    gaps[0] &= ~gaps.all(axis=0)
    partial = replace(
        outcomes,
        success=np.where(gaps, np.nan, outcomes.success),
        cost_usd=np.where(gaps, np.nan, outcomes.cost_usd),
    )
    (train, test), *_ = folds(TASKS, 3, seed=1)
    found = _decide(tasks, partial, train, test)
    for way in found.ours_with_escalation:
        for task, plan in zip(test, way.choice, strict=True):
            assert not gaps[list(way.plans[plan]), task].any()


def test_predictions_that_say_nothing_leave_no_task_apart_from_the_others() -> None:
    rng = np.random.default_rng(5)
    success = (rng.random((2, 400)) < np.array([[0.5], [0.7]])).astype(float)
    cost = np.ones((2, 400))
    noise = Expected(0.6 + 0.1 * rng.standard_normal((2, 400)), cost)
    found = trust([(0,), (1,)], noise, success, cost, TERMS.check)
    assert found.contrast < 0.1
    applied = found.apply(noise).success
    assert (applied[1] - applied[0]).std() < 0.02
    assert (applied[1] - applied[0]).mean() == pytest.approx(success[1].mean() - success[0].mean(), abs=0.03)


def test_predictions_that_tell_plans_apart_are_believed() -> None:
    rng = np.random.default_rng(6)
    chance = rng.choice([0.1, 0.9], (2, 400))
    success = (rng.random((2, 400)) < chance).astype(float)
    found = trust([(0,), (1,)], Expected(chance, np.ones((2, 400))), success, np.ones((2, 400)), TERMS.check)
    assert found.contrast == pytest.approx(1.0, abs=0.1)


def test_plans_are_moved_to_what_came_of_them_as_far_as_that_is_no_chance() -> None:
    rng = np.random.default_rng(8)
    plans, level = [(0,), (1,), (2,)], np.full((3, 600), 0.5)
    differ = (rng.random((3, 600)) < np.array([[0.3], [0.5], [0.7]])).astype(float)
    alike = (rng.random((3, 30)) < 0.5).astype(float)
    told = trust(plans, Expected(level, np.ones((3, 600))), differ, np.ones((3, 600)), TERMS.check).level
    assert told == pytest.approx(differ.mean(axis=1) - differ.mean(), abs=0.02)
    chance = trust(
        plans, Expected(level[:, :30], np.ones((3, 30))), alike, np.ones((3, 30)), TERMS.check
    ).level
    assert np.ptp(chance) < 0.7 * np.ptp(alike.mean(axis=1))


def test_budget_goes_to_the_tasks_that_gain_most_by_it() -> None:
    # the dear plan gains 0.5 at the first two tasks, and nothing at the others; 2 x 10 + 2 x 1 = 22 of 4 x 5.5
    expected = Expected(
        np.array([[0.4, 0.4, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9]]), np.array([[1.0] * 4, [10.0] * 4])
    )
    assert within_budget(expected, 5.5, seed=0).tolist() == [1, 1, 0, 0]
    assert within_budget(expected, 1.0, seed=0).tolist() == [0, 0, 0, 0]


def test_trust_of_nothing_keeps_the_level_only() -> None:
    no_contrast = Trust(np.array([0.1, -0.1]), np.ones(2), np.array([0.5, 0.5]), 0.0)
    applied = no_contrast.apply(Expected(np.array([[0.7], [0.3]]), np.ones((2, 1))))
    assert applied.success[:, 0] == pytest.approx([0.6, 0.4])


def test_blocks_of_time_learn_from_what_was_submitted_strictly_before() -> None:
    moments = pd.DatetimeIndex(
        pd.to_datetime(["2026-01-02", "2026-01-01", "2026-01-02", "2026-01-03"], utc=True)
    )
    found = in_time_order(moments, 4)
    assert [(train.tolist(), test.tolist()) for train, test in found] == [([1], [0, 2]), ([0, 1, 2], [3])]


def test_each_task_is_tested_once() -> None:
    tested = np.concatenate([test for _, test in folds(11, 4, seed=0)])
    assert sorted(tested.tolist()) == list(range(11))


def test_tiers_follow_cost() -> None:
    assert tiers_by_cost(np.array([1.0, 9.0])) == (Tier.BUDGET, Tier.PREMIUM)
    assert tiers_by_cost(np.array([4.0, 3.0, 2.0, 1.0])) == tuple(Tier)


def test_amount_error_worked_by_hand() -> None:
    actual = np.array([[100.0, 200.0, 50.0, np.nan]])
    middle = np.array([[120.0, 100.0, 50.0, 7.0]])
    found = amount_error(actual, middle, middle, middle - 30, middle + 30)
    assert found is not None
    assert found.rows == 3
    assert found.median_error == pytest.approx(0.2)
    assert found.total_ratio == pytest.approx(270 / 350)
    assert found.share_within_30 == pytest.approx(2 / 3)
    assert found.coverage == pytest.approx(2 / 3)
