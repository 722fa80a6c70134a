"""Dagster's own storage in PostgreSQL, over connections that are kept.

dagster-postgres opens a connection for every statement of a daemon, a code server or a run. A run writes some hundred
events with several statements each, and opening a connection costs more than any of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Self, cast

from dagster._core.storage.config import PostgresStorageConfig
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import URL, Engine, create_engine

KEPT = 2
"""Connections that an idle process keeps."""
MOST = 32
RECYCLE_SECONDS = 1800


class PooledPostgresStorage(DagsterPostgresStorage):
    """dagster-postgres's storage, with its configuration. What the webserver sets up for itself stays its own."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        super().__init__(postgres_url, should_autocreate_tables, inst_data)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = _engine(storage._engine.url, os.getpid())

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """The storage of a configuration as dagster-postgres takes it."""
        return cls(
            postgres_url=pg_url_from_config(cast(PostgresStorageConfig, config_value)),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            inst_data=inst_data,
        )


@cache
def _engine(url: URL, process: int) -> Engine:
    """The one engine of a process: a forked one must not speak over its parent's connections.

    A kept connection is tried before it is used, as the server may have been started again meanwhile.
    """
    return create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=KEPT,
        max_overflow=MOST - KEPT,
        pool_recycle=RECYCLE_SECONDS,
        pool_pre_ping=True,
    )
