"""The token prior: means by hand, the spread against SciPy's log-normal distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from score_rows import CONFIG, score_frame, scored, tasks

BY_FILES = {"simple": 1, "moderate": 4, "complex": 8, "highly_complex": 12}


def means(**changes: Any) -> tuple[float, float]:
    result = scored(**changes)
    return pytest.approx(result["input_mean"]), pytest.approx(result["output_mean"])


@pytest.mark.parametrize(
    ("complexity", "expected"),
    [
        ("simple", (7_500, 1_250)),
        ("moderate", (27_500, 3_500)),
        ("complex", (70_000, 10_000)),
        ("highly_complex", (150_000, 27_500)),
    ],
)
def test_the_mean_goes_by_complexity(complexity: str, expected: tuple[float, float]) -> None:
    assert means(estimated_files=BY_FILES[complexity]) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": ["infrastructure"]}, (9_000, 1_250)),  # input x 1.2
        ({"labels": ["documentation"]}, (7_500, 1_625)),  # output x 1.3
        ({"labels": ["testing"]}, (7_500, 1_750)),  # output x 1.4
        ({"workspace_files": 50}, (7_500, 1_250)),
        ({"workspace_files": 51}, (8_625, 1_250)),  # input x 1.15
        ({"workspace_files": 100}, (8_625, 1_250)),
        ({"workspace_files": 101}, (9_750, 1_250)),  # input x 1.3
        (
            {"labels": ["infra"], "workspace_files": 500, "estimated_files": 8},
            (109_200, 10_000),
        ),  # x 1.2 x 1.3
    ],
)
def test_domain_and_workspace_multiply_the_mean(
    changes: dict[str, Any], expected: tuple[float, float]
) -> None:
    assert means(**changes) == expected


@pytest.mark.parametrize("kind", ["input", "output"])
def test_median_and_interval_are_those_of_a_log_normal_distribution_with_that_mean(kind: str) -> None:
    sigma = getattr(CONFIG.estimate.sigma, kind)
    result = scored(estimated_files=4)
    distribution = stats.lognorm(s=sigma, scale=result[f"{kind}_median"])

    assert distribution.mean() == pytest.approx(result[f"{kind}_mean"])
    assert distribution.ppf([0.1, 0.9]) == pytest.approx([result[f"{kind}_low"], result[f"{kind}_high"]])


def test_a_sum_of_medians_falls_a_third_short_of_the_mean() -> None:
    result = scored()

    assert result["input_median"] / result["input_mean"] == pytest.approx(2 / 3, abs=0.01)


@settings(max_examples=60)
@given(tasks)
def test_low_median_mean_and_high_follow_one_another(row: dict[str, Any]) -> None:
    [result] = score_frame([row]).to_dict("records")

    for kind in ("input", "output"):
        ends = [result[f"{kind}_{name}"] for name in ("low", "median", "mean", "high")]
        assert (np.diff([0, *ends]) > 0).all()
