"""new_tasks_sensor: one batched run at a time for each day with work. What it decides by is in `batches`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import LiteralString

from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    ResourceParam,
    RunRecord,
    RunRequest,
    RunsFilter,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from cp_assets.partitions import PARTITION_TAG
from cp_resources.database import Database
from cp_sensors.batches import DayWork, EndedRun, Launch, decide, read_cursor, write_cursor
from cp_sensors.jobs import DAY_TAG, PROCESS_QUEUE, QUEUE_ASSETS, process_queue

BATCH_TAG = "cp/batch"
ATTEMPT_TAG = "cp/attempt"

OVER = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
UNDER_WAY = [status for status in DagsterRunStatus if status not in OVER]

WATCH_SECONDS = 4.0
"""How long one evaluation waits for the first task. The daemon evaluates every 5 s at most, so waiting within leaves
a new task unseen for a second instead of five."""
LOOK_AGAIN_SECONDS = 0.25

_HISTORY = 20
_WAITING_SHOWN = 5

# What a run would find to do now, on days that have begun. A task that waits for others counts once all of
# them have succeeded, or one of them never will.
_WORK: LiteralString = """
SELECT submission_day, count(*),
       concat_ws(' ', min(id), max(id), sum(id), max(state_changed_at), max(available_at))
FROM tasks
WHERE (
    (state IN ('queued', 'assigned') AND available_at <= now())
    OR (state = 'running' AND lease_expires_at < now())
    OR (state = 'deferred' AND reason IS DISTINCT FROM 'DEPENDENCY_PENDING' AND available_at <= now())
    OR (state = 'deferred' AND reason = 'DEPENDENCY_PENDING' AND (
        SELECT bool_and(needed.state IS NOT DISTINCT FROM 'succeeded')
               OR bool_or(needed.state IN ('failed', 'cancelled', 'dead'))
        FROM unnest(dependencies) AS dependency
        LEFT JOIN tasks AS needed ON needed.task_id = dependency
    ))
) AND submission_day <= timezone('UTC', now())::date
GROUP BY submission_day
ORDER BY max((SELECT effective_score FROM task_scores WHERE task = tasks.id)) DESC NULLS FIRST, submission_day
"""


@sensor(
    job=process_queue,
    minimum_interval_seconds=1,
    default_status=DefaultSensorStatus.RUNNING,
    description="Launches process_queue for each day that has open tasks, one run at a time for each day.",
)
def new_tasks_sensor(
    context: SensorEvaluationContext, database: ResourceParam[Database]
) -> SensorResult | SkipReason:
    """Look at the open work and at the runs there were, and request runs."""
    work = _watch(database)
    decision = decide(
        work,
        under_way=_days_under_way(context.instance),
        ended={each.day: _ended_runs(context.instance, each.day) for each in work},
        cursor=read_cursor(context.cursor),
        now=datetime.now(UTC),
    )
    shown = "; ".join(decision.waiting[:_WAITING_SHOWN])
    return SensorResult(
        run_requests=[_request(launch) for launch in decision.launches],
        skip_reason=None if decision.launches else SkipReason(shown or "no task is waiting"),
        cursor=write_cursor(decision.cursor),
    )


def _watch(database: Database) -> list[DayWork]:
    """The days with work, as soon as there is some; none after `WATCH_SECONDS`."""
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        work = [DayWork(*row) for row in database.fetch(_WORK)]
        now = time.monotonic()
        pause = max(LOOK_AGAIN_SECONDS, 10 * (now - asked))  # a query that costs much is asked seldom
        if work or now + pause > began + WATCH_SECONDS:
            return work
        time.sleep(pause)


def _request(launch: Launch) -> RunRequest:
    day = launch.day.isoformat()
    return RunRequest(
        run_key=launch.run_key,
        partition_key=day,
        tags={DAY_TAG: day, BATCH_TAG: launch.batch, ATTEMPT_TAG: str(launch.attempt)},
    )


def _days_under_way(instance: DagsterInstance) -> set[date]:
    """Days with a run that is not over and works on the queue, whoever launched it."""
    runs = instance.get_runs(RunsFilter(statuses=UNDER_WAY))
    return {
        date.fromisoformat(run.tags[PARTITION_TAG])
        for run in runs
        if PARTITION_TAG in run.tags and _works_on_the_queue(run)
    }


def _works_on_the_queue(run: DagsterRun) -> bool:
    if run.asset_selection is None:
        return run.job_name == PROCESS_QUEUE
    return not run.asset_selection.isdisjoint(QUEUE_ASSETS)


def _ended_runs(instance: DagsterInstance, day: date) -> Sequence[EndedRun]:
    """The last runs of a day that are over, newest first."""
    of_the_day = RunsFilter(job_name=PROCESS_QUEUE, statuses=OVER, tags={PARTITION_TAG: day.isoformat()})
    return [_ended(record) for record in instance.get_run_records(of_the_day, limit=_HISTORY)]


def _ended(record: RunRecord) -> EndedRun:
    run = record.dagster_run
    ended_at = datetime.fromtimestamp(record.end_time, UTC) if record.end_time else record.update_timestamp
    attempt = int(run.tags.get(ATTEMPT_TAG, "1"))
    return EndedRun(run.tags.get(BATCH_TAG), run.status is DagsterRunStatus.SUCCESS, ended_at, attempt)
