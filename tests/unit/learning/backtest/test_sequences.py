"""Sequences of models with a check between, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cp_core.assignment.plans import CheckPolicy
from cp_core.learning.backtest.sequences import averages, carry_out, expected

CHECK = CheckPolicy(sensitivity=0.9, specificity=0.8)
PERFECT = CheckPolicy(sensitivity=1, specificity=1)
SUCCESS = np.array([[1.0, 0.0], [1.0, 1.0]])
COST = np.array([[1.0, 1.0], [10.0, 10.0]])


def test_expected_result_counts_false_alarms_and_what_the_check_lets_through() -> None:
    right, spent = expected((0, 1), SUCCESS, COST, CHECK)
    # task 0: accepted at 0.9, else the second model does it: 0.9 + 0.1 x 1; it runs 0.1 of the times
    # task 1: bad work slips through at 0.2; the second model does the other 0.8
    assert right == pytest.approx([1.0, 0.8])
    assert spent == pytest.approx([1 + 0.1 * 10, 1 + 0.8 * 10])


def test_averages_are_the_means_of_the_expected_results_of_every_sequence() -> None:
    found = averages(SUCCESS, COST, CHECK)
    assert set(found.sequences) == {(0,), (1,), (0, 1), (1, 0)}
    place = found.sequences.index((0, 1))
    assert found.accuracy[place] == pytest.approx(0.9)
    assert found.cost_usd[place] == pytest.approx((2 + 9) / 2)


def test_best_sequence_within_a_budget_is_the_most_accurate_that_it_pays_for() -> None:
    found = averages(SUCCESS, COST, PERFECT)
    assert found.sequences[found.best_within(1)] == (0,)
    assert found.sequences[found.best_within(6)] == (0, 1)  # 1 + 10 / 2
    assert found.sequences[found.best_within(0.5)] == (0,)  # nothing is so cheap: the cheapest
    assert found.sequences[found.cheapest_of(1.0)] == (0, 1)


def test_sequences_carried_out_with_a_perfect_check_stop_at_the_first_good_work() -> None:
    luck = np.full((3, 2, 2), 0.5)
    right, spent = carry_out(np.array([0, 0]), ((0, 1), (1,)), SUCCESS, COST, PERFECT, luck)
    assert right.tolist() == [1, 1]
    assert spent.tolist() == [1, 11]


def test_draws_of_the_check_average_to_what_is_expected() -> None:
    luck = np.random.default_rng(0).random((20_000, 2, 2))
    right, spent = carry_out(np.array([0, 0]), ((0, 1),), SUCCESS, COST, CHECK, luck)
    assert right == pytest.approx([1.0, 0.8], abs=0.02)
    assert spent == pytest.approx([2.0, 9.0], abs=0.2)


def test_a_stage_whose_outcome_is_not_known_leaves_the_result_unknown() -> None:
    gaps = np.array([[0.0], [np.nan]])
    right, _ = carry_out(np.array([0]), ((0, 1),), gaps, np.ones((2, 1)), PERFECT, np.full((1, 2, 1), 0.5))
    assert np.isnan(right).all()
