"""deliver_notices_sensor and the job it launches: notices in the outbox that are due are sent."""

import hashlib
from datetime import UTC, datetime
from typing import LiteralString

from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    OpExecutionContext,
    ResourceParam,
    RunRequest,
    RunsFilter,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    job,
    op,
    sensor,
)

from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.settings import Settings
from cp_sensors.batches import backoff
from cp_sensors.new_tasks import OVER, UNDER_WAY

BATCH_TAG = "cp/notices"
RUN_SECONDS = 300.0
"""How long one run delivers; what is still due then is for the next."""

_HISTORY = 10

# What is due now, and text that changes with every try.
_DUE: LiteralString = """
SELECT count(*), concat_ws(' ', min(id), max(id), count(*), sum(tries), max(available_at))
FROM outbox WHERE delivered_at IS NULL AND available_at <= now()
"""


@op(description="Sends the notices that are due, and marks what came of each.")
def deliver_due_notices(
    context: OpExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
    settings: ResourceParam[Settings],
) -> None:
    """Deliver until nothing is due or the time is up."""
    from cp_resources.notifiers.chosen import open_notifier
    from cp_resources.outbox import Outbox

    policy = configuration.policies.notices
    done = Outbox(database, policy).deliver_due(open_notifier(policy, settings.home), seconds=RUN_SECONDS)
    for error, times in done.errors.items():
        context.log.warning(f"{times} x {error}")
    context.add_output_metadata(
        {
            "sink": policy.sink.value,
            "delivered": done.delivered,
            "put_off": done.put_off,
            "failed": done.failed,
        }
    )


@job(
    description="Sends the notices that are due. deliver_notices_sensor launches it.",
    tags={"dagster/max_runtime": "3600"},
)
def deliver_notices() -> None:
    """Deliver once."""
    deliver_due_notices()


@sensor(
    job=deliver_notices,
    minimum_interval_seconds=15,
    default_status=DefaultSensorStatus.RUNNING,
    description="Launches deliver_notices when a notice is due, one run at a time.",
)
def deliver_notices_sensor(
    context: SensorEvaluationContext,
    database: ResourceParam[Database],
    settings: ResourceParam[Settings],
) -> SensorResult | SkipReason:
    """Look whether a notice is due and could be sent, and request a run."""
    from cp_resources.notifiers.chosen import open_notifier

    [(due, mark)] = database.fetch(_DUE)
    if not due:
        return SkipReason("no notice is due")
    if context.instance.get_runs_count(RunsFilter(job_name=deliver_notices.name, statuses=UNDER_WAY)):
        return SkipReason("a run is under way")
    try:
        open_notifier(load_configuration(settings.config_dir).policies.notices, settings.home)
    except UserError as error:
        return SkipReason(f"{due} notices wait: {error}")
    again_at = _not_before(context.instance)
    if datetime.now(UTC) < again_at:
        return SkipReason(f"{due} notices wait: the last run failed; again at {again_at:%H:%M:%S} UTC")
    batch = hashlib.sha256(mark.encode()).hexdigest()[:16]
    attempt = 1 + context.instance.get_runs_count(RunsFilter(tags={BATCH_TAG: batch}))
    return SensorResult(run_requests=[RunRequest(run_key=f"{batch}:{attempt}", tags={BATCH_TAG: batch})])


def _not_before(instance: DagsterInstance) -> datetime:
    """When the next run may start: at once after a success, later after each further failure."""
    records = instance.get_run_records(
        RunsFilter(job_name=deliver_notices.name, statuses=OVER), limit=_HISTORY
    )
    failures = 0
    for record in records:
        if record.dagster_run.status is DagsterRunStatus.SUCCESS:
            break
        failures += 1
    if not failures:
        return datetime.min.replace(tzinfo=UTC)
    return records[0].update_timestamp + backoff(failures)
