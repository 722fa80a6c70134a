"""Migrations of schema `cp`: which revision a database has, and bringing it to the newest."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, text

from cp_resources.schema import SCHEMA

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x6370_6D69  # any number that only migrations of this project take


def upgrade(url: str) -> str:
    """Bring the database at `url` to the newest revision and return that revision.

    Two processes may call this at once: an advisory lock makes the second wait and find nothing to do.
    """
    engine = _engine(url)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        command.upgrade(_config(connection), "head")
        revision = _revision(connection)
    engine.dispose()
    return revision or newest()


def current(url: str) -> str | None:
    """The revision of the database at `url`, or None when it was never migrated."""
    engine = _engine(url)
    with engine.connect() as connection:
        revision = _revision(connection)
    engine.dispose()
    return revision


def newest() -> str:
    """The newest revision this code knows."""
    return ScriptDirectory(str(MIGRATIONS)).get_current_head() or ""


def _engine(url: str) -> Engine:
    return create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(
        connection, opts={"version_table_schema": SCHEMA}
    ).get_current_revision()
