"""Performance of models: figures worked out by hand, and what must hold for any attempts."""

from __future__ import annotations

from decimal import Decimal

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.learning.performance import ALL, KEYS, MEASURES, measure_performance

COLUMNS = [
    "model",
    "domain",
    "complexity",
    "task",
    "has_succeeded",
    "score",
    "quality",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cost_usd",
    "latency_ms",
    "expected_input_tokens",
    "expected_output_tokens",
]

# `a` fails task 1 and then succeeds at it, succeeds at 2, and at 3 in another domain. `b` fails task 4.
ATTEMPTS = pd.DataFrame(
    [
        ("a", "backend", "simple", 1, False, 40.0, 2.0, 1000, 0, 100, Decimal("0.010"), 900.0, 800.0, 200.0),
        (
            "a",
            "backend",
            "simple",
            1,
            True,
            40.0,
            8.0,
            1200,
            600,
            150,
            Decimal("0.012"),
            1100.0,
            800.0,
            200.0,
        ),
        ("a", "backend", "simple", 2, True, 60.0, 9.0, 800, 0, 250, Decimal("0.008"), 1000.0, 1200.0, 200.0),
        (
            "a",
            "frontend",
            "complex",
            3,
            True,
            25.0,
            7.0,
            3000,
            0,
            900,
            Decimal("0.020"),
            5000.0,
            2000.0,
            1200.0,
        ),
        ("b", "backend", "simple", 4, False, 10.0, None, 500, 0, 0, Decimal(0), None, 700.0, 100.0),
    ],
    columns=COLUMNS,
)


def row(model: str, domain: str = ALL, complexity: str = ALL) -> pd.Series:
    cells = measure_performance(ATTEMPTS).set_index(KEYS)
    return cells.loc[(model, domain, complexity)]


def test_there_is_a_row_for_each_cell_that_occurs_and_one_for_each_model_as_a_whole():
    cells = measure_performance(ATTEMPTS)
    assert list(cells[KEYS].itertuples(index=False, name=None)) == [
        ("a", ALL, ALL),
        ("a", "backend", "simple"),
        ("a", "frontend", "complex"),
        ("b", ALL, ALL),
        ("b", "backend", "simple"),
    ]
    assert list(cells.columns) == KEYS + MEASURES


def test_a_cell_counts_attempts_tasks_and_successes_of_its_own():
    cell = row("a", "backend", "simple")
    assert (cell["attempts"], cell["tasks"], cell["succeeded"]) == (3, 2, 2)
    assert cell["success_rate"] == pytest.approx(2 / 3)
    assert cell["quality_mean"] == pytest.approx(19 / 3)


def test_tokens_and_cost_are_summed_exactly_failures_too():
    cell = row("a")
    assert (cell["input_tokens"], cell["cached_tokens"], cell["output_tokens"]) == (6000, 600, 1400)
    assert cell["cost_usd"] == Decimal("0.050")


def test_value_is_delivered_by_attempts_that_succeeded_only():
    assert row("a")["value_delivered"] == pytest.approx(125.0)
    assert row("a")["value_per_usd"] == pytest.approx(2500.0)
    assert row("b")["value_delivered"] == 0


def test_latency_percentiles_interpolate_between_attempts():
    # sorted: 900, 1000, 1100; the 95th percentile lies nine tenths of the way from the second to the third
    cell = row("a", "backend", "simple")
    assert cell["latency_p50_ms"] == pytest.approx(1000.0)
    assert cell["latency_p95_ms"] == pytest.approx(1090.0)


def test_error_ratios_compare_total_actual_with_total_expected_tokens_of_successes():
    cell = row("a", "backend", "simple")
    assert cell["input_error_ratio"] == pytest.approx((1200 + 800) / (800 + 1200))
    assert cell["output_error_ratio"] == pytest.approx((150 + 250) / (200 + 200))
    assert row("a", "frontend", "complex")["input_error_ratio"] == pytest.approx(1.5)


def test_what_cannot_be_known_is_missing_rather_than_zero():
    cell = row("b")
    for measure in [
        "quality_mean",
        "value_per_usd",
        "latency_p50_ms",
        "input_error_ratio",
        "output_error_ratio",
    ]:
        assert pd.isna(cell[measure]), measure


def test_no_attempts_give_no_rows():
    cells = measure_performance(ATTEMPTS.iloc[:0])
    assert len(cells) == 0
    assert list(cells.columns) == KEYS + MEASURES


attempts = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["backend", "frontend"]),
        st.sampled_from(["simple", "complex"]),
        st.integers(1, 8),
        st.booleans(),
        st.floats(0, 100),
        st.none() | st.floats(0, 10),
        st.integers(0, 10**7),
        st.just(0),
        st.integers(0, 10**6),
        st.decimals(0, 100, places=9),
        st.none() | st.floats(0, 1e6),
        st.floats(1, 1e6),
        st.floats(1, 1e6),
    ),
    min_size=1,
    max_size=30,
)


@given(attempts)
def test_the_cells_of_a_model_add_up_to_the_model_as_a_whole(rows):
    cells = measure_performance(pd.DataFrame(rows, columns=COLUMNS))
    whole = cells[cells["domain"] == ALL].set_index("model")
    parts = cells[cells["domain"] != ALL].groupby("model")
    for measure in ["attempts", "succeeded", "input_tokens", "output_tokens", "cost_usd"]:
        assert (parts[measure].sum() == whole[measure]).all(), measure
    assert whole["attempts"].sum() == len(rows)


@given(attempts)
def test_rates_and_qualities_stay_within_their_scale(rows):
    cells = measure_performance(pd.DataFrame(rows, columns=COLUMNS))
    assert cells["success_rate"].between(0, 1).all()
    assert cells["quality_mean"].dropna().between(-1e-9, 10 + 1e-9).all()
    assert (cells["latency_p50_ms"].dropna() <= cells["latency_p95_ms"].dropna() + 1e-6).all()
