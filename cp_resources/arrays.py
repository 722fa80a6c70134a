"""Arrays as PostgreSQL takes them, made at once for many elements: element by element they cost more than the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

Integers = NDArray[np.int64]


class _Kind(NamedTuple):
    """A type whose values have a binary format of one length: its oid, its array's, and numpy's name for a value."""

    oid: int
    array_oid: int
    dtype: str


_FIRST_DAY = date(2000, 1, 1)  # the day 0 of the binary format
NO_FIELD = b"\xff\xff\xff\xff"
"""NULL, as COPY takes it."""

_INT8 = _Kind(20, 1016, ">i8")
_FLOAT4 = _Kind(700, 1021, ">f4")
_FLOAT8 = _Kind(701, 1022, ">f8")
_UUID = _Kind(2950, 2951, "V16")
_NUMERIC = _Kind(1700, 1231, "V24")


class Binary(bytes):
    """An array in binary format, to be given to a query as it is."""


class Int8s(Binary):
    """Of `bigint`."""


class Float8s(Binary):
    """Of `float8`."""


class Uuids(Binary):
    """Of `uuid`."""


class Numerics(Binary):
    """Of `numeric`."""


def int8s(values: NDArray[Any] | Sequence[int]) -> Int8s:
    """A `bigint[]`."""
    return Int8s(_array(np.asarray(values), _INT8))


def float8s(values: NDArray[Any]) -> Float8s:
    """A `float8[]`."""
    return Float8s(_array(values, _FLOAT8))


def uuids(values: NDArray[Any]) -> Uuids:
    """A `uuid[]` of 16 bytes a row: (n, 16) bytes, or n of `V16`."""
    return Uuids(_array(np.ascontiguousarray(values).view("V16").reshape(-1), _UUID))


def numerics(whole: Integers, nano: Integers) -> Numerics:
    """A `numeric[]` of units and billionths of one beside them, neither negative."""
    return Numerics(_array(numeric_values(whole, nano), _NUMERIC))


def numeric_values(whole: Integers, nano: Integers) -> NDArray[np.void]:
    """The binary format of `numeric`, 24 bytes each: five groups of four digits before the point and three after it."""
    made = np.empty((len(whole), 12), dtype=">i2")
    made[:, :4] = (8, 4, 0, 9)  # groups, power of 10,000 of the first, sign, digits after the point
    for group in range(5):
        made[:, 8 - group] = whole // 10_000**group % 10_000
    made[:, 9] = nano // 100_000
    made[:, 10] = nano // 10 % 10_000
    made[:, 11] = nano % 10 * 1_000
    return made.view("V24").reshape(-1)


def double_rows(rows: NDArray[Any] | Sequence[Sequence[float]]) -> NDArray[np.void]:
    """A `float8[]` in binary format for each of n rows of equal length."""
    return _array_rows(np.array(rows, dtype=np.float64, ndmin=2), _FLOAT8)


def real_rows(rows: NDArray[np.float32]) -> NDArray[np.void]:
    """A `real[]` in binary format for each of n rows of equal length, (n, k)."""
    return _array_rows(rows, _FLOAT4)


def reals_of(values: Sequence[bytes]) -> NDArray[np.float32]:
    """What `array_send` gave of n arrays `real[]` of one length without nulls, (n, k)."""
    width = (len(values[0]) - _HEAD) // 8
    cell = np.dtype([("bytes", ">i4"), ("value", _FLOAT4.dtype)])
    shape = np.dtype([("head", f"V{_HEAD}"), ("cells", cell, (width,))])
    found = np.frombuffer(b"".join(values), dtype=shape)
    return found["cells"]["value"].astype(np.float32)


def fields(columns: Mapping[str, NDArray[Any]], more: int) -> list[bytes]:
    """The start of each row of `COPY .. (FORMAT BINARY)`: the number of its fields, and those of one length.

    Args:
        columns: their values in binary format.
        more: fields that come after them.
    """
    shape = [("fields", ">i2")]
    for name, values in columns.items():
        shape += [(f"{name} bytes", ">i4"), (name, values.dtype.str)]
    made = np.empty(len(next(iter(columns.values()))), dtype=np.dtype(shape))
    made["fields"] = len(columns) + more
    for name, values in columns.items():
        made[f"{name} bytes"], made[name] = values.dtype.itemsize, values
    return pieces(made)


def field(value: bytes | None) -> bytes:
    """A field of any length as COPY takes it."""
    return NO_FIELD if value is None else len(value).to_bytes(4, "big") + value


def day_values(day: date, count: int) -> NDArray[Any]:
    """The binary format of `date`, the same one `count` times."""
    return np.full(count, (day - _FIRST_DAY).days, dtype=">i4")


def copied(rows: Iterable[bytes]) -> bytes:
    """What `COPY .. (FORMAT BINARY)` takes: rows, which may come in pieces, between its signature and its end."""
    return b"".join([b"PGCOPY\n\xff\r\n\0", bytes(8), *rows, b"\xff\xff"])


def pieces(rows: NDArray[Any]) -> list[bytes]:
    """The bytes of each row of an array."""
    whole, size = rows.tobytes(), rows.itemsize
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def doubles(rows: Sequence[Sequence[float]]) -> list[bytes]:
    """A `float8[]` in binary format for each of n rows of equal length."""
    return pieces(double_rows(rows))


def numbers(elements: Iterable[int | float | Decimal | None]) -> str:
    """An array of numbers as text."""
    return f"{{{','.join(['NULL' if element is None else str(element) for element in elements])}}}"


def codes(elements: Iterable[str | None]) -> str:
    """An array of codes as text: of letters, digits and underscores, so that nothing has to be quoted."""
    return f"{{{','.join(['NULL' if element is None else element for element in elements])}}}"


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


def _array(values: NDArray[Any], kind: _Kind) -> bytes:
    cell = np.dtype([("bytes", ">i4"), ("value", kind.dtype)])
    cells = np.empty(len(values), dtype=cell)
    cells["bytes"] = cell["value"].itemsize
    cells["value"] = values
    return _head(kind.oid, len(values)) + cells.tobytes()


def _array_rows(values: NDArray[Any], kind: _Kind) -> NDArray[np.void]:
    width = values.shape[1]
    cell = np.dtype([("bytes", ">i4"), ("value", kind.dtype)])
    made = np.empty(len(values), dtype=np.dtype([("head", f"V{_HEAD}"), ("cells", cell, (width,))]))
    made["head"] = np.frombuffer(_head(kind.oid, width), dtype=f"V{_HEAD}")
    made["cells"]["bytes"] = cell["value"].itemsize
    made["cells"]["value"] = values
    return made.view(f"V{made.itemsize}").reshape(-1)


def _head(oid: int, length: int) -> bytes:
    """Of a one-dimensional array without nulls: dimensions, nulls, type, length, first index."""
    return b"".join(number.to_bytes(4, "big") for number in (1, 0, oid, length, 1))


class _BinaryDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Binary) -> Buffer:
        return obj


def _register(kind: type[Binary], oid: int) -> None:
    psycopg.adapters.register_dumper(kind, type(f"_{kind.__name__}Dumper", (_BinaryDumper,), {"oid": oid}))


for _type, _kind in ((Int8s, _INT8), (Float8s, _FLOAT8), (Uuids, _UUID), (Numerics, _NUMERIC)):
    _register(_type, _kind.array_oid)
