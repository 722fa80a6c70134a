"""dbt on the platform's database: with whose credentials it works, and that one works at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from cp_resources.database import Database

_DBT_LOCK = 0x6370_6462  # any number that only dbt runs of this project take


@contextmanager
def one_at_a_time(database: Database) -> Iterator[None]:
    """Wait until no other dbt works on the database, keeping others out: two would replace one view."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_DBT_LOCK])
        yield


@contextmanager
def credentials(database: Database) -> Iterator[None]:
    """Set the environment variables that dbt_project/profiles.yml reads, for a dbt that is started within."""
    with database.transaction() as connection:
        reached = connection.info
        ours = {
            "CP_DBT_HOST": reached.host,
            "CP_DBT_PORT": str(reached.port),
            "CP_DBT_USER": reached.user,
            "CP_DBT_PASSWORD": reached.password,
            "CP_DBT_DATABASE": reached.dbname,
            "CP_DBT_SSLMODE": reached.get_parameters().get("sslmode", "prefer"),
        }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
