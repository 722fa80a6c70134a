"""`control-panel worker`: executes runs on this machine that the platform on another one launches."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer


def worker(
    runs: Annotated[int, typer.Option(min=1, max=64, help="Runs that it executes at a time.")] = 4,
    name: Annotated[
        str | None, typer.Option(help="Its name, unlike any other worker's. Default: from this machine's.")
    ] = None,
) -> None:
    """Execute runs handed out over CP_REDIS_URL, with the database at CP_DATABASE_URL, until Ctrl-C.

    The first SIGTERM lets the runs under way end; a second one ends them.
    """
    from cp_cli.dagster_home import environment, require_scale_out, write_dagster_yaml
    from cp_resources.connect import dagster_storage_url, database_url
    from cp_resources.errors import UserError
    from cp_resources.settings import PROJECT_ROOT, Settings

    settings = Settings()
    if settings.redis_url is None:
        raise UserError("CP_REDIS_URL is not set: name the Redis server of the platform, redis://host:6379/0")
    require_scale_out(settings)
    with database_url(settings) as url:
        variables = environment(settings, url, dagster_storage_url(settings, url))
    write_dagster_yaml(settings)
    os.chdir(PROJECT_ROOT)
    command = [sys.executable, "-m", "celery", "--app", "cp_sensors.celery_worker", "worker"]
    options = ["--queues", "dagster", "--concurrency", str(runs), "--include", "cp_definitions"]
    node = ["--hostname", f"{name or f'control-panel-{os.getpid()}'}@%h"]
    program = [*command, *options, *node, "--loglevel", "INFO"]
    os.execve(sys.executable, program, os.environ | variables)  # noqa: S606 no shell is wanted
