"""Real issues of other people, which nobody wrote for these rules."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from score_rows import CONFIG, score_frame, task

from cp_core.scoring.score import score_task


@pytest.fixture(scope="module")
def issues(shared_data: Callable[[str], Path]) -> list[dict[str, Any]]:
    """246 issues of SWE-bench Verified, with the size of the patch that solved each."""
    with gzip.open(shared_data("swebench_tasks_half.jsonl.gz"), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def scores(issues: list[dict[str, Any]]) -> pd.DataFrame:
    """Their scores, from text and repository alone."""
    return score_frame([_task(issue) for issue in issues])


def _task(issue: dict[str, Any]) -> dict[str, Any]:
    text = issue["problem_statement"]
    return task(title=text.partition("\n")[0], description=text, workspace=issue["repo"])


def test_every_real_issue_is_scored_the_same_alone_and_in_company(
    issues: list[dict[str, Any]], scores: pd.DataFrame
) -> None:
    together = scores.to_dict("records")

    assert len(together) == 246
    for at in range(0, 246, 7):
        assert score_task(_task(issues[at]), CONFIG) == together[at]


def test_sizes_estimated_from_real_issues_are_rarely_far_off(
    issues: list[dict[str, Any]], scores: pd.DataFrame
) -> None:
    """An estimate counts as close that is at most two files beside the patch that solved the issue."""
    solved_in = pd.Series([issue["gold_files"] for issue in issues])

    close = (scores["files"] - solved_in).abs() <= 2
    assert close.mean() >= 0.9


def test_few_real_bug_reports_are_taken_for_large_or_risky_work(scores: pd.DataFrame) -> None:
    assert (scores["complexity"] == "highly_complex").mean() <= 0.05
    assert (scores["risk"] == "production").mean() <= 0.05
