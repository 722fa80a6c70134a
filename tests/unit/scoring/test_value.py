"""The formula of the value score."""

from __future__ import annotations

import numpy as np
import pytest
from score_rows import CONFIG

from cp_core.scoring.value import priority_points, value_score


@pytest.mark.parametrize(
    ("factors", "score"),
    [
        ((40, 1.0, 15, 1.1, 1.3), 78.65),
        ((20, 1.0, 0, 1.0, 1.0), 20),
        ((30, 2.0, 5, 1.2, 1.3), 100),  # 101.4 before it is cut
        ((10, 0.5, 0, 0.8, 1.0), 4),
        ((5, 0.5, 0, 0.8, 0.7), 1.4),
    ],
)
def test_priority_times_complexity_plus_bonus_times_domain_times_risk(
    factors: tuple[float, float, float, float, float], score: float
) -> None:
    [result] = value_score(*(np.array([factor], dtype=float) for factor in factors))

    assert result == pytest.approx(score)


def test_points_of_each_priority() -> None:
    assert priority_points(np.arange(5), CONFIG).tolist() == [40, 30, 20, 10, 5]
