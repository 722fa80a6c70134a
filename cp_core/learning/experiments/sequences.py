"""Always-valid comparison of two means: one may look every day, and stop when one likes.

Asymptotic confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Time-uniform central limit
theory and asymptotic confidence sequences: a normal mixture over the difference, narrowest at the planned number of
units; there it is about half as wide again as the interval of a test that looks once.

All functions are elementwise on arrays of equal shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]


def running_moments(count: Doubles, total: Doubles, squares: Doubles) -> tuple[Doubles, Doubles]:
    """Mean and unbiased variance from counts, sums and sums of squares; NaN below two units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(count > 0, total / count, np.nan)
        variance = np.where(count > 1, (squares - count * mean**2) / (count - 1), np.nan)
    return mean, np.maximum(variance, 0.0)


def standard_error(n0: Doubles, var0: Doubles, n1: Doubles, var1: Doubles, off: Doubles) -> Doubles:
    """Of the difference of two means.

    An arm in which all units were alike so far has not therefore no spread: it counts as having at least the spread of
    both arms together over its number of units.

    Args:
        n0, n1: units; var0, var1: variances; off: difference of the means.
    """
    share = n0 / (n0 + n1)
    both = share * var0 + (1 - share) * var1 + share * (1 - share) * off**2
    return np.asarray(np.sqrt(np.maximum(var0, both / n0) / n0 + np.maximum(var1, both / n1) / n1))


def mixture_variance(planned: float, alpha: float) -> float:
    """The mixture's variance that makes the sequence narrowest at `planned` units an arm (their equation 24)."""
    certain = -2 * np.log(alpha)
    return float((certain + np.log(certain + 1)) / planned)


def half_width(error: Doubles, n0: Doubles, n1: Doubles, planned: float, alpha: float) -> Doubles:
    """Of the confidence sequence of a difference.

    Args:
        error: standard error of the difference.
        n0, n1: units of either arm.
        planned: units an arm for which it is narrowest.
        alpha: chance that the truth is ever outside.
    """
    spread = _paired(n0, n1) * mixture_variance(planned, alpha)
    return np.asarray(error * np.sqrt((spread + 1) / spread * np.log((spread + 1) / alpha**2)))


def evidence(off: Doubles, error: Doubles, n0: Doubles, n1: Doubles, planned: float, alpha: float) -> Doubles:
    """The mixture martingale (e-value) against no difference: it exceeds 1/a with probability a at most, ever.

    It exceeds 1/alpha exactly when the confidence sequence at `alpha` leaves 0 out. Where nothing varies it is 1.
    """
    spread = _paired(n0, n1) * mixture_variance(planned, alpha)
    z = np.divide(off, error, out=np.zeros_like(off), where=error > 0)
    exponent = np.minimum(spread * z**2 / (2 * (spread + 1)), 700.0)
    return np.asarray(np.exp(exponent) / np.sqrt(spread + 1))


def always_valid_p(evidence_so_far: ArrayLike) -> Doubles:
    """p-values that hold at every time: one over the most evidence so far, along the last axis; NaN is no evidence."""
    known = np.nan_to_num(np.asarray(evidence_so_far, dtype=np.float64), nan=0.0)
    most = np.maximum.accumulate(np.maximum(known, 1.0), axis=-1)
    return np.asarray(1 / most)


def _paired(n0: Doubles, n1: Doubles) -> Doubles:
    """Pairs that tell as much as two arms of unequal size: the harmonic mean."""
    return np.asarray(2 * n0 * n1 / (n0 + n1))
