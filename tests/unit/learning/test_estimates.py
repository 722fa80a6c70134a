"""Estimates of performance: what counts, how much, and what small groups are drawn toward."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.learning.decay import age_weights
from cp_core.learning.estimates import MEASURES, estimate_performance
from cp_core.learning.performance import ALL
from cp_core.learning.ranking import rank_models
from cp_core.learning.shrinkage import shrink_means, shrink_rates

PLAIN = {
    "model": "m",
    "model_version": "v1",
    "domain": "backend",
    "complexity": "simple",
    "age_days": 0,
    "has_succeeded": True,
    "is_censored": False,
    "quality": 8.0,
    "reason": None,
    "score": 50.0,
    "input_tokens": 100,
    "output_tokens": 10,
    "expected_input_tokens": 100.0,
    "expected_output_tokens": 10.0,
    "cost_usd": 0.5,
    "latency_ms": 1000.0,
}


def observed(*rows: tuple[int, dict[str, object]]) -> pd.DataFrame:
    """So many rows each that differ from `PLAIN` as stated."""
    frame = pd.DataFrame([{**PLAIN, **change} for times, change in rows for _ in range(times)])
    return frame.assign(execution=np.arange(len(frame)))


def whole(estimates: pd.DataFrame, model: str = "m") -> pd.Series:
    chosen = (estimates[["model", "domain", "complexity"]] == [model, ALL, ALL]).all(axis=1)
    return estimates[chosen].iloc[0]


FAILED = {"has_succeeded": False, "quality": 2.0, "reason": "LOW_QUALITY"}


def test_an_outcome_counts_half_after_thirty_days_and_a_quarter_after_sixty():
    assert list(age_weights([0, 30, 60])) == [1, 0.5, 0.25]
    assert whole(estimate_performance(observed((8, {"age_days": 30}))))["effective_n"] == pytest.approx(4)


def test_outcomes_of_an_older_version_of_a_model_do_not_count():
    found = whole(estimate_performance(observed((50, {**FAILED, "model_version": "v0"}), (10, {}))))
    assert found["effective_n"] == pytest.approx(10)
    assert found["success"] > 0.8


@pytest.mark.parametrize(
    "reason", ["RATE_LIMITED", "OVERLOADED", "AUTH_FAILED", "CONNECTION", "LEASE_EXPIRED"]
)
def test_what_is_not_the_models_doing_leaves_its_success_as_it_was(reason: str):
    rows = ((30, {}), (10, FAILED))
    spoilt = (500, {"has_succeeded": False, "quality": None, "reason": reason})
    alone, beside = (whole(estimate_performance(observed(*some))) for some in (rows, (*rows, spoilt)))
    assert beside["success"] == pytest.approx(alone["success"])
    assert beside["effective_n"] == 40


def test_a_timeout_counts_against_the_model():
    cut_off = {"has_succeeded": False, "quality": None, "reason": "TIMEOUT", "is_censored": True}
    found = whole(estimate_performance(observed((50, {}), (50, cut_off))))
    assert found["success"] == pytest.approx(0.5, abs=0.03)
    assert found["cut_off"] == pytest.approx(0.5, abs=0.03)


def test_a_small_cell_lies_between_its_own_rate_and_that_of_its_domain():
    found = estimate_performance(
        observed((80, {}), (20, FAILED), (3, {**FAILED, "complexity": "complex"}), (40, {"domain": "ml"}))
    ).set_index(["model", "domain", "complexity"])["success"]
    assert 0 < found["m", "backend", "complex"] < found["m", "backend", ALL] < found["m", "ml", ALL]


def test_measures_of_alike_attempts_are_those_of_one_attempt():
    found = whole(estimate_performance(observed((40, {"input_tokens": 200}))))
    assert found["quality"] == pytest.approx(8, abs=1e-3)
    assert found["input_ratio"] == pytest.approx(2, rel=1e-3)
    assert found["output_ratio"] == pytest.approx(1, rel=1e-3)
    assert found["cost_usd"] == pytest.approx(0.5, rel=1e-3)
    assert found["value_per_usd"] == pytest.approx(100, rel=1e-2)
    assert found["latency_p50_ms"] == pytest.approx(1000, rel=1e-3)


def test_every_estimate_lies_within_its_interval():
    rng = np.random.default_rng(3)
    frame = observed((300, {})).assign(
        model=rng.choice(["a", "b", "c"], 300),
        domain=rng.choice(["backend", "ml"], 300),
        has_succeeded=rng.random(300) < 0.6,
        quality=rng.uniform(0, 10, 300),
        latency_ms=rng.lognormal(7, 1, 300),
        cost_usd=rng.lognormal(-3, 1, 300),
    )
    found = estimate_performance(frame)
    for measure in MEASURES:
        assert (found[f"{measure}_low"] <= found[measure] + 1e-12).all(), measure
        assert (found[measure] <= found[f"{measure}_high"] + 1e-12).all(), measure
    assert (found["latency_p50_ms"] < found["latency_p95_ms"]).all()


def test_nothing_observed_gives_no_estimate():
    assert estimate_performance(observed((1, {}))[:0]).empty


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=12))
def test_a_shrunk_rate_never_leaves_the_span_of_its_own_rate_and_its_parent(counts: list[tuple[int, int]]):
    won, lost = np.array(counts, dtype=float).T
    tried = won + lost
    parent = np.full(len(won), 0.4)
    found = shrink_rates(won, tried, parent).mean
    own = np.divide(won, tried, out=parent.copy(), where=tried > 0)
    assert (found >= np.minimum(own, parent) - 1e-9).all()
    assert (found <= np.maximum(own, parent) + 1e-9).all()


def test_groups_that_differ_by_chance_alone_are_drawn_together_and_others_are_left_apart():
    by_chance = shrink_means([1.0, -1.0, 0.5, -0.5], [1] * 4, 1.0, [0.0] * 4).mean
    apart = shrink_means([10.0, -10.0, 5.0, -5.0], [100] * 4, 1.0, [0.0] * 4).mean
    assert np.abs(by_chance).max() < 0.2
    assert np.allclose(apart, [10, -10, 5, -5], atol=0.05)


def test_the_better_proven_model_ranks_first_and_is_probably_best():
    estimates = estimate_performance(
        observed((90, {}), (10, FAILED), (50, {"model": "n"}), (50, {**FAILED, "model": "n"}))
    )
    ranking = rank_models(estimates, "backend", "simple")
    assert list(ranking["model"]) == ["m", "n"]
    assert ranking["probability_best"][0] > 0.99
    assert ranking["probability_best"].sum() == pytest.approx(1)
    assert list(rank_models(estimates, "backend", "complex")["based_on"]) == ["domain", "domain"]
