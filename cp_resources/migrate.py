"""Migrations of schema `cp`: which revision a database has, and bringing it to the newest.

Alembic and SQLAlchemy take half a second to import, so only `upgrade` does; asking for a revision is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

SCHEMA = "cp"
MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x6370_6D69  # any number that only migrations of this project take


def upgrade(url: str) -> str:
    """Bring the database at `url` to the newest revision and return that revision.

    Two processes may call this at once: an advisory lock makes the second wait and find nothing to do.

    Raises:
        psycopg.Error: the database refused a statement; nothing is changed.
    """
    from alembic import command
    from sqlalchemy import create_engine, exc, text

    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        with engine.connect() as connection, connection.begin():
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
            command.upgrade(_config(connection), "head")
    except exc.DBAPIError as error:
        raise error.orig or error from error
    finally:
        engine.dispose()
    return newest()


def current(url: str) -> str | None:
    """The revision of the database at `url`, or None when it was never migrated."""
    with psycopg.connect(url) as connection:
        if connection.execute("SELECT to_regclass(%s)", (f"{SCHEMA}.alembic_version",)).fetchone() == (None,):
            return None
        row = connection.execute(f"SELECT version_num FROM {SCHEMA}.alembic_version").fetchone()
    return str(row[0]) if row else None


def newest() -> str:
    """The newest revision that this code knows."""
    return revisions()[-1]


def revisions() -> list[str]:
    """All revisions that this code knows, oldest first: a migration's file is named by its number."""
    return sorted(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
