"""Complexity: the larger of what files and lines say; some words make a task highly complex at any size."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import Complexity, ComplexityRules
from cp_core.scoring.distinct import Distinct
from cp_core.scoring.size import Sizes
from cp_core.scoring.text import TextReading

LEVELS = tuple(Complexity)


def named_highly_complex(
    text: TextReading, labels: Distinct[frozenset[str]], rules: ComplexityRules, negations: Iterable[str]
) -> NDArray[np.bool_]:
    """Whether the text or a label calls a task highly complex."""
    wanted, no = frozenset(rules.highly_complex_words), frozenset(negations)

    def by_label(own: frozenset[str]) -> bool:
        parts = [label.split("-") for label in own]
        return any(not wanted.isdisjoint(words) and no.isdisjoint(words) for words in parts)

    return np.asarray(text.mentions(wanted) | labels.map(by_label, np.bool_))


def complexity_of(
    sizes: Sizes, highly_complex: NDArray[np.bool_], rules: ComplexityRules
) -> NDArray[np.intp]:
    """The index in `LEVELS` of each row's complexity."""
    limits = [rules.levels[level] for level in LEVELS[:-1]]
    by_files = np.searchsorted([limit.max_files or 0 for limit in limits], sizes.files)
    by_lines = np.searchsorted([limit.max_lines or 0 for limit in limits], sizes.lines)
    return np.where(highly_complex, len(LEVELS) - 1, np.maximum(by_files, by_lines))


def complexity_factor(complexity: NDArray[np.intp], rules: ComplexityRules) -> NDArray[np.float64]:
    """What complexity multiplies the priority by."""
    return np.array([rules.levels[level].factor for level in LEVELS])[complexity]
