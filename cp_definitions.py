"""Puts assets, checks, jobs, sensors, schedules and resources together: what workspace.yaml names.

Loading this module opens nothing: no database, no network, no secret, and dbt is not parsed. Heavy libraries
are imported by what uses them, when it runs.
"""

from __future__ import annotations

from typing import Any

from dagster import AssetSpec, Definitions, in_process_executor, map_asset_specs

from cp_assets.assignment import assignments, assignments_checks
from cp_assets.execution import execution_outcomes, execution_outcomes_checks
from cp_assets.learning.calibrated_config import calibrated_config, calibrated_config_checks
from cp_assets.learning.candidate_config import candidate_config
from cp_assets.learning.cost_effectiveness import cost_effectiveness, cost_effectiveness_checks
from cp_assets.learning.experiments import experiment_results, experiment_results_checks
from cp_assets.learning.learning_report import learning_report, learning_report_checks
from cp_assets.learning.performance import performance_metrics, performance_metrics_checks
from cp_assets.learning.success import success_model, success_model_checks
from cp_assets.learning.token_calibration import token_calibration, token_calibration_checks
from cp_assets.learning.value_calibration import value_calibration, value_calibration_checks
from cp_assets.marts import build_marts
from cp_assets.queue import scored_tasks, scored_tasks_checks, task_queue, task_queue_checks
from cp_assets.registry import model_registry, model_registry_checks
from cp_resources.configurable import (
    ConfigurationResource,
    DatabaseResource,
    ObservationsResource,
    SettingsResource,
    dbt_resource,
)
from cp_resources.settings import Settings
from cp_sensors.inbox import take_inbox, task_inbox_sensor
from cp_sensors.jobs import daily_learning, process_queue
from cp_sensors.new_tasks import new_tasks_sensor
from cp_sensors.notices import deliver_notices, deliver_notices_sensor
from cp_sensors.schedules import build_daily_learning_schedule

OWNERS = ["team:control-panel"]


def build_defs(**resources: object) -> Definitions:
    """The code location.

    Args:
        resources: each replaces the resource of its name (settings, database, configuration, observations or dbt) by
            another resource, or by the plain object that it would give out.
    """
    settings = Settings()
    database: Any = resources.get("database", DatabaseResource())
    assets = [
        model_registry,
        task_queue,
        scored_tasks,
        assignments,
        execution_outcomes,
        build_marts(settings),
        performance_metrics,
        experiment_results,
        success_model,
        token_calibration,
        value_calibration,
        cost_effectiveness,
        candidate_config,
        calibrated_config,
        learning_report,
    ]
    return Definitions(
        assets=map_asset_specs(_owned, assets),
        asset_checks=[
            model_registry_checks,
            task_queue_checks,
            scored_tasks_checks,
            assignments_checks,
            execution_outcomes_checks,
            performance_metrics_checks,
            experiment_results_checks,
            success_model_checks,
            token_calibration_checks,
            value_calibration_checks,
            cost_effectiveness_checks,
            calibrated_config_checks,
            learning_report_checks,
        ],
        jobs=[process_queue, daily_learning, take_inbox, deliver_notices],
        sensors=[new_tasks_sensor, task_inbox_sensor, deliver_notices_sensor],
        schedules=[build_daily_learning_schedule(settings.timezone)],
        resources={
            "settings": SettingsResource(),
            "database": database,
            "configuration": ConfigurationResource(database=database),
            "observations": ObservationsResource(database=database),
            "dbt": dbt_resource(settings),
            **resources,
        },
        executor=in_process_executor,  # the steps are small: a process each would take longer than their work
    )


def _owned(spec: AssetSpec) -> AssetSpec:
    return spec.replace_attributes(owners=OWNERS)


defs = build_defs()
