"""Censored numbers: where some are only known to be at least so large, how they are distributed all the same.

An attempt that was cut off has used some tokens and would have used more. Left out, or taken as if it were
whole, it makes what a model uses look smaller than it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]
Truths = NDArray[np.bool_]


@dataclass(frozen=True)
class Survival:
    """The Kaplan-Meier estimate of a distribution (J. Am. Stat. Assoc. 53, 1958, 457).

    Mass that censoring leaves undecided beyond the largest number lies on that number (Efron, 5th Berkeley
    Symposium 4, 1967, 831): a mean is then still a lower bound, and the best that can be said.

    Attributes:
        values: (k,), rising: the numbers that carry mass.
        masses: (k,), positive, adding up to 1.
    """

    values: Doubles
    masses: Doubles

    @classmethod
    def of(cls, numbers: ArrayLike, is_censored: ArrayLike) -> Self:
        """Estimate from n numbers; where `is_censored`, the truth is above the number.

        Raises:
            ValueError: there are no numbers.
        """
        found = np.asarray(numbers, dtype=np.float64)
        censored = np.asarray(is_censored, dtype=np.bool_)
        if not found.size:
            raise ValueError("no numbers to estimate a distribution from")
        if not censored.any():
            values, counts = np.unique(found, return_counts=True)
            return cls(values, counts / found.size)
        order = np.lexsort((censored, found))  # at ties, what ended comes before what was cut off
        values, seen = found[order], ~censored[order]
        seen[-1] = True
        at_risk = np.arange(found.size, 0, -1)
        survival = np.cumprod(1 - seen / at_risk)
        masses = -np.diff(survival, prepend=1.0)
        return cls(values[seen], masses[seen])

    @property
    def mean(self) -> float:
        """Mean of the distribution."""
        return float(self.values @ self.masses)

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
