"""Scoring a DataFrame of tasks: the rules joined, with every factor kept.

The time is the task's own submission, never the clock, and a row's score depends on that row alone, so that
scoring a past day again, or in other portions, gives the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.scoring.columns import (
    counts,
    hours_left,
    present,
    priorities,
    require_columns,
)
from cp_core.scoring.complexity import LEVELS, complexity_factor, complexity_of, named_highly_complex
from cp_core.scoring.config import ScoringConfig
from cp_core.scoring.distinct import Distinct
from cp_core.scoring.domain import DOMAINS, DomainSource, domain_factor, domains_of
from cp_core.scoring.estimate import estimate_tokens
from cp_core.scoring.risk import RISKS, risk_factor, risks_of
from cp_core.scoring.size import SizeSource, sizes_of
from cp_core.scoring.text import read_texts
from cp_core.scoring.urgency import time_bonus_of
from cp_core.scoring.value import priority_points, value_score
from cp_core.scoring.words import label_key

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


def score_tasks(tasks: pd.DataFrame, config: ScoringConfig) -> pd.DataFrame:
    """Score and estimate every row.

    Args:
        tasks: one row a task, with `TASK_COLUMNS`.
        config: the whole of `config/scoring.yaml`.

    Returns:
        One row a task with the index of `tasks` and `SCORE_COLUMNS`; nothing is missing.

    Raises:
        InvalidTasksError: a column is missing, or holds what it must not.
    """
    require_columns(tasks)
    labels = Distinct.of([tuple(own) for own in present(tasks, "labels")]).regroup(
        lambda own: frozenset(label_key(label) for label in own)
    )
    workspaces = Distinct.of(present(tasks, "workspace"))
    text = read_texts(present(tasks, "title"), present(tasks, "description"), config)

    large = named_highly_complex(text, labels, config.complexity, config.text.negations)
    sizes = sizes_of(
        counts(tasks, "estimated_files"), counts(tasks, "estimated_lines"), text, large, config.size
    )
    complexity = complexity_of(sizes, large, config.complexity)
    domains = domains_of(labels, text.paths, workspaces, config.domains)
    risk = risks_of(labels, text, config.risks)
    blocks_others = np.array(present(tasks, "blocks_others"), dtype=np.bool_)
    bonus = time_bonus_of(hours_left(tasks), labels, text, blocks_others, config.time_bonus)
    inputs, outputs = estimate_tokens(
        complexity, domains.domain, counts(tasks, "workspace_files"), config.estimate
    )

    factors = {
        "complexity_factor": complexity_factor(complexity, config.complexity),
        "priority_points": priority_points(priorities(tasks), config),
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
    """Score one task: `score_tasks` on a frame of one row. What may be missing may be left out."""
    row = {
        "estimated_files": None,
        "estimated_lines": None,
        "workspace_files": None,
        "deadline": None,
        **task,
    }
    scored = score_tasks(pd.DataFrame([row]), config)
    return {str(name): value for name, value in scored.to_dict("records")[0].items()}


def _texts(names: list[Any] | tuple[Any, ...], codes: NDArray[np.intp]) -> Any:
    """A column of text from the index of each row's name."""
    return pd.array([str(name) for name in names], dtype="str").take(codes)
