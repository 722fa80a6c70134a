"""Time bonus: deadlines, labels, and who waits; the largest counts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_rows import NOON, labels, score_frame, scored, tasks


def bonus(**changes: Any) -> tuple[float, str]:
    result = scored(**changes)
    return result["time_bonus"], result["time_bonus_reason"]


@pytest.mark.parametrize(
    ("left", "points", "reason"),
    [
        (timedelta(days=-3), 15, "deadline within 4 hours"),
        (timedelta(hours=4), 15, "deadline within 4 hours"),
        (timedelta(hours=4, seconds=1), 12, "deadline within 24 hours"),
        (timedelta(hours=24), 12, "deadline within 24 hours"),
        (timedelta(hours=25), 8, "deadline within 7 days"),
        (timedelta(days=7), 8, "deadline within 7 days"),
        (timedelta(days=8), 5, "deadline within 30 days"),
        (timedelta(days=30), 5, "deadline within 30 days"),
        (timedelta(days=30, seconds=1), 0, "none"),
    ],
)
def test_a_deadline_counts_by_the_time_left_at_submission(
    left: timedelta, points: float, reason: str
) -> None:
    assert bonus(deadline=NOON + left) == (points, reason)


def test_no_deadline_no_bonus() -> None:
    assert bonus() == (0, "none")


@pytest.mark.parametrize(
    ("label", "points"),
    [("hotfix", 15), ("Urgent", 15), ("blocking", 12), ("status: blocker", 12), ("deadline", 8)],
)
def test_labels_count(label: str, points: float) -> None:
    assert bonus(labels=["bug", label])[0] == points


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["blocking", "production"]},
        {"description": "This is blocking production since noon"},
        {"title": "Production outage"},
    ],
)
def test_what_blocks_production_counts_like_the_nearest_deadline(changes: dict[str, Any]) -> None:
    assert bonus(**changes) == (15, "blocks production")


def test_what_does_not_block_production_does_not() -> None:
    assert bonus(description="Not blocking production") == (0, "none")
    assert bonus(labels=["production"]) == (0, "none")


def test_a_task_that_others_wait_for_gets_12() -> None:
    assert bonus(blocks_others=True) == (12, "blocks other tasks")


def test_the_largest_bonus_counts_and_not_their_sum() -> None:
    in_a_week = NOON + timedelta(days=6)

    assert bonus(deadline=in_a_week, blocks_others=True, labels=["hotfix", "deadline"]) == (
        15,
        "label hotfix",
    )
    assert bonus(deadline=in_a_week, blocks_others=True) == (12, "blocks other tasks")
    assert bonus(deadline=in_a_week, labels=["deadline"]) == (8, "deadline within 7 days")


@settings(max_examples=60)
@given(tasks, labels, st.sampled_from(["hotfix", "urgent", "blocking", "deadline", "production"]))
def test_another_label_never_takes_a_bonus_away(row: dict[str, Any], own: list[str], label: str) -> None:
    fewer, more = score_frame([row | {"labels": own}, row | {"labels": [*own, label]}])["time_bonus"]

    assert fewer <= more
    assert {fewer, more} <= {0, 5, 8, 12, 15}
