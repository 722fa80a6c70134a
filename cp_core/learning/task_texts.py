"""What a task's text looks like as numbers: hashed words weighed by rarity, on few dense axes, and its style.

Offline and without a vocabulary: a word's column is its hash, so no text is kept with what was learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

Doubles = NDArray[np.float64]

COLUMNS = 2**16
"""Hashed words and pairs of words share these many columns."""

_STYLE = (r"\d", r"\n", r"[^\w\s]", r"[A-Z]", r"\s")  # digits, lines, punctuation, capitals, words
_ALIKE = 0.1  # a deviation of logarithms below which texts are all of one style
_FAR = 3.0  # deviations from the mean beyond which a style is not extrapolated
_FEW = 2_000  # texts that are compared each with each
_NOTHING = 1e-9  # of the largest square: an axis on which texts do not differ
_ENOUGH = 20_000  # texts that the axes are found on; more of them hardly turn an axis


@dataclass(frozen=True)
class TaskTexts:
    """Dense features of texts, as learned from some of them.

    Attributes:
        rarity: (COLUMNS,): inverse document frequency of each column; 0 for words never met.
        axes: (COLUMNS, k): the directions in which the texts differ most.
        centre, scale: (s,): mean and deviation of the measures of style.
    """

    rarity: Doubles
    axes: Doubles
    centre: Doubles
    scale: Doubles

    @classmethod
    def learn(cls, texts: Sequence[str], *, axes: int, seed: int) -> TaskTexts:
        """Find the axes (latent semantic analysis: Deerwester et al., 1990) of at least one text."""
        if len(texts) > _ENOUGH:
            chosen = np.random.default_rng(seed).choice(len(texts), _ENOUGH, replace=False)
            texts = [texts[place] for place in chosen]
        counts = _counts(texts)
        held = np.bincount(counts.indices, minlength=COLUMNS)
        rarity = np.where(held > 0, np.log((1 + len(texts)) / (1 + held)) + 1.0, 0.0)
        style = _style(texts)
        return cls(
            rarity=rarity,
            axes=_axes(_weighed(counts, rarity), max(min(axes, len(texts) // 2), 1), seed),
            centre=style.mean(axis=0),
            scale=np.maximum(style.std(axis=0), _ALIKE),
        )

    def words(self, texts: Sequence[str]) -> Doubles:
        """(n, k): where the words of each text stand on the axes."""
        return np.asarray(_weighed(_counts(texts), self.rarity) @ self.axes, dtype=np.float64)

    def style(self, texts: Sequence[str]) -> Doubles:
        """(n, s): length, and how much of it is digits, lines, punctuation and capitals, standardised."""
        return np.asarray(np.clip((_style(texts) - self.centre) / self.scale, -_FAR, _FAR), dtype=np.float64)


def _axes(weighed: sparse.csr_matrix, number: int, seed: int) -> Doubles:
    """The right singular vectors of the largest singular values, (COLUMNS, k)."""
    used = np.unique(weighed.indices)
    there = weighed[:, used]
    if there.shape[0] <= _FEW:  # exactly, by way of how alike the texts are
        alike = (there @ there.T).toarray()
        squares, found = np.linalg.eigh(alike)
        kept = squares[-number:] > _NOTHING * squares[-1]
        sides = found[:, -number:][:, kept] / np.sqrt(squares[-number:][kept])
        right = there.T @ sides[:, ::-1]
    else:
        right = randomized_svd(there, number, n_iter=4, random_state=seed)[2].T
    axes = np.zeros((COLUMNS, right.shape[1]))
    axes[used] = right
    return axes


def _counts(texts: Sequence[str]) -> sparse.csr_matrix:
    """1 + log(count) of hashed words and pairs of words: (n, COLUMNS)."""
    words = HashingVectorizer(n_features=COLUMNS, ngram_range=(1, 2), alternate_sign=False, norm=None)
    counts = words.transform(texts)
    counts.data = 1.0 + np.log(counts.data)
    return counts


def _weighed(counts: sparse.csr_matrix, rarity: Doubles) -> sparse.csr_matrix:
    return normalize(counts @ sparse.diags(rarity), copy=False)


def _style(texts: Sequence[str]) -> Doubles:
    column = pd.Series(list(texts), dtype="str")
    counted = [column.str.count(pattern).to_numpy(dtype=np.float64) for pattern in _STYLE]
    length = column.str.len().to_numpy(dtype=np.float64)
    return np.log1p(np.column_stack([length, *counted]))
