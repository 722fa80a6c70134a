"""Alarms about drift, worked out by hand, and how seldom chance raises one."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.learning.drift import (
    kolmogorov_smirnov,
    population_stability,
    success_fell,
    token_spikes,
)

COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=8)


def test_the_stability_index_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4), with half a count in each class: (50.5, 50.5)/101 and (75.5, 25.5)/101.
    q = 75.5 / 101
    by_hand = (q - 0.5) * math.log(q / 0.5) + (0.5 - q) * math.log((1 - q) / 0.5)

    found = population_stability([50, 50], [75, 25])

    assert found.statistic == pytest.approx(by_hand)
    assert found.statistic == pytest.approx(0.2686, abs=0.001)
    assert (
        found.is_notable
    )  # 100 against 100: the 99.9 % quantile of chi-squared is 10.83, times 2/100 = 0.217


def test_a_few_tasks_are_no_drift():
    assert not population_stability([500, 500], [3, 0]).is_notable


@given(COUNTS, st.integers(2, 50))
def test_the_same_shape_never_drifts(counts: list[int], times: int):
    more = [times * count for count in counts]

    assert not population_stability(more, more).is_notable
    assert not kolmogorov_smirnov(counts, more).is_notable


def test_the_largest_gap_by_hand():
    # Cumulative 0.25, 0.5, 1 against 0.5, 1, 1: the gap is 0.5 at the second value.
    assert kolmogorov_smirnov([1, 1, 2], [2, 2, 0]).statistic == pytest.approx(0.5)


def test_the_bound_of_the_gap_by_hand():
    # sqrt(-ln(0.0005) / 2 * (1/100 + 1/100)) = sqrt(7.6009 / 2 * 0.02) = 0.2757
    assert kolmogorov_smirnov([50, 50], [50, 50]).bound == pytest.approx(0.2757, abs=1e-4)


def test_chance_seldom_raises_an_alarm():
    draw = np.random.default_rng(0)
    shape = [0.4, 0.3, 0.2, 0.1]
    days = [(draw.multinomial(300, shape), draw.multinomial(60, shape)) for _ in range(1000)]

    assert sum(population_stability(*day).is_notable for day in days) <= 5
    assert sum(kolmogorov_smirnov(*day).is_notable for day in days) <= 5


def test_a_spike_is_told_from_what_its_model_usually_takes():
    usual = [80, 90, 100, 110, 125] * 10
    attempts = pd.DataFrame(
        {
            "model": ["small"] * 52 + ["new"],
            "domain": "backend",
            "tokens": [*usual, 100_000, 120, 100_000],
            "task_id": [f"t{number}" for number in range(53)],
        }
    )

    found = token_spikes(attempts, np.arange(53) >= 50)

    # The median is 100 and the MAD of the logarithms ln(100/90) = 0.1054, so z = ln(1000) / (1.4826 * 0.1054)
    assert found["task_id"].to_list() == ["t50"]
    assert found["usual"].to_list() == pytest.approx([100])
    assert found["z"].to_list() == pytest.approx([math.log(1000) / (1.4826 * math.log(100 / 90))], rel=0.01)


def test_a_day_without_attempts_has_no_spikes():
    attempts = pd.DataFrame({"model": ["m"] * 40, "domain": "ml", "tokens": range(40)})

    assert token_spikes(attempts, np.zeros(40, dtype=bool)).empty
    assert token_spikes(attempts.iloc[:0], np.zeros(0, dtype=bool)).empty


def test_a_fall_of_success_is_found_where_it_began():
    won = [80] * 10 + [81, 79, 80, 80, 80] + [55] * 3
    change = success_fell(won, [100] * 18)

    assert change is not None
    assert change.began == 15
    assert change.since == pytest.approx(0.55)
    assert change.before == pytest.approx(0.8)


def test_a_fall_that_has_been_made_good_is_news_no_more():
    assert success_fell([80] * 8 + [55] * 2 + [90] * 8, [100] * 18) is None


def test_success_that_stays_raises_no_more_alarms_than_allowed():
    draw = np.random.default_rng(1)
    alarms = sum(
        success_fell(draw.binomial(50, 0.8, 28), [50] * 28, chance=0.05) is not None for _ in range(1000)
    )

    assert alarms <= 50


def test_no_attempts_are_no_change():
    assert success_fell([], []) is None
    assert success_fell([5, 0], [5, 0]) is None
