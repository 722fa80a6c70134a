"""daily_learning_schedule: every night, what the last whole day teaches."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from dagster import (
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    schedule,
)

from cp_sensors.jobs import daily_learning


def build_daily_learning_schedule(timezone: str) -> ScheduleDefinition:
    """daily_learning at 02:00 in `timezone`, for the last submission day that is over by then."""

    @schedule(
        name="daily_learning_schedule",
        job=daily_learning,
        cron_schedule="0 2 * * *",
        execution_timezone=timezone,
        default_status=DefaultScheduleStatus.RUNNING,
        description=f"At 02:00 {timezone}: daily_learning for the last submission day (UTC) that is over.",
    )
    def daily_learning_schedule(context: ScheduleEvaluationContext) -> RunRequest:
        day = last_whole_day(context.scheduled_execution_time).isoformat()
        return RunRequest(run_key=day, partition_key=day)

    return daily_learning_schedule


def last_whole_day(now: datetime) -> date:
    """The last UTC day that is over at `now`, which may be in any time zone."""
    return now.astimezone(UTC).date() - timedelta(days=1)
