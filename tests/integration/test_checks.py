"""Asset checks: a day that was worked through passes them all; what goes wrong fails the one meant for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from dagster import (
    AssetCheckSeverity,
    AssetSelection,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
    define_asset_job,
)
from test_learning_checks import WRONG
from worked_day import DAY, definitions, failed_checks, run

from cp_core.learning.gates.verdict import REQUIRED
from cp_core.models.registry import Tier
from cp_definitions import defs
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger, Reservation
from cp_resources.observations import Observations
from cp_resources.settings import Settings

ASSETS = [
    "model_registry",
    "task_queue",
    "scored_tasks",
    "assignments",
    "execution_outcomes",
    "performance_metrics",
    "success_model",
]
CONFIGURATION = load_configuration(Settings().config_dir)
GRAPH = defs.resolve_asset_graph()
CHECKS = {
    f"{key.asset_key.to_user_string()}:{key.name}": GRAPH.get_check_spec(key)
    for key in GRAPH.asset_check_keys
    if key.asset_key.to_user_string() in ASSETS
}
ALL_CHECKS = Definitions.merge(
    defs, Definitions(jobs=[define_asset_job("all_checks", AssetSelection.checks_for_assets(*ASSETS))])
).resolve_job_def("all_checks")


def evaluate(
    database: Database, configuration: Configuration = CONFIGURATION, day: str | None = None
) -> ExecuteInProcessResult:
    """Run every check of our assets, without materializing anything."""
    with DagsterInstance.ephemeral() as instance:
        return ALL_CHECKS.execute_in_process(
            instance=instance,
            raise_on_error=False,
            resources={
                "database": database,
                "configuration": configuration,
                "observations": Observations(database),
            },
            tags={"dagster/partition": day} if day else None,
        )


def execute(database: Database, *statements: str) -> None:
    with database.transaction() as connection:
        for statement in statements:
            connection.execute(statement)


def statements(*lines: str) -> Callable[[Database], None]:
    return lambda database: execute(database, *lines)


def reserve_for_an_ended_task(database: Database) -> None:
    [(task,)] = database.fetch("SELECT id FROM tasks WHERE state = 'succeeded' ORDER BY id LIMIT 1")
    with database.transaction() as connection:
        Ledger(database).reserve(
            connection,
            [Reservation(uuid4(), {"budget/api": Decimal("0.01")}, task)],
            expires_in=timedelta(hours=1),
        )


def reserve_under_two_decisions(database: Database) -> None:
    """A task that stands assigned, with quota pending under its decision and under one before."""
    [(task,)] = database.fetch("SELECT min(id) FROM tasks")
    keys, accounts = (uuid4(), uuid4()), {"budget/api": Decimal("0.01")}
    with database.transaction() as connection:
        Ledger(database).reserve(
            connection, [Reservation(key, accounts, task) for key in keys], expires_in=timedelta(hours=1)
        )
        for key in keys:
            connection.execute(
                """INSERT INTO assignments (decision_id, task, submission_day, strategy, outcome, model, funding, plan,
                       explanation, config_hash)
                   SELECT %s, task, submission_day, strategy, outcome, model, funding, plan, explanation, config_hash
                   FROM assignments WHERE id = (SELECT assignment FROM tasks WHERE id = %s)""",
                (key, task),
            )
        connection.execute(
            """UPDATE tasks SET state = 'assigned', available_at = now() + interval '1 hour', state_changed_at = now(),
                   assignment = (SELECT max(id) FROM assignments WHERE task = tasks.id)
               WHERE id = %s""",
            (task,),
        )


ONE = "id = (SELECT min(id) FROM tasks)"
TWO = "id = (SELECT min(id) + 1 FROM tasks)"
NOW = "state_changed_at = now(), available_at = now()"
LATER = "state_changed_at = now(), available_at = now() + interval '1 hour'"
ONE_CELL = """model = (
    SELECT model FROM performance_metrics WHERE domain <> 'all' GROUP BY model HAVING count(*) = 1 LIMIT 1
)"""

WRONG_ROWS: dict[str, Callable[[Database], None]] = {
    "model_registry:every_account_is_open": statements(
        "UPDATE quota_accounts SET quota_limit = quota_limit + 1 WHERE account = 'budget/api'"
    ),
    "task_queue:every_task_has_its_payload": statements(
        "DELETE FROM task_payloads WHERE task = (SELECT min(id) FROM tasks)"
    ),
    "task_queue:dependencies_are_known": statements(
        f"""UPDATE tasks SET state = 'deferred', reason = 'DEPENDENCY_PENDING', dependencies = '{{nowhere}}',
                {LATER} WHERE {ONE}"""
    ),
    "task_queue:no_dependency_cycle": statements(
        f"""UPDATE tasks SET state = 'deferred', reason = 'DEPENDENCY_PENDING', {LATER},
                dependencies = ARRAY[(SELECT task_id FROM tasks WHERE {TWO})] WHERE {ONE}""",
        f"""UPDATE tasks SET state = 'deferred', reason = 'DEPENDENCY_PENDING', {LATER},
                dependencies = ARRAY[(SELECT task_id FROM tasks WHERE {ONE})] WHERE {TWO}""",
    ),
    "task_queue:no_lease_is_stuck": statements(
        f"""UPDATE tasks SET state = 'running', lease_owner = 'gone', {NOW},
                lease_expires_at = now() - interval '6 minutes' WHERE {ONE}"""
    ),
    "scored_tasks:every_open_task_is_scored": statements(
        """INSERT INTO tasks (task_id, submitted_at, priority, workspace, state_changed_at, available_at)
           VALUES ('late', '2026-03-02', 2, 'w', now() - interval '2 minutes', now() + interval '1 hour')""",
        """INSERT INTO task_payloads (task, title, description, labels)
           SELECT max(id), 'Late', '', '{}' FROM tasks""",
    ),
    "scored_tasks:score_follows_from_its_factors": statements(
        "UPDATE task_scores SET score = score / 2 WHERE task = (SELECT min(id) FROM tasks)",
        "UPDATE tasks SET value_score = effective_score FROM task_scores WHERE task_scores.task = tasks.id",
    ),
    "scored_tasks:estimates_are_ordered": statements(
        "UPDATE task_scores SET input_low = input_high + 1 WHERE task = (SELECT min(id) FROM tasks)"
    ),
    "scored_tasks:queue_carries_the_effective_score": statements(
        f"UPDATE tasks SET value_score = value_score + 1 WHERE {ONE}"
    ),
    "assignments:tier_conforms_to_band": statements(
        """UPDATE assignments SET explanation = jsonb_set(explanation, '{value_score}', '95')
           WHERE id = (SELECT min(id) FROM assignments WHERE model LIKE '%haiku%')"""
    ),
    "assignments:context_fits": statements(
        "UPDATE task_scores SET input_high = 1e7 WHERE task = (SELECT min(id) FROM tasks)"
    ),
    "assignments:one_live_assignment_per_task": statements(
        f"UPDATE tasks SET state = 'assigned', model = 'another', {LATER} WHERE {ONE}"
    ),
    "assignments:no_task_is_assigned_twice": reserve_under_two_decisions,
    "assignments:gap_is_within_bound": statements(
        """INSERT INTO assignment_batches (id, submission_day, strategy, seed, tasks, assigned, objective, bound, gap,
               evaluations, seconds, prices, available, lapsing, forecast, alternatives, pruned, considered,
               config_hash)
           SELECT gen_random_uuid(), '2026-03-02', 'maximize_value', 1, tasks, 10, bound * (1 - gap), bound, gap, 9, 1,
               '{"budget/api": 2.5, "claude-max/weekly": 0}', '{}', '{}', '{}', '{}', '{}', 99, config_hash
           FROM config_versions, (VALUES
               (10000, 5e5, 0.0011), -- the only one that is too much
               (10000, 5e5, 0.0009), (9999, 5e5, 0.0049), (20, 1000, 0.099)
           ) AS round (tasks, bound, gap)"""
    ),
    "assignments:nothing_starves": statements(
        f"UPDATE tasks SET state = 'deferred', reason = 'OUTBID', {LATER} WHERE {ONE}"
    ),
    "assignments:every_assignment_is_reserved": statements(
        f"UPDATE tasks SET state = 'assigned', {LATER} WHERE {ONE}",
        f"""UPDATE assignments SET decision_id = gen_random_uuid()
            WHERE id = (SELECT assignment FROM tasks WHERE {ONE})""",
    ),
    "assignments:no_account_is_overdrawn": statements(
        "ALTER TABLE quota_accounts DROP CONSTRAINT ck_quota_accounts_not_below_zero",
        "UPDATE quota_accounts SET debits_posted = credits_posted + 1 WHERE account = 'budget/api'",
    ),
    "execution_outcomes:every_task_is_final_or_waits": statements(
        f"""UPDATE tasks SET state = 'queued', assignment = NULL, model = NULL,
                state_changed_at = now() - interval '2 minutes', available_at = now() WHERE {ONE}""",
        f"UPDATE tasks SET available_at = now() - interval '2 minutes' WHERE {ONE}",
    ),
    "execution_outcomes:what_waits_says_why": statements(
        f"UPDATE tasks SET state = 'deferred', reason = NULL, {LATER} WHERE {ONE}"
    ),
    "execution_outcomes:ended_tasks_hold_no_quota": reserve_for_an_ended_task,
    "execution_outcomes:cost_is_tokens_times_price": statements(
        "UPDATE executions SET cost_usd = cost_usd + 0.000001 WHERE id = (SELECT min(id) FROM executions)"
    ),
    "execution_outcomes:ledger_is_balanced": statements(
        "UPDATE quota_accounts SET debits_posted = debits_posted + 1 WHERE account = 'budget/api'"
    ),
    "performance_metrics:every_model_with_attempts_is_measured": statements(
        f"UPDATE performance_metrics SET attempts = attempts + 1 WHERE {ONE_CELL}"
    ),
    "performance_metrics:cells_add_up": statements(
        f"UPDATE performance_metrics SET input_tokens = input_tokens + 1 WHERE {ONE_CELL} AND domain <> 'all'"
    ),
    "performance_metrics:cost_and_tokens_equal_the_attempts": statements(
        f"UPDATE performance_metrics SET cost_usd = cost_usd + 1 WHERE {ONE_CELL}"
    ),
    "performance_metrics:rates_are_within_their_scale": statements(
        "UPDATE performance_metrics SET success_rate = 1.5 WHERE domain = 'all'"
    ),
    "success_model:every_estimated_model_has_a_table": statements(
        """UPDATE learning_results SET content = jsonb_set(content, '{cells,unheard-of}', '{}')
           WHERE asset = 'success_model'"""
    ),
    "success_model:probabilities_are_neither_nought_nor_one": statements(
        """UPDATE learning_results SET content = jsonb_set(content, '{cells}', (
               SELECT jsonb_object_agg(key, '{"backend": {"simple": 1.0}}'::jsonb)
               FROM jsonb_each(content -> 'cells')
           )) WHERE asset = 'success_model'"""
    ),
}

ALSO_FAILS = {
    # an account that has more used than it was granted does not add up to its transfers either
    "assignments:no_account_is_overdrawn": {"execution_outcomes:ledger_is_balanced"},
}


def without_premium_models() -> Configuration:
    models = {
        name: model.model_copy(update={"enabled": model.tier is not Tier.PREMIUM})
        for name, model in CONFIGURATION.registry.models.items()
    }
    return replace(CONFIGURATION, registry=CONFIGURATION.registry.model_copy(update={"models": models}))


def with_a_free_model() -> Configuration:
    models = dict(CONFIGURATION.registry.models)
    name = next(iter(models))
    models[name] = models[name].model_copy(update={"output_usd_per_million": Decimal(0)})
    return replace(CONFIGURATION, registry=CONFIGURATION.registry.model_copy(update={"models": models}))


WRONG_CONFIGURATIONS: dict[str, Callable[[], Configuration]] = {
    "model_registry:every_tier_has_a_model": without_premium_models,
    "model_registry:prices_are_positive": with_a_free_model,
}


def test_a_day_that_was_worked_through_passes_every_check(worked):
    result = evaluate(worked)
    assert failed_checks(result) == set()
    assert len(result.get_asset_check_evaluations()) == len(CHECKS)


def test_every_check_has_a_test_that_makes_it_fail():
    """Those of learning, and of drift, in test_learning_checks.py."""
    every = {f"{key.asset_key.to_user_string()}:{key.name}" for key in GRAPH.asset_check_keys}
    gates = {f"candidate_config:{gate}" for gate in REQUIRED}
    of_dbt = {check for check in every if check.split("/")[0] in ("marts", "staging")}
    assert every - gates - of_dbt == set(WRONG_ROWS) | set(WRONG_CONFIGURATIONS) | set(WRONG)


@pytest.mark.parametrize("check", WRONG_ROWS)
def test_a_wrong_row_fails_the_check_meant_for_it_and_no_other(worked, check):
    WRONG_ROWS[check](worked)
    assert failed_checks(evaluate(worked)) == {check} | ALSO_FAILS.get(check, set())


@pytest.mark.parametrize("check", WRONG_CONFIGURATIONS)
def test_a_wrong_configuration_fails_the_check_meant_for_it_and_no_other(worked, check):
    assert failed_checks(evaluate(worked, WRONG_CONFIGURATIONS[check]())) == {check}


def test_a_failure_says_what_was_expected_and_what_was_found(worked):
    execute(worked, "UPDATE tasks SET value_score = 1")
    [failure] = [each for each in evaluate(worked).get_asset_check_evaluations() if not each.passed]
    assert failure.severity is AssetCheckSeverity.ERROR
    shown = {name: value.value for name, value in failure.metadata.items()}
    assert (shown["expected"], shown["actual"], shown["looked at"]) == (0, 16, "every day")
    header, _, *found = shown["found"].splitlines()
    assert header == "| task_id | value_score | effective_score |"
    assert len(found) == 10


def test_a_check_looks_at_the_day_of_its_run(worked):
    execute(worked, f"UPDATE tasks SET value_score = value_score + 1 WHERE {ONE}")
    assert failed_checks(evaluate(worked, day="2026-03-01")) == set()
    assert failed_checks(evaluate(worked, day=str(DAY))) == {"scored_tasks:queue_carries_the_effective_score"}


def test_a_failed_blocking_check_holds_back_what_comes_after_in_the_same_run(worked, simulator_url, tmp_path):
    execute(
        worked,
        "DELETE FROM task_payloads WHERE task = (SELECT min(id) FROM tasks)",
        f"UPDATE tasks SET state = 'queued', assignment = NULL, model = NULL WHERE {TWO}",
    )
    result = run(definitions(worked, simulator_url, tmp_path), "process_queue", DAY, raise_on_error=False)
    assert not result.success
    materialized = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert materialized == {"model_registry", "task_queue"}
    assert worked.fetch(f"SELECT state FROM tasks WHERE {TWO}") == [("queued",)]


def test_what_is_blocking_is_what_later_steps_of_the_same_run_rely_on():
    blocking = {name.split(":")[0] for name, check in CHECKS.items() if check.blocking}
    assert blocking == {"model_registry", "task_queue", "scored_tasks", "assignments"}
