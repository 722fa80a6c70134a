"""Checks of learning: each is made to fail by days, or by what is stored of a day, that it is meant to find."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from busy_days import add_day
from dagster import AssetSelection, DagsterInstance, Definitions, define_asset_job
from worked_day import DAY, failed_checks

from cp_assets.learning.drift import DRIFT_CHECKS
from cp_definitions import defs
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.observations import Observations
from cp_resources.settings import Settings

ASSETS = [
    "experiment_results",
    "token_calibration",
    "value_calibration",
    "cost_effectiveness",
    "calibrated_config",
    "learning_report",
]
DRIFT = {f"performance_metrics:{check.name}" for check in DRIFT_CHECKS}
CHECKS = {
    key.asset_key.to_user_string() + ":" + key.name
    for key in defs.resolve_asset_graph().asset_check_keys
    if key.asset_key.to_user_string() in ASSETS
} | DRIFT
ALL_CHECKS = Definitions.merge(
    defs,
    Definitions(
        jobs=[
            define_asset_job(
                "checks_of_learning", AssetSelection.checks_for_assets(*ASSETS, "performance_metrics")
            )
        ]
    ),
).resolve_job_def("checks_of_learning")
BEFORE = 14
"""Days before `DAY` that have tasks of their own where drift is looked for."""


def failed(database: Database) -> set[str]:
    """Checks of learning that do not pass for `DAY`."""
    with DagsterInstance.ephemeral() as instance:
        result = ALL_CHECKS.execute_in_process(
            instance=instance,
            raise_on_error=False,
            resources={
                "database": database,
                "configuration": load_configuration(Settings().config_dir),
                "observations": Observations(database),
            },
            tags={"dagster/partition": str(DAY)},
        )
    assert len(result.get_asset_check_evaluations()) >= len(CHECKS)
    return failed_checks(result) & CHECKS


def execute(database: Database, *statements: str) -> None:
    with database.transaction() as connection:
        for statement in statements:
            connection.execute(statement, {"day": DAY})


def statements(*lines: str) -> Callable[[Database], None]:
    return lambda database: execute(database, *lines)


def finding(asset: str, path: str, content: str) -> Callable[[Database], None]:
    """Something else in the document that an asset keeps of the day."""
    return statements(
        f"""UPDATE learning_results SET content = jsonb_set(content, '{path}', '{content}')
            WHERE asset = '{asset}' AND day = %(day)s"""
    )


RUNNING = """
    INSERT INTO experiments (experiment, layer, state, salt, definition, started_at, first_bucket)
    SELECT name, 'default', 'running', name, '{"arms": [{"name": "control"}, {"name": "new"}]}', now(), 0
    FROM unnest(ARRAY['one', 'two']) AS name
"""
EXPOSED = """
    INSERT INTO exposures (experiment, unit, arm, exposed_at) VALUES ('%s', 'task', '%s', %%(day)s::date + time '9:00')
"""
A_VERSION = """
    INSERT INTO config_versions (config_hash, content) VALUES ('new', '{}')
"""
PROMOTED = """
    INSERT INTO promotions (action, to_hash, "by", reason, evidence)
    VALUES ('promote', 'new', 'calibrated_config', 'every gate passed', '{}')
"""

WRONG: dict[str, Callable[[Database], None]] = {
    "performance_metrics:scored_tasks_are_like_those_before": statements(
        "UPDATE task_scores SET risk = 'sandbox' WHERE submission_day = %(day)s"
    ),
    "performance_metrics:tokens_do_not_spike": statements(
        """UPDATE executions SET input_tokens = 50 * input_tokens
           WHERE id = (SELECT min(id) FROM executions WHERE submission_day = %(day)s)"""
    ),
    "performance_metrics:success_has_not_fallen": statements(
        """UPDATE executions SET state = 'failed', reason = 'LOW_QUALITY'
           WHERE submission_day BETWEEN %(day)s::date - 3 AND %(day)s"""
    ),
    "experiment_results:arms_got_the_units_they_were_promised": finding(
        "experiment_results",
        "{experiments}",
        '[{"experiment": "one", "exposed": {"a": 9, "b": 1}, "sample_ratio_p": 1e-9, "has_right_ratio": false}]',
    ),
    "experiment_results:no_unit_has_two_experiments_of_a_layer": statements(
        RUNNING, EXPOSED % ("one", "control"), EXPOSED % ("two", "new")
    ),
    "experiment_results:every_arm_is_one_of_its_experiment": statements(RUNNING, EXPOSED % ("one", "other")),
    "token_calibration:intervals_cover_four_of_five": finding(
        "token_calibration",
        "{coverage}",
        '[{"domain": "ml", "kind": "input", "attempts": 4000, "share": 0.7}]',
    ),
    "token_calibration:few_attempts_were_cut_off": finding("token_calibration", "{censored}", "1000"),
    "value_calibration:outcomes_do_not_fall_with_value": finding(
        "value_calibration", "{falls}", '["quality"]'
    ),
    "value_calibration:moved_weights_fit_the_rules": finding(
        "value_calibration", "{scoring}", '{"priority_points.P4": 99}'
    ),
    "cost_effectiveness:what_was_bought_equals_the_attempts": finding("cost_effectiveness", "{bought}", "[]"),
    "cost_effectiveness:most_quota_is_used": finding(
        "cost_effectiveness",
        "{utilisation}",
        '[{"account": "a", "unit": "tokens", "granted": 10, "used": 1, "lapsed": 9, "unused": 0.9}]',
    ),
    "calibrated_config:champion_is_what_was_promoted_last": statements(A_VERSION, PROMOTED),
    "calibrated_config:nothing_was_promoted_past_a_gate": statements(
        A_VERSION,
        """INSERT INTO gate_results (config_hash, day, gate, has_passed, evidence)
           VALUES ('new', %(day)s, 'placebo', false, '{}')""",
        PROMOTED,
        "INSERT INTO config_pointers (name, config_hash) VALUES ('champion', 'new')",
    ),
    "learning_report:the_day_has_a_report": statements("DELETE FROM learning_reports"),
    "learning_report:reports_fetch_nothing": statements(
        "UPDATE learning_reports SET html = html || '<script>alert(1)</script>'"
    ),
}


def add_days_before(database: Database) -> None:
    """Days like the one that was worked through, whose attempts took about as many tokens as its own."""
    for number in range(1, BEFORE + 1):
        add_day(database, DAY - timedelta(days=number), 1_000_000 * number, copies=4, most=0.97)
    execute(
        database,
        "UPDATE executions SET input_tokens = 10000 + id % 97 * 10, output_tokens = 1000 + id % 89".replace(
            "%", "%%"
        ),
    )


def test_every_check_has_a_test_that_makes_it_fail():
    assert set(WRONG) == CHECKS


def test_a_day_like_those_before_passes_every_check(worked):
    add_days_before(worked)
    assert failed(worked) - {"cost_effectiveness:what_was_bought_equals_the_attempts"} == set()


@pytest.mark.parametrize("check", sorted(set(WRONG) - DRIFT))
def test_a_wrong_finding_fails_the_check_meant_for_it_and_no_other(worked, check):
    assert failed(worked) == set()
    WRONG[check](worked)
    assert failed(worked) == {check}


@pytest.mark.parametrize("check", sorted(DRIFT))
def test_a_day_unlike_those_before_is_found_by_the_check_meant_for_it_and_no_other(worked, check):
    add_days_before(worked)
    WRONG[check](worked)
    assert failed(worked) & DRIFT == {check}
