"""The two files of a backtest: tasks as JSON lines, and what models made of them as CSV. Nothing is skipped silently.

Every problem found in a file is told with its line, column and value, up to `MOST_TOLD` of them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cp_core.learning.backtest.outcomes import Outcomes
from cp_core.printable import printable
from cp_core.scoring.config import ScoringConfig
from cp_core.scoring.score import score_tasks
from cp_core.tasks.submission import DEFAULT_PRIORITY, DEFAULT_WORKSPACE, PRIORITIES
from cp_resources.errors import UserError
from cp_resources.task_files import BadRow, Format, open_task_file

MOST_TOLD = 20
GOOD_QUALITY = 6.0
"""Quality, 0 to 10, from which work counts as good: execution.success_quality of policies.yaml by default."""

_NEEDED = ("task_id", "model", "success", "cost_usd")
_OPTIONAL = ("input_tokens", "output_tokens", "latency_s", "submitted_at")
_SENTINEL = -1.0
_ALLOWED = {
    "success": "0 or 1, or a quality from 0 to 10 is needed (above -1 and below 0 counts as 0; "
    "leave the row out where nothing was measured)"
}
_EPOCH = pd.Timestamp("2020-01-01", tz="UTC")  # of tasks that do not say when they were submitted


class BacktestFileError(UserError):
    """A file of a backtest is wrong. The text names file, line, column, the value and what is allowed."""


class Read(NamedTuple):
    """What the two files hold: tasks in the order of the outcomes' columns, and notes on how they were understood."""

    tasks: pd.DataFrame
    outcomes: Outcomes
    notes: tuple[str, ...]


def read_files(
    tasks_path: Path, outcomes_path: Path, scoring: ScoringConfig, good_quality: float = GOOD_QUALITY
) -> Read:
    """Read tasks and outcomes, and score the tasks.

    Args:
        good_quality: quality from which work is good, where outcomes are qualities.

    Raises:
        BacktestFileError: anything in a file that is not as it must be.
        UnusableFileError: a file cannot be read at all.
    """
    rows = _read_tasks(tasks_path)
    pairs = _read_outcomes(outcomes_path, rows, tasks_path)
    known = set(pairs["task_id"])
    tried = [task for task in rows if task in known]
    outcomes, notes = _matrix(
        pairs, tried, {task: rows[task].get("submitted_at") for task in tried}, good_quality
    )
    if len(tried) < len(rows):
        notes = (
            *notes,
            f"{len(rows) - len(tried):,} tasks of {tasks_path.name} have no outcome and were left out",
        )
    return Read(_scored([rows[task] for task in tried], tried, scoring), outcomes, notes)


def _read_tasks(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    with open_task_file(path, Format.JSONL if path.suffix not in (".csv", ".json", ".gz") else None) as file:
        for row in file.rows():
            if isinstance(row, BadRow):
                problems.append(f"line {row.line}: {row.message}")
                continue
            problem = _wrong_task(row.fields)
            task = row.fields.get("task_id")
            if problem is None and str(task) in found:
                problem = f"task_id: {_seen(task)} stands in line {lines[str(task)]} already; each task once is allowed"
            if problem is not None:
                problems.append(f"line {row.line}, {problem}")
                continue
            found[str(task)], lines[str(task)] = row.fields, row.line
    _raise(path, problems)
    if not found:
        raise BacktestFileError(
            f"{path}: holds no task; one JSON object a line is needed, with task_id and title"
        )
    return found


def _wrong_task(fields: Mapping[str, Any]) -> str | None:
    task = fields.get("task_id")
    if not isinstance(task, str | int) or isinstance(task, bool) or not str(task).strip():
        return f"task_id: {_seen(task)}; a text that is not empty is needed"
    for name in ("title", "description"):
        if not isinstance(fields.get(name), str | None):
            return f"{name}: {_seen(fields[name])}; a text is needed"
    if not (fields.get("title") or fields.get("description")):
        return "title: missing; a task needs a title or a description"
    if fields.get("priority") not in (None, *PRIORITIES):
        return f"priority: {_seen(fields['priority'])}; allowed are {', '.join(PRIORITIES)}"
    labels = fields.get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(one, str) for one in labels)):
        return f"labels: {_seen(labels)}; a list of texts is needed"
    if fields.get("submitted_at") is not None and isinstance(_moment(fields["submitted_at"]), str):
        return f"submitted_at: {_seen(fields['submitted_at'])}; {_moment(fields['submitted_at'])}"
    for name in ("estimated_files", "estimated_lines", "workspace_files"):
        value = fields.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            return f"{name}: {_seen(value)}; a whole number of 0 or more is needed"
    return None


def _read_outcomes(path: Path, tasks: Mapping[str, Any], tasks_path: Path) -> pd.DataFrame:
    """Rows of the CSV file, checked, with numbers as numbers."""
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    lines: dict[tuple[str, str], int] = {}
    unknown = 0
    for line, cells in _csv(path):
        row: dict[str, Any] = {}
        for column, problem in _cells(cells, row):
            problems.append(f"line {line}, {column}: {problem}")
        pair = (row.get("task_id", ""), row.get("model", ""))
        if pair[0] and pair[0] not in tasks:
            unknown += 1
            problems.append(f"line {line}, task_id: {_seen(pair[0])} is no task of {tasks_path}")
        if all(pair) and pair in lines:
            problems.append(
                f"line {line}, task_id and model: {_seen(pair[0])} with {_seen(pair[1])} stands in line {lines[pair]} "
                "already; each pair once is allowed"
            )
        lines.setdefault(pair, line)
        rows.append(row)
    if rows and unknown == len(rows):
        raise BacktestFileError(
            f"{path}: none of its {len(rows):,} rows names a task of {tasks_path} (line 2 has "
            f"{_seen(rows[0].get('task_id'))}, that file begins with {_seen(next(iter(tasks)))}); "
            "task_id must be the same in both"
        )
    _raise(path, problems)
    if not rows:
        raise BacktestFileError(f"{path}: holds no outcome; one row a task and model is needed")
    found = pd.DataFrame(rows)
    names = found["model"].unique()
    if len(names) < 2:
        raise BacktestFileError(
            f"{path}, model: {_seen(names[0])} in every row; outcomes of two models or more are needed"
        )
    if not (found["cost_usd"] > 0).any():
        raise BacktestFileError(
            f"{path}, cost_usd: 0 in every row; costs above 0 are needed to weigh them against success"
        )
    return found


def _csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and cells of each record."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = csv.reader(file, strict=True)
            header = [name.strip() for name in next(records, [])]
            missing = [name for name in _NEEDED if name not in header]
            if missing:
                raise BacktestFileError(
                    f"{path}, line 1: column {', '.join(missing)} is missing; it has {', '.join(header) or 'none'}; "
                    f"needed are {', '.join(_NEEDED)}, allowed besides {', '.join(_OPTIONAL)}"
                )
            repeated = [name for name in dict.fromkeys(header) if header.count(name) > 1]
            if repeated:
                raise BacktestFileError(f"{path}, line 1: column {repeated[0]!r} stands there twice")
            line = records.line_num + 1
            for cells in records:
                if any(cells) and len(cells) != len(header):
                    raise BacktestFileError(
                        f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)} columns"
                    )
                if any(cells):
                    yield line, dict(zip(header, cells, strict=True))
                line = records.line_num + 1
    except OSError as error:
        raise BacktestFileError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BacktestFileError(f"{path}: not valid UTF-8 ({error.reason} at byte {error.start:,})") from None
    except csv.Error as error:
        raise BacktestFileError(f"{path}: not valid CSV: {error}") from None


def _cells(cells: Mapping[str, str], row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Fill `row` with what the cells say, and tell what is wrong by column."""
    for column in ("task_id", "model"):
        row[column] = cells[column].strip()
        if not row[column]:
            yield column, "empty; a text is needed"
    for column, most, is_needed in (
        ("success", 10.0, True),
        ("cost_usd", 1e6, True),
        ("input_tokens", 1e12, False),
        ("output_tokens", 1e12, False),
        ("latency_s", 1e9, False),
    ):
        text = cells.get(column, "").strip()
        row[column] = np.nan
        if not text and not is_needed:
            continue
        number = _number(text)
        is_below_scale = column == "success" and number is not None and _SENTINEL < number < 0
        if number is None or not (0 <= number <= most or is_below_scale):
            yield column, f"{_seen(text)}; {_ALLOWED.get(column, f'a number from 0 to {most:g} is needed')}"
        else:
            row[column] = number
    moment = _moment(cells.get("submitted_at", ""))
    if isinstance(moment, str):
        yield "submitted_at", f"{_seen(cells['submitted_at'])}; {moment}"
    else:
        row["submitted_at"] = moment


def _number(text: str) -> float | None:
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _moment(value: object) -> pd.Timestamp | str | None:
    """A moment, None where none is given, or what is wrong with it."""
    text = str(value).strip()
    if value is None or not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return "a date and time in ISO 8601 is needed, such as 2026-03-01T09:00:00Z"
    return pd.Timestamp(moment.replace(tzinfo=moment.tzinfo or UTC)).tz_convert("UTC")


def _matrix(
    pairs: pd.DataFrame, tasks: list[str], moments: Mapping[str, Any], good_quality: float
) -> tuple[Outcomes, tuple[str, ...]]:
    models = sorted(pairs["model"].unique())
    at = (
        pd.Index(models).get_indexer(pd.Index(pairs["model"])),
        pd.Index(tasks).get_indexer(pd.Index(pairs["task_id"])),
    )

    def figures(values: pd.Series[float]) -> np.ndarray:
        matrix = np.full((len(models), len(tasks)), np.nan)
        matrix[at] = values
        return matrix

    success, notes = _success(pairs["success"], good_quality)
    earliest = pairs.dropna(subset="submitted_at").groupby("task_id")["submitted_at"].min().to_dict()
    submitted = [earliest.get(task) or _moment(moments[task]) for task in tasks]
    matrix = Outcomes(
        tasks=tuple(tasks),
        models=tuple(models),
        success=figures(success),
        cost_usd=figures(pairs["cost_usd"]),
        input_tokens=figures(pairs["input_tokens"]),
        output_tokens=figures(pairs["output_tokens"]),
        latency_s=figures(pairs["latency_s"]),
        submitted_at=pd.DatetimeIndex(pd.to_datetime(pd.Series(submitted), utc=True)),
    )
    return matrix, notes


def _success(values: pd.Series[float], good_quality: float) -> tuple[pd.Series[float], tuple[str, ...]]:
    """Successes as 0 and 1, and how they were understood."""
    below = int((values < 0).sum())
    notes = (f"success is below 0 in {below:,} rows, which was read as 0",) if below else ()
    values = values.clip(lower=0.0)
    if values.isin((0.0, 1.0)).all():
        return values, notes
    if values.max() <= 1:
        least = good_quality / 10
        return (values >= least).astype(float), (
            *notes,
            f"success has fractions but nothing above 1, and was read as shares: {least:g} or more is a success",
        )
    return (values >= good_quality).astype(float), (
        *notes,
        f"success was read as quality from 0 to 10: {good_quality:g} or more is a success",
    )


def _scored(rows: list[dict[str, Any]], tasks: list[str], scoring: ScoringConfig) -> pd.DataFrame:
    """Titles, descriptions, domains, complexities and value scores, indexed by task."""
    frame = pd.DataFrame(
        {
            "title": [row.get("title") or "" for row in rows],
            "description": [row.get("description") or "" for row in rows],
            "priority": [_priority(row.get("priority")) for row in rows],
            "labels": [list(row.get("labels") or ()) for row in rows],
            "workspace": [str(row.get("workspace") or DEFAULT_WORKSPACE) for row in rows],
            **{
                name: pd.array([row.get(name) for row in rows], dtype="Int64")
                for name in ("estimated_files", "estimated_lines", "workspace_files")
            },
            "deadline": pd.DatetimeIndex([pd.NaT] * len(rows), tz="UTC"),
            "submitted_at": [_EPOCH] * len(rows),
            "blocks_others": False,
        },
        index=pd.Index(tasks, dtype=object),
    )
    scores = score_tasks(frame, scoring)
    return pd.DataFrame(
        {
            "title": frame["title"],
            "description": frame["description"],
            "domain": [row.get("domain") or own for row, own in zip(rows, scores["domain"], strict=True)],
            "complexity": [
                row.get("complexity") or own for row, own in zip(rows, scores["complexity"], strict=True)
            ],
            "value_score": scores["score"],
        },
        index=frame.index,
    )


def _priority(name: str | None) -> int:
    return DEFAULT_PRIORITY if name is None else PRIORITIES.index(name)


def _seen(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return printable(text if len(text) <= 80 else text[:79] + "…")


def _raise(path: Path, problems: list[str]) -> None:
    if problems:
        told = [f"{path}, {problem}" for problem in problems[:MOST_TOLD]]
        if len(problems) > MOST_TOLD:
            told.append(f"and {len(problems) - MOST_TOLD:,} more problems in {path}")
        raise BacktestFileError("\n".join(told))
