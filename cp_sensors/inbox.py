"""task_inbox_sensor and the job it launches: files dropped into the inbox are taken once."""

import hashlib
from pathlib import Path

from dagster import (
    Config,
    DefaultSensorStatus,
    Failure,
    OpExecutionContext,
    ResourceParam,
    RunConfig,
    RunRequest,
    RunsFilter,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    job,
    op,
    sensor,
)

from cp_resources.database import Database
from cp_resources.settings import Settings
from cp_sensors.new_tasks import UNDER_WAY

FILE_TAG = "cp/inbox-file"
MAX_LAUNCHES = 10
"""Most files taken up at one tick; the others follow at the next."""
MAX_ATTEMPTS = 3
"""How often a file is tried when its runs fail; then it waits for a person."""


class InboxFile(Config):
    """Which file of the inbox to take."""

    path: str


@op(description="Stores the tasks of one file of the inbox, and puts it into done/ or rejected/.")
def take_inbox_file(
    context: OpExecutionContext,
    config: InboxFile,
    database: ResourceParam[Database],
    settings: ResourceParam[Settings],
) -> None:
    """Take the file; nothing else reads it meanwhile."""
    from cp_resources.intake import take_file
    from cp_resources.tasks import TaskStore

    path = Path(config.path)
    if path.parent not in (settings.inbox, settings.inbox / "taking"):
        raise Failure(f"{path} is not a file of the inbox {settings.inbox}", allow_retries=False)
    report = take_file(path, TaskStore(database), settings.inbox)
    if report is None:
        context.log.info(f"{path.name} is not there, or another run is taking it")
        return
    context.log.info(f"{path.name}: {report}")
    context.add_output_metadata(
        {
            "stored": report.stored,
            "duplicates": report.duplicates,
            "rejected": report.rejected,
            "rejects": [str(rejects) for rejects in report.rejects],
        }
    )


@job(description="Takes one file of the inbox. task_inbox_sensor launches it.")
def take_inbox() -> None:
    """Take one file."""
    take_inbox_file()


@sensor(
    job=take_inbox,
    minimum_interval_seconds=10,
    default_status=DefaultSensorStatus.RUNNING,
    description="Launches take_inbox for each JSONL, JSON or CSV file that appears in the inbox folder.",
)
def task_inbox_sensor(
    context: SensorEvaluationContext, settings: ResourceParam[Settings]
) -> SensorResult | SkipReason:
    """Look into the inbox, and request a run for each file that nobody takes yet."""
    from cp_resources.intake import pending_files

    inbox = settings.inbox
    if not (files := pending_files(inbox)):
        return SkipReason(f"no file waits in {inbox}")
    under_way = context.instance.get_runs(RunsFilter(job_name=take_inbox.name, statuses=UNDER_WAY))
    requests: list[RunRequest] = []
    waiting: list[str] = []
    for path in files:
        key = _key(path)
        attempts = context.instance.get_runs_count(RunsFilter(tags={FILE_TAG: key}))
        if any(run.tags.get(FILE_TAG) == key for run in under_way) or (under_way and path.parent != inbox):
            waiting.append(f"{path.name}: is being taken")
        elif attempts >= MAX_ATTEMPTS:
            waiting.append(
                f"{path.name}: {attempts} runs failed; this needs a person: see the last run's error"
            )
        elif len(requests) == MAX_LAUNCHES:
            waiting.append(f"{path.name}: follows at the next tick")
        else:
            requests.append(_request(path, key, attempts + 1))
    return SensorResult(
        run_requests=requests, skip_reason=None if requests else SkipReason("; ".join(waiting[:5]))
    )


def _key(path: Path) -> str:
    """What makes a file this file: its name, its size and when it was last changed."""
    status = path.stat()
    return hashlib.sha256(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]


def _request(path: Path, key: str, attempt: int) -> RunRequest:
    return RunRequest(
        run_key=f"{key}:{attempt}",
        run_config=RunConfig(ops={take_inbox_file.name: InboxFile(path=str(path))}),
        tags={FILE_TAG: key},
    )
