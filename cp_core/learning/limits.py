"""How far a night may move what production decides by: one cap for every learned number, wherever it is moved."""

from __future__ import annotations

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
