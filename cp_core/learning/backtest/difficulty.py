"""What one model's failure says about the others: tasks are hard for all of them, more or less.

A probit model with one factor: task t has a difficulty z_t ~ N(0, 1) that its text does not show; model j does it if

    Phi^-1(p_tj) - l_j z_t + sqrt(1 - l_j^2) e > 0,     e ~ N(0, 1)

so that its success is p_tj as predicted, and given the difficulty the models are independent. The loadings l_j are
those of greatest marginal likelihood of the training matrix, by Gauss-Hermite quadrature (Bock and Aitkin, 1981),
with the predictions held fixed. After a rejection, what is expected of the next stage follows by Bayes' rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import ndtr, ndtri

Doubles = NDArray[np.float64]

_NODES = 13
_CERTAIN = 1e-3
_LARGEST = 0.97  # of a loading
_SPREAD = 0.5  # of loadings about their mean, on the scale of atanh: the prior that few tasks need
_PRIOR_TASKS = 20.0  # that speak for a cost which does not depend on the difficulty


@dataclass(frozen=True)
class SharedDifficulty:
    """The difficulty that models share.

    Attributes:
        loadings: how much each model suffers from it, (m,), -1 to 1; 0: not at all.
        nodes, weights: difficulties and their probabilities, (q,).
        cost_factors: cost at each difficulty over the cost expected without knowing it, (m, q).
    """

    loadings: Doubles
    nodes: Doubles
    weights: Doubles
    cost_factors: Doubles

    def success_at(self, predicted: Doubles, node: int) -> Doubles:
        """Success of tasks of one difficulty, where `predicted`, (m, n), is that of tasks of any."""
        return _given(_probit(predicted), self.loadings, self.nodes[node])

    def drawn(self, predicted: Doubles, seed: int) -> Doubles:
        """Success of n tasks, each of its own difficulty: evenly spread quantiles, given out at random, (m, n)."""
        tasks = predicted.shape[1]
        places = (np.random.default_rng(seed).permutation(tasks) + 0.5) / max(tasks, 1)
        return _given(_probit(predicted), self.loadings, ndtri(places))


def fit(predicted: Doubles, success: Doubles, relative_cost: Doubles) -> SharedDifficulty:
    """Learn from a training matrix.

    Args:
        predicted: success as predicted by a model that has not seen the task's outcomes, (m, n).
        success: 0 or 1, NaN where not known, (m, n).
        relative_cost: cost over the cost predicted, NaN where not known, (m, n).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    probit = _probit(predicted)
    several = np.isfinite(success).sum(axis=0) > 1  # a task with one outcome says nothing about two models
    start = np.full(len(probit), np.arctanh(0.5))
    best = minimize(
        _minus_log_posterior,
        start,
        args=(probit[:, several], success[:, several], nodes, weights),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 100},
    )
    loadings = _LARGEST * np.tanh(best.x)
    posterior = _posterior(probit, success, loadings, nodes, weights)[0]
    return SharedDifficulty(loadings, nodes, weights, _cost_factors(posterior, weights, relative_cost))


def _minus_log_posterior(
    free: Doubles, probit: Doubles, success: Doubles, nodes: Doubles, weights: Doubles
) -> tuple[float, Doubles]:
    """Value and gradient for loadings `_LARGEST` tanh(free)."""
    loadings = _LARGEST * np.tanh(free)
    posterior, log_likelihood = _posterior(probit, success, loadings, nodes, weights)
    slope = np.zeros(len(loadings))
    left = np.sqrt(1 - loadings**2)[:, None]
    for share, node in zip(posterior, nodes, strict=True):
        place = (probit - loadings[:, None] * node) / left
        density = np.exp(-(place**2) / 2) / np.sqrt(2 * np.pi)
        chance = np.clip(ndtr(place), 1e-9, 1 - 1e-9)
        by_place = density * np.where(success > 0.5, 1 / chance, -1 / (1 - chance))
        moved = (loadings[:, None] * probit - node) / left**3
        slope += np.where(np.isfinite(success), share * by_place * moved, 0.0).sum(axis=1)
    slope *= _LARGEST * (1 - np.tanh(free) ** 2)
    apart = free - free.mean()
    penalty = float((apart**2).sum() / (2 * _SPREAD**2) + free.mean() ** 2 / 2)
    penalty_slope = apart / _SPREAD**2 + free.mean() / len(free)
    return penalty - log_likelihood, penalty_slope - slope


def _posterior(
    probit: Doubles, success: Doubles, loadings: Doubles, nodes: Doubles, weights: Doubles
) -> tuple[Doubles, float]:
    """Probability of each difficulty given a task's outcomes, (q, n), and the log-likelihood of all of them."""
    joint = np.empty((len(nodes), probit.shape[1]))
    for number, node in enumerate(nodes):
        chance = np.clip(_given(probit, loadings, node), 1e-9, 1 - 1e-9)
        logs = np.where(success > 0.5, np.log(chance), np.log1p(-chance))
        joint[number] = np.where(np.isfinite(success), logs, 0.0).sum(axis=0) + np.log(weights[number])
    highest = joint.max(axis=0, initial=-np.inf)
    shares = np.exp(joint - highest)
    total = shares.sum(axis=0)
    return shares / total, float((highest + np.log(total)).sum())


def _cost_factors(posterior: Doubles, weights: Doubles, relative_cost: Doubles) -> Doubles:
    known = np.isfinite(relative_cost)
    level = np.nansum(relative_cost, axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    ratio = np.where(known, relative_cost, 0.0) / np.where(level > 0, level, 1.0)
    factors = (ratio @ posterior.T + _PRIOR_TASKS) / (known.astype(np.float64) @ posterior.T + _PRIOR_TASKS)
    return np.asarray(factors / (factors @ weights)[:, None], dtype=np.float64)


def _probit(probability: Doubles) -> Doubles:
    return np.asarray(ndtri(np.clip(probability, _CERTAIN, 1 - _CERTAIN)), dtype=np.float64)


def _given(probit: Doubles, loadings: Doubles, difficulty: float | Doubles) -> Doubles:
    left = np.sqrt(1 - loadings**2)[:, None]
    return np.asarray(ndtr((probit - loadings[:, None] * difficulty) / left), dtype=np.float64)
