"""What the learning assets store for a day, and that a repeat stores the same."""

from __future__ import annotations

from datetime import timedelta

import pytest
from worked_day import DAY, definitions, failed_checks, run

from cp_core.learning.cost_effectiveness import CostEffectiveness
from cp_core.learning.token_calibration import TokenCalibration
from cp_core.learning.value_calibration import ValueCalibration
from cp_resources.corrections import Corrections
from cp_resources.database import Database
from cp_resources.learning_results import LearningResults
from cp_resources.quota_history import QuotaHistory

DOCUMENTS = {
    "token_calibration": TokenCalibration,
    "value_calibration": ValueCalibration,
    "cost_effectiveness": CostEffectiveness,
}


def test_a_day_has_a_document_of_each_asset_and_a_repeat_gives_the_same(worked, simulator_url, tmp_path):
    results = LearningResults(worked)
    before = {asset: results.read(DAY, asset) for asset in DOCUMENTS}

    result = run(definitions(worked, simulator_url, tmp_path), "daily_learning", DAY)

    # All outcomes are of the latest days, so there is nothing that a candidate could have learned from.
    refused = {"something_changed", "enough_outcomes", "forward_holdout"}
    assert failed_checks(result) == {f"candidate_config:{gate}" for gate in refused}
    assert {asset: results.read(DAY, asset) for asset in DOCUMENTS} == before
    for asset, document in DOCUMENTS.items():
        document.model_validate(before[asset])


def test_what_was_bought_adds_up_to_the_executions(worked: Database):
    bought = CostEffectiveness.model_validate(LearningResults(worked).read(DAY, "cost_effectiveness")).bought
    [(attempts, usd)] = worked.fetch(
        "SELECT count(*), sum(cost_usd) FROM executions WHERE state <> 'running'"
    )

    assert sum(row.attempts for row in bought) == attempts
    assert sum(row.usd for row in bought) == pytest.approx(float(usd))


def test_what_accounts_were_used_for_is_what_the_ledger_says(worked: Database):
    [(today,)] = worked.fetch("SELECT max(created_at)::date FROM quota_transfers")
    found = {row.account: row for row in QuotaHistory(worked).utilisation(today - timedelta(days=1), today)}
    spent = dict(
        worked.fetch(
            """
            SELECT debit_account, sum(amount) FROM quota_transfers
            WHERE credit_account LIKE 'spent:%' AND phase IN ('post', 'single') GROUP BY 1
            """
        )
    )

    assert {account: row.used for account, row in found.items() if row.used} == {
        account: pytest.approx(float(amount)) for account, amount in spent.items() if amount
    }
    assert all(row.granted >= row.used + row.lapsed - 1e-6 for row in found.values())


def test_overridden_scores_are_read_with_all_others(worked: Database):
    worked.fetch(
        """
        UPDATE task_scores SET override_score = least(score * 2, 100), override_reason = 'worth more',
            override_by = 'ann'
        WHERE task = (SELECT min(task) FROM task_scores WHERE score BETWEEN 1 AND 50) RETURNING task
        """
    )
    [(tasks,)] = worked.fetch("SELECT count(*) FROM task_scores")

    found = Corrections(worked).window(DAY, 1)

    assert found["tasks"].sum() == tasks
    assert found["corrections"].sum() == 1
    assert found["log_ratio"].sum() == pytest.approx(0.6931, abs=1e-4)
    assert found["weight"].sum() == pytest.approx(tasks)
    later = Corrections(worked).window(DAY + timedelta(days=30), 31)  # a half-life later
    assert later["weight"].sum() == pytest.approx(tasks / 2)
    assert later["log_ratio"].sum() == pytest.approx(0.6931 / 2, abs=1e-4)
    assert Corrections(worked).window(DAY + timedelta(days=9), 3).empty
