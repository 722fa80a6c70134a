"""Claim: nights whose outcomes were shuffled among attempts promote nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.learning_claims._nights import TASKS_A_NIGHT, Doubles, judge_night, make_world, night
from benchmarks.report import note, report

_NIGHTS = 100
_HISTORY = 7


def measure() -> None:
    """Shuffle the outcomes of a week among its attempts, learn from it and judge, a hundred times."""
    refused, by_gate = 0, dict[str, int]()
    for seed in range(_NIGHTS):
        generator = np.random.default_rng(seed)
        world = make_world(_as_varied_as_real_ones, seed)
        rows = pd.concat([night(world, number, generator) for number in range(_HISTORY)], ignore_index=True)
        rows["has_succeeded"] = generator.permutation(rows["has_succeeded"].to_numpy())
        _, verdicts = judge_night(world, rows, _HISTORY - 1, seed)
        failed = [verdict.gate for verdict in verdicts if not verdict.has_passed]
        refused += bool(failed)
        for gate in failed:
            by_gate[gate] = by_gate.get(gate, 0) + 1
    note(f"refused by gate, of {_NIGHTS} shuffled nights: {by_gate}")
    report(
        "learning",
        f"{_NIGHTS} weeks of {TASKS_A_NIGHT:,} tasks a night, shuffled",
        "placebo_refused",
        refused / _NIGHTS,
        "share",
        "== 1.0",
    )


def _as_varied_as_real_ones(believed: Doubles, generator: np.random.Generator) -> Doubles:
    """Truth off the belief by 5 points in the mean, up or down, cell by cell."""
    return believed + generator.normal(0, 0.05, believed.shape)
