"""What models take against the estimate of tasks."""

from dagster import (
    AssetCheckSeverity,
    AssetExecutionContext,
    MaterializeResult,
    ResourceParam,
)

from cp_assets.checks import Check, Findings, Scope, checks_of
from cp_assets.learning.nightly import keep, kept, nightly
from cp_assets.partitions import day_of
from cp_assets.presentation import bars, table
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.observations import Observations

NAME = "token_calibration"


@nightly(
    NAME,
    kinds={"python", "scikitlearn", "postgres"},
    description="Input and output tokens of each model and domain against the estimate of tasks: mean and median "
    "factors, 80 % intervals and their coverage, and the estimate's bases, each within a night's cap.",
)
def token_calibration(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
    observations: ResourceParam[Observations],
) -> MaterializeResult[None]:
    """Learn from the window that ends with the day, and store what was found."""
    from cp_core.learning.token_calibration import calibrate_tokens
    from cp_resources.champion import ConfigurationStore

    day, policy = day_of(context), configuration.policies.learning
    outcomes = observations.window(day, policy.window_days)
    found = calibrate_tokens(
        outcomes,
        configuration.learned.calibration,
        configuration.scoring,
        max_change=policy.max_change,
        bases_of=ConfigurationStore(database).scoring_of(outcomes["config_hash"].dropna().unique()),
    )
    keep(context, database, configuration, found)
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(found.cells),
            "attempts": found.attempts,
            "cut off": found.censored,
            "factors": table(
                [
                    "model",
                    "domain",
                    "tokens",
                    "attempts",
                    "cut off",
                    "mean",
                    "median",
                    "low",
                    "high",
                    "coverage",
                ],
                (
                    [
                        cell.model,
                        cell.domain.value,
                        cell.kind,
                        cell.attempts,
                        cell.censored,
                        cell.factors.mean,
                        cell.factors.median,
                        cell.factors.low,
                        cell.factors.high,
                        cell.coverage,
                    ]
                    for cell in found.cells
                ),
            ),
            "coverage of 80 % intervals": bars(
                {
                    f"{row.kind}, {row.domain.value if row.domain else 'all'}": row.share
                    for row in found.coverage
                },
                title="Share of unseen attempts inside their interval",
                axis="share",
                upto=1,
            ),
            "bases": table(["number of scoring.yaml", "moved to"], found.scoring.items()),
        }
    )


def _off_target(scope: Scope) -> Findings:
    """Domains whose intervals miss more, or fewer, attempts than they should."""
    from cp_core.learning.token_calibration import TokenCalibration

    found = kept(scope, NAME, TokenCalibration)
    tolerance = scope.configuration.policies.learning.coverage_tolerance
    return Findings.of(
        [
            {
                "tokens": row.kind,
                "domain": row.domain.value if row.domain else "all",
                "attempts": row.attempts,
                "inside": row.share,
            }
            for row in (found.coverage if found else ())
            if abs(row.share - 0.8) > tolerance + 2 * (0.16 / row.attempts) ** 0.5
        ]
    )


def _cut_off(scope: Scope) -> Findings:
    """Too many attempts of which only a lower bound is known."""
    from cp_core.learning.token_calibration import TokenCalibration

    found, most = (
        kept(scope, NAME, TokenCalibration),
        scope.configuration.policies.learning.max_censored_share,
    )
    if found is None or found.censored <= most * found.attempts:
        return Findings.of([])
    return Findings.of([{"attempts": found.attempts, "cut off": found.censored, "share allowed": most}])


token_calibration_checks = checks_of(
    NAME,
    [
        Check(
            name="intervals_cover_four_of_five",
            description="In every domain 80 % intervals hold about 80 % of attempts that they had not seen: "
            "within the tolerance of the policy and two standard errors.",
            search=_off_target,
            severity=AssetCheckSeverity.WARN,
        ),
        Check(
            name="few_attempts_were_cut_off",
            description="Of most attempts it is known what they took: where many were cut off, means rest on the "
            "tail that is assumed.",
            search=_cut_off,
            severity=AssetCheckSeverity.WARN,
        ),
    ],
)
