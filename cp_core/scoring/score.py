"""Scoring a DataFrame of tasks: the rules joined, with every factor kept.

The time is the task's own submission, never the clock, and a row's score depends on that row alone, so that scoring a
past day again, or in other portions, gives the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.scoring.complexity import LEVELS, complexity_factor, complexity_of, named_highly_complex
from cp_core.scoring.config import PRIORITIES, ScoringConfig
from cp_core.scoring.distinct import Distinct
from cp_core.scoring.domain import DOMAINS, DomainSource, domain_factor, domains_of
from cp_core.scoring.estimate import estimate_tokens
from cp_core.scoring.risk import RISKS, risk_factor, risks_of
from cp_core.scoring.size import SizeSource, sizes_of
from cp_core.scoring.text import read_texts
from cp_core.scoring.urgency import time_bonus_of
from cp_core.scoring.value import priority_points, value_score
from cp_core.scoring.words import label_key

TASK_COLUMNS = (
    "title",
    "description",
    "priority",
    "labels",
    "workspace",
    "estimated_files",
    "estimated_lines",
    "workspace_files",
    "deadline",
    "submitted_at",
    "blocks_others",
)
"""What `score_tasks` reads; other columns are ignored."""

SCORE_COLUMNS = (
    "files",
    "lines",
    "size_source",
    "complexity",
    "complexity_factor",
    "priority_points",
    "time_bonus",
    "time_bonus_reason",
    "domain",
    "domain_factor",
    "domain_source",
    "risk",
    "risk_factor",
    "score",
    "input_mean",
    "input_median",
    "input_low",
    "input_high",
    "output_mean",
    "output_median",
    "output_low",
    "output_high",
)
"""What `score_tasks` gives, in this order."""


class InvalidTasksError(ValueError):
    """The tasks to score are not as described. The text names the column, the row, the value and what is allowed."""


def score_tasks(tasks: pd.DataFrame, config: ScoringConfig) -> pd.DataFrame:
    """Score and estimate every row.

    Args:
        tasks: one row a task, with `TASK_COLUMNS`: title and description (text), priority (0 for P0, to 4), labels (a
            list of text), workspace (text), estimated_files, estimated_lines and workspace_files (0 or more, or
            missing), deadline (with time zone, or missing), submitted_at (with time zone), blocks_others (whether
            another open task depends on this one).
        config: the whole of `config/scoring.yaml`.

    Returns:
        One row a task with the index of `tasks` and `SCORE_COLUMNS`; nothing is missing.

    Raises:
        InvalidTasksError: a column is missing, or holds what it must not.
    """
    missing = [column for column in TASK_COLUMNS if column not in tasks]
    if missing:
        raise InvalidTasksError(
            f"the tasks lack column {', '.join(missing)}; needed are {', '.join(TASK_COLUMNS)}"
        )

    labels = Distinct.of(map(tuple, _present(tasks, "labels"))).regroup(
        lambda own: frozenset(label_key(label) for label in own)
    )
    text = read_texts(_present(tasks, "title"), _present(tasks, "description"), config)
    priority = _priority(tasks)

    large = named_highly_complex(text, labels, config.complexity, config.text.negations)
    sizes = sizes_of(
        _count(tasks, "estimated_files"), _count(tasks, "estimated_lines"), text, large, config.size
    )
    complexity = complexity_of(sizes, large, config.complexity)
    domains = domains_of(labels, text.paths, Distinct.of(_present(tasks, "workspace")), config.domains)
    risk = risks_of(labels, text, config.risks)
    bonus = time_bonus_of(
        _hours_left(tasks),
        labels,
        text,
        tasks["blocks_others"].to_numpy(dtype=np.bool_),
        config.time_bonus,
    )
    inputs, outputs = estimate_tokens(
        complexity, domains.domain, _count(tasks, "workspace_files"), config.estimate
    )

    factors = {
        "complexity_factor": complexity_factor(complexity, config.complexity),
        "priority_points": priority_points(priority, config),
        "time_bonus": bonus.points,
        "domain_factor": domain_factor(domains.domain, config.domains),
        "risk_factor": risk_factor(risk, config.risks),
    }
    columns: dict[str, Any] = {
        "files": sizes.files,
        "lines": sizes.lines,
        "size_source": _texts(list(SizeSource), sizes.source),
        "complexity": _texts(LEVELS, complexity),
        "time_bonus_reason": _texts(bonus.reasons, bonus.reason),
        "domain": _texts(DOMAINS, domains.domain),
        "domain_source": _texts(list(DomainSource), domains.source),
        "risk": _texts(RISKS, risk),
        **factors,
        "score": value_score(
            factors["priority_points"],
            factors["complexity_factor"],
            factors["time_bonus"],
            factors["domain_factor"],
            factors["risk_factor"],
        ),
        "input_mean": inputs.mean,
        "input_median": inputs.median,
        "input_low": inputs.low,
        "input_high": inputs.high,
        "output_mean": outputs.mean,
        "output_median": outputs.median,
        "output_low": outputs.low,
        "output_high": outputs.high,
    }
    return pd.DataFrame({name: columns[name] for name in SCORE_COLUMNS}, index=tasks.index)


def score_task(task: Mapping[str, Any], config: ScoringConfig) -> dict[str, Any]:
    """Score one task, as `score_tasks` does with a frame of one row. Columns that may be missing may be left out."""
    row = {
        "estimated_files": None,
        "estimated_lines": None,
        "workspace_files": None,
        "deadline": None,
        **task,
    }
    scored = score_tasks(pd.DataFrame([row]), config)
    return {str(name): value for name, value in scored.to_dict("records")[0].items()}


def _present(tasks: pd.DataFrame, column: str) -> list[Any]:
    """The values of a column in which nothing may be missing."""
    missing = tasks[column].isna()
    if missing.any():
        raise InvalidTasksError(f"{column} of row {missing.idxmax()} is missing; every task needs one")
    return tasks[column].tolist()


def _priority(tasks: pd.DataFrame) -> NDArray[np.intp]:
    wrong = ~tasks["priority"].isin(range(len(PRIORITIES)))
    if wrong.any():
        raise InvalidTasksError(
            f"priority of row {wrong.idxmax()} is {tasks['priority'][wrong].iloc[0]!r}; "
            f"allowed are 0 to {len(PRIORITIES) - 1} (P0 to P4)"
        )
    return tasks["priority"].to_numpy(dtype=np.intp)


def _count(tasks: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """A column of counts as floats, NaN where missing."""
    try:
        counts = pd.to_numeric(tasks[column]).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise InvalidTasksError(f"{column} holds something other than numbers: {error}") from error
    wrong = (counts < 0) | np.isinf(counts)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidTasksError(
            f"{column} of row {tasks.index[row]} is {counts[row]:g}; allowed are 0 or more, or nothing"
        )
    return counts


def _hours_left(tasks: pd.DataFrame) -> NDArray[np.float64]:
    """Hours from submission to deadline; NaN without a deadline."""
    submitted, deadline = _instants(tasks, "submitted_at"), _instants(tasks, "deadline")
    if submitted.isna().any():
        raise InvalidTasksError(
            f"submitted_at of row {submitted.isna().idxmax()} is missing; every task needs one"
        )
    return ((deadline - submitted) / pd.Timedelta(hours=1)).to_numpy(dtype=np.float64)


def _instants(tasks: pd.DataFrame, column: str) -> pd.Series[pd.Timestamp]:
    """A column of times in UTC, NaT where missing."""
    times = tasks[column]
    if times.isna().all():
        return pd.Series(pd.NaT, index=tasks.index, dtype="datetime64[us, UTC]")
    if not isinstance(times.dtype, pd.DatetimeTZDtype):
        naive = times.map(lambda time: getattr(time, "tzinfo", None) is None, na_action="ignore").eq(True)
        if naive.any():
            raise InvalidTasksError(
                f"{column} of row {naive.idxmax()} is {times[naive].iloc[0]!r}; it needs a time zone"
            )
        times = pd.to_datetime(times, utc=True)
    return times.dt.tz_convert("UTC")


def _texts(names: list[Any] | tuple[Any, ...], codes: NDArray[np.intp]) -> Any:
    """A column of text from the index of each row's name."""
    return pd.array([str(name) for name in names], dtype="str").take(codes)
