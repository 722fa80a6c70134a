"""Known outcomes of tasks with models: a matrix, full or partial."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Positions = NDArray[np.intp]


@dataclass(frozen=True)
class Outcomes:
    """What came of n tasks with m models; NaN where a pair was not tried or a figure is not known.

    Attributes:
        tasks: their ids, (n,).
        models: their names, (m,).
        success: 1 or 0, (m, n).
        cost_usd, input_tokens, output_tokens, latency_s: (m, n).
        submitted_at: UTC, (n,); NaT where not known.
    """

    tasks: tuple[str, ...]
    models: tuple[str, ...]
    success: Doubles
    cost_usd: Doubles
    input_tokens: Doubles
    output_tokens: Doubles
    latency_s: Doubles
    submitted_at: pd.DatetimeIndex

    @property
    def observed(self) -> NDArray[np.bool_]:
        """Whether each pair was tried, (m, n)."""
        return np.isfinite(self.success)

    def of(self, tasks: Positions) -> Outcomes:
        """The outcomes of some tasks, by position."""
        return Outcomes(
            tasks=tuple(self.tasks[task] for task in tasks),
            models=self.models,
            success=self.success[:, tasks],
            cost_usd=self.cost_usd[:, tasks],
            input_tokens=self.input_tokens[:, tasks],
            output_tokens=self.output_tokens[:, tasks],
            latency_s=self.latency_s[:, tasks],
            submitted_at=self.submitted_at[tasks],
        )

    def rows(self, **figures: Doubles) -> pd.DataFrame:
        """The observed pairs as rows: task, model, and the (m, n) `figures` by name."""
        models, tasks = np.nonzero(self.observed)
        return pd.DataFrame(
            {
                "task": np.array(self.tasks, dtype=object)[tasks],
                "model": np.array(self.models, dtype=object)[models],
                **{name: values[models, tasks] for name, values in figures.items()},
            }
        )


def folds(tasks: int, number: int, *, seed: int) -> list[tuple[Positions, Positions]]:
    """Random parts: each task is in the test part of exactly one fold, as (training, test) positions, rising."""
    part = np.random.default_rng(seed).permutation(tasks) % number
    return [(np.flatnonzero(part != fold), np.flatnonzero(part == fold)) for fold in range(number)]


def in_time_order(submitted_at: pd.DatetimeIndex, number: int) -> list[tuple[Positions, Positions]]:
    """Blocks of time: each but the first is tested after training on everything submitted strictly before it.

    Args:
        submitted_at: of each task, without NaT.
        number: blocks, >= 2; there are fewer where many tasks were submitted at one moment.
    """
    moments = submitted_at.to_numpy()
    order = np.argsort(moments, kind="stable")
    starts = {moments[order[block * len(order) // number]] for block in range(1, number)}
    borders = [*sorted(starts), None]
    found = []
    for start, end in pairwise(borders):
        before, inside = moments < start, moments >= start
        if end is not None:
            inside &= moments < end
        if before.any() and inside.any():
            found.append((np.flatnonzero(before), np.flatnonzero(inside)))
    return found
