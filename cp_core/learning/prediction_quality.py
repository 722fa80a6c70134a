"""How good predicted probabilities are: do they rank (AUC), are they near (Brier), do they mean what they say (ECE)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationCurve:
    """Predictions in bins of about equal size: mean prediction, mean outcome and rows of each, (b,)."""

    predicted: Doubles
    observed: Doubles
    rows: NDArray[np.int64]


def auc(predicted: ArrayLike, outcomes: ArrayLike) -> float | None:
    """Chance that a success was given a higher probability than a failure, ties counted half (Mann and Whitney, 1947).

    None where there are only successes, or only failures. Outcomes of a half or more are successes.
    """
    won = np.asarray(outcomes, dtype=np.float64) >= 0.5
    successes, failures = int(won.sum()), int((~won).sum())
    if not successes or not failures:
        return None
    ranks = rankdata(np.asarray(predicted, dtype=np.float64))
    return float((ranks[won].sum() - successes * (successes + 1) / 2) / (successes * failures))


def brier(predicted: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared difference of prediction and outcome (Brier, 1950); at least one row."""
    apart = np.asarray(predicted, dtype=np.float64) - np.asarray(outcomes, dtype=np.float64)
    return float(np.mean(apart**2))


def calibration_curve(predicted: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> CalibrationCurve:
    """Rows in order of prediction, cut into at most `bins` bins; equal predictions stay together."""
    chance = np.asarray(predicted, dtype=np.float64)
    came = np.asarray(outcomes, dtype=np.float64)
    of = np.searchsorted(np.unique(np.quantile(chance, np.arange(1, bins) / bins)), chance, side="left")
    rows = np.bincount(of)
    some = rows > 0
    return CalibrationCurve(
        predicted=np.bincount(of, chance)[some] / rows[some],
        observed=np.bincount(of, came)[some] / rows[some],
        rows=rows[some].astype(np.int64),
    )


def expected_calibration_error(predicted: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """Mean distance of prediction and outcome over the bins of the curve, by rows (Naeini et al., 2015)."""
    curve = calibration_curve(predicted, outcomes, bins)
    return float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.rows))
