"""Claim: what another policy would have earned is told truly from one's own log.

In a simulation the truth is known exactly. In the Open Bandit Dataset it was measured: while one policy chose clothes
to show (Bernoulli Thompson sampling), another showed them uniformly at random to other visitors of the same days.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.report import note, report
from cp_core.learning.offpolicy import Estimate, doubly_robust, importance_weighted, self_normalised

REPETITIONS = 1_000
DECISIONS = 2_000
EXPLORED = 0.1
SEED = 20_240_917
FOLDS = 5
_FOLDER = Path(os.environ.get("CP_SHARED_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))

Doubles = NDArray[np.float64]


def measure() -> None:
    """Report the coverage in the simulation, and the agreement on the Open Bandit Dataset."""
    for name, model in (("a fair model of outcomes", 0.7), ("a model that knows nothing", 0.0)):
        report(
            "learning",
            f"doubly robust, 10 % exploration, {name}",
            "coverage",
            _coverage(model),
            "share",
            ">= 0.93",
        )
    _open_bandit()


def _coverage(skill: float) -> float:
    generator = np.random.default_rng(SEED)
    covered = 0
    for repetition in range(REPETITIONS):
        estimate, truth = _simulated(generator, skill, repetition)
        if estimate.low is None or estimate.high is None:
            raise RuntimeError(f"refused in the simulation: {estimate.refused}")
        covered += estimate.low <= truth <= estimate.high
    return covered / REPETITIONS


def _simulated(generator: np.random.Generator, skill: float, seed: int) -> tuple[Estimate, float]:
    """A log of decisions between three models, and what another choice of models would truly earn.

    The log takes the model that its own rule prefers in nine decisions of ten, and either other one in the rest. The
    other policy prefers by another rule. Success depends on the task's difficulty and the model; the model of outcomes
    sees a share `skill` of that.

    The truth is of the population, by a sum over difficulties of equal weight, so that the spread of tasks counts too.
    """
    difficulties = np.linspace(-2, 2, 401)
    strength = np.array([-0.5, 0.3, 1.0])
    of_all = 1 / (1 + np.exp(difficulties[:, None] - strength))
    theirs = np.where(difficulties < -0.5, 0, np.where(difficulties < 0.8, 1, 2))
    truth = float(of_all[np.arange(401), theirs].mean())

    task = generator.integers(0, 401, DECISIONS)
    own = np.where(difficulties[task] < 0.5, 0, 2)
    propensity = np.full((DECISIONS, 3), EXPLORED / 2)
    propensity[np.arange(DECISIONS), own] = 1 - EXPLORED
    decided = (generator.random(DECISIONS)[:, None] > propensity.cumsum(axis=1)).sum(axis=1).clip(max=2)
    rewards = (generator.random(DECISIONS) < of_all[task, decided]).astype(np.float64)
    predicted = skill * of_all[task] + (1 - skill) * 0.5
    rows, target = np.arange(DECISIONS), theirs[task]
    estimate = doubly_robust(
        rewards,
        propensity[rows, decided],
        (decided == target).astype(np.float64),
        predicted[rows, decided],
        predicted[rows, target],
        seed=seed,
    )
    return estimate, truth


def _open_bandit() -> None:
    log, uniform = _read("obd_bts_men.csv.gz"), _read("obd_random_men.csv.gz")
    truth = float(uniform["click"].mean())
    note(f"click rate of the random log: {truth:.4f} of {len(uniform):,}")
    for name, estimate in _estimates(log).items():
        if estimate.value is None or estimate.low is None or estimate.high is None:
            raise RuntimeError(f"{name} refused: {estimate.refused}")
        note(
            f"{name}: {estimate.value:.4f} ({estimate.low:.4f} to {estimate.high:.4f}), effective sample "
            f"{estimate.ess:.0f} of {estimate.n:,}, largest weight {estimate.largest_weight:.1f}"
        )
        agrees = float(estimate.low <= truth <= estimate.high)
        report("learning", f"open bandit, {name}", "agrees", agrees, "truth", "== 1")


def _estimates(log: pd.DataFrame) -> dict[str, Estimate]:
    items = int(log["item_id"].max()) + 1
    clicks, propensity = (log[name].to_numpy(np.float64) for name in ("click", "propensity_score"))
    uniform = np.full(len(log), 1 / items)
    predicted, of_uniform = _click_rates(log, items)
    return {
        "inverse propensity": importance_weighted(clicks, propensity, uniform, seed=SEED),
        "self-normalised": self_normalised(clicks, propensity, uniform, seed=SEED),
        "doubly robust": doubly_robust(clicks, propensity, uniform, predicted, of_uniform, seed=SEED),
    }


def _click_rates(log: pd.DataFrame, items: int) -> tuple[Doubles, Doubles]:
    """Click rate of each shown item, and the mean of all items', from the folds that a row is not in.

    An item's rate is drawn to the rate of all by 500 rows of it.
    """
    item, clicks = log["item_id"].to_numpy(), log["click"].to_numpy(np.float64)
    fold = np.arange(len(log)) % FOLDS
    predicted, of_uniform = np.empty(len(log)), np.empty(len(log))
    for held in range(FOLDS):
        train = fold != held
        shown = np.bincount(item[train], minlength=items)
        clicked = np.bincount(item[train], weights=clicks[train], minlength=items)
        rates = (clicked + 500 * clicks[train].mean()) / (shown + 500)
        predicted[~train] = rates[item[~train]]
        of_uniform[~train] = rates.mean()
    return predicted, of_uniform


def _read(name: str) -> pd.DataFrame:
    path = _FOLDER / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: it is part of the Open Bandit Dataset; CP_SHARED_DATA may name the folder"
        )
    return pd.read_csv(path, usecols=["item_id", "click", "propensity_score"])
