"""What trait models saw in the texts of some tasks, and what that adds to predictions of attempts at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.calibration import Calibration

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class TraitsSeen:
    """Traits of n tasks by one trait model.

    Attributes:
        tasks: their ids, rising, (n,).
        traits: (n, k).
    """

    tasks: NDArray[np.int64]
    traits: Doubles

    @classmethod
    def of(cls, tasks: NDArray[np.int64], traits: NDArray[np.floating]) -> TraitsSeen:
        """The same for tasks in any order, each once."""
        order = np.argsort(tasks)
        return cls(np.asarray(tasks)[order], np.asarray(traits, dtype=np.float64)[order])

    def places(self, tasks: pd.Series[int]) -> NDArray[np.intp]:
        """Where each task stands; -1 for one whose text was not looked at."""
        wanted = tasks.to_numpy(dtype=np.int64)
        if not len(self.tasks):
            return np.full(len(wanted), -1, dtype=np.intp)
        found = np.minimum(np.searchsorted(self.tasks, wanted), len(self.tasks) - 1)
        return np.where(self.tasks[found] == wanted, found, -1).astype(np.intp)

    def known(self, tasks: pd.Series[int]) -> NDArray[np.bool_]:
        """Whether the text of each task was looked at."""
        return np.asarray(self.places(tasks) >= 0)


Seen = Mapping[str, TraitsSeen]
"""By hash of the trait model."""


def chosen_tasks(tasks: pd.Series[int], most: int) -> NDArray[np.int64]:
    """Ids of tasks, each once, rising. Of more than `most`, those of the lowest hashes: the same every night."""
    names: NDArray[np.int64] = np.unique(tasks.to_numpy(dtype=np.int64))
    if len(names) <= most:
        return names
    hashes = names.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    lowest: NDArray[np.int64] = np.sort(names[np.argsort(hashes, kind="stable")[:most]])
    return lowest


def text_shifts(rows: pd.DataFrame, calibration: Calibration, seen: Seen) -> Doubles:
    """What the text adds to the log-odds of each attempt as production predicts it, (n,).

    0 where no text is looked at, or where the trait model in force has not seen it.

    Args:
        rows: task and model.
    """
    eye = seen.get(calibration.trait_model or "")
    if eye is None or not len(eye.tasks):
        return np.zeros(len(rows))
    places = eye.places(rows["task"])
    codes, names = pd.factorize(rows["model"].astype("str"))
    weights = weights_of_models(list(names), calibration, eye.traits.shape[1])
    shifts = np.einsum("nk,nk->n", eye.traits[places], weights[codes])
    return np.where(places < 0, 0.0, shifts)


def weights_of_models(models: list[str], calibration: Calibration, traits: int) -> Doubles:
    """Weights of success by model and trait, (m, k); 0 for a model that has none."""
    nothing = (0.0,) * traits
    by_model = calibration.traits.success
    return np.array([by_model.get(model, nothing) for model in models]).reshape(len(models), traits)
