"""The Celery app that workers serve: `celery --app cp_sensors.celery_worker worker`, as `control-panel worker` runs it.

It is the app of the instance's own launcher, so broker, result backend and options have one home: dagster.yaml
in DAGSTER_HOME.
"""

from __future__ import annotations

import logging

from dagster import DagsterInstance
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

with DagsterInstance.get() as _instance:
    _launcher = _instance.run_launcher
    if not isinstance(_launcher, CeleryRunLauncher):
        raise TypeError(
            f"the run launcher of DAGSTER_HOME is {type(_launcher).__name__}, which needs no workers"
        )
    app = _launcher.celery

create_execute_job_task(app)
create_resume_job_task(app)

logging.getLogger("httpx").setLevel(logging.WARNING)  # Celery shows what is INFO; a line a call is too much
