"""Censored numbers: where some are only known to be at least so large, how they are distributed all the same.

An attempt that was cut off has used some tokens and would have used more. Left out, or taken as if it were
whole, it makes what a model uses look smaller than it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]

MOST_BEYOND = 5.0
"""How many times the largest number a tail's mean may be."""

FEWEST_DECIDED = 0.2
"""Share of the mass that must be decided for its quartiles to tell of a tail."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Survival:
    """The Kaplan-Meier estimate of a distribution (J. Am. Stat. Assoc. 53, 1958, 457).

    Mass that censoring leaves undecided beyond the largest number lies on that number (Efron, 5th Berkeley
    Symposium 4, 1967, 831): a mean is then still a lower bound, and the best that can be said.

    Attributes:
        values: (k,), rising: the numbers that carry mass.
        masses: (k,), positive, adding up to 1.
        undecided: the part of the last one's mass that censoring left undecided.
    """

    values: Doubles
    masses: Doubles
    undecided: float = 0.0

    @classmethod
    def of(cls, numbers: ArrayLike, is_censored: ArrayLike, weights: ArrayLike | None = None) -> Self:
        """Estimate from n numbers; where `is_censored`, the truth is above the number.

        Args:
            weights: how much each number counts, positive; all alike where left out.

        Raises:
            ValueError: there are no numbers.
        """
        found = np.asarray(numbers, dtype=np.float64)
        censored = np.asarray(is_censored, dtype=np.bool_)
        if not found.size:
            raise ValueError("no numbers to estimate a distribution from")
        counts = np.ones(found.size) if weights is None else np.asarray(weights, dtype=np.float64)
        if not censored.any():
            values, places = np.unique(found, return_inverse=True)
            return cls(values, np.bincount(places, counts) / counts.sum())
        order = np.lexsort((censored, found))  # at ties, what ended comes before what was cut off
        values, seen, counts = found[order], ~censored[order], counts[order]
        is_open = not seen[-1]
        seen[-1] = True
        at_risk = np.cumsum(counts[::-1])[::-1]
        survival = np.cumprod(1 - seen * counts / at_risk)
        masses = -np.diff(survival, prepend=1.0)
        return cls(values[seen], masses[seen], float(masses[-1]) if is_open else 0.0)

    @property
    def mean(self) -> float:
        """Mean of the distribution."""
        return float(self.values @ self.masses)

    def with_log_normal_tail(self) -> Survival:
        """Undecided mass moved to where a log-normal distribution expects it, above the largest number.

        The log-normal one goes through the quartiles of the mass that is decided. All numbers must be positive.
        The tail's mean is kept within `MOST_BEYOND` times the largest number.
        """
        decided = 1 - self.undecided
        if not self.undecided or decided < FEWEST_DECIDED:
            return self
        levels = (decided / 4, decided * 3 / 4)
        lower, upper = (math.log(self.quantile(level)) for level in levels)
        z_lower, z_upper = (_NORMAL.inv_cdf(level) for level in levels)
        sigma = (upper - lower) / (z_upper - z_lower)
        mu, last = lower - sigma * z_lower, float(self.values[-1])
        if not sigma:
            return self
        beyond = 1 - _NORMAL.cdf((math.log(last) - mu) / sigma)
        above = math.exp(mu + sigma**2 / 2) * _NORMAL.cdf((mu + sigma**2 - math.log(last)) / sigma)
        tail = min(max(above / beyond, last), MOST_BEYOND * last) if beyond > 1e-9 else last
        values, masses = np.append(self.values, tail), np.append(self.masses, self.undecided)
        masses[-2] -= self.undecided
        return Survival(values[masses > 0], masses[masses > 0])

    def quantile(self, level: float) -> float:
        """The smallest number that at least `level` of the mass does not exceed."""
        reached = np.cumsum(self.masses)
        place = int(np.searchsorted(reached, level - 1e-12))
        return float(self.values[min(place, self.values.size - 1)])

    def mean_above(self, numbers: ArrayLike) -> Doubles:
        """Mean of the part of the distribution above each number; the number itself where no mass is above it."""
        above = np.asarray(numbers, dtype=np.float64)
        place = np.searchsorted(self.values, above, side="right")
        mass = np.append(np.cumsum(self.masses[::-1])[::-1], 0.0)[place]
        total = np.append(np.cumsum((self.values * self.masses)[::-1])[::-1], 0.0)[place]
        return np.where(mass > 0, total / np.where(mass > 0, mass, 1.0), above)
