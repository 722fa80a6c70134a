"""Files and lines of a task: given, stated, or estimated."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_rows import score_frame, scored, task, tasks

LEVELS = ["simple", "moderate", "complex", "highly_complex"]


def size(**changes: Any) -> tuple[int, int, str]:
    result = scored(**changes)
    return result["files"], result["lines"], result["size_source"]


def test_given_numbers_count_whatever_the_text_says() -> None:
    assert size(estimated_files=3, estimated_lines=90, description="20 files, 900 lines") == (3, 90, "given")


def test_a_missing_number_is_taken_from_the_text_before_it_is_filled_in() -> None:
    assert size(estimated_files=3, description="about 90 lines") == (3, 90, "given")
    assert size(description="6 files, about 90 lines") == (6, 90, "stated")


def test_known_files_give_25_lines_each_and_250_known_lines_a_file() -> None:
    assert size(estimated_files=4) == (4, 100, "given")
    assert size(estimated_lines=1000) == (4, 1000, "given")
    assert size(estimated_lines=1001) == (5, 1001, "given")
    assert size(description="15+ files") == (15, 375, "stated")


def test_a_text_without_numbers_has_the_files_that_it_names() -> None:
    assert size(description="In src/a.py, src/b.py and src/c.py") == (3, 75, "estimated")


def test_words_say_how_large_a_task_is_that_names_no_file() -> None:
    assert size() == (1, 25, "estimated")
    assert size(title="Implement two-factor login") == (4, 100, "estimated")
    assert size(title="We implement nothing") == (1, 25, "estimated")
    assert size(title="Refactor the login") == (10, 250, "estimated")


def test_zero_files_and_lines_are_numbers_too() -> None:
    assert size(estimated_files=0, estimated_lines=0) == (0, 0, "given")


def test_a_number_too_large_for_its_column_is_cut() -> None:
    assert size(estimated_files=2**31 - 1) == (2**31 - 1, 2**31 - 1, "given")


@pytest.mark.parametrize(("files", "level"), [(2, 0), (5, 1), (9, 2), (10, 3), (500, 3)])
def test_lines_filled_in_for_files_do_not_outweigh_them(files: int, level: int) -> None:
    assert scored(estimated_files=files)["complexity"] == LEVELS[level]


@pytest.mark.parametrize(("lines", "level"), [(100, 0), (500, 1), (1500, 2), (1501, 3)])
def test_files_filled_in_for_lines_do_not_outweigh_them(lines: int, level: int) -> None:
    assert scored(estimated_lines=lines)["complexity"] == LEVELS[level]


@settings(max_examples=60)
@given(tasks, st.integers(0, 10_000), st.integers(0, 10_000))
def test_given_sizes_are_kept_and_others_are_not_negative(
    row: dict[str, Any], files: int, lines: int
) -> None:
    given_both, estimated = score_frame(
        [
            row | {"estimated_files": files, "estimated_lines": lines},
            row | {"estimated_files": None, "estimated_lines": None},
        ]
    ).to_dict("records")

    assert (given_both["files"], given_both["lines"], given_both["size_source"]) == (files, lines, "given")
    assert estimated["files"] >= 1
    assert estimated["lines"] >= 1
    assert estimated["size_source"] in ("stated", "estimated")


def test_missing_and_given_sizes_may_stand_in_one_column() -> None:
    result = score_frame([task(estimated_files=3), task(), task(estimated_files=8)])

    assert result["files"].tolist() == [3, 1, 8]
