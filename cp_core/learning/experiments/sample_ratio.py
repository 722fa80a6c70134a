"""Whether the arms got the units that their weights promise; if not, nothing that is measured can be trusted."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln
from scipy.stats import chi2

LEAST_P = 0.001
"""Below this the ratio is held to be wrong."""

_CONCENTRATION = 100.0
"""Units' worth of belief, under the alternative, that shares are near the planned ones."""


def sequential_p(counts: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """p-values that hold at every look, (T,).

    A Dirichlet mixture against the planned shares: Lindon and Malek (2022), Anytime-valid inference for multinomial
    count data.

    Args:
        counts: units of each of the K arms until each look, (T, K), ascending.
        weights: of the arms, (K,).
    """
    seen = np.asarray(counts, dtype=np.float64)
    share = _shares(weights)
    prior = _CONCENTRATION * share
    log_evidence = (
        gammaln(prior.sum())
        - gammaln(prior.sum() + seen.sum(axis=-1))
        + (gammaln(prior + seen) - gammaln(prior)).sum(axis=-1)
        - (seen * np.log(share)).sum(axis=-1)
    )
    most = np.maximum.accumulate(np.maximum(log_evidence, 0.0))
    return np.asarray(np.exp(-most))


def chi_square_p(counts: ArrayLike, weights: ArrayLike) -> float:
    """p-value of Pearson's chi-square test of one look, (K,): known to people, but right only for a single look."""
    seen = np.asarray(counts, dtype=np.float64)
    expected = _shares(weights) * seen.sum()
    if expected.sum() == 0:
        return 1.0
    return float(chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1))


def _shares(weights: ArrayLike) -> NDArray[np.float64]:
    given = np.asarray(weights, dtype=np.float64)
    return np.asarray(given / given.sum())
