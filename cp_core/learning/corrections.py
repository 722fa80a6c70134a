"""What outcomes correct of the success that is expected: by model, by model and domain, by cell.

Each level is a shift of log-odds on top of the levels before it, shrunk by how much the shifts of the level really
differ (empirical Bayes: the variance between them is DerSimonian and Laird's moment estimate, Controlled Clinical
Trials 7, 1986, 177). Where outcomes are as expected, nothing moves; a level that shows nothing but chance is left out.
It works on sums of outcomes, and so is quick enough to be done hundreds of times a night, which placebos ask for.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.predict import shift_log_odds
from cp_core.learning.decay import age_weights
from cp_core.learning.expectations import KINDS, Cells, Expectations, cells_of
from cp_core.scoring.config import Complexity, Domain

Doubles = NDArray[np.float64]

_CERTAIN = 1e-3


def learn_success(rows: pd.DataFrame, expected: Expectations) -> Cells:
    """Corrected success of every cell of the models that have outcomes.

    Args:
        rows: model, domain, complexity, age_days and has_succeeded.
    """
    cells = cells_of(rows, expected.models)
    weights = weights_of(rows)
    won = rows["has_succeeded"].to_numpy(dtype=np.float64)
    table = correct(expected.success, *sums(cells, weights, won, expected.success.shape))
    return {
        expected.models[model]: {
            domain: {
                complexity: float(table[model, KINDS.index((domain, complexity))])
                for complexity in Complexity
                if expected.success[model, KINDS.index((domain, complexity))] > 0
            }
            for domain in Domain
        }
        for model in np.unique(cells[cells >= 0] // len(KINDS))
    }


def weights_of(rows: pd.DataFrame) -> Doubles:
    """How much each outcome counts, by its age."""
    return age_weights(rows["age_days"])


def sums(
    cells: NDArray[np.intp], weights: Doubles, won: Doubles, shape: tuple[int, ...]
) -> tuple[Doubles, Doubles]:
    """Outcomes and successes of each cell, (m, k); rows of cell -1 are left out."""
    known = cells >= 0
    size = int(np.prod(shape))
    n = np.bincount(cells[known], weights[known], size).reshape(shape)
    wins = np.bincount(cells[known], (weights * won)[known], size).reshape(shape)
    return n.astype(np.float64), wins.astype(np.float64)


def correct(expected: Doubles, n: Doubles, wins: Doubles) -> Doubles:
    """Expected success, moved by what outcomes say.

    Args:
        expected: probabilities, (m, k), with k the `KINDS`.
        n, wins: outcomes and successes of each cell, weighed, (m, k).
    """
    shape = (len(expected), len(Domain), len(Complexity))
    table, n, wins = (each.reshape(shape) for each in (expected, n, wins))
    possible = table > 0
    for axes in (
        (1, 2),
        (2,),
        (),
        (),
    ):  # a step of Newton each, and the last again: it may have been a long one
        chance = np.clip(table, _CERTAIN, 1 - _CERTAIN)
        score = (wins - n * chance).sum(axis=axes, keepdims=True)
        information = (n * chance * (1 - chance)).sum(axis=axes, keepdims=True)
        table = np.where(possible, shift_log_odds(chance, _shrunk(score, information)), table)
    return table.reshape(expected.shape)


def _shrunk(score: Doubles, information: Doubles) -> Doubles:
    """Shifts of a level from their scores: score / (information + 1 / variance between shifts)."""
    seen = information > 0
    total = information.sum()
    if total == 0:
        return np.zeros_like(score)
    surplus = (np.divide(score**2, information, out=np.zeros_like(score), where=seen)).sum() - seen.sum()
    variance = max(float(surplus / total), 0.0)
    return np.asarray(score * variance / (information * variance + 1.0), dtype=np.float64)
