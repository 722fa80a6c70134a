"""Whether values go with outcomes, and what people correct in them."""

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

NAME = "value_calibration"


@nightly(
    NAME,
    kinds={"python", "pandas", "postgres"},
    description="Success and quality by decile of value, and the weights of priorities, domains and risks after the "
    "scores that people overrode: each within a night's cap, risks only as far as a person approved.",
)
def value_calibration(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
    observations: ResourceParam[Observations],
) -> MaterializeResult[None]:
    """Learn from the window that ends with the day, and store what was found."""
    from cp_core.learning.value_calibration import calibrate_values
    from cp_resources.corrections import Corrections

    day, policy = day_of(context), configuration.policies.learning
    found = calibrate_values(
        observations.window(day, policy.window_days),
        Corrections(database).window(day, policy.window_days),
        configuration.scoring,
        max_change=policy.max_change,
        approved_risks=policy.approved_risk_factors,
    )
    keep(context, database, configuration, found)
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(found.proposals),
            "tasks": found.tasks,
            "scores that people overrode": found.corrections,
            "outcomes by value": table(
                ["from", "to", "attempts", "success", "quality"],
                ([row.low, row.high, row.attempts, row.success, row.quality] for row in found.deciles),
            ),
            "success by value": bars(
                {f"{row.low:.0f} to {row.high:.0f}": row.success for row in found.deciles},
                title="Success by decile of value",
                axis="success",
                upto=1,
            ),
            "rank correlation with value": table(
                ["outcome", "attempts", "correlation", "low", "high"],
                ([row.measure, row.attempts, row.value, row.low, row.high] for row in found.correlations),
            ),
            "what corrections say": table(
                ["number of scoring.yaml", "in force", "proposed", "low", "high", "tasks", "needs approval"],
                (
                    [
                        row.key,
                        row.in_force,
                        row.proposed,
                        row.low,
                        row.high,
                        row.tasks,
                        "yes" if row.needs_approval else "",
                    ]
                    for row in found.proposals
                ),
            ),
            "moved to": table(["number of scoring.yaml", "moved to"], found.scoring.items()),
        }
    )


def _falling(scope: Scope) -> Findings:
    """Outcomes that get worse from a decile of value to the next."""
    from cp_core.learning.value_calibration import ValueCalibration

    found = kept(scope, NAME, ValueCalibration)
    return Findings.of([{"outcome": measure} for measure in (found.falls if found else ())])


def _refused(scope: Scope) -> Findings:
    """Moved numbers that the rules of scoring do not allow."""
    from cp_core.learning.learned import Learned, LearnedError
    from cp_core.learning.value_calibration import ValueCalibration

    found = kept(scope, NAME, ValueCalibration)
    try:
        Learned(scoring=found.scoring if found else {}).apply_to(scope.configuration.scoring)
    except LearnedError as error:
        return Findings.of([{"problem": str(error)}])
    return Findings.of([])


value_calibration_checks = checks_of(
    NAME,
    [
        Check(
            name="outcomes_do_not_fall_with_value",
            description="Success and quality do not get worse, beyond chance, from a decile of value to the next: "
            "where they do, the most valuable tasks are given to models that are not up to them.",
            search=_falling,
            severity=AssetCheckSeverity.WARN,
        ),
        Check(
            name="moved_weights_fit_the_rules",
            description="Weights as moved are ones that scoring.yaml could have: priorities and risks in order.",
            search=_refused,
        ),
    ],
)
