"""Measures of a router, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.learning.routing import (
    area_under_hull,
    cost_at,
    non_decreasing_hull,
    pair_metrics,
)

POINTS = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), min_size=1, max_size=12)


def test_hull_leaves_out_what_a_mix_of_others_beats() -> None:
    # (2, 0.4) lies below the line from (1, 0.2) to (3, 0.8), which passes (2, 0.5)
    costs, accuracies = non_decreasing_hull([3, 1, 2], [0.8, 0.2, 0.4])
    assert costs.tolist() == [1, 3]
    assert accuracies.tolist() == [0.2, 0.8]


def test_hull_goes_on_level_to_a_dearer_point_that_is_worse() -> None:
    costs, accuracies = non_decreasing_hull([1, 2, 4], [0.5, 0.9, 0.3])
    assert costs.tolist() == [1, 2, 4]
    assert accuracies.tolist() == [0.5, 0.9, 0.9]


def test_area_is_the_mean_height_from_the_cheapest_to_the_dearest_point() -> None:
    # trapezoids: (0.5 + 0.9) / 2 * 1 + 0.9 * 2 = 2.5, over costs 1 to 4
    assert area_under_hull([1, 2, 4], [0.5, 0.9, 0.3]) == pytest.approx(2.5 / 3)


def test_area_between_other_costs_counts_nothing_before_the_cheapest_point_and_is_level_behind_the_dearest() -> (
    None
):
    # 0 over 0..1, then 0.5 -> 0.9 over 1..2, then 0.9 over 2..6: 0.7 + 3.6 over 6
    assert area_under_hull([1, 2], [0.5, 0.9], between=(0, 6)) == pytest.approx(4.3 / 6)


def test_area_of_a_single_point_is_its_accuracy() -> None:
    assert area_under_hull([2], [0.7]) == 0.7


def test_cost_of_an_accuracy_lies_on_the_line_between_two_corners() -> None:
    assert cost_at([1, 3], [0.2, 0.8], 0.5) == pytest.approx(2.0)
    assert cost_at([1, 3], [0.2, 0.8], 0.1) == 1
    assert cost_at([1, 3], [0.2, 0.8], 0.81) is None


@given(POINTS)
def test_hull_never_falls_is_concave_and_covers_every_point(points: list[tuple[float, float]]) -> None:
    given_costs, given_accuracies = map(np.array, zip(*points, strict=True))
    costs, accuracies = non_decreasing_hull(given_costs, given_accuracies)
    assert (np.diff(costs) > 0).all()
    assert (np.diff(accuracies) >= 0).all()
    assert (np.interp(given_costs, costs, accuracies) >= given_accuracies - 1e-9).all()


def test_pair_metrics_of_ten_tasks_worked_by_hand() -> None:
    """Ten tasks by falling win rate; the strong model alone succeeds at the first three, both at the next four.

    Bins hold one task each, so the k-th setting sends the k tasks of the highest rates to the strong model, except
    that the border of the first bin is the least rate itself: shares 0, 10, ..., 90, 100 %. Gained: min(k, 3) of 10.
    accuracy = 0.4, 0.5, 0.6, 0.7, 0.7 x 7; weak 0.4, strong 0.7.
    area = 0.1 * (0.45 + 0.55 + 0.65 + 0.7 * 7) = 0.655; (0.655 - 0.4) / 0.3 = 0.85.
    Half the gap is 0.55: midway between 10 and 20 %. 80 % of it is 0.64: 20 + 4 %.
    """
    rates = np.linspace(0.95, 0.05, 10)
    strong = [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    weak = [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    found = pair_metrics(rates, strong, weak, seed=0)
    assert found.strong_percent == pytest.approx(np.arange(0, 101, 10))
    assert found.apgr == pytest.approx(0.85)
    assert found.cpt_50 == pytest.approx(15.0)
    assert found.cpt_80 == pytest.approx(24.0)


def test_pair_metrics_of_a_router_that_knows_nothing_are_about_those_of_chance() -> None:
    rng = np.random.default_rng(1)
    strong, weak = rng.random(20_000) < 0.8, rng.random(20_000) < 0.6
    found = pair_metrics(np.full(20_000, 0.5), strong, weak, seed=2)  # all alike: only the jitter orders them
    assert found.apgr == pytest.approx(0.5, abs=0.03)
    assert found.cpt_50 == pytest.approx(50, abs=5)


def test_pair_metrics_need_a_gap() -> None:
    with pytest.raises(ValueError, match="no gap"):
        pair_metrics([0.1, 0.2], [1, 0], [0, 1], seed=0)
