"""How far a night may move what production decides by: one cap for every learned number, wherever it is moved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.isotonic import isotonic_regression

MAX_CHANGE = 0.2
"""The largest share that a policy may allow."""


def cap(before: float, after: float, limit: float) -> float:
    """`after`, or the nearest number to it that is at most a share `limit` of `before` away from `before`.

    Args:
        before: the number in force; positive.
        after: the number that was learned.
        limit: share of `before`, above 0 and at most `MAX_CHANGE`.

    Raises:
        ValueError: `before` or `limit` is out of range, or `after` is no number.
    """
    if not before > 0:
        raise ValueError(f"a share of {before:g} is no room to move in; numbers must be positive")
    if not 0 < limit <= MAX_CHANGE:
        raise ValueError(f"limit is {limit:g}; it must be above 0 and at most {MAX_CHANGE:g}")
    if after != after:
        raise ValueError("what was learned is not a number")
    return min(max(after, before * (1 - limit)), before * (1 + limit))


def room_beside(moves: Iterable[float], limit: float) -> tuple[float, float]:
    """Least and most that a number may be multiplied by, so that no product with what moves beside it moves too far.

    Args:
        moves: what the other numbers are multiplied by; each product may move by a share `limit`.
    """
    beside = [1.0, *moves]
    return max((1 - limit) / min(beside), 1 - limit), min((1 + limit) / max(beside), 1 + limit)


def cap_in_order(
    before: Sequence[float], after: Sequence[float], limit: float, *, weights: Sequence[float] | None = None
) -> list[float]:
    """Numbers that rise, each moved toward `after` within its cap, and still rising.

    What was learned is put in order first, by the nearest rising numbers on the log scale (isotonic regression).

    Args:
        before: positive, each larger than the one before it.
        after: positive.
        limit: as for `cap`.
        weights: how much each of `after` is known by; equal ones where left out.

    Raises:
        ValueError: as for `cap`.
    """
    in_order = np.exp(isotonic_regression(np.log(np.asarray(after, dtype=np.float64)), sample_weight=weights))
    capped = [cap(old, float(new), limit) for old, new in zip(before, in_order, strict=True)]
    # Caps keep the order but may make neighbours equal; a hundredth of what was keeps them apart.
    return [0.99 * new + 0.01 * old for old, new in zip(before, capped, strict=True)]
