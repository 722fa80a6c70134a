"""Ends the runs whose workers ended with the platform: a process of its own, started by `control-panel up`.

Dagster's default launcher notices a dead worker only while the worker's code server lives. After a power cut
or a kill, a run would stay "started" for ever, and with it its day's place in the queue.

    python -m cp_sensors.interrupted_runs RUN_ID...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dagster import DagsterInstance, DagsterRunStatus

WITH_WORKER = frozenset({DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING})
MESSAGE = "The run's worker ended with the platform, before the run did."


def fail_interrupted(instance: DagsterInstance, run_ids: Sequence[str]) -> list[str]:
    """Report those of the runs that still count on a worker as failed, and return their ids."""
    failed = []
    for run_id in run_ids:
        run = instance.get_run_by_id(run_id)
        if run is not None and run.status in WITH_WORKER:
            instance.report_run_failed(run, MESSAGE)
            failed.append(run_id)
    return failed


if __name__ == "__main__":
    with DagsterInstance.get() as _instance:
        fail_interrupted(_instance, sys.argv[1:])
