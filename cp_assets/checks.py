"""How asset checks are made: each is a search for what must not be, and passes when it finds nothing.

The checks themselves stand beside the asset they protect. All checks of an asset run in one step, over the
day of the run, or over every day when they are run without a partition; each can be run alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, LiteralString, Self

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    ResourceParam,
    multi_asset_check,
)

from cp_assets.partitions import day_checked
from cp_assets.presentation import table
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.observations import Observations

SHOWN = 10
"""Most findings that a check lists in its metadata."""


DECLARED_MODELS: LiteralString = """
    SELECT config_hash, declared.key AS model, properties.*
    FROM config_versions
    CROSS JOIN LATERAL jsonb_each(content #> '{models,models}') AS declared
    CROSS JOIN LATERAL jsonb_to_record(declared.value) AS properties (
        tier text, context_window bigint, input_usd_per_million numeric, cached_input_usd_per_million numeric,
        cache_write_usd_per_million numeric, output_usd_per_million numeric
    )
"""
"""SQL of the models of every configuration version. As a materialized CTE, it reads each version once."""


@dataclass(frozen=True)
class Findings:
    """What a search found: how many there are, and the first of them as mappings of column to value."""

    total: int
    rows: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Self:
        """All of `rows`."""
        return cls(len(rows), rows[:SHOWN])


@dataclass(frozen=True)
class Scope:
    """What a check looks at.

    Attributes:
        day: a submission day, or None for every day.
    """

    database: Database
    configuration: Configuration
    observations: Observations
    day: date | None

    def search(self, query: LiteralString, **parameters: object) -> Findings:
        """Run a query that finds what must not be. `%(day)s` is the day, or NULL for every day."""
        from psycopg.rows import dict_row

        counted = f"SELECT *, count(*) OVER () AS found_in_all FROM ({query}) AS finding LIMIT {SHOWN}"
        with self.database.transaction() as connection, connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(counted, {"day": self.day, **parameters}).fetchall()
        total = rows[0]["found_in_all"] if rows else 0
        return Findings(total, [{name: row[name] for name in row if name != "found_in_all"} for row in rows])


@dataclass(frozen=True, kw_only=True)
class Check:
    """One asset check.

    Attributes:
        name: what must hold, as a phrase.
        description: what must hold and why it matters, for a person.
        search: a query, or a function, that finds what breaks it; see `Scope.search`.
        blocking: whether a failure holds back what comes after the asset in the same run.
        severity: ERROR where something is wrong, WARN where a person should look.
    """

    name: str
    description: str
    search: LiteralString | Callable[[Scope], Findings]
    blocking: bool = False
    severity: AssetCheckSeverity = AssetCheckSeverity.ERROR

    def evaluate(self, scope: Scope, asset: str) -> AssetCheckResult:
        """Search, and say what was expected and what was found."""
        findings = scope.search(self.search) if isinstance(self.search, str) else self.search(scope)
        columns = list(findings.rows[0]) if findings.rows else []
        return AssetCheckResult(
            check_name=self.name,
            asset_key=asset,
            passed=findings.total == 0,
            severity=self.severity,
            metadata={
                "expected": 0,
                "actual": findings.total,
                "looked at": str(scope.day or "every day"),
                "found": table(columns, [list(row.values()) for row in findings.rows]),
            },
        )


def checks_of(asset: str, checks: Sequence[Check]) -> AssetChecksDefinition:
    """The checks of one asset, as one step of which any may be run alone."""
    by_name = {check.name: check for check in checks}

    @multi_asset_check(
        name=f"{asset}_checks",
        can_subset=True,
        specs=[
            AssetCheckSpec(check.name, asset=asset, description=check.description, blocking=check.blocking)
            for check in checks
        ],
    )
    def run_checks(
        context: AssetCheckExecutionContext,
        database: ResourceParam[Database],
        configuration: ResourceParam[Configuration],
        observations: ResourceParam[Observations],
    ) -> Iterator[AssetCheckResult]:
        scope = Scope(database, configuration, observations, day_checked(context))
        for name in sorted(key.name for key in context.selected_asset_check_keys):
            yield by_name[name].evaluate(scope, asset)

    return run_checks
