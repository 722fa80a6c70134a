"""Logistic regression in which each block of effects is shrunk as much as the rows themselves call for.

A block is a group of columns whose effects are thought to come from one normal distribution around zero: the domains,
say, or the axes of texts. Its variance is estimated with the effects (EM for type II maximum likelihood under
Laplace's approximation: MacKay, "Bayesian interpolation", 1992), so that a block which explains little shrinks to
little, and nobody has to choose a penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.linalg.lapack import dtrtri
from scipy.special import expit

Doubles = NDArray[np.float64]

_LEAST, _MOST = 1e-2, 1e8  # of a precision: effects of 10 log-odds, and none at all


@dataclass(frozen=True)
class Effects:
    """What was found.

    Attributes:
        weights: (p,): effect of each column, in log-odds.
        precision: one over the variance of each block's effects.
    """

    weights: Doubles
    precision: tuple[float, ...]


def fit_effects(
    blocks: Sequence[Doubles],
    outcomes: Doubles,
    offset: Doubles,
    *,
    weights: Doubles | None = None,
    of: NDArray[np.intp] | None = None,
    start: Effects | None = None,
    precision: Sequence[float] | None = None,
    rounds: int = 10,
) -> Effects:
    """The effects of the blocks on outcomes, beside a known offset.

    Args:
        blocks: arrays (t, p_b), one a block.
        outcomes: (n,), each within 0 and 1.
        offset: (n,) log-odds that the effects come on top of.
        weights: (n,) how much each outcome counts; one where left out.
        of: (n,) the row of the blocks that each outcome belongs to; one a row, in order, where left out.
        start: effects to begin with.
        precision: of each block, when it is known already; estimated where left out.
        rounds: most steps; it stops when precisions stand still.
    """
    columns = np.hstack(blocks)
    bounds = np.cumsum([0, *(block.shape[1] for block in blocks)])
    counts = np.ones(len(outcomes)) if weights is None else weights
    effects = np.zeros(columns.shape[1]) if start is None else start.weights
    guess = precision or (start.precision if start else [4.0 * _mean_square(block) for block in blocks])
    precisions = np.clip(np.array(guess, dtype=np.float64), _LEAST, _MOST)

    def by_outcome(values: Doubles) -> Doubles:
        return values if of is None else values[of]

    def by_row(values: Doubles) -> Doubles:
        return values if of is None else np.asarray(np.bincount(of, values, len(columns)), np.float64)

    for _ in range(rounds):
        penalty = np.repeat(precisions, np.diff(bounds))
        for _ in range(2):
            expected = expit(offset + by_outcome(columns @ effects))
            spread = by_row(counts * np.maximum(expected * (1 - expected), 1e-6))
            scaled = columns * np.sqrt(spread)[:, None]
            hessian = scaled.T @ scaled
            hessian[np.diag_indices_from(hessian)] += penalty
            factor = cholesky(hessian, lower=True, overwrite_a=True, check_finite=False)
            gain = columns.T @ by_row(counts * (outcomes - expected)) - penalty * effects
            effects = effects + cho_solve((factor, True), gain, check_finite=False)
        inverse, _ = dtrtri(factor, lower=1)
        variances = (inverse**2).sum(axis=0)
        updated = precisions if precision else _updated(effects, variances, bounds)
        settled = np.allclose(np.log(updated), np.log(precisions), atol=0.05)
        precisions = updated
        if settled:
            break
    return Effects(effects, tuple(float(one) for one in precisions))


def _updated(effects: Doubles, variances: Doubles, bounds: NDArray[np.intp]) -> Doubles:
    """One over the mean square that each block's effects are expected to have, given what the rows say of them."""
    squares = effects**2 + variances
    return np.array(
        [np.clip(1 / squares[first:last].mean(), _LEAST, _MOST) for first, last in pairwise(bounds)]
    )


def _mean_square(block: Doubles) -> float:
    """Sum of the mean squares of a block's columns: effects of precision four times this move log-odds by a half."""
    return float(np.sum(np.mean(block**2, axis=0)))
