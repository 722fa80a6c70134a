"""Off-policy estimates: worked by hand, against the truth of simulated policies, and silent where little speaks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.learning.offpolicy import (
    LEAST_ESS,
    Estimate,
    doubly_robust,
    effective_sample_size,
    importance_weighted,
    self_normalised,
)

# Four decisions, repeated fifty times: weights 2, 0, 1, 1.
REWARDS = np.tile([1.0, 1.0, 0.0, 1.0], 50)
PROPENSITIES = np.tile([0.5, 0.5, 1.0, 0.5], 50)
TARGET = np.tile([1.0, 0.0, 1.0, 0.5], 50)


def test_inverse_propensity_is_the_mean_of_weighted_rewards() -> None:
    assert importance_weighted(REWARDS, PROPENSITIES, TARGET).value == pytest.approx((2 + 0 + 0 + 1) / 4)


def test_self_normalised_divides_by_the_weights() -> None:
    assert self_normalised(REWARDS, PROPENSITIES, TARGET).value == pytest.approx(3 / 4)  # weights add up to 4


def test_doubly_robust_weights_only_what_the_model_got_wrong() -> None:
    estimate = doubly_robust(REWARDS, PROPENSITIES, TARGET, np.full(200, 0.5), np.full(200, 0.6))
    corrections = (2 * 0.5 + 0 * 0.5 + 1 * -0.5 + 1 * 0.5) / 4
    assert estimate.value == pytest.approx(0.6 + corrections)


def test_a_model_that_is_never_wrong_leaves_no_doubt() -> None:
    estimate = doubly_robust(REWARDS, PROPENSITIES, TARGET, REWARDS, np.full(200, 0.25))
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_effective_sample_size_and_largest_weight_by_hand() -> None:
    estimate = importance_weighted(REWARDS, PROPENSITIES, TARGET)
    assert estimate.ess == pytest.approx(50 * 4**2 / (2**2 + 1 + 1))  # (50 x 4)^2 / (50 x 6)
    assert estimate.largest_weight == 2
    assert estimate.n == 200


@pytest.mark.parametrize("estimator", [importance_weighted, self_normalised], ids=["ips", "snips"])
def test_little_evidence_is_refused_and_says_so(estimator: Callable[..., Estimate]) -> None:
    estimate = estimator(np.ones(99), np.ones(99), np.ones(99))
    assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
    assert estimate.ess == 99
    assert estimate.refused is not None
    assert "99.0" in estimate.refused
    assert "100" in estimate.refused


def test_a_policy_that_would_never_have_decided_so_is_refused() -> None:
    nothing = np.zeros(500)
    for estimate in (
        importance_weighted(nothing + 1, nothing + 0.5, nothing),
        self_normalised(nothing + 1, nothing + 0.5, nothing),
        doubly_robust(nothing + 1, nothing + 0.5, nothing, nothing, nothing),
    ):
        assert estimate.refused is not None
        assert estimate.ess == 0


def test_evidence_that_just_suffices_is_not_refused() -> None:
    assert importance_weighted(np.ones(100), np.ones(100), np.ones(100)).refused is None


@pytest.mark.parametrize(
    ("rewards", "propensities", "target", "message"),
    [
        ([1.0, 2.0], [1.0], [1.0], "one length"),
        ([1.0], [0.0], [1.0], "above 0"),
        ([1.0], [0.5], [1.5], "between 0 and 1"),
        ([float("nan")], [0.5], [0.5], "a number"),
    ],
    ids=["unequal", "impossible", "no probability", "missing reward"],
)
def test_what_is_no_log_of_decisions_is_refused_as_an_error(
    rewards: list[float], propensities: list[float], target: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        importance_weighted(rewards, propensities, target)


def test_the_same_seed_gives_the_same_interval() -> None:
    first, again = (importance_weighted(REWARDS, PROPENSITIES, TARGET, seed=3) for _ in range(2))
    assert first == again


def test_an_interval_of_equal_weights_is_near_students() -> None:
    rewards = np.random.default_rng(1).normal(5.0, 2.0, 40_000)  # more than are drawn from one by one
    estimate = importance_weighted(rewards, np.ones(40_000), np.ones(40_000))
    half = 1.96 * 2.0 / 200  # 0.0196
    assert estimate.low is not None
    assert estimate.high is not None
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.1)
    assert estimate.low < estimate.value < estimate.high  # type: ignore[operator]


@given(st.lists(st.floats(min_value=0, max_value=100), min_size=1, max_size=50))
def test_effective_size_never_exceeds_the_number_of_decisions(weights: list[float]) -> None:
    assert 0 <= effective_sample_size(np.array(weights)) <= len(weights) * (1 + 1e-9)


def test_a_wrong_model_of_the_outcome_does_not_mislead() -> None:
    """One decision in ten explores; the other policy would always do what only exploration did, and wins 0.8 of it."""
    generator = np.random.default_rng(7)
    explored = generator.random(20_000) < 0.1
    rewards = (generator.random(20_000) < np.where(explored, 0.8, 0.5)).astype(float)
    wrong = np.full(20_000, 0.2)
    estimate = doubly_robust(rewards, np.where(explored, 0.1, 0.9), explored.astype(float), wrong, wrong)
    assert estimate.ess >= LEAST_ESS
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low <= 0.8 <= estimate.high
    assert estimate.high - estimate.low < 0.12
