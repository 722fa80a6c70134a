"""Fixtures every test may use: a real PostgreSQL, and a fresh migrated database a test.

One embedded server serves the whole test session. Every xdist worker joins it when its first test asks for a
database, and the last one to end stops it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from hypothesis import settings

from cp_resources import migrate
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres, forget

SESSION_HOME = "CP_TEST_SESSION_HOME"
SHARED_DATA = "CP_SHARED_DATA"
SHARED_DATA_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"
TEMPLATE = "migrated"

# On a busy machine an example takes as long as it takes; how long is no property of the code.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


def pytest_configure(config: pytest.Config) -> None:
    """Name the folder of the session's server, once; xdist's workers inherit the name."""
    for name in [name for name in os.environ if name.startswith("CP_")]:
        if name in (SESSION_HOME, SHARED_DATA):
            continue
        del os.environ[name]  # the settings of whoever runs the tests are not the tests' settings
    for library in (
        "OMP",
        "OPENBLAS",
    ):  # each xdist worker has a core: threads of their own would fight over it
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    if not hasattr(config, "workerinput"):
        os.environ[SESSION_HOME] = str(Path(tempfile.gettempdir()) / f"control-panel-tests-{uuid4().hex}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the session's server, even when a worker was killed."""
    if not hasattr(config, "workerinput"):
        home = Path(os.environ.pop(SESSION_HOME))
        if home.exists():
            forget(home)
            shutil.rmtree(home)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Find a file of real data beside the project or in CP_SHARED_DATA; without it the test is skipped."""
    folder = Path(os.environ.get(SHARED_DATA, SHARED_DATA_DEFAULT))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(
                f"needs {path}, which is missing; {SHARED_DATA} may name the folder that holds {name}"
            )
        return path

    return find


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """The session's PostgreSQL server, with a migrated template database."""
    home = Path(os.environ[SESSION_HOME])
    home.mkdir(mode=0o755, exist_ok=True)
    with EmbeddedPostgres(home) as server:
        with (home / "template.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
                if not connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", (TEMPLATE,)
                ).fetchone():
                    connection.execute("CREATE DATABASE migrating")
                    migrate.upgrade(server.url("migrating"))
                    connection.execute(f"ALTER DATABASE migrating RENAME TO {TEMPLATE}")
        yield server


@pytest.fixture
def empty_database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The address of a fresh database without any table."""
    with _fresh_database(postgres_server, "template1") as url:
        yield url


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The address of a fresh, migrated database."""
    with _fresh_database(postgres_server, TEMPLATE) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, migrated database."""
    opened = Database(database_url)
    yield opened
    opened.close()


@contextmanager
def _fresh_database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server.url(name)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
