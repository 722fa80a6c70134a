"""How much an outcome still counts: less with age, and nothing once its model has become another."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

HALF_LIFE_DAYS = 30.0
WINDOW_DAYS = 120
"""Days looked back: what is older would count less than a sixteenth."""


def age_weights(age_days: ArrayLike, half_life: float = HALF_LIFE_DAYS) -> NDArray[np.float64]:
    """0.5 ** (age / half-life)."""
    return np.asarray(0.5 ** (np.asarray(age_days, dtype=np.float64) / half_life), dtype=np.float64)


def still_counting(observations: pd.DataFrame) -> pd.DataFrame:
    """The outcomes that still count, with a column `weight` that says how much.

    Args:
        observations: as for `is_of_newest_version`, with age_days.
    """
    kept = observations[is_of_newest_version(observations)]
    return kept.assign(weight=age_weights(kept["age_days"]))


def is_of_newest_version(observations: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether each outcome is of the version that its model has now; a version that is not known counts as that.

    Args:
        observations: model, model_version (or missing) and execution (rises with time).
    """
    model, models = pd.factorize(observations["model"])
    version, _ = pd.factorize(observations["model_version"])
    known = np.flatnonzero(version >= 0)
    in_time = known[np.argsort(observations["execution"].to_numpy()[known], kind="stable")]
    newest = np.full(len(models), -1)
    newest[model[in_time]] = version[in_time]  # of a model's attempts, the last assignment stands
    return np.asarray((version < 0) | (version == newest[model]), dtype=np.bool_)
