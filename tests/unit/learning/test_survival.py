"""Censored numbers, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.learning.survival import Survival


def test_without_censoring_every_number_weighs_the_same():
    found = Survival.of([4.0, 1.0, 3.0], [False, False, False])

    assert found.values.tolist() == [1, 3, 4]
    assert found.masses == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert found.mean == pytest.approx(8 / 3)


def test_what_was_cut_off_hands_its_mass_to_larger_numbers():
    # At 1: 4 at risk, S = 3/4. 2 is cut off. At 3: 2 at risk, S = 3/8. At 4: 1 at risk, S = 0.
    found = Survival.of([1.0, 2.0, 3.0, 4.0], [False, True, False, False])

    assert found.values.tolist() == [1, 3, 4]
    assert found.masses == pytest.approx([1 / 4, 3 / 8, 3 / 8])
    assert found.mean == pytest.approx(1 / 4 + 9 / 8 + 12 / 8)


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.integers(1, 3)), min_size=1, max_size=12))
def test_a_weight_counts_as_so_many_equal_numbers(rows: list[tuple[int, bool, int]]):
    numbers, censored, weights = zip(*rows, strict=True)
    # Of equal numbers that were cut off together, the first ones leave the rest at risk: that is the same event.
    weighed = Survival.of(numbers, censored, weights)
    repeated = Survival.of(np.repeat(numbers, weights), np.repeat(censored, weights))
    for level in (0.1, 0.5, 0.9):
        assert weighed.quantile(level) == repeated.quantile(level)
    assert weighed.mean == pytest.approx(repeated.mean)


def test_when_the_largest_was_cut_off_the_rest_of_the_mass_lies_on_it():
    found = Survival.of([1.0, 5.0], [False, True])

    assert found.values.tolist() == [1, 5]
    assert found.masses == pytest.approx([1 / 2, 1 / 2])


def test_at_a_tie_what_ended_comes_before_what_was_cut_off():
    found = Survival.of([2.0, 2.0, 6.0], [True, False, False])

    assert found.masses == pytest.approx([1 / 3, 2 / 3])


def test_quantiles_are_numbers_that_occur():
    found = Survival.of([10.0, 20.0, 30.0, 40.0], [False] * 4)

    assert [found.quantile(level) for level in (0.0, 0.25, 0.5, 0.51, 1.0)] == [10, 10, 20, 30, 40]


def test_what_to_expect_above_a_number():
    found = Survival.of([1.0, 2.0, 6.0], [False] * 3)

    assert found.mean_above([0.0, 1.0, 2.0, 6.0]).tolist() == pytest.approx([3.0, 4.0, 6.0, 6.0])


def test_an_undecided_tail_is_put_where_a_log_normal_distribution_expects_it():
    draw = np.random.default_rng(0).lognormal(0.0, 0.7, 20_000)
    cut = draw > 2.0  # 16 % are cut off, all at the same number

    found = Survival.of(np.minimum(draw, 2.0), cut)

    assert found.undecided == pytest.approx(cut.mean())
    assert found.mean < 0.9 * draw.mean()
    assert found.with_log_normal_tail().mean == pytest.approx(np.exp(0.7**2 / 2), rel=0.03)


def test_where_nothing_is_undecided_there_is_no_tail():
    found = Survival.of([1.0, 2.0, 3.0], [False, True, False])

    assert found.with_log_normal_tail() is found


def test_nothing_is_no_distribution():
    with pytest.raises(ValueError, match="no numbers"):
        Survival.of([], [])


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans()), min_size=1, max_size=30))
def test_mass_is_whole_and_censoring_never_lowers_the_mean(rows: list[tuple[float, bool]]):
    numbers, censored = zip(*rows, strict=True)

    found = Survival.of(numbers, censored)

    assert found.masses.sum() == pytest.approx(1)
    assert found.mean >= np.mean(numbers) - 1e-6 * max(1.0, float(np.abs(numbers).max()))
