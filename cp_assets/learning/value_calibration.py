"""Whether values go with outcomes, and what people correct in them."""

from dagster import (
    AssetCheckSeverity,
    AssetDep,
    AssetExecutionContext,
    MaterializeResult,
    ResourceParam,
    asset,
)

from cp_assets.checks import Check, Findings, Scope, checks_of
from cp_assets.learning.performance import performance_metrics
from cp_assets.partitions import LOOKS_BACK, ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bars, table
from cp_resources.configuration import Configuration
from cp_resources.database import Database

NAME = "value_calibration"


@asset(
    name=NAME,
    deps=[AssetDep(performance_metrics, partition_mapping=LOOKS_BACK)],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="learning",
    kinds={"python", "pandas", "postgres"},
    description="Success and quality by decile of value, and the weights of priorities, domains and risks after the "
    "scores that people overrode: each within a night's cap, risks only as far as a person approved.",
)
def value_calibration(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
) -> MaterializeResult[None]:
    """Learn from the window that ends with the day, and store what was found."""
    from cp_core.learning.ability import tells_of_model
    from cp_core.learning.value_calibration import calibrate_values
    from cp_resources.corrections import Corrections
    from cp_resources.learning_results import LearningResults
    from cp_resources.observations import Observations

    day, policy = day_of(context), configuration.policies.learning
    outcomes = Observations(database).window(day, policy.window_days)
    found = calibrate_values(
        outcomes[tells_of_model(outcomes["reason"])],
        Corrections(database).window(day, policy.window_days),
        configuration.scoring,
        max_change=policy.max_change,
        approved_risks=policy.approved_risk_factors,
    )
    LearningResults(database).write(
        day, NAME, found, config_hash=configuration.content_hash, run_id=context.run_id
    )
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
    from cp_resources.learning_results import LearningResults

    content = scope.day and LearningResults(scope.database).read(scope.day, NAME)
    falls = ValueCalibration.model_validate(content).falls if content else ()
    return Findings.of([{"outcome": measure} for measure in falls])


def _refused(scope: Scope) -> Findings:
    """Moved numbers that the rules of scoring do not allow."""
    from cp_core.learning.learned import Learned, LearnedError
    from cp_core.learning.value_calibration import ValueCalibration
    from cp_resources.learning_results import LearningResults

    content = scope.day and LearningResults(scope.database).read(scope.day, NAME)
    if not content:
        return Findings.of([])
    try:
        Learned(scoring=ValueCalibration.model_validate(content).scoring).apply_to(
            scope.configuration.scoring
        )
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
