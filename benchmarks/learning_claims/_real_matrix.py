"""Matrices of outcomes with real texts, as far as public data goes.

- RouterArena: two models on 809 questions, outcomes and costs as recorded; a score of 0.6 or more is a success.
- RouteLLM's MMLU: two models on questions drawn from 14,037, outcomes as recorded. Costs are not: the text's length at
  the models' list prices, and an answer of one token.
- SWE-bench: real issues, and how many agents of 2024 resolved each. Which models of today would is made up from that
  count: a task's difficulty is the normal quantile of its rank, disturbed. So is what they would cost.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtri

from benchmarks.learning_claims._made_up_matrix import as_backtest
from cp_core.learning.backtest.outcomes import Outcomes

DATA = Path(os.environ.get("CP_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

_CHARACTERS_A_TOKEN = 4
_MMLU_USD_PER_TOKEN = {"gpt4_1106": (1e-5, 3e-5), "mixtral_8x7b": (6e-7, 6e-7)}  # input, output
_AGENTS = 20
_COUNT_SAYS = 0.8  # correlation of what the count says with a task's difficulty
_COST_DEVIATION = 0.9  # of the logarithm, as in recorded runs of one agent on such tasks


def data_file(name: str) -> Path:
    """Path of a file of the public data; ends the benchmark where it is missing."""
    path = DATA / name
    if not path.exists():
        raise SystemExit(f"{path} is missing; CP_SHARED_DATA may name the folder that holds {name}")
    return path


def router_arena(seed: int) -> tuple[pd.DataFrame, Outcomes]:
    """Two models, 809 questions; the seed changes folds and draws only."""
    rows = pd.read_csv(data_file("routerarena_sub10.csv.gz"))
    by_model = rows.pivot(index="global_index", columns="model")
    texts = by_model["question"].iloc[:, 0].tolist()
    success = (by_model["score"].to_numpy().T >= 0.6).astype(np.float64)
    cost = by_model["cost_usd"].to_numpy().T
    return as_backtest(texts, ["backend"] * len(texts), success, cost, np.random.default_rng(seed))


def mmlu(seed: int, tasks: int = 1_500) -> tuple[pd.DataFrame, Outcomes]:
    """Two models, and questions drawn with the seed."""
    rows = pd.read_csv(data_file("routellm_mmlu.csv.gz"))
    rows = rows[rows["contaminated"] == 0].sample(tasks, random_state=seed)
    names = list(_MMLU_USD_PER_TOKEN)
    tokens = rows["prompt"].str.len().to_numpy() / _CHARACTERS_A_TOKEN
    cost = np.array([tokens * _MMLU_USD_PER_TOKEN[name][0] + _MMLU_USD_PER_TOKEN[name][1] for name in names])
    success = rows[names].to_numpy(dtype=np.float64).T
    return as_backtest(
        rows["prompt"].tolist(), rows["domain"].tolist(), success, cost, np.random.default_rng(seed)
    )


def swe_bench(seed: int) -> tuple[pd.DataFrame, Outcomes]:
    """Twenty made-up models, 246 real issues."""
    rows = pd.read_json(data_file("swebench_tasks_half.jsonl.gz"), lines=True)
    rng = np.random.default_rng(seed)
    tasks = len(rows)
    unresolved = -rows["n_2024_agents_resolving"] + rng.uniform(-0.5, 0.5, tasks)
    counted = ndtri((unresolved.rank().to_numpy() - 0.5) / tasks)
    difficulty = _COUNT_SAYS * counted + np.sqrt(1 - _COUNT_SAYS**2) * rng.standard_normal(tasks)
    rates = np.linspace(0.3, 0.76, _AGENTS) + rng.normal(0, 0.04, _AGENTS)
    prices = np.geomspace(0.02, 1.5, _AGENTS) * rng.lognormal(0, 0.5, _AGENTS)
    loading = rng.uniform(0.7, 0.9, _AGENTS)[:, None]
    own = np.sqrt(1 - loading**2) * rng.standard_normal((_AGENTS, tasks))
    success = (ndtri(rates)[:, None] - loading * difficulty + own > 0).astype(np.float64)
    logs = 0.4 * difficulty + np.sqrt(_COST_DEVIATION**2 - 0.4**2) * rng.standard_normal((_AGENTS, tasks))
    cost = prices[:, None] * np.exp(logs - _COST_DEVIATION**2 / 2)
    domains = rows["repo"].tolist()
    return as_backtest(rows["problem_statement"].tolist(), domains, success, cost, rng)
