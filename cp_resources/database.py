"""Connections to PostgreSQL, and the database's migrations."""

from __future__ import annotations

import logging
import select
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, LiteralString, Self
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

import cp_resources.arrays  # noqa: F401  # a connection sends arrays only if that was registered before it was opened
from cp_resources.errors import UserError

CONNECT_TIMEOUT_SECONDS = 10
SILENT_SECONDS = 60.0
"""A transaction whose process says nothing for so long is ended by the server, and its locks are freed."""
TRANSACTION_TIMEOUT_SINCE = 170_000
"""Version of the first server that can limit a transaction as a whole."""

logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())  # its retries end in one error of ours


class DatabaseUnavailableError(UserError):
    """The database cannot be reached, or is not migrated. The text says which, and what to do."""


class DatabaseBusyError(DatabaseUnavailableError):
    """No connection of this process became free in the time that the caller could wait."""


class CountedCursor(psycopg.Cursor[Any]):
    """A cursor that counts its statements on its connection, for telemetry."""

    def execute(self, *arguments: Any, **options: Any) -> Self:
        """As psycopg's, and counted."""
        connection: Any = self.connection
        connection.statements = statements(connection) + 1
        return super().execute(*arguments, **options)


def statements(connection: psycopg.Connection) -> int:
    """How many statements a connection of `Database` has executed in this transaction; COPY is not counted."""
    return getattr(connection, "statements", 0)


class Database:
    """A small pool of connections to one database.

    Args:
        url: `postgresql://user:password@host:port/database`.
        max_connections: most connections held at once by this process.
        silent_seconds: how long a transaction may keep its locks while its process is stopped, or gone.
    """

    def __init__(self, url: str, *, max_connections: int = 8, silent_seconds: float = SILENT_SECONDS) -> None:
        self.url = url
        self._limit_whole = sql.SQL("SET LOCAL transaction_timeout = {}").format(round(silent_seconds * 1000))
        self._pool = ConnectionPool(
            url,
            min_size=0,
            max_size=max_connections,
            timeout=CONNECT_TIMEOUT_SECONDS,
            open=False,
            check=_check,
            kwargs={
                "options": "-c search_path=cp,public -c timezone=UTC "
                f"-c idle_in_transaction_session_timeout={silent_seconds * 1000:.0f}",
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "cursor_factory": CountedCursor,
            },
        )

    @property
    def address(self) -> str:
        """Host, port and database, without user or password: safe to print."""
        parts = urlsplit(self.url)
        return f"{parts.hostname or 'local socket'}:{parts.port or 5432}{parts.path}"

    @contextmanager
    def transaction(
        self, *, wait_seconds: float | None = None, pipelined: bool = False
    ) -> Iterator[psycopg.Connection]:
        """Give a connection inside a transaction: committed at the end, rolled back on an error.

        Args:
            wait_seconds: how long to wait for a connection at most, for a caller in a hurry.
            pipelined: send statements, the transaction's begin among them, when a result is first asked for: fewer
                trips for who asks late. What a statement changed is not counted then, and nothing can be copied. The
                server does not see such a transaction fall silent, so it limits it as a whole to `silent_seconds`; one
                that cannot (before version 17) is sent statement by statement.

        Raises:
            DatabaseBusyError: none could be had within `wait_seconds`.
            DatabaseUnavailableError: no connection could be had within the timeout, or it was lost.
        """
        connection: Any = self._connection(wait_seconds)
        pipelined = pipelined and connection.info.server_version >= TRANSACTION_TIMEOUT_SINCE
        try:
            with connection.pipeline() if pipelined else nullcontext(), connection.transaction():
                if pipelined:
                    connection.execute(self._limit_whole)
                connection.statements = 0
                yield connection
        except psycopg.Error as error:
            if connection.closed:
                raise DatabaseUnavailableError(
                    f"the connection to the database at {self.address} was lost: {_first_line(error)}"
                ) from error
            raise
        finally:
            self._pool.putconn(connection)

    def check(self) -> None:
        """Connect once, outside the pool, and fail at once with a clear text.

        Raises:
            DatabaseUnavailableError: the server does not answer, or refuses.
        """
        try:
            psycopg.connect(self.url, connect_timeout=CONNECT_TIMEOUT_SECONDS).close()
        except psycopg.OperationalError as error:
            raise DatabaseUnavailableError(
                f"cannot reach the database at {self.address} ({_first_line(error)}): is the server running, "
                "and is CP_DATABASE_URL right? Without CP_DATABASE_URL the embedded server is used"
            ) from error

    def fetch(
        self, query: LiteralString, parameters: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of one query, in a transaction of its own."""
        with self.transaction() as connection:
            return connection.execute(query, parameters).fetchall()

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    def _connection(self, wait_seconds: float | None) -> psycopg.Connection:
        self._pool.open()
        try:
            return self._pool.getconn(wait_seconds)
        except PoolTimeout as error:
            if wait_seconds is not None:
                raise DatabaseBusyError(
                    f"no connection to {self.address} could be had within {wait_seconds:.3g} s"
                ) from error
            self.check()
            raise DatabaseUnavailableError(
                f"all {self._pool.max_size} connections of this process to {self.address} were in use "
                f"for {CONNECT_TIMEOUT_SECONDS} s"
            ) from error


def _check(connection: psycopg.Connection) -> None:
    """Raise if the connection is dead, as all are after a restart of the server.

    A live server says nothing unasked, so only where there is something to read it is asked.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        ConnectionPool.check_connection(connection)


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().splitlines()[0]
