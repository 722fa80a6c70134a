"""Alembic's entry: migrates the connection that `cp_resources.migrate` hands over."""

from __future__ import annotations

from alembic import context

from cp_resources.schema import SCHEMA, metadata


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """Compare only our own schema."""
    return name == SCHEMA if kind == "schema" else True


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
    include_name=include_name,
    compare_server_default=False,
)
with context.begin_transaction():
    context.run_migrations()
