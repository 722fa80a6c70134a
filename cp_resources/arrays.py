"""Arrays as PostgreSQL takes them, made at once for many elements: element by element they cost more than the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

_DOUBLE = 701  # type oid of float8


def doubles(rows: Sequence[Sequence[float]]) -> list[bytes]:
    """A `float8[]` in binary format for each of n rows of equal length."""
    values = np.array(rows, dtype=np.float64, ndmin=2)
    width = values.shape[1]
    cell = np.dtype([("bytes", ">i4"), ("value", ">f8")])
    made = np.empty(len(rows), dtype=np.dtype([("head", f"V{_HEAD}"), ("cells", cell, (width,))]))
    made["head"] = np.frombuffer(_head(_DOUBLE, width), dtype=f"V{_HEAD}")
    made["cells"]["bytes"] = 8
    made["cells"]["value"] = values
    whole, size = made.tobytes(), made.itemsize
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def numbers(elements: Iterable[int | float | None]) -> str:
    """An array of numbers as text."""
    return f"{{{','.join('NULL' if element is None else str(element) for element in elements)}}}"


def codes(elements: Iterable[str | None]) -> str:
    """An array of codes as text: of letters, digits and underscores, so that nothing has to be quoted."""
    return f"{{{','.join('NULL' if element is None else element for element in elements)}}}"


def array(elements: Iterable[object]) -> str:
    """An array as text, of strings, which are quoted, or of what needs no quotes: numbers, ids, times, None."""
    spelled = [
        "NULL"
        if element is None
        else '"' + element.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if isinstance(element, str)
        else str(element)
        for element in elements
    ]
    return "{" + ",".join(spelled) + "}"


_HEAD = 20


def _head(oid: int, length: int) -> bytes:
    """Of a one-dimensional array without nulls: dimensions, nulls, type, length, first index."""
    return b"".join(number.to_bytes(4, "big") for number in (1, 0, oid, length, 1))
