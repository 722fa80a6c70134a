"""Arrays that are spelled out arrive as what they were made of."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cp_resources import arrays
from cp_resources.arrays import array
from cp_resources.database import Database

NOON = datetime(2026, 3, 4, 12, 30, 0, 5, tzinfo=UTC)
KEY = UUID("00000000-0000-0000-0000-00000000000a")
_ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def _read_back(database: Database, kind: str, elements: list[Any]) -> list[Any]:
    [(arrived,)] = database.fetch(f"SELECT %s::{kind}[]", (array(elements),))  # type: ignore[arg-type]
    return list(arrived)


@pytest.mark.parametrize(
    ("kind", "elements"),
    [
        ("bigint", [1, -2, None, 2**62]),
        ("numeric", [Decimal("0.000000001"), Decimal("1E+3"), None]),
        ("float8", [0.1, float("inf"), None]),
        ("boolean", [True, False, None]),
        ("uuid", [KEY, None]),
        ("timestamptz", [NOON, None]),
        ("text", []),
        ("text", ["NULL", None, "", " ", "{}", 'say "hi"', "back\\slash", "a,b", "line\nbreak"]),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_every_kind_of_element_arrives_as_it_was(database: Database, kind: str, elements: list[Any]) -> None:
    assert _read_back(database, kind, elements) == elements


def test_any_text_arrives_as_it_was(database: Database) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.none() | _ANY_TEXT, max_size=5))
    def arrives(texts: list[str | None]) -> None:
        assert _read_back(database, "text", texts) == texts

    arrives()


def test_binary_arrays_arrive_as_they_were(database: Database) -> None:
    whole, nano = np.array([0, 1, 12_345_678_901, 9_999]), np.array([1, 0, 123_456_789, 999_999_999])
    keys = [KEY, UUID(int=2**128 - 1)]
    [arrived] = database.fetch(
        "SELECT %s, %s, %s, %s",
        (
            arrays.numerics(whole, nano),
            arrays.int8s([1, -(2**62)]),
            arrays.float8s(np.array([0.1, -2.5])),
            arrays.uuids(np.frombuffer(b"".join(key.bytes for key in keys), dtype="V16")),
        ),
    )
    amounts = [
        Decimal("0.000000001"),
        Decimal(1),
        Decimal("12345678901.123456789"),
        Decimal("9999.999999999"),
    ]
    assert arrived == (amounts, [1, -(2**62)], [0.1, -2.5], keys)


def test_empty_binary_arrays_are_empty(database: Database) -> None:
    assert database.fetch("SELECT %s", (arrays.int8s([]),)) == [([],)]
