"""Group `registry`: the models that may be used, what they cost, and the quota that pays for them."""

from collections.abc import Iterator, Mapping
from typing import Any

from dagster import MaterializeResult, ResourceParam, asset

from cp_assets.checks import Check, Findings, Scope, checks_of
from cp_assets.presentation import table
from cp_core.models.registry import Tier
from cp_resources.configuration import Configuration
from cp_resources.database import Database


@asset(
    group_name="registry",
    kinds={"yaml", "postgres"},
    description="The configured models, prices, subscriptions and budgets; the version in use is kept, and "
    "each quota window and budget has an account in the ledger.",
)
def model_registry(
    database: ResourceParam[Database], configuration: ResourceParam[Configuration]
) -> MaterializeResult[None]:
    """Remember this version of the configuration, and open its accounts."""
    from cp_resources.ledger import Ledger

    with database.transaction() as connection:
        configuration.remember(connection)
    ledger = Ledger(database)
    ledger.open_accounts(configuration.registry)
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(configuration.registry.models),
            "configuration": configuration.content_hash,
            "models": table(
                ["model", "provider", "tier", "USD/M in", "USD/M cached", "USD/M out", "context", "enabled"],
                (
                    (
                        model.name,
                        model.provider,
                        model.tier,
                        model.input_usd_per_million,
                        model.cached_input_usd_per_million,
                        model.output_usd_per_million,
                        model.context_window,
                        model.enabled,
                    )
                    for model in sorted(configuration.registry.models.values(), key=lambda m: m.tier.rank)
                ),
            ),
            "quota": table(
                ["account", "unit", "limit", "used", "reserved", "available", "state", "window ends"],
                (
                    (
                        account.account,
                        account.unit,
                        account.limit,
                        account.used,
                        account.pending,
                        account.available,
                        account.state,
                        account.window_ends_at,
                    )
                    for account in ledger.accounts()
                ),
            ),
        }
    )


def _tiers_without_model(scope: Scope) -> Findings:
    tiers = {model.tier for model in scope.configuration.registry.models.values() if model.enabled}
    return Findings.of([{"tier": tier} for tier in Tier if tier not in tiers])


def _free_models(scope: Scope) -> Findings:
    return Findings.of(list(_without_price(scope.configuration)))


def _without_price(configuration: Configuration) -> Iterator[Mapping[str, Any]]:
    for model in configuration.registry.models.values():
        if model.enabled and not (model.input_usd_per_million > 0 and model.output_usd_per_million > 0):
            yield {
                "model": model.name,
                "usd_per_million_in": model.input_usd_per_million,
                "usd_per_million_out": model.output_usd_per_million,
            }


def _accounts_not_open(scope: Scope) -> Findings:
    terms = scope.configuration.registry.accounts()
    return scope.search(
        """
        SELECT declared.account, declared.quota_limit AS declared_limit, opened.quota_limit AS opened_limit
        FROM unnest(%(accounts)s::text[], %(limits)s::numeric[]) AS declared (account, quota_limit)
        LEFT JOIN quota_accounts AS opened USING (account)
        WHERE opened.quota_limit IS DISTINCT FROM declared.quota_limit
        """,
        accounts=[declared.account for declared in terms],
        limits=[declared.limit for declared in terms],
    )


model_registry_checks = checks_of(
    "model_registry",
    [
        Check(
            name="every_tier_has_a_model",
            description="Each tier that the policy may choose has at least one enabled model.",
            blocking=True,
            search=_tiers_without_model,
        ),
        Check(
            name="prices_are_positive",
            description="Every enabled model costs something; else cost, and value per dollar, mean nothing.",
            blocking=True,
            search=_free_models,
        ),
        Check(
            name="every_account_is_open",
            description="Each declared quota window and budget has its account, with the declared limit.",
            blocking=True,
            search=_accounts_not_open,
        ),
    ],
)
