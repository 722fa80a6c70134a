"""The partitions of every asset: days of submission, in UTC."""

from __future__ import annotations

import warnings
from datetime import date

from dagster import (
    AssetCheckExecutionContext,
    AssetExecutionContext,
    BackfillPolicy,
    BetaWarning,
    DailyPartitionsDefinition,
    TimeWindowPartitionMapping,
)

from cp_core.tasks.submission import EARLIEST

# From the earliest submission that intake accepts, so that no accepted task lies outside, until today itself.
SUBMISSION_DAYS = DailyPartitionsDefinition(
    start_date=EARLIEST.strftime("%Y-%m-%d"), timezone="UTC", end_offset=1
)

# Backfill policies, among others, are beta in Dagster. Using them is a choice, not news at every load.
warnings.filterwarnings("ignore", category=BetaWarning)

ONE_DAY_A_RUN = BackfillPolicy.multi_run(max_partitions_per_run=1)
"""A backfill launches a run a day, as the sensor does: a day that fails does not take others with it."""

LOOKS_BACK = TimeWindowPartitionMapping(start_offset=-59, allow_nonexistent_upstream_partitions=True)
"""Of an asset that reads a window of days: `learning.window_days` of policies.yaml, whose default is 60."""

PARTITION_TAG = "dagster/partition"
"""The tag by which Dagster marks a run with its partition."""


def day_of(context: AssetExecutionContext) -> date:
    """The submission day that a run is about."""
    return date.fromisoformat(context.partition_key)


def day_checked(context: AssetCheckExecutionContext) -> date | None:
    """The submission day that a check looks at, or None for every day: a check may run without one."""
    key = context.run.tags.get(PARTITION_TAG)
    return date.fromisoformat(key) if key else None
