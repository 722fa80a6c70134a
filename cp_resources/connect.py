"""Which database this installation uses, reachable and at the right revision.

`CP_DATABASE_URL` names a server of the owner's: it is checked, and its schema is never changed unasked.
Without it the embedded server is started, and its database is created and migrated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from cp_resources import migrate
from cp_resources.database import Database, DatabaseUnavailableError
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.errors import UserError
from cp_resources.settings import Settings

CONTROL_PANEL_DATABASE = "control_panel"
DAGSTER_DATABASE = "dagster"


class SchemaError(UserError):
    """The database's revision is not the one that this code works with."""


@contextmanager
def database(settings: Settings, *, migrate: bool = True) -> Iterator[Database]:
    """This installation's database; see `database_url`, which it opens."""
    with database_url(settings, migrate=migrate) as url:
        opened = Database(url)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def database_url(settings: Settings, *, migrate: bool = True) -> Iterator[str]:
    """The address of this installation's database, good for as long as the block lasts.

    Args:
        settings: says which database.
        migrate: bring the embedded database to the newest revision, and require that of any other one.

    Raises:
        DatabaseUnavailableError: the database does not answer, or refuses.
        SchemaError: a database of the owner's is older or newer than this code.
        EmbeddedPostgresError: the embedded server does not start.
    """
    if settings.database_url is not None:
        url = checked_url(settings.database_url.get_secret_value(), "CP_DATABASE_URL")
        Database(url).check()
        if migrate:
            _require_newest_revision(url)
        yield url
        return
    with EmbeddedPostgres(settings.home) as server:
        server.create_database(CONTROL_PANEL_DATABASE)
        url = server.url(CONTROL_PANEL_DATABASE)
        if migrate:
            upgrade(url)
        yield url


def upgrade(url: str) -> str | None:
    """Bring the database at `url` to the newest revision, and return the revision that it had.

    Raises:
        SchemaError: it is newer than this code.
        DatabaseUnavailableError: its user may not change it.
    """
    revision = migrate.current(url)
    if revision is not None and revision not in migrate.revisions():
        raise _newer_than_code(url, revision)
    if revision != migrate.newest():
        try:
            migrate.upgrade(url)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseUnavailableError(
                f"this user may not change the schema at {Database(url).address} ({error}): give it the "
                "right, or use the owner's address"
            ) from error
    return revision


def dagster_storage_url(settings: Settings, url: str) -> str:
    """The address of Dagster's own storage: what is set, else database 'dagster' beside the one at `url`.

    Raises:
        DatabaseUnavailableError: that database does not answer, or does not exist and must not be created.
    """
    if settings.dagster_database_url is not None:
        given = checked_url(settings.dagster_database_url.get_secret_value(), "CP_DAGSTER_DATABASE_URL")
        Database(given).check()
        return given
    _create_dagster_database(url)
    return urlunsplit(urlsplit(url)._replace(path=f"/{DAGSTER_DATABASE}"))


def checked_url(url: str, variable: str) -> str:
    """The PostgreSQL address in `url`, in the one spelling that every library here reads."""
    spelt = url.strip().replace("postgres://", "postgresql://", 1)
    try:
        parts = urlsplit(spelt)
        port_is_right = parts.port is None or parts.port > 0
        psycopg.conninfo.conninfo_to_dict(spelt)
    except (ValueError, psycopg.ProgrammingError):
        port_is_right = False
    if not (spelt.startswith("postgresql://") and port_is_right and len(parts.path) > 1):
        # the value is not shown: it may hold a password
        raise UserError(
            f"{variable} is not the address of a PostgreSQL database; expected "
            "postgresql://user:password@host:port/database, with special characters of the password "
            "percent-encoded"
        ) from None
    return spelt


def _require_newest_revision(url: str) -> None:
    revision = migrate.current(url)
    if revision == migrate.newest():
        return
    if revision is None or revision in migrate.revisions():
        raise SchemaError(
            f"the database at {Database(url).address} is at revision {revision or 'none'}, and this code "
            f"works with {migrate.newest()}: run `control-panel db upgrade`"
        )
    raise _newer_than_code(url, revision)


def _newer_than_code(url: str, revision: str) -> SchemaError:
    return SchemaError(
        f"the database at {Database(url).address} is at revision {revision}, which this code does not know "
        f"(its newest is {migrate.newest()}): bring the code up to date, or use another database"
    )


def _create_dagster_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DAGSTER_DATABASE,)).fetchone():
            return
        try:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DAGSTER_DATABASE)))
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            return  # another process was first
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseUnavailableError(
                f"Dagster needs a database of its own, and this user may not create one at "
                f"{Database(url).address}: create database '{DAGSTER_DATABASE}' there, or set "
                "CP_DAGSTER_DATABASE_URL"
            ) from error
