"""Several comparisons at once, with the chance of any false one kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Key = TypeVar("Key")


def rejected(p_values: Mapping[Key, float], alpha: float) -> set[Key]:
    """Which hypotheses of no difference fall, by Holm (1979): the smallest p against alpha / m, the next / (m - 1)."""
    fallen: set[Key] = set()
    for key, p in sorted(p_values.items(), key=lambda pair: pair[1]):
        if p > alpha / (len(p_values) - len(fallen)):
            break
        fallen.add(key)
    return fallen
