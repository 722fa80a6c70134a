"""Claim: where half of the models succeed 5 points more often than is believed, that is in force within 5 nights."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.learning_claims._nights import TASKS_A_NIGHT, Doubles, judge_night, make_world, night
from benchmarks.report import note, report

_RUNS = 100
_NIGHTS = 5
_POINTS = 0.05


def measure() -> None:
    """Start from nothing learned, night by night, a hundred times."""
    promoted, nights, by_gate = 0, list[int](), dict[str, int]()
    for seed in range(_RUNS):
        at = _promoted_at(seed, by_gate)
        promoted += at is not None
        nights += [at] if at is not None else []
    note(f"night of promotion: {np.bincount(nights).tolist()}; refusals by gate: {by_gate}")
    report(
        "learning",
        f"half of the models {_POINTS * 100:.0f} points better than believed, {TASKS_A_NIGHT:,} tasks a night",
        "promoted_within_5_nights",
        promoted / _RUNS,
        "share",
        ">= 0.9",
    )


def _promoted_at(seed: int, by_gate: dict[str, int]) -> int | None:
    """The night, from 1, whose candidate passed every gate; None if none of the five did."""
    generator = np.random.default_rng(seed)
    world = make_world(_half_are_better, seed)
    rows = pd.DataFrame()
    for number in range(_NIGHTS):
        rows = pd.concat([rows, night(world, number, generator)], ignore_index=True)
        candidate, verdicts = judge_night(world, rows, number, seed)
        failed = [verdict.gate for verdict in verdicts if not verdict.has_passed]
        if candidate.changes and not failed:
            return number + 1
        for gate in failed:
            by_gate[gate] = by_gate.get(gate, 0) + 1
    return None


def _half_are_better(believed: Doubles, generator: np.random.Generator) -> Doubles:
    """Every second model, in every kind of task."""
    truth = believed.copy()
    truth[generator.integers(0, 2) :: 2] += _POINTS
    return truth
