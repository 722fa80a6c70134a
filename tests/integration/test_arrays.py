"""Arrays that are spelled out arrive as what they were made of."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
