"""Empirical Bayes: small groups are drawn toward what they belong to, as far as all groups together call for.

Rates are beta-binomial, means normal-normal. How strongly groups resemble their parents is one number for a level of
groups, found by maximum marginal likelihood (Casella, "An introduction to empirical Bayes data analysis", 1985).
Counts may be fractions: outcomes that count less with age are evidence of less (a power prior: Ibrahim and Chen, 2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import betaln
from scipy.stats import beta, norm

Doubles = NDArray[np.float64]

COVERAGE = 0.8
_STRENGTHS = (np.log(0.1), np.log(1e5))  # of a prior, in outcomes


@dataclass(frozen=True)
class Rates:
    """Posterior Beta distributions of rates: means (g,), and strengths (g,), the outcomes that each is worth."""

    mean: Doubles
    strength: Doubles

    @property
    def interval(self) -> tuple[Doubles, Doubles]:
        """Ends of the central intervals of `COVERAGE`."""
        tail = (1 - COVERAGE) / 2
        a, b = (np.maximum(share * self.strength, 0.5) for share in (self.mean, 1 - self.mean))
        return np.minimum(beta.ppf(tail, a, b), self.mean), np.maximum(beta.ppf(1 - tail, a, b), self.mean)

    @property
    def variance(self) -> Doubles:
        """Of each posterior."""
        return np.asarray(self.mean * (1 - self.mean) / (self.strength + 1), dtype=np.float64)


@dataclass(frozen=True)
class Means:
    """Posterior normal distributions of means: mean (g,) and deviation (g,)."""

    mean: Doubles
    deviation: Doubles

    @property
    def interval(self) -> tuple[Doubles, Doubles]:
        """Ends of the central intervals of `COVERAGE`."""
        reach = norm.ppf((1 + COVERAGE) / 2) * self.deviation
        return self.mean - reach, self.mean + reach


def shrink_rates(
    successes: ArrayLike, trials: ArrayLike, parents: ArrayLike, doubts: ArrayLike = 0.0
) -> Rates:
    """Rates of groups, each drawn toward its parent's rate.

    Args:
        successes, trials: (g,) counts of each group, 0 <= successes <= trials.
        parents: (g,) rate of what each group belongs to.
        doubts: (g,) variance of the parents' rates; it widens the posteriors as far as they rest on parents.
    """
    won, tried = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    centre = np.clip(np.asarray(parents, dtype=np.float64), 1e-4, 1 - 1e-4)

    def unlikely(log_strength: float) -> float:
        a, b = np.exp(log_strength) * centre, np.exp(log_strength) * (1 - centre)
        return float(-np.sum(betaln(a + won, b + tried - won) - betaln(a, b)))

    strength = (
        np.exp(minimize_scalar(unlikely, bounds=_STRENGTHS, method="bounded").x) if len(won) > 1 else 2.0
    )
    total = strength + tried
    mean = (strength * centre + won) / total
    spread = mean * (1 - mean) / (total + 1) + (strength / total) ** 2 * np.asarray(doubts, dtype=np.float64)
    return Rates(mean, np.maximum(mean * (1 - mean) / spread - 1, 1.0))


def shrink_means(
    means: ArrayLike, counts: ArrayLike, variance: float, parents: ArrayLike, doubts: ArrayLike = 0.0
) -> Means:
    """Means of groups, each drawn toward its parent's mean.

    Args:
        means: (g,) plain mean of each group; not looked at where its count is 0.
        counts: (g,) outcomes in each group.
        variance: of one outcome about its group's mean.
        parents: (g,) mean of what each group belongs to.
        doubts: (g,) variance of the parents' means.
    """
    count = np.asarray(counts, dtype=np.float64)
    centre = np.asarray(parents, dtype=np.float64)
    seen = count > 0
    apart = np.where(seen, np.asarray(means, dtype=np.float64) - centre, 0.0)
    noise = max(variance, 1e-12) / np.where(seen, count, 1.0)

    def unlikely(log_spread: float) -> float:
        spread = (np.exp(log_spread) + noise)[seen]
        return float(np.sum(np.log(spread) + apart[seen] ** 2 / spread))

    scale = np.log(max(variance, 1e-12))
    between = (
        np.exp(minimize_scalar(unlikely, bounds=(scale - 14, scale + 7), method="bounded").x)
        if seen.sum() > 1
        else max(variance, 1e-12)
    )
    trust = np.where(seen, between / (between + noise), 0.0)
    own = np.where(seen, trust * noise, between)
    return Means(
        centre + trust * apart, np.sqrt(own + (1 - trust) ** 2 * np.asarray(doubts, dtype=np.float64))
    )


def variance_within(squares: ArrayLike, sums: ArrayLike, counts: ArrayLike) -> float:
    """Variance of one outcome about the mean of its group, over all groups.

    Args:
        squares, sums: (g,) sum of squares, and sum, of the outcomes of each group.
        counts: (g,) outcomes in each group.
    """
    square, total, count = (np.asarray(one, dtype=np.float64) for one in (squares, sums, counts))
    freedom = float(np.sum(np.maximum(count - 1, 0)))
    if freedom <= 0:
        return 0.0
    about = square - np.divide(total**2, count, out=np.zeros_like(total), where=count > 0)
    return max(float(np.sum(about[count > 1])), 0.0) / freedom
