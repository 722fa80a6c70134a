"""Connections to a real PostgreSQL, and how they end."""

from __future__ import annotations

import psycopg
import pytest

from cp_resources.database import Database, DatabaseUnavailableError


@pytest.mark.parametrize("pipelined", [False, True], ids=["statement by statement", "pipelined"])
def test_a_transaction_that_falls_silent_frees_its_locks_and_is_lost(
    database_url: str, pipelined: bool
) -> None:
    silent = Database(database_url, silent_seconds=0.3)

    def fall_silent() -> None:
        with silent.transaction(pipelined=pipelined) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(1)").fetchall()
            with psycopg.connect(database_url) as other:
                other.execute("SELECT pg_advisory_xact_lock(1)")  # waits until it is free
            connection.execute("SELECT 1").fetchall()

    with pytest.raises(DatabaseUnavailableError, match="was lost"):
        fall_silent()

    assert silent.fetch("SELECT 1") == [(1,)]
    silent.close()
