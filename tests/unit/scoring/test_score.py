"""The joined rules: the design's worked examples, and what holds for every task."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from score_rows import CONFIG, NOON, score_frame, scored, task, tasks

from cp_core.scoring import text
from cp_core.scoring.columns import TASK_COLUMNS, InvalidTasksError
from cp_core.scoring.score import SCORE_COLUMNS, score_task, score_tasks

RISE = ["sandbox", "experimental", "development", "staging", "production"]


def test_p0_security_hotfix_of_three_files_in_the_backend_is_worth_78_65() -> None:
    result = scored(priority=0, labels=["security", "hotfix", "backend"], estimated_files=3)

    assert result["score"] == pytest.approx(78.65)  # (40 x 1.0 + 15) x 1.1 x 1.3
    assert [result[name] for name in ("priority_points", "complexity_factor", "time_bonus")] == [40, 1, 15]
    assert [result[name] for name in ("domain_factor", "risk_factor")] == [1.1, 1.3]
    assert [result[name] for name in ("complexity", "domain", "risk")] == [
        "moderate",
        "backend",
        "production",
    ]


def test_p2_frontend_task_of_four_files_is_worth_20() -> None:
    assert scored(labels=["frontend", "ui"], estimated_files=4)["score"] == pytest.approx(20)


def test_p1_cluster_migration_of_fifteen_files_due_this_month_is_cut_at_100() -> None:
    result = scored(
        title="Cluster migration to the new region, 15+ files",
        priority=1,
        labels=["infrastructure"],
        deadline=NOON + timedelta(days=21),
    )

    assert result["score"] == 100  # (30 x 2 + 5) x 1.2 x 1.3 = 101.4
    factors = [result[f"{name}_factor"] for name in ("complexity", "domain", "risk")]
    assert factors == [2.0, 1.2, 1.3]
    assert (result["files"], result["size_source"], result["time_bonus"]) == (15, "stated", 5)


def test_p3_api_documentation_update_of_one_file_is_worth_4() -> None:
    result = scored(
        title="Update the API documentation", priority=3, labels=["documentation", "api"], estimated_files=1
    )

    assert result["score"] == pytest.approx(4)  # (10 x 0.5) x 0.8


def test_every_column_of_a_score_is_there_in_order_under_the_index_of_the_tasks() -> None:
    frame = pd.DataFrame([task(), task(priority=0)], index=[17, 4])

    result = score_tasks(frame, CONFIG)

    assert tuple(result.columns) == SCORE_COLUMNS
    assert result.index.tolist() == [17, 4]


def test_no_tasks_give_no_scores() -> None:
    result = score_tasks(pd.DataFrame(columns=list(TASK_COLUMNS)), CONFIG)

    assert result.shape == (0, len(SCORE_COLUMNS))


@settings(max_examples=150)
@given(st.lists(tasks, min_size=1, max_size=6))
def test_a_score_is_its_formula_within_0_and_100_and_nothing_is_missing(rows: list[dict[str, Any]]) -> None:
    result = score_frame(rows)

    assert not result.isna().any(axis=None)
    assert np.isfinite(result.select_dtypes("number")).all(axis=None)
    for row in result.to_dict("records"):
        worth = row["priority_points"] * row["complexity_factor"] + row["time_bonus"]
        expected = max(0.0, min(100.0, worth * row["domain_factor"] * row["risk_factor"]))
        assert math.isclose(row["score"], expected)


@settings(max_examples=60)
@given(st.lists(tasks, min_size=2, max_size=6), st.randoms())
def test_a_row_is_scored_the_same_alone_in_company_and_in_any_order(
    rows: list[dict[str, Any]], random: Any
) -> None:
    together = score_frame(rows)
    order = list(range(len(rows)))
    random.shuffle(order)

    assert together.to_dict("records") == [score_task(row, CONFIG) for row in rows]
    shuffled = score_tasks(pd.DataFrame(rows).iloc[order], CONFIG)
    assert_frame_equal(shuffled, together.iloc[order])


@settings(max_examples=40)
@given(st.lists(tasks, min_size=2, max_size=8), st.integers(1, 200))
def test_the_portions_in_which_texts_are_read_change_nothing(
    rows: list[dict[str, Any]], characters: int
) -> None:
    whole = score_frame(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_CHARACTERS_AT_ONCE", characters)
        assert_frame_equal(score_frame(rows), whole)


@settings(max_examples=60)
@given(tasks)
def test_a_higher_priority_is_never_worth_less(row: dict[str, Any]) -> None:
    scores = score_frame([row | {"priority": priority} for priority in range(5)])["score"]

    assert scores.is_monotonic_decreasing


@settings(max_examples=60)
@given(
    tasks, st.sampled_from(["estimated_files", "estimated_lines"]), st.lists(st.integers(0, 5000), min_size=2)
)
def test_more_files_or_lines_are_never_worth_less(row: dict[str, Any], size: str, numbers: list[int]) -> None:
    result = score_frame([row | {size: number} for number in sorted(numbers)])

    assert result["score"].is_monotonic_increasing
    assert result["input_mean"].is_monotonic_increasing


@settings(max_examples=60)
@given(tasks, st.lists(st.floats(-50, 3000), min_size=2))
def test_a_nearer_deadline_is_never_worth_less(row: dict[str, Any], hours: list[float]) -> None:
    deadlines = [NOON + timedelta(hours=left) for left in sorted(hours)]
    result = score_frame([row | {"deadline": deadline} for deadline in (*deadlines, None)])

    assert result["time_bonus"].is_monotonic_decreasing
    assert result["score"].is_monotonic_decreasing


@settings(max_examples=60)
@given(tasks)
def test_a_riskier_label_is_never_worth_less(row: dict[str, Any]) -> None:
    plain = row | {"labels": []}
    scores = score_frame([plain | {"labels": [risk]} for risk in RISE])

    assert scores["score"].is_monotonic_increasing
    assert scores["risk"].tolist() == RISE


@settings(max_examples=60)
@given(tasks)
def test_a_task_that_others_wait_for_is_never_worth_less(row: dict[str, Any]) -> None:
    scores = score_frame([row | {"blocks_others": False}, row | {"blocks_others": True}])["score"]

    assert scores.is_monotonic_increasing


def test_one_task_may_leave_out_what_may_be_missing() -> None:
    row = task()
    for column in ("estimated_files", "estimated_lines", "workspace_files", "deadline"):
        del row[column]

    assert score_task(row, CONFIG) == scored()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"priority": 5}, "priority of row 7 is 5; needed is 0 (P0, most urgent) to 4"),
        ({"priority": -1}, "priority of row 7 is -1"),
        ({"priority": "P1"}, "priority of row 7 is 'P1'"),
        ({"title": None}, "title of row 7 is None; needed is text"),
        ({"workspace": None}, "workspace of row 7 is None"),
        ({"labels": None}, "labels of row 7 is None; needed is a list of text"),
        ({"estimated_files": -3}, "estimated_files of row 7 is -3; needed is 0 or more, or missing"),
        ({"estimated_lines": "many"}, "estimated_lines of row 7 is 'many'"),
        ({"workspace_files": math.inf}, "workspace_files of row 7 is inf"),
        ({"deadline": datetime(2026, 3, 5)}, "deadline of row 7 is"),  # noqa: DTZ001
        (
            {"deadline": "tomorrow"},
            "deadline of row 7 is 'tomorrow'; needed is a time with time zone, or missing",
        ),
        ({"submitted_at": None}, "submitted_at of row 7 is"),
        ({"blocks_others": None}, "blocks_others of row 7 is None"),
    ],
)
def test_an_error_names_column_row_value_and_what_is_needed(changes: dict[str, Any], message: str) -> None:
    frame = pd.DataFrame([task(), task(**changes)], index=[3, 7], dtype=object)

    with pytest.raises(InvalidTasksError) as error:
        score_tasks(frame, CONFIG)

    assert message in str(error.value)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InvalidTasksError, match="lack column labels, deadline; needed are title, "):
        score_tasks(pd.DataFrame([task()]).drop(columns=["labels", "deadline"]), CONFIG)


def test_deadlines_of_another_time_zone_are_the_same_instants() -> None:
    frame = pd.DataFrame([task(deadline=NOON + timedelta(hours=3))])
    elsewhere = frame.assign(deadline=frame["deadline"].dt.tz_convert("Asia/Tokyo"))

    assert_frame_equal(score_tasks(elsewhere, CONFIG), score_tasks(frame, CONFIG))
