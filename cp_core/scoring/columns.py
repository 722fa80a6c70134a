"""The columns of tasks to be scored, checked as they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.scoring.config import PRIORITIES

TASK_COLUMNS = {
    "title": "text",
    "description": "text",
    "priority": "0 (P0, most urgent) to 4",
    "labels": "a list of text",
    "workspace": "text",
    "estimated_files": "0 or more, or missing",
    "estimated_lines": "0 or more, or missing",
    "workspace_files": "0 or more, or missing",
    "deadline": "a time with time zone, or missing",
    "submitted_at": "a time with time zone",
    "blocks_others": "whether another open task depends on this one",
}
"""What a frame of tasks to score must have; other columns are ignored."""


class InvalidTasksError(ValueError):
    """The tasks to score are not as described; the text names column, row, value and what is allowed."""


def require_columns(tasks: pd.DataFrame) -> None:
    """Raise `InvalidTasksError` unless `tasks` has every column of `TASK_COLUMNS`."""
    missing = [column for column in TASK_COLUMNS if column not in tasks]
    if missing:
        raise InvalidTasksError(
            f"the tasks lack column {', '.join(missing)}; needed are {', '.join(TASK_COLUMNS)}"
        )


def present(tasks: pd.DataFrame, column: str) -> list[Any]:
    """The values of a column in which nothing may be missing."""
    _require(tasks, column, tasks[column].notna().to_numpy())
    return tasks[column].tolist()


def priorities(tasks: pd.DataFrame) -> NDArray[np.intp]:
    """The column `priority`."""
    _require(tasks, "priority", tasks["priority"].isin(range(len(PRIORITIES))).to_numpy())
    return tasks["priority"].to_numpy(dtype=np.intp)


def counts(tasks: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """A column of counts as floats, NaN where missing."""
    numbers = pd.to_numeric(tasks[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    _require(tasks, column, ((numbers >= 0) & np.isfinite(numbers)) | tasks[column].isna().to_numpy())
    return numbers


def hours_left(tasks: pd.DataFrame) -> NDArray[np.float64]:
    """Hours from submission to deadline, negative where it had passed; NaN without a deadline."""
    _require(tasks, "submitted_at", tasks["submitted_at"].notna().to_numpy())
    left: NDArray[np.timedelta64] = _times(tasks, "deadline") - _times(tasks, "submitted_at")
    return left / np.timedelta64(1, "h")


def _times(tasks: pd.DataFrame, column: str) -> NDArray[np.datetime64]:
    """A column of times in UTC, NaT where missing."""
    times = tasks[column]
    if not isinstance(times.dtype, pd.DatetimeTZDtype):
        has_zone = [pd.isna(time) or getattr(time, "tzinfo", None) is not None for time in times]
        _require(tasks, column, np.array(has_zone, dtype=np.bool_))
        times = pd.to_datetime(times, utc=True)
    utc: NDArray[np.datetime64] = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]")
    return utc


def _require(tasks: pd.DataFrame, column: str, right: NDArray[np.bool_]) -> None:
    """Raise `InvalidTasksError` about the first row of `column` that is not right."""
    if right.all():
        return
    row = int(np.argmin(right))
    raise InvalidTasksError(
        f"{column} of row {tasks.index[row]} is {tasks[column].iloc[row]!r}; needed is {TASK_COLUMNS[column]}"
    )
