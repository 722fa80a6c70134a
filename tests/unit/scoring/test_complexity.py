"""Complexity: thresholds, and the words that outweigh them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_rows import scored, tasks

FACTORS = {"simple": 0.5, "moderate": 1.0, "complex": 1.5, "highly_complex": 2.0}


@pytest.mark.parametrize(
    ("files", "lines", "complexity"),
    [
        (1, 1, "simple"),
        (2, 100, "simple"),
        (3, 100, "moderate"),
        (2, 101, "moderate"),
        (5, 500, "moderate"),
        (6, 1, "complex"),
        (1, 501, "complex"),
        (9, 1500, "complex"),
        (10, 1, "highly_complex"),
        (1, 1501, "highly_complex"),
    ],
)
def test_the_larger_of_files_and_lines_decides(files: int, lines: int, complexity: str) -> None:
    result = scored(estimated_files=files, estimated_lines=lines)

    assert (result["complexity"], result["complexity_factor"]) == (complexity, FACTORS[complexity])


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "Refactor the parser"},
        {"description": "We are migrating to the new API."},
        {"title": "A redesign of the start page"},
        {"description": "Changes the architecture: one process instead of two"},
        {"title": "Breaking: drop Python 3.8"},
        {"labels": ["refactoring"]},
        {"labels": ["type: breaking-change"]},
    ],
)
def test_some_words_make_even_a_small_task_highly_complex(changes: dict[str, Any]) -> None:
    assert scored(estimated_files=1, estimated_lines=1, **changes)["complexity"] == "highly_complex"


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "No breaking changes, please"},
        {"labels": ["non-breaking"]},
        {"labels": ["no-refactoring"]},
        {"description": "`migrate` prints the wrong name"},
        {"description": "The list of migrations is empty"},
        {"description": "x " * 200 + "refactor"},
    ],
)
def test_a_word_that_asks_for_nothing_changes_nothing(changes: dict[str, Any]) -> None:
    assert scored(estimated_files=1, estimated_lines=1, **changes)["complexity"] == "simple"


@settings(max_examples=60)
@given(tasks, st.integers(0, 30), st.integers(0, 3000))
def test_complexity_is_at_least_what_given_files_and_lines_say(
    row: dict[str, Any], files: int, lines: int
) -> None:
    by_files = sum(files > limit for limit in (2, 5, 9))
    by_lines = sum(lines > limit for limit in (100, 500, 1500))
    complexity = scored(**row | {"estimated_files": files, "estimated_lines": lines})["complexity"]

    assert complexity in ([*FACTORS][max(by_files, by_lines)], "highly_complex")
