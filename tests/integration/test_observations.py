"""Learning sees every ended execution of its window, and nothing else."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
from worked_day import DAY

from cp_core.learning.estimates import estimate_performance
from cp_core.learning.performance import KEYS
from cp_resources.database import Database
from cp_resources.observations import Observations
from cp_resources.performance import PerformanceStore


def test_a_window_holds_each_ended_execution_of_its_days_once(worked: Database):
    [(ended, tokens, cost)] = worked.fetch(
        "SELECT count(*), sum(input_tokens + output_tokens), sum(cost_usd) FROM executions WHERE state <> 'running'"
    )
    seen = Observations(worked).window(DAY, 1)
    assert len(seen) == seen["execution"].nunique() == ended > 0
    assert (seen["input_tokens"] + seen["output_tokens"]).sum() == tokens
    assert abs(seen["cost_usd"].sum() - float(cost)) < 1e-6
    assert set(seen["age_days"]) == {0}
    assert seen["model_version"].notna().all()


def test_the_age_of_an_outcome_counts_from_the_end_of_the_window(worked: Database):
    later = Observations(worked).window(DAY + timedelta(days=3), 7)
    assert set(later["age_days"]) == {3}
    assert Observations(worked).window(DAY + timedelta(days=3), 3).empty
    assert Observations(worked).window(DAY - timedelta(days=1), 30).empty


def test_what_was_cut_off_is_marked_and_texts_come_on_request(worked: Database):
    worked.fetch(
        "UPDATE executions SET state = 'failed', reason = 'TIMEOUT', quality = NULL "
        "WHERE id = (SELECT min(id) FROM executions) RETURNING id"
    )
    seen = Observations(worked).window(DAY, 1)
    assert list(seen.loc[seen["reason"] == "TIMEOUT", "is_censored"].unique()) == [True]
    assert not seen.loc[seen["reason"].isna(), "is_censored"].any()
    wanted = seen["task"].unique()[::-1][:3]
    texts = Observations(worked).texts([*wanted, -1])
    assert texts["task"].tolist() == wanted.tolist()
    assert texts["title"].str.len().min() > 0


def test_each_row_has_what_its_tables_say_of_it(worked: Database):
    worked.fetch(
        "UPDATE executions SET quality = NULL WHERE id = (SELECT max(id) FROM executions) RETURNING id"
    )
    seen = Observations(worked).window(DAY, 1)
    names = [
        "execution",
        "model",
        "domain",
        "complexity",
        "reason",
        "quality",
        "input_tokens",
        "cost_usd",
        "plan_stages",
    ]
    said = worked.fetch(
        """
        SELECT e.id, e.model, s.domain, s.complexity, e.reason, e.quality, e.input_tokens, e.cost_usd::float8,
            jsonb_array_length(a.plan)
        FROM executions e JOIN task_scores s ON s.task = e.task JOIN assignments a ON a.id = e.assignment
        WHERE e.state NOT IN ('running', 'cancelled') ORDER BY e.id
        """
    )
    assert seen["quality"].isna().any()
    found = seen[names].astype(object)
    assert list(found.where(found.notna(), None).itertuples(index=False, name=None)) == said


def test_a_window_is_read_once_and_gives_shorter_ones_of_the_same_outcomes(worked: Database):
    observations = Observations(worked)
    before = observations.window(DAY, 7)
    worked.fetch("DELETE FROM executions RETURNING id")
    assert observations.window(DAY, 3).equals(before)
    assert observations.window(DAY, 8).empty
    assert Observations(worked).window(DAY, 7).empty


def test_estimates_are_stored_and_read_again_as_they_were(worked: Database):
    estimates = estimate_performance(Observations(worked).window(DAY, 7))
    store = PerformanceStore(worked)
    for _ in range(2):
        store.replace_estimates(DAY, estimates)
    found = store.estimates()
    assert found is not None
    assert found[0] == DAY
    pd.testing.assert_frame_equal(
        found[1].sort_values(KEYS, ignore_index=True), estimates, check_dtype=False, rtol=1e-12
    )
