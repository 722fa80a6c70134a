"""Rows of tasks to score, and the configuration that the project ships."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from hypothesis import strategies as st

from cp_core.scoring.config import ScoringConfig
from cp_core.scoring.score import score_tasks
from cp_core.scoring.text import TextReading, read_texts

SHIPPED: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[3] / "config" / "scoring.yaml").read_text("utf-8")
)
CONFIG = ScoringConfig.model_validate(SHIPPED)
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def task(**changes: Any) -> dict[str, Any]:
    """A task that names nothing: P2, one file by default, backend by default, no deadline."""
    return {
        "title": "Fix it",
        "description": "It does not work.",
        "priority": 2,
        "labels": [],
        "workspace": "acme/thing",
        "estimated_files": None,
        "estimated_lines": None,
        "workspace_files": None,
        "deadline": None,
        "submitted_at": NOON,
        "blocks_others": False,
    } | changes


def scored(**changes: Any) -> dict[str, Any]:
    """What scoring says of `task(**changes)`."""
    return score_frame([task(**changes)]).to_dict("records")[0]


def score_frame(tasks: list[dict[str, Any]]) -> pd.DataFrame:
    """Scores of tasks, in their order."""
    return score_tasks(pd.DataFrame(tasks), CONFIG)


def reading(*texts: str, title: str = "Fix it", config: ScoringConfig = CONFIG) -> TextReading:
    """What descriptions under one title say."""
    return read_texts([title] * len(texts), list(texts), config)


_PIECES = [
    "refactor", "migration", "breaking change", "production", "staging", "sandbox", "no", "without", "Implement",
    "src/api/login.py", "docs/guide.md", "`tests/test_a.py`", "deploy/prod/values.yaml", "Dockerfile", "3 files",
    "15+ files", "about 1,500 lines", "two new files", "```diff\n+a\n-b\n```", "<!-- refactor -->", "the", "café",
    "https://example.com/prod/x.md", "blocking production", ".", ",", "\n", "-", "日本語",
]  # fmt: skip
texts = st.lists(st.sampled_from(_PIECES) | st.text(max_size=12), max_size=12).map(" ".join)
labels = st.lists(
    st.sampled_from(
        ["production", "staging", "sandbox", "hotfix", "urgent", "blocking", "deadline", "area/frontend", "docs",
         "kind: test", "ml", "breaking-change", "non-breaking", "good first issue", "Backend", ""]
    ),
    max_size=4,
)  # fmt: skip
sizes = st.none() | st.integers(0, 5000)
tasks = st.builds(
    task,
    title=texts,
    description=texts,
    priority=st.integers(0, 4),
    labels=labels,
    workspace=st.sampled_from(["acme/web", "infra", "acme/docs", "django/django", "x", ""]),
    estimated_files=sizes,
    estimated_lines=sizes,
    workspace_files=sizes,
    deadline=st.none() | st.timedeltas(timedelta(-3), timedelta(90)).map(lambda left: NOON + left),
    blocks_others=st.booleans(),
)
"""Any task, with texts full of what the rules look for."""
