"""The value score: the formula that joins the factors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import PRIORITIES, ScoringConfig

LOWEST, HIGHEST = 0.0, 100.0


def priority_points(priority: NDArray[np.intp], config: ScoringConfig) -> NDArray[np.float64]:
    """Points of each row's priority (0 for P0, to 4 for P4)."""
    return np.array([config.priority_points[name] for name in PRIORITIES])[priority]


def value_score(
    priority: NDArray[np.float64],
    complexity: NDArray[np.float64],
    time_bonus: NDArray[np.float64],
    domain: NDArray[np.float64],
    risk: NDArray[np.float64],
) -> NDArray[np.float64]:
    """`(priority x complexity + time bonus) x domain x risk`, kept within 0 and 100."""
    return np.clip((priority * complexity + time_bonus) * domain * risk, LOWEST, HIGHEST)
