"""Logistic regression in which each block of effects is shrunk as much as the rows themselves call for.

A block is a group of columns whose effects are thought to come from one normal distribution around zero: the domains,
say, or the axes of texts. Its variance is estimated with the effects (EM for type II maximum likelihood under
Laplace's approximation: MacKay, "Bayesian interpolation", 1992), so that a block which explains little shrinks to
little, and nobody has to choose a penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.linalg.lapack import dtrtri
from scipy.special import expit

Doubles = NDArray[np.float64]

_SPREADS = (0.01, 9.0)
_LEAST, _MOST = 1e-2, 1e8  # of a precision: effects of 10 log-odds, and none at all


@dataclass(frozen=True)
class Effects:
    """What was found.

    Attributes:
        weights: (p,): effect of each column, in log-odds.
        precision: one over the variance of each block's effects.
        of_rows: (t,): what each row has beside its columns' effects; 0 where `spread` was left out.
        spread: variance of such effects of rows.
        squares: sum over each block of the squares that its effects are expected to have.
    """

    weights: Doubles
    precision: tuple[float, ...]
    of_rows: Doubles
    spread: float = 0.0
    squares: tuple[float, ...] = ()


def fit_effects(
    blocks: Sequence[Doubles],
    outcomes: Doubles,
    offset: Doubles,
    *,
    weights: Doubles | None = None,
    of: NDArray[np.intp] | None = None,
    spread: float | None = None,
    start: Effects | None = None,
    precision: Sequence[float] | None = None,
    rounds: int = 10,
) -> Effects:
    """The effects of the blocks on outcomes, beside a known offset.

    Outcomes of one row are alike in more than its columns tell. Where `spread` is given, each row with several outcomes
    has an effect of its own, too; without it, many outcomes of few rows would be taken for much evidence (Breslow and
    Clayton, "Approximate inference in generalized linear mixed models", 1993).

    Args:
        blocks: arrays (t, p_b), one a block.
        outcomes: (n,), each within 0 and 1.
        offset: (n,) log-odds that the effects come on top of.
        weights: (n,) how much each outcome counts; one where left out.
        of: (n,) the row of the blocks that each outcome belongs to; one a row, in order, where left out.
        spread: variance of the rows' own effects to begin with; without them where left out.
        start: effects to begin with.
        precision: of each block, when it is known already, and `spread` with it; estimated where left out.
        rounds: most steps; it stops when precisions stand still.
    """
    columns = np.hstack(blocks)
    bounds = np.cumsum([0, *(block.shape[1] for block in blocks)])
    counts = np.ones(len(outcomes)) if weights is None else weights
    places = np.arange(len(outcomes)) if of is None else of
    effects = np.zeros(columns.shape[1]) if start is None else start.weights
    guess = precision or (start.precision if start else [4.0 * _mean_square(block) for block in blocks])
    precisions = np.clip(np.array(guess, dtype=np.float64), _LEAST, _MOST)
    has_own = np.bincount(places, minlength=len(columns)) > 1
    own = np.zeros(len(columns)) if start is None or spread is None else start.of_rows
    variance = spread or 0.0
    for _ in range(rounds):
        penalty = np.repeat(precisions, np.diff(bounds))
        variances_of_rows = np.where(has_own, variance, 0.0)
        for _ in range(2):
            shift = columns @ effects
            expected = expit(offset + (shift + own)[places])
            curve = np.bincount(places, counts * np.maximum(expected * (1 - expected), 1e-6), len(columns))
            gain = np.bincount(places, counts * (outcomes - expected), len(columns))
            left = 1 / (1 + variances_of_rows * curve)  # of what a row says, what is not put down to itself
            scaled = columns * np.sqrt(curve * left)[:, None]
            hessian = scaled.T @ scaled
            hessian[np.diag_indices_from(hessian)] += penalty
            factor = cholesky(hessian, lower=True, overwrite_a=True, check_finite=False)
            target = columns.T @ (left * (curve * (shift + own) + gain))
            effects = cho_solve((factor, True), target, check_finite=False)
            own = variances_of_rows * left * (curve * (shift + own - columns @ effects) + gain)
        inverse, _ = dtrtri(factor, lower=1)
        squares = np.add.reduceat(effects**2 + (inverse**2).sum(axis=0), bounds[:-1])
        if precision:
            break
        updated = np.clip(np.diff(bounds) / squares, _LEAST, _MOST)
        settled = np.allclose(np.log(updated), np.log(precisions), atol=0.05)
        precisions = updated
        if spread is not None and has_own.any():
            doubt = ((columns @ inverse.T) ** 2).sum(axis=1) * (variances_of_rows * left * curve) ** 2
            doubt += variances_of_rows * left
            variance = float(np.clip((own**2 + doubt)[has_own].mean(), *_SPREADS))
        if settled:
            break
    return Effects(effects, tuple(precisions), own, variance, tuple(squares))


def precision_of(found: Sequence[Effects], sizes: Sequence[int]) -> tuple[float, ...]:
    """One over the variance of each block's effects, over all fits that share it; blocks have so many columns."""
    squares = np.mean([effects.squares for effects in found], axis=0)
    return tuple(np.clip(np.array(sizes) / squares, _LEAST, _MOST).tolist())


def _mean_square(block: Doubles) -> float:
    """Sum of the mean squares of a block's columns: effects of precision four times this move log-odds by a half."""
    return float(np.sum(np.mean(block**2, axis=0)))
