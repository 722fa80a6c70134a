"""The migrations give exactly the tables that cp_resources.schema describes."""

from __future__ import annotations

import threading

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from cp_resources import connect, migrate
from cp_resources.schema import SCHEMA, metadata


def test_migrated_tables_are_those_of_the_description(database_url: str) -> None:
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table_schema": SCHEMA,
                "include_schemas": True,
                "include_name": lambda name, kind, _: name == SCHEMA if kind == "schema" else True,
                "compare_type": True,
            },
        )
        differences = compare_metadata(context, metadata)
    engine.dispose()

    assert differences == []


def test_constraints_of_the_migrated_tables_are_those_of_the_description(
    database_url: str, empty_database_url: str
) -> None:
    """Alembic compares no CHECK constraints and no computed columns; the catalog does."""
    engine = create_engine(empty_database_url.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
        metadata.create_all(connection)
    engine.dispose()

    assert catalog(database_url) == catalog(empty_database_url)


def catalog(url: str) -> dict[str, list[tuple]]:
    """Columns, constraints and indexes of schema cp, as PostgreSQL spells them."""
    queries = {
        "columns": """
            SELECT table_name, column_name, data_type, is_nullable, column_default, generation_expression
            FROM information_schema.columns WHERE table_schema = 'cp' ORDER BY 1, 2""",
        "constraints": """
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace = 'cp'::regnamespace ORDER BY 1, 2""",
        "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'cp' ORDER BY 2",
    }
    with psycopg.connect(url) as connection:
        found = {name: connection.execute(query).fetchall() for name, query in queries.items()}
    return {
        name: [row for row in rows if "alembic_version" not in str(row[0])] for name, rows in found.items()
    }


def test_the_newest_revision_is_the_head_of_the_scripts() -> None:
    scripts = ScriptDirectory(str(migrate.MIGRATIONS))

    assert scripts.get_heads() == [migrate.newest()]
    assert sorted(script.revision for script in scripts.walk_revisions()) == migrate.revisions()


def test_upgrading_is_safe_to_repeat(empty_database_url: str) -> None:
    assert migrate.current(empty_database_url) is None
    assert connect.upgrade(empty_database_url) is None
    assert migrate.current(empty_database_url) == migrate.newest()
    assert connect.upgrade(empty_database_url) == migrate.newest()


def test_two_upgrades_at_once_both_succeed(empty_database_url: str) -> None:
    failures: list[BaseException] = []

    def upgrade() -> None:
        try:
            migrate.upgrade(empty_database_url)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert migrate.current(empty_database_url) == migrate.newest()


def test_a_failing_upgrade_changes_nothing(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE SCHEMA cp")
        connection.execute("CREATE TABLE cp.task_scores (in_the_way integer)")

    with pytest.raises(psycopg.errors.DuplicateTable):
        migrate.upgrade(empty_database_url)

    assert migrate.current(empty_database_url) is None
    with psycopg.connect(empty_database_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'cp'").fetchall()
    assert tables == [("task_scores",)]
