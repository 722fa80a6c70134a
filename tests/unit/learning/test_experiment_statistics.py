"""Statistics of experiments: formulas by hand, and what they promise, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from cp_core.learning.experiments.holm import rejected
from cp_core.learning.experiments.overlay import OverlayError, overlaid
from cp_core.learning.experiments.sample_ratio import chi_square_p, sequential_p
from cp_core.learning.experiments.sequences import (
    always_valid_p,
    evidence,
    half_width,
    mixture_variance,
    running_moments,
    standard_error,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_moments_by_hand() -> None:
    mean, variance = running_moments(array(4, 1, 0), array(10, 3, 0), array(30, 9, 0))  # 1, 2, 3, 4 and 3
    assert mean[0] == 2.5
    assert variance[0] == pytest.approx(5 / 3)
    assert np.isnan(variance[1])
    assert np.isnan(mean[2])


def test_half_width_by_hand() -> None:
    rho = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / 1_200
    assert mixture_variance(1_200, 0.05) == pytest.approx(rho)
    spread = 1_200 * rho
    wide = 0.02 * math.sqrt(2 * (spread + 1) / spread * math.log(math.sqrt(spread + 1) / 0.05))
    assert half_width(array(0.02), array(1_200), array(1_200), 1_200, 0.05)[0] == pytest.approx(wide)
    assert wide / 0.02 == pytest.approx(3.03, abs=0.01)  # against 1.96 of a test that looks once


def test_the_sequence_is_narrowest_at_the_plan() -> None:
    at_plan = half_width(array(1 / 30), array(900), array(900), 900, 0.05)
    for other in (90, 300, 2_700, 9_000):
        assert half_width(array(1 / 30), array(900), array(900), other, 0.05) > at_plan


@given(
    st.floats(-3, 3), st.floats(0.01, 2), st.integers(2, 10**6), st.integers(2, 10**6), st.integers(10, 10**5)
)
def test_evidence_suffices_exactly_where_the_sequence_leaves_out_zero(
    off: float, error: float, n0: int, n1: int, planned: int
) -> None:
    arguments = array(error), array(n0), array(n1), planned, 0.05
    reach = abs(off) / half_width(*arguments)[0]
    found = evidence(array(off), *arguments)[0]
    if abs(reach - 1) > 1e-9:
        assert (found > 1 / 0.05) == (reach > 1)


def test_arms_that_are_all_alike_but_differ_are_not_certain_at_once() -> None:
    error = standard_error(array(10), array(0), array(10), array(0), array(1.0))
    assert error[0] == pytest.approx(math.sqrt(2 * 0.25 / 10 / 10))
    assert standard_error(array(10), array(0), array(10), array(0), array(0.0))[0] == 0


def test_p_values_never_rise_again() -> None:
    assert always_valid_p([0.5, 40.0, 2.0, 100.0]).tolist() == [1.0, 1 / 40, 1 / 40, 1 / 100]


def test_peeking_every_day_keeps_its_promise() -> None:
    """500 experiments without a difference; a test that looks once would raise 30 % of alarms in so many looks."""
    generator = np.random.default_rng(5)
    successes = generator.binomial(20, 0.3, size=(2, 500, 30)).cumsum(axis=-1).astype(float)
    count = np.broadcast_to(np.arange(1.0, 31) * 20, (500, 30))
    (mean0, var0), (mean1, var1) = (running_moments(count, one, one) for one in successes)
    error = standard_error(count, var0, count, var1, mean1 - mean0)
    p = always_valid_p(evidence(mean1 - mean0, error, count, count, 600, 0.05))
    assert (p[:, -1] <= 0.05).mean() <= 0.05
    assert (np.abs(mean1 - mean0) > 1.96 * error).any(axis=1).mean() > 0.2


def test_holm_by_hand() -> None:
    assert rejected({"a": 0.01, "b": 0.02, "c": 0.04}, 0.05) == {"a", "b", "c"}  # 0.0167, 0.025, 0.05
    assert rejected({"a": 0.01, "b": 0.03, "c": 0.04}, 0.05) == {"a"}
    assert rejected({"a": 0.02, "b": 0.02, "c": 0.02}, 0.05) == set()
    assert rejected({}, 0.05) == set()


def test_chi_square_is_scipys() -> None:
    assert chi_square_p([60, 40], [1, 1]) == pytest.approx(chisquare([60, 40]).pvalue)
    assert chi_square_p([0, 0], [1, 1]) == 1


def test_the_right_ratio_is_left_in_peace_however_often_it_is_looked_at() -> None:
    generator = np.random.default_rng(11)
    alarms = 0
    for _ in range(300):
        looks = generator.multinomial(50, [0.75, 0.25], size=60).cumsum(axis=0)
        alarms += sequential_p(looks, [3, 1])[-1] < 0.05
    assert alarms / 300 <= 0.05


def test_a_wrong_ratio_is_found_and_stays_found() -> None:
    looks = np.array([[55, 45], [560, 440], [1_700, 1_300], [1_800, 1_800]])
    p = sequential_p(looks, [1, 1])
    assert p[0] > 0.05
    assert p[2] < 1e-6
    assert p[3] == p[2]


def test_an_overlay_replaces_values_and_leaves_the_rest() -> None:
    content = {"policies": {"a": {"x": 1, "y": 2}}, "scoring": {"b": 3}}
    assert overlaid(content, {"policies.a.x": 9}) == {
        "policies": {"a": {"x": 9, "y": 2}},
        "scoring": {"b": 3},
    }
    assert content["policies"]["a"]["x"] == 1


@pytest.mark.parametrize(
    "key", ["policies.a.z", "policies.b.x", "scoring.b.c"], ids=["last", "section", "below a value"]
)
def test_an_overlay_of_what_is_not_there_is_refused(key: str) -> None:
    with pytest.raises(OverlayError, match=key):
        overlaid({"policies": {"a": {"x": 1}}, "scoring": {"b": 3}}, {key: 1})
