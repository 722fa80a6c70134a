"""A database that keeps the plan of every statement, as it was executed, and undoes what was done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import psycopg
from psycopg import sql

from cp_resources.database import CountedCursor, Database

_EXPLAINED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True)
class Scan:
    """What one node of a plan read of a table, over all of its loops: rows that it gave on, and that it passed over."""

    node: str
    table: str
    rows: int


@dataclass(frozen=True)
class Plan:
    """One statement as it was executed.

    Attributes:
        blocks: of 8 KiB that were looked at, in memory or on disk; those of functions that it calls too.
    """

    statement: str
    rows: int
    blocks: int
    scans: tuple[Scan, ...]


class ExplainedDatabase(Database):
    """Every transaction is rolled back at its end; `plans` grows by what it executed (COPY is not among it)."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.plans: list[Plan] = []

    @contextmanager
    def transaction(
        self, *, wait_seconds: float | None = None, pipelined: bool = False
    ) -> Iterator[psycopg.Connection]:
        """As `Database.transaction`, explained and undone."""
        with super().transaction(wait_seconds=wait_seconds, pipelined=pipelined) as connection:
            connection.cursor_factory = _cursor_that_tells(self.plans)
            yield connection
            raise psycopg.Rollback

    def scans(self, *tables: str) -> list[Scan]:
        """What was read of these tables."""
        return [scan for plan in self.plans for scan in plan.scans if scan.table in tables]


def _cursor_that_tells(plans: list[Plan]) -> type[psycopg.Cursor[Any]]:
    class ExplainingCursor(CountedCursor):
        def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
            words = (query if isinstance(query, str) else query.as_string(self.connection)).split()
            if words[0].upper() in _EXPLAINED:
                plans.append(_explain(self.connection, query, params, " ".join(words[:12])))
            return super().execute(query, params, **options)

    return ExplainingCursor


def _explain(connection: psycopg.Connection, query: Any, params: Any, statement: str) -> Plan:
    """Execute the statement once to see how, and undo it."""
    explain = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}").format(
        sql.SQL(query) if isinstance(query, str) else query
    )
    with psycopg.Cursor(connection) as cursor:
        cursor.execute("SAVEPOINT explained")
        [[found]] = cursor.execute(explain, params).fetchall()
        cursor.execute("ROLLBACK TO explained")
    root = found[0]["Plan"]
    return Plan(
        statement,
        int(root["Actual Rows"]),
        root["Shared Hit Blocks"] + root["Shared Read Blocks"],
        tuple(
            _scan(node) for node in _nodes(root) if "Relation Name" in node and "Scan" in node["Node Type"]
        ),
    )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _scan(node: dict[str, Any]) -> Scan:
    passed_over = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    rows = (node["Actual Rows"] + passed_over) * node["Actual Loops"]
    return Scan(node["Node Type"], node["Relation Name"], round(rows))
