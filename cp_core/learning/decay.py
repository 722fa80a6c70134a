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


def is_of_newest_version(observations: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether each outcome is of the version that its model has now; a version that is not known counts as that.

    Args:
        observations: model, model_version (or missing) and execution (rises with time).
    """
    known = observations["model_version"].notna()
    rows = observations.loc[known, ["model", "model_version", "execution"]].astype({"model": "str"})
    last = (
        rows.loc[rows.groupby("model")["execution"].idxmax()]
        .set_index("model")["model_version"]
        .astype("str")
    )
    newest = observations["model"].astype("str").map(last)
    same = observations["model_version"].astype("str") == newest
    return np.asarray(same | ~known, dtype=np.bool_)
