"""What a model will cost for a task, judged by the length and the shape of the task's text.

Ridge regression of the logarithm, a model at a time, as far as that predicts better than the model's mean does;
factors make totals agree, and conformal residuals give the 80 % interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

Doubles = NDArray[np.float64]

INTERVAL = 0.8
_FOLDS = 5
_PENALTY = 10.0
_LEAST = 1e-12  # US dollars: what is free has a logarithm too
_STRENGTHS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class CostRange:
    """Cost of n tasks with m models, US dollars, (m, n) each: for sums; for one task; and the 80 % interval."""

    mean: Doubles
    median: Doubles
    low: Doubles
    high: Doubles


@dataclass(frozen=True)
class CostModel:
    """Learned costs; `out_of_fold` is what it says of the mean cost of training tasks that it has not seen, (m, n)."""

    out_of_fold: Doubles
    _lines: tuple[_Line, ...]

    @classmethod
    def fit(cls, tasks: pd.DataFrame, cost_usd: Doubles, *, seed: int) -> CostModel:
        """Learn.

        Args:
            tasks: n rows with title and description, and domain where it is there.
            cost_usd: (m, n), NaN where not known.
            seed: of the folds.
        """
        shape = _shape(tasks)
        part = np.random.default_rng(seed).permutation(len(tasks)) % _FOLDS
        everywhere = float(np.nanmean(cost_usd)) if np.isfinite(cost_usd).any() else 0.0
        lines = [_Line.fit(shape, costs, part, everywhere) for costs in cost_usd]
        return cls(np.array([line.out_of_fold for line in lines]), tuple(lines))

    def predict(self, tasks: pd.DataFrame) -> CostRange:
        """Predict for tasks like those of `fit`."""
        shape = _shape(tasks)
        middle = np.array([line.typical(shape) for line in self._lines])
        factors = np.array([(line.mean, line.median, line.low, line.high) for line in self._lines]).T
        return CostRange(*(middle * factor[:, None] for factor in factors))


@dataclass(frozen=True)
class _Line:
    """One model's costs: exp(level + strength x (what the shape says)), and factors on it."""

    level: float
    strength: float
    ridge: Ridge | None
    mean: float
    median: float
    low: float
    high: float
    out_of_fold: Doubles

    @classmethod
    def fit(cls, shape: Doubles, costs: Doubles, part: NDArray[np.intp], everywhere: float) -> _Line:
        known = np.isfinite(costs)
        if not known.any() or not costs[known].any():
            level = everywhere if not known.any() else 0.0
            return cls(0.0, 0.0, None, level, level, level, level, np.full(len(costs), level))
        logs = np.log(np.maximum(costs, _LEAST))
        level = float(logs[known].mean())
        guess = np.zeros(len(costs))
        for fold in range(_FOLDS):
            seen = known & (part != fold)
            if seen.sum() > 1:
                fitted = Ridge(_PENALTY).fit(shape[seen], logs[seen])
                guess[part == fold] = fitted.predict(shape[part == fold]) - level
        strength = min(
            _STRENGTHS, key=lambda share: float(((logs - level - share * guess)[known] ** 2).sum())
        )
        typical = np.exp(level + strength * guess)
        residuals = (logs - level - strength * guess)[known]
        tail = min((1 + INTERVAL) / 2 * (1 + 1 / len(residuals)), 1.0)
        low, median, high = np.exp(np.quantile(residuals, [1 - tail, 0.5, tail]))
        mean = float(costs[known].sum() / typical[known].sum())
        ridge = Ridge(_PENALTY).fit(shape[known], logs[known])
        return cls(level, strength, ridge, mean, float(median), float(low), float(high), mean * typical)

    def typical(self, shape: Doubles) -> Doubles:
        if self.ridge is None:
            return np.ones(len(shape))
        return np.asarray(np.exp(self.level + self.strength * (self.ridge.predict(shape) - self.level)))


def _shape(tasks: pd.DataFrame) -> Doubles:
    """Logarithms of characters, words, lines, digits and marks of each text, (n, 5), about 0."""
    texts = tasks["title"].str.cat(tasks["description"], sep="\n")
    counts = [texts.str.len(), *(texts.str.count(pattern) for pattern in (r"\s+", r"\n", r"\d", r"[^\w\s]"))]
    logs: Doubles = np.log1p(np.column_stack([count.to_numpy(dtype=np.float64) for count in counts]))
    return np.asarray(logs - np.array([6.0, 4.0, 2.0, 2.0, 3.0]), dtype=np.float64)
