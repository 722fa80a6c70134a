"""Claim: tokens are predicted from the text alone: most within 30 %, totals unbiased, intervals that cover.

809 real questions put to two models (RouterArena). Every number is of a question that the model which predicts it has
not seen: five folds of questions, seeds fixed beforehand, the mean over the seeds. A single prediction is the median,
a total is the sum of means.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd

from benchmarks.report import note, report

SEEDS = (0, 1, 2)
FOLDS = 5
GOAL_WITHIN_30 = {"input": ">= 0.95", "output": ">= 0.75"}
FOLDER = Path(os.environ.get("CP_SHARED_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))


def measure() -> None:
    """Report input and output tokens of each model and of both."""
    usage = _read("routerarena_sub10.csv.gz")
    tasks = pd.DataFrame({"title": "", "description": usage.groupby("task")["question"].first()})
    rounds = [_held_out(tasks, usage, seed) for seed in SEEDS]
    for kind in GOAL_WITHIN_30:
        _report(kind, pd.concat(each[kind] for each in rounds))
    note(
        "each question was put to each model once, so what part of the rest of the error is chance is not known"
    )


def _read(name: str) -> pd.DataFrame:
    path = FOLDER / name
    if not path.exists():
        sys.exit(f"needs {path}, which is missing; CP_SHARED_DATA may name the folder that holds {name}")
    return pd.read_csv(path).rename(columns={"global_index": "task"})


def _held_out(tasks: pd.DataFrame, usage: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    """By kind one row a question and model: actual, mean, median, low, high."""
    from sklearn.model_selection import KFold

    from cp_core.learning.tokens import TokenModel

    parts: dict[str, list[pd.DataFrame]] = {kind: [] for kind in GOAL_WITHIN_30}
    for seen, unseen in KFold(FOLDS, shuffle=True, random_state=seed).split(tasks):
        taught = usage[usage["task"].isin(tasks.index[seen])]
        predictions = TokenModel.fit(tasks.iloc[seen], taught, seed=seed).predict(tasks.iloc[unseen])
        for kind, rows in parts.items():
            tokens = getattr(predictions, kind)
            actual = usage.pivot(index="task", columns="model", values=f"{kind}_tokens")
            said = {name: getattr(tokens, name) for name in ("mean", "median", "low", "high")}
            rows.append(
                pd.DataFrame(
                    {
                        "actual": actual.loc[tasks.index[unseen]].stack(),
                        **{name: frame.stack() for name, frame in said.items()},
                    }
                )
            )
    return {kind: pd.concat(rows) for kind, rows in parts.items()}


def _report(kind: str, rows: pd.DataFrame) -> None:
    by_model = {str(model): of_model for model, of_model in rows.groupby(level=1)}
    for case, chosen in {"both models": rows, **by_model}.items():
        judged = case == "both models"
        within = ((chosen["median"] / chosen["actual"] - 1).abs() <= 0.3).mean()
        covered = chosen["actual"].between(chosen["low"], chosen["high"]).mean()
        total = chosen["mean"].sum() / chosen["actual"].sum()
        name = f"{kind}, {case}"
        report("learning", name, "share_within_30", within, "share", GOAL_WITHIN_30[kind] if judged else None)
        _within("predicted_over_actual", name, total, 0.95, 1.05)
        _within("coverage_80", name, covered, 0.77, 0.83)


def _within(metric: str, case: str, value: float, low: float, high: float) -> None:
    met = bool(low <= value <= high)
    report("learning", case, metric, value, "ratio", f"{low:g} to {high:g}", met)
