"""What every Dagster process of this installation needs, whichever command starts it."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from cp_resources.errors import UserError
from cp_resources.settings import PROJECT_ROOT, Settings


def write_dagster_yaml(settings: Settings) -> None:
    """Write the instance's settings into DAGSTER_HOME; with CP_REDIS_URL they name the Celery launcher."""
    names = ["dagster.yaml"] if settings.redis_url is None else ["dagster.yaml", "dagster-celery.yaml"]
    text = "\n".join(_configuration_file(settings, name).read_text() for name in names)
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    written = settings.dagster_home / f"dagster.yaml.{os.getpid()}"
    written.write_text(text)
    written.replace(settings.dagster_home / "dagster.yaml")  # at once: another process may be reading it


def environment(settings: Settings, url: str, dagster_url: str) -> dict[str, str]:
    """The variables that name our folders and databases, and that switch off what may call home."""
    redis = {} if settings.redis_url is None else {"CP_REDIS_URL": settings.redis_url.get_secret_value()}
    return redis | {
        "CP_HOME": str(settings.home),
        "CP_CONFIG_DIR": str(settings.config_dir),
        "CP_DBT_PROJECT_DIR": str(settings.dbt_project_dir),
        "CP_INBOX_DIR": str(settings.inbox),
        "CP_DATABASE_URL": url,
        "CP_DAGSTER_DATABASE_URL": dagster_url,
        "DAGSTER_HOME": str(settings.dagster_home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "DO_NOT_TRACK": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }


def require_scale_out(settings: Settings) -> None:
    """Make sure that runs can be handed to workers on other machines.

    Raises:
        UserError: dagster-celery is not installed, or there is no database that workers could reach.
    """
    if settings.database_url is None:
        raise UserError(
            "with CP_REDIS_URL, runs are executed by workers on any machine, and these cannot reach the embedded "
            "database: set CP_DATABASE_URL to a PostgreSQL server"
        )
    if find_spec("dagster_celery") is None:
        raise UserError(
            "CP_REDIS_URL is set, and dagster-celery is not installed: "
            "pip install --require-hashes -r requirements/celery.txt"
        )


def _configuration_file(settings: Settings, name: str) -> Path:
    """The configuration folder's, or ours where the owner keeps only the platform's own files there."""
    own = settings.config_dir / name
    return own if own.exists() else PROJECT_ROOT / "config" / name
