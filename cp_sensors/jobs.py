"""The jobs: which assets and ops run together."""

from __future__ import annotations

from dagster import (
    AssetKey,
    AssetSelection,
    PartitionedConfig,
    define_asset_job,
)

from cp_assets.partitions import SUBMISSION_DAYS

DAY_TAG = "cp/day"
"""Tag of a run that drains a day. dagster.yaml lets one run at a time have each value."""

PROCESS_QUEUE = "process_queue"
DAILY_LEARNING = "daily_learning"

QUEUE_ASSETS = [
    AssetKey(name)
    for name in ["model_registry", "task_queue", "scored_tasks", "assignments", "execution_outcomes"]
]

# A run drains for as long as its time budget; what lasts much longer hangs, and is ended by run monitoring.
_MAX_RUNTIME = {"dagster/max_runtime": "3600"}


process_queue = define_asset_job(
    PROCESS_QUEUE,
    description="Scores, assigns and executes the open tasks submitted on a day, until none is left or the "
    "time budget ends. new_tasks_sensor launches it.",
    selection=AssetSelection.assets(*QUEUE_ASSETS),
    config=PartitionedConfig(
        partitions_def=SUBMISSION_DAYS,
        run_config_for_partition_key_fn=lambda day: {},
        tags_for_partition_key_fn=lambda day: {DAY_TAG: day},
    ),
    tags=_MAX_RUNTIME,
)

daily_learning = define_asset_job(
    DAILY_LEARNING,
    description="Rewrites a day of the marts, tests them, and measures the models. daily_learning_schedule "
    "launches it for the day before.",
    selection=AssetSelection.groups("marts", "learning"),
    tags=_MAX_RUNTIME,
)
