"""The table of success: what it holds for cells with and without outcomes, and how it is judged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cp_core.assignment.calibration import Calibration
from cp_core.learning.estimates import estimate_performance
from cp_core.learning.success_cells import cells_of, find_success
from cp_core.scoring.config import Complexity, Domain


def estimated(rates: dict[tuple[str, str, str], float]) -> pd.DataFrame:
    return pd.DataFrame(
        [(*key, rate, 10.0) for key, rate in rates.items()],
        columns=["model", "domain", "complexity", "success", "effective_n"],
    )


def test_a_complexity_not_seen_in_a_domain_is_moved_as_it_moves_the_model():
    cells = cells_of(
        estimated(
            {
                ("m", "all", "all"): 0.5,
                ("m", "backend", "all"): 0.8,
                ("m", "backend", "simple"): 0.9,
                ("m", "all", "complex"): 0.2,
            }
        )
    )
    assert set(cells["m"]) == {Domain.BACKEND}
    assert cells["m"][Domain.BACKEND][Complexity.SIMPLE] == 0.9
    # odds 4 in the domain; the model's odds fall from 1 to 1/4: odds 1
    assert cells["m"][Domain.BACKEND][Complexity.COMPLEX] == pytest.approx(0.5)
    assert cells["m"][Domain.BACKEND][Complexity.MODERATE] == pytest.approx(0.8)


def test_what_was_found_is_what_predictions_read_and_is_judged_on_other_tasks():
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "execution": np.arange(2000),
            "task": np.arange(2000),
            "model": rng.choice(["good", "bad"], 2000),
            "model_version": "1",
            "domain": rng.choice(["backend", "ml"], 2000),
            "complexity": "simple",
            "age_days": 0,
            "reason": None,
            "is_censored": False,
            "quality": np.nan,
            "score": 50.0,
            "cost_usd": 0.1,
            "latency_ms": 100.0,
            **dict.fromkeys(
                ["input_tokens", "output_tokens", "expected_input_tokens", "expected_output_tokens"], 10.0
            ),
        }
    )
    chance = np.where(frame["model"] == "good", 0.9, 0.3)
    frame["has_succeeded"] = rng.random(2000) < chance
    estimates = estimate_performance(frame)
    found = find_success(estimates, frame)

    calibration = Calibration(success=found.cells)
    assert calibration.success_of("good", Domain.ML, Complexity.SIMPLE) == pytest.approx(0.9, abs=0.04)
    assert calibration.success_of("bad", Domain.ML, Complexity.SIMPLE) == pytest.approx(0.3, abs=0.05)
    assert found.quality is not None
    assert found.quality.rows == 400
    assert found.quality.auc is not None
    assert found.quality.auc > 0.75
    assert found.quality.calibration_error < 0.08
