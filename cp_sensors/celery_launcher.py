"""Launches runs as Celery tasks, and notices when the machine of a started run is gone.

dagster-celery reads a run's health from the result backend alone. A worker that is killed together with its parent
leaves "STARTED" there, so its run would hold its day's place until `dagster/max_runtime`. A living worker
answers within milliseconds, also while it executes runs, so we ask it.
"""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

ANSWER_SECONDS = 4.0
"""How long a worker may take to answer."""
QUESTIONS = 3
"""How often a worker is asked before it counts as gone."""


class WatchfulCeleryRunLauncher(CeleryRunLauncher):
    """dagster-celery's launcher, with its configuration.

    A worker that lives but cannot be reached counts as gone too. Then its run fails and another one works on the
    same day beside it; leases keep any task from being done by both.
    """

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """What the result backend says; where it says "running", what the worker itself says."""
        task_id = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if task_id is None:  # so new that the launcher has not tagged it yet
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        said = super().check_run_worker_health(run)
        if said.status is not WorkerStatus.RUNNING:
            return said
        worker = self.celery.AsyncResult(task_id).info["hostname"]
        if self._works_on(worker, task_id):
            return said
        said = super().check_run_worker_health(run)  # it may have ended while we asked
        if said.status is not WorkerStatus.RUNNING:
            return said
        return CheckRunHealthResult(
            WorkerStatus.FAILED, f"Celery worker {worker} does not answer, or knows nothing of this run."
        )

    def _works_on(self, worker: str, task_id: str) -> bool:
        """Whether the worker answers, and still has the Celery task."""
        for _ in range(QUESTIONS):
            inspect = self.celery.control.inspect([worker], timeout=ANSWER_SECONDS)
            if answers := inspect.query_task(task_id):
                return task_id in answers.get(worker, {})
        return False
