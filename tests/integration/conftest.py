"""A database in which a day was worked through: made once a test session, cloned for each test that asks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from worked_day import DAY, definitions, rows, run, submit

from cp_resources import migrate
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import running

WORKED = "worked"


@pytest.fixture(scope="session")
def simulator_url() -> Iterator[str]:
    """Simulated models that answer fast; one call in ten fails for a while."""
    with running(Options(latency_ms=5, failure_share=0.1)) as url:
        yield url


@pytest.fixture(scope="session")
def worked_template(
    postgres_server: EmbeddedPostgres, simulator_url: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A database in which process_queue and daily_learning ran for `DAY`; whoever is first makes it."""
    with (Path(os.environ["CP_TEST_SESSION_HOME"]) / "worked.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (WORKED,)).fetchone():
                connection.execute("CREATE DATABASE working")
                _work(postgres_server.url("working"), simulator_url, tmp_path_factory.mktemp("worked"))
                connection.execute(f"ALTER DATABASE working RENAME TO {WORKED}")
    return WORKED


@pytest.fixture
def worked(postgres_server: EmbeddedPostgres, worked_template: str) -> Iterator[Database]:
    """A database of its own in which process_queue and daily_learning ran for `DAY`."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {worked_template}")
        database = Database(postgres_server.url(name))
        yield database
        database.close()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _work(url: str, simulator_url: str, folder: Path) -> None:
    migrate.upgrade(url)
    database = Database(url)
    submit(database, rows(DAY), folder)
    defs = definitions(database, simulator_url, folder)
    for job in ("process_queue", "daily_learning"):
        assert run(defs, job, DAY).success
    database.close()
