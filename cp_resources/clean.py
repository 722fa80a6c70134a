"""Forgetting what an installation has gathered: its embedded database, and Dagster's files beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from cp_resources import embedded_postgres
from cp_resources.settings import Settings


def forgettable(settings: Settings) -> list[Path]:
    """The folders that `forget_data` removes, where they exist."""
    beside = (settings.dagster_home, settings.home / "logs")
    return [*embedded_postgres.folders(settings.home), *(folder for folder in beside if folder.exists())]


def forget_data(settings: Settings) -> None:
    """Remove the embedded database with Dagster's storage in it, Dagster's home, and the logs.

    The inbox stays, and so does a database that CP_DATABASE_URL names.

    Raises:
        EmbeddedPostgresError: a process uses the embedded database.
    """
    embedded_postgres.forget(settings.home)
    for folder in forgettable(settings):
        shutil.rmtree(folder)
