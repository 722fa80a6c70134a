"""Which database is opened, and what a person is told when it cannot be used."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import pytest
from pydantic import SecretStr

from cp_resources import connect, migrate
from cp_resources.connect import SchemaError
from cp_resources.database import Database, DatabaseUnavailableError
from cp_resources.embedded_postgres import EmbeddedPostgres, forget
from cp_resources.errors import UserError
from cp_resources.postgres_place import existing_place
from cp_resources.settings import Settings


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="control-panel-home-"))
    folder.chmod(0o755)
    yield folder
    forget(folder)
    shutil.rmtree(folder)


def at(url: str, **others: object) -> Settings:
    return Settings(database_url=SecretStr(url), **others)  # type: ignore[arg-type]


def with_path(url: str, path: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=path))


def test_the_embedded_database_is_created_migrated_and_kept(home: Path) -> None:
    settings = Settings(home=home)
    with connect.database(settings) as database:
        database.fetch("INSERT INTO events (kind, payload) VALUES ('test', '{}') RETURNING id")
    with connect.database(settings) as database:
        assert migrate.current(database.url) == migrate.newest()
        assert database.fetch("SELECT kind FROM events") == [("test",)]


def test_a_database_of_the_owners_is_used_as_it_is(database_url: str) -> None:
    with connect.database(at(database_url)) as database:
        assert database.url == database_url
        assert database.fetch("SELECT count(*) FROM tasks") == [(0,)]


def test_the_short_spelling_of_an_address_is_understood(database_url: str) -> None:
    with connect.database(at(database_url.replace("postgresql://", "postgres://"))) as database:
        assert database.url == database_url


def test_a_database_of_the_owners_is_not_migrated_unasked(empty_database_url: str) -> None:
    with (
        pytest.raises(SchemaError, match=r"at revision none.*run `control-panel db upgrade`"),
        connect.database(at(empty_database_url)),
    ):
        pass

    assert migrate.current(empty_database_url) is None


def test_a_database_newer_than_the_code_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE cp.alembic_version SET version_num = '9999'")

    with (
        pytest.raises(SchemaError, match="revision 9999, which this code does not know"),
        connect.database(at(database_url)),
    ):
        pass
    with pytest.raises(SchemaError, match="9999"):
        connect.upgrade(database_url)


def test_an_unreachable_database_is_said_so_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        pytest.raises(DatabaseUnavailableError, match=r"127\.0\.0\.1:1/tasks .*CP_DATABASE_URL") as raised,
        connect.database(at("postgresql://user:hidden@127.0.0.1:1/tasks")),
    ):
        pass

    assert time.monotonic() - began < 5
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:///tasks.db",
        "postgresql://user:hid%den@127.0.0.1/control_panel",
        "postgresql://user:hidden@127.0.0.1:port/control_panel",
        "postgresql://user:hidden@127.0.0.1",
        "host=127.0.0.1 password=hidden",
    ],
)
def test_what_is_no_address_is_refused_without_being_shown(address: str) -> None:
    with (
        pytest.raises(
            UserError, match="CP_DATABASE_URL is not the address of a PostgreSQL database"
        ) as raised,
        connect.database(at(address)),
    ):
        pass

    assert "hid" not in str(raised.value)


def test_dagster_gets_a_database_of_its_own_beside(
    postgres_server: EmbeddedPostgres, database_url: str
) -> None:
    url = connect.dagster_storage_url(at(database_url), database_url)

    assert url == with_path(database_url, "/dagster")
    assert connect.dagster_storage_url(at(database_url), database_url) == url
    Database(url).check()


def test_dagsters_database_may_be_set(database_url: str, empty_database_url: str) -> None:
    settings = at(database_url, dagster_database_url=SecretStr(empty_database_url))

    assert connect.dagster_storage_url(settings, database_url) == empty_database_url


def test_a_user_who_may_not_change_the_schema_is_told(empty_database_url: str) -> None:
    role = "reader" + urlsplit(empty_database_url).path[-8:]
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    parts = urlsplit(empty_database_url)
    weak = urlunsplit(parts._replace(netloc=f"{role}:secret@{parts.hostname}:{parts.port}"))
    try:
        with pytest.raises(DatabaseUnavailableError, match="may not change the schema"):
            connect.upgrade(weak)
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {role}")


def test_a_database_survives_the_restart_of_its_server(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        database = Database(server.url("postgres"))
        assert database.fetch("SELECT 1") == [(1,)]
        place = existing_place(home)
        assert place is not None
        postmaster = psutil.Process(int((place.cluster / "postmaster.pid").read_text().splitlines()[0]))
        postmaster.kill()
        postmaster.wait(timeout=10)
        server.url("postgres")
        assert database.fetch("SELECT 2") == [(2,)]
        database.close()


def test_a_connection_lost_in_a_transaction_is_said_so(database: Database) -> None:
    def lose() -> None:
        with database.transaction() as connection:
            database.fetch("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
            connection.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailableError, match="was lost"):
        lose()
    assert database.fetch("SELECT 1") == [(1,)]


def test_a_pool_whose_connections_are_all_taken_says_so(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cp_resources.database.CONNECT_TIMEOUT_SECONDS", 1)
    database = Database(database_url, max_connections=1)
    with (
        database.transaction(),
        pytest.raises(DatabaseUnavailableError, match="all 1 connections"),
        database.transaction(),
    ):
        pass
    database.close()
