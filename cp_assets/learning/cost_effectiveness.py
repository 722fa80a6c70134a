"""What money and quota bought."""

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING

from dagster import (
    AssetCheckSeverity,
    AssetExecutionContext,
    MaterializeResult,
    ResourceParam,
)

from cp_assets.checks import Check, Findings, Scope, checks_of
from cp_assets.learning.nightly import keep, kept, nightly
from cp_assets.partitions import day_of
from cp_assets.presentation import bars, lines, table
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.observations import Observations

if TYPE_CHECKING:
    from cp_core.learning.cost_effectiveness import Price

NAME = "cost_effectiveness"


@nightly(
    NAME,
    kinds={"python", "pandas", "postgres"},
    description="Value per dollar by model and band, what of each account was used and what lapsed, what escalation "
    "saved against the best single model, and what more of each account would have been worth.",
)
def cost_effectiveness(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
    observations: ResourceParam[Observations],
) -> MaterializeResult[None]:
    """Add up the window that ends with the day, and store what was found."""
    from cp_core.learning.cost_effectiveness import CostEffectiveness, bought_by_band, escalation_savings
    from cp_resources.quota_history import QuotaHistory

    day, days = day_of(context), configuration.policies.learning.window_days
    first = day - timedelta(days=days - 1)
    attempts, quota = observations.window(day, days), QuotaHistory(database)
    found = CostEffectiveness(
        bought=bought_by_band(attempts, [band.at_least for band in configuration.policies.assignment.bands]),
        utilisation=quota.utilisation(first, day),
        escalation=escalation_savings(attempts),
        prices=quota.prices(first, day),
    )
    keep(context, database, configuration, found)
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(found.bought),
            "value by model and band": table(
                ["model", "band from", "attempts", "done", "value", "USD", "value per USD"],
                (
                    [row.model, row.band, row.attempts, row.succeeded, row.value, row.usd, row.value_per_usd]
                    for row in found.bought
                ),
            ),
            "value per USD": bars(
                _per_usd((row.model, row.value, row.usd) for row in found.bought),
                title="Value per dollar by model",
                axis="value points",
            ),
            "quota": table(
                ["account", "unit", "granted", "used", "lapsed", "unused"],
                (
                    [row.account, row.unit, row.granted, row.used, row.lapsed, row.unused]
                    for row in found.utilisation
                ),
            ),
            "saved by escalation in USD": found.saved_usd,
            "escalation": table(
                [
                    "complexity",
                    "tasks",
                    "success",
                    "USD a task",
                    "against",
                    "its success",
                    "its USD a task",
                    "saved",
                ],
                (
                    [
                        row.complexity,
                        row.tasks,
                        row.success,
                        row.usd_per_task,
                        row.alternative,
                        row.alternative_success,
                        row.alternative_usd_per_task,
                        row.saved_usd,
                    ]
                    for row in found.escalation
                ),
            ),
            "what more quota would be worth": lines(
                _by_account(found.prices),
                title="A dollar, or a million tokens, more",
                axis="value points",
            ),
        }
    )


def _per_usd(rows: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Value per dollar of each model, the best first."""
    value: dict[str, float] = {}
    paid: dict[str, float] = {}
    for model, worth, usd in rows:
        value[model] = value.get(model, 0.0) + worth
        paid[model] = paid.get(model, 0.0) + usd
    per_usd = {model: value[model] / paid[model] for model in value if paid[model] > 0}
    return dict(sorted(per_usd.items(), key=lambda item: -item[1]))


def _by_account(prices: "Iterable[Price]") -> Mapping[str, Mapping[date, float]]:
    by_account: dict[str, dict[date, float]] = {}
    for price in prices:
        by_account.setdefault(price.account, {})[price.day] = price.value
    return by_account


def _other_than_the_attempts(scope: Scope) -> Findings:
    """A number of attempts, or a cost, that is not that of the executions of the window."""
    from cp_core.learning.cost_effectiveness import CostEffectiveness

    found = kept(scope, NAME, CostEffectiveness)
    if found is None:
        return Findings.of([])
    return scope.search(
        """
        SELECT count(*) AS attempts, %(attempts)s::bigint AS attempts_found, sum(cost_usd) AS usd,
               %(usd)s::double precision AS usd_found
        FROM executions
        WHERE state NOT IN ('running', 'cancelled')
          AND submission_day > %(day)s::date - %(days)s::int AND submission_day <= %(day)s
        HAVING count(*) <> %(attempts)s::bigint
            OR abs(coalesce(sum(cost_usd), 0)::double precision - %(usd)s) > 1e-6 * (1 + %(usd)s)
        """,
        attempts=sum(row.attempts for row in found.bought),
        usd=sum(row.usd for row in found.bought),
        days=scope.configuration.policies.learning.window_days,
    )


def _lapsing(scope: Scope) -> Findings:
    """Accounts of which most was paid for and not used."""
    from cp_core.learning.cost_effectiveness import CostEffectiveness

    found = kept(scope, NAME, CostEffectiveness)
    return Findings.of(
        [
            {"account": row.account, "granted": row.granted, "lapsed": row.lapsed, "unused": row.unused}
            for row in (found.utilisation if found else ())
            if (row.unused or 0) > MOST_UNUSED
        ]
    )


MOST_UNUSED = 0.5
"""Share of an account's quota that may lapse before a person should look."""

cost_effectiveness_checks = checks_of(
    NAME,
    [
        Check(
            name="what_was_bought_equals_the_attempts",
            description="Attempts and cost over all models and bands are those of the window's executions.",
            search=_other_than_the_attempts,
        ),
        Check(
            name="most_quota_is_used",
            description="No account lets more than half of what it was granted in the window lapse unused.",
            search=_lapsing,
            severity=AssetCheckSeverity.WARN,
        ),
    ],
)
