"""What a failure of one model says of the others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cp_core.assignment.plans import CheckPolicy
from cp_core.learning.backtest.choosing import book_of, predict_plans
from cp_core.learning.backtest.difficulty import SharedDifficulty, fit


def _known(loading: float, nodes: int = 31) -> SharedDifficulty:
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return SharedDifficulty(
        np.array([loading, loading]), places, weights / weights.sum(), np.ones((2, nodes))
    )


def test_success_over_all_difficulties_is_what_was_predicted() -> None:
    known, predicted = _known(0.7), np.array([[0.3], [0.8]])
    mean = sum(weight * known.success_at(predicted, node) for node, weight in enumerate(known.weights))
    assert mean == pytest.approx(predicted, abs=1e-6)


def test_second_stage_is_expected_to_succeed_as_often_as_correlated_normals_say() -> None:
    # Both succeed at one half; with a loading of 0.7 the latent correlation is 0.49, and with a perfect check the plan
    # succeeds unless both fail: 1 - P(X < 0, Y < 0).
    both_fail = multivariate_normal(cov=[[1, 0.49], [0.49, 1]]).cdf([0, 0])
    check = CheckPolicy(sensitivity=1, specificity=1)
    found = predict_plans(
        book_of([(0, 1)], 2), np.array([[0.5], [0.5]]), np.array([[1.0], [10.0]]), _known(0.7), check
    )
    assert found.success[0, 0] == pytest.approx(1 - both_fail, abs=1e-4)
    assert found.cost_usd[0, 0] == pytest.approx(1 + 0.5 * 10, abs=1e-6)


def test_loadings_are_found_again() -> None:
    rng = np.random.default_rng(3)
    loadings = np.array([0.8, 0.8, 0.1])
    difficulty, own = rng.standard_normal(4000), rng.standard_normal((3, 4000))
    success = (own * np.sqrt(1 - loadings**2)[:, None] - loadings[:, None] * difficulty > 0).astype(float)
    success[2, ::7] = np.nan
    found = fit(np.full(success.shape, 0.5), success, np.ones(success.shape))
    assert found.loadings == pytest.approx(loadings, abs=0.12)


def test_models_that_fail_independently_share_nothing() -> None:
    success = (np.random.default_rng(4).random((4, 3000)) < 0.6).astype(float)
    found = fit(np.full(success.shape, 0.6), success, np.ones(success.shape))
    assert np.abs(np.outer(found.loadings, found.loadings) - np.diag(found.loadings**2)).max() < 0.1


def test_costs_that_go_with_failures_are_higher_where_a_task_is_hard() -> None:
    rng = np.random.default_rng(5)
    difficulty = rng.standard_normal(3000)
    success = (0.6 * rng.standard_normal((3, 3000)) - 0.8 * difficulty > 0).astype(float)
    found = fit(np.full(success.shape, 0.5), success, np.where(success > 0, 1.0, 3.0))
    hardest, easiest = found.nodes.argmax(), found.nodes.argmin()
    assert (found.cost_factors[:, hardest] > found.cost_factors[:, easiest]).all()
    assert found.cost_factors @ found.weights == pytest.approx(np.ones(3))
