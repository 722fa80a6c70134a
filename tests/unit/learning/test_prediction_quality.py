"""Figures of predicted probabilities, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cp_core.learning.prediction_quality import auc, brier, calibration_curve, expected_calibration_error


def test_auc_counts_pairs_in_the_right_order_and_half_of_ties():
    # pairs (success, failure): 0.9>0.4, 0.9>0.5, 0.5>0.4, 0.5=0.5 -> 3.5 of 4
    assert auc([0.9, 0.5, 0.4, 0.5], [1, 1, 0, 0]) == pytest.approx(3.5 / 4)


def test_auc_needs_both_kinds_of_outcome():
    assert auc([0.1, 0.9], [1, 1]) is None
    assert auc([0.1, 0.9], [0, 0]) is None


def test_brier_is_the_mean_squared_difference():
    assert brier([0.8, 0.3], [1, 0]) == pytest.approx((0.04 + 0.09) / 2)


def test_the_curve_pairs_what_was_said_with_what_came():
    curve = calibration_curve([0.2] * 10 + [0.8] * 10, [1] + [0] * 9 + [1] * 6 + [0] * 4)
    assert list(curve.rows) == [10, 10]
    assert np.allclose(curve.predicted, [0.2, 0.8])
    assert np.allclose(curve.observed, [0.1, 0.6])


def test_the_calibration_error_weighs_bins_by_their_rows():
    # 10 rows are off by 0.1 and 10 by 0.2
    predicted, outcomes = [0.2] * 10 + [0.8] * 10, [1] + [0] * 9 + [1] * 6 + [0] * 4
    assert expected_calibration_error(predicted, outcomes) == pytest.approx(0.15)
