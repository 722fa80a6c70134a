"""Two configurations side by side: every number or word that differs, by dotted key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

_WEIGHTS = ("learned.calibration.traits.", "calibration.traits.")
"""Where each model has a number for every trait of a text: one by one they tell nobody anything."""


@dataclass(frozen=True)
class Difference:
    """One key that differs; None where a side does not have it."""

    key: str
    before: Any
    after: Any


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """What differs between two documents of JSON values, in order of key."""
    left, right = dict(_leaves(before)), dict(_leaves(after))
    return [
        Difference(key, left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if path.startswith(_WEIGHTS) and isinstance(value, Sequence) and not isinstance(value, str):
        yield path, _in_words(value)
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value


def _in_words(weights: Sequence[float]) -> str:
    """Different words for different weights."""
    size = math.hypot(*weights)
    name = sha256(repr([float(weight) for weight in weights]).encode()).hexdigest()[:8]
    return f"{len(weights)} weights, size {size:.3f} ({name})"
