"""Claim: told which of two models to ask, by a success model learned from 1,531 outcomes, RouteLLM's MMLU goes well.

RouteLLM's data: 14,042 questions with the outcomes of GPT-4 and Mixtral 8x7B; those that its authors found in their
training data are left out. APGR as RouteLLM's own evaluation computes it, mean of five random splits. Its published
routers (0.57 to 0.60) were trained on other data (preferences of people in the Chatbot Arena) and so did not see MMLU.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.report import note, report
from cp_core.learning.routing import PairMetrics, pair_metrics
from cp_core.learning.success import SuccessModel

DATA = Path(os.environ.get("CP_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
FILE = "routellm_mmlu.csv.gz"
TRAINING_ROWS = 1_531
SEEDS = range(5)
STRONG, WEAK = "gpt4_1106", "mixtral_8x7b"


def measure() -> None:
    """Learn from some questions, and rank the others by how much better the strong model is expected to be."""
    path = DATA / FILE
    if not path.exists():
        raise SystemExit(f"{path} is missing; CP_SHARED_DATA may name the folder that holds {FILE}")
    rows = pd.read_csv(path)
    rows = rows[rows["contaminated"] == 0].reset_index(drop=True)
    tasks = pd.DataFrame({"title": "", "description": rows["prompt"], "domain": rows["domain"]})
    with threadpool_limits(1):
        found = [_split(tasks, rows, seed) for seed in SEEDS]
    note(
        f"mmlu: {len(rows):,} questions, {TRAINING_ROWS:,} of them to learn from; published routers reach 0.57 to 0.60"
    )
    for metric, unit, goal in (("apgr", "share", ">= 0.65"), ("cpt_50", "%", None), ("cpt_80", "%", None)):
        values = [getattr(one, metric) for one in found]
        report("learning", "mmlu", metric, float(np.mean(values)), unit, goal)
    report("learning", "mmlu", "apgr_deviation", float(np.std([one.apgr for one in found])), "share")


def _split(tasks: pd.DataFrame, rows: pd.DataFrame, seed: int) -> PairMetrics:
    order = np.random.default_rng(seed).permutation(len(rows))
    train, test = order[:TRAINING_ROWS], order[TRAINING_ROWS:]
    outcomes = pd.concat(
        [
            pd.DataFrame({"task": train, "model": model, "success": rows[model].to_numpy()[train]})
            for model in (STRONG, WEAK)
        ]
    )
    predicted = SuccessModel.fit(tasks.iloc[train], outcomes, seed=seed).predict(tasks.iloc[test])
    rate = 0.5 + (predicted[STRONG] - predicted[WEAK]).to_numpy() / 2
    return pair_metrics(rate, rows[STRONG].to_numpy()[test], rows[WEAK].to_numpy()[test], seed=seed)
