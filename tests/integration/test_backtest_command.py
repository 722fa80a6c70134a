"""`control-panel backtest`: from two files to a report and a page; and what is said of files that are wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cp_cli.main import app
from cp_core.scoring.config import ScoringConfig
from cp_resources.backtest_files import BacktestFileError, read_files
from cp_resources.configuration import load_file

SCORING = Path(__file__).resolve().parents[2] / "config" / "scoring.yaml"
TASKS = [{"task_id": f"t{number}", "title": f"Fix bug {number}"} for number in range(24)]


def _write(
    folder: Path, rows: list[dict[str, Any]], tasks: list[dict[str, Any]] = TASKS
) -> tuple[Path, Path]:
    tasks_path, outcomes_path = folder / "tasks.jsonl", folder / "outcomes.csv"
    tasks_path.write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
    with outcomes_path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tasks_path, outcomes_path


def _rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "task_id": task["task_id"],
            "model": model,
            "success": int(rng.random() < chance),
            "cost_usd": cost,
            "submitted_at": f"2026-01-{number % 20 + 1:02}",
        }
        for number, task in enumerate(TASKS)
        for model, chance, cost in (("GPT <big>", 0.8, 0.5), ("small", 0.5, 0.01))
    ]


def _refused(folder: Path, rows: list[dict[str, Any]], tasks: list[dict[str, Any]] = TASKS) -> str:
    paths = _write(folder, rows, tasks)
    with pytest.raises(BacktestFileError) as raised:
        read_files(*paths, load_file(SCORING, ScoringConfig))
    return str(raised.value)


@pytest.mark.parametrize("how", [["--folds", "2"], ["--time-ordered", "--folds", "3"]], ids=["folds", "time"])
def test_backtest_prints_a_report_and_writes_a_page(tmp_path: Path, how: list[str]) -> None:
    tasks, outcomes = _write(tmp_path, _rows())
    page = tmp_path / "page.html"
    arguments = ["--tasks", str(tasks), "--outcomes", str(outcomes), "--budget", "0.1", "--budget", "0.4"]
    result = CliRunner().invoke(app, ["backtest", *arguments, *how, "--json", "--html", str(page)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [point["budget_usd"] for point in found["ours_with_escalation"]["points"]] == [0.1, 0.4]
    assert found["pair"]["strong"] in found["models"]
    text = page.read_text()
    assert "GPT &lt;big&gt;" in text
    assert "GPT <big>" not in text
    assert "data:image/png;base64," in text
    assert "http://" not in text


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("success", "11", 'line 3, success: "11"; 0 or 1, or a quality from 0 to 10 is needed'),
        ("success", "-1", 'line 3, success: "-1"; 0 or 1, or a quality from 0 to 10 is needed (above -1'),
        ("success", "", 'line 3, success: ""'),
        ("cost_usd", "nan", 'line 3, cost_usd: "nan"; a number from 0 to 1e+06 is needed'),
        ("cost_usd", "-0.1", 'line 3, cost_usd: "-0.1"'),
        ("task_id", "other", 'line 3, task_id: "other" is no task of'),
        ("model", " ", "line 3, model: empty"),
        ("submitted_at", "yesterday", 'line 3, submitted_at: "yesterday"; a date and time in ISO 8601'),
    ],
    ids=["high", "negative", "empty", "nan", "negative-cost", "unknown-task", "no-model", "no-date"],
)
def test_wrong_cell_is_told_with_line_column_and_value(
    tmp_path: Path, column: str, value: str, told: str
) -> None:
    rows = _rows()
    rows[1][column] = value
    assert told in _refused(tmp_path, rows)


def test_every_problem_is_told_and_not_only_the_first(tmp_path: Path) -> None:
    rows = _rows()
    rows[1]["success"], rows[4]["cost_usd"] = "x", "y"
    message = _refused(tmp_path, rows)
    assert "line 3, success" in message
    assert "line 6, cost_usd" in message


def test_pair_that_stands_twice_is_told_with_both_lines(tmp_path: Path) -> None:
    rows = _rows()
    assert 'line 50, task_id and model: "t0" with "GPT <big>" stands in line 2 already' in _refused(
        tmp_path, [*rows, rows[0]]
    )


def test_one_model_leaves_nothing_to_choose(tmp_path: Path) -> None:
    assert 'model: "small" in every row; outcomes of two models' in _refused(tmp_path, _rows()[1::2])


def test_files_that_share_no_task_are_told_so(tmp_path: Path) -> None:
    rows = [{**row, "task_id": f"x{row['task_id']}"} for row in _rows()]
    assert "none of its 48 rows names a task of" in _refused(tmp_path, rows)


def test_missing_column_is_named(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "cost_usd"} for row in _rows()]
    assert "column cost_usd is missing" in _refused(tmp_path, rows)


def test_task_that_stands_twice_is_told(tmp_path: Path) -> None:
    assert 'line 25, task_id: "t0" stands in line 1 already' in _refused(
        tmp_path, _rows(), [*TASKS, TASKS[0]]
    )


def test_quality_is_a_success_from_six_on_and_the_report_says_so(tmp_path: Path) -> None:
    rows = [{**row, "success": quality} for row, quality in zip(_rows(), [6, 5.9, 10, 0] * 12, strict=True)]
    read = read_files(*_write(tmp_path, rows), load_file(SCORING, ScoringConfig))
    assert read.outcomes.success[:, :2].tolist() == [[1, 1], [0, 0]]
    assert "quality from 0 to 10: 6 or more" in read.notes[0]


def test_score_just_below_zero_is_no_success_and_the_report_says_so(tmp_path: Path) -> None:
    rows = [
        {**row, "success": score} for row, score in zip(_rows(), [-0.033, 0.7, 0.61, 0.0] * 12, strict=True)
    ]
    read = read_files(*_write(tmp_path, rows), load_file(SCORING, ScoringConfig))
    assert read.outcomes.success[:, :2].tolist() == [[0, 1], [1, 0]]
    assert read.notes[0] == "success is below 0 in 12 rows, which was read as 0"
    assert "0.6 or more" in read.notes[1]


def test_tasks_without_an_outcome_are_left_out_and_counted(tmp_path: Path) -> None:
    read = read_files(*_write(tmp_path, _rows()[:40]), load_file(SCORING, ScoringConfig))
    assert len(read.tasks) == 20
    assert "4 tasks of tasks.jsonl have no outcome" in read.notes[-1]
