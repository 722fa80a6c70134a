"""What the experiments of a day have come to."""

from typing import TYPE_CHECKING

from dagster import (
    AssetCheckSeverity,
    AssetExecutionContext,
    AssetKey,
    MarkdownMetadataValue,
    MaterializeResult,
    ResourceParam,
    asset,
)

from cp_assets.checks import Check, checks_of
from cp_assets.learning.nightly import keep
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bands, table
from cp_resources.configuration import Configuration
from cp_resources.database import Database

if TYPE_CHECKING:
    from cp_core.learning.experiments.verdict import ExperimentResult


@asset(
    deps=[AssetKey("execution_outcomes")],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="learning",
    kinds={"python", "numpy", "postgres"},
    description="Every experiment that was under way on a day, as it stood at the day's end: units by arm, the "
    "difference of each metric with its confidence sequence, and what to do. Nothing is ended by this.",
)
def experiment_results(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
) -> MaterializeResult[None]:
    """Look at the day's experiments, and put what is found in place of what was stored."""
    from cp_resources.experiments import Experiments

    found = Experiments(database).results(day_of(context))
    keep(context, database, configuration, found)
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(found.experiments),
            "units": sum(sum(one.exposed.values()) for one in found.experiments),
            "verdicts": table(
                ["experiment", "day", "verdict", "because", "sample ratio p"],
                (
                    (one.experiment, one.days, one.verdict.value, one.reason, one.sample_ratio_p)
                    for one in found.experiments
                ),
            ),
            "units by arm": table(
                ["experiment", "arm", "units"],
                ((one.experiment, *given) for one in found.experiments for given in one.exposed.items()),
            ),
            "comparisons": table(
                [
                    "experiment",
                    "arm",
                    "metric",
                    "control",
                    "mean",
                    "difference",
                    "low",
                    "high",
                    "p",
                    "proven",
                ],
                (
                    (
                        one.experiment,
                        each.arm,
                        each.measure.value,
                        each.control_mean,
                        each.mean,
                        each.difference,
                        each.low,
                        each.high,
                        each.p_value,
                        each.is_proven,
                    )
                    for one in found.experiments
                    for each in one.comparisons
                ),
            ),
            **{
                f"{one.experiment}: {measure}": _sequences(one, measure)
                for one in found.experiments
                for measure in dict.fromkeys(each.measure.value for each in one.comparisons)
            },
        }
    )


def _sequences(result: "ExperimentResult", measure: str) -> MarkdownMetadataValue:
    of_measure = [one for one in result.comparisons if one.measure == measure]
    days = sorted({point.day for one in of_measure for point in one.sequence})
    return bands(
        days,
        {
            one.arm: [(point.difference, point.low, point.high) for point in one.sequence]
            for one in of_measure
        },
        title=f"{result.experiment}: {measure} over the control",
        axis="difference",
    )


experiment_results_checks = checks_of(
    "experiment_results",
    [
        Check(
            name="arms_got_the_units_they_were_promised",
            description="No running experiment has a sample ratio that its weights do not explain.",
            severity=AssetCheckSeverity.WARN,
            search="""
                SELECT day, one ->> 'experiment' AS experiment, one -> 'exposed' AS units,
                       (one ->> 'sample_ratio_p')::float8 AS p
                FROM learning_results CROSS JOIN jsonb_array_elements(content -> 'experiments') AS one
                WHERE asset = 'experiment_results' AND NOT (one ->> 'has_right_ratio')::bool
                  AND day = coalesce(%(day)s, day)
            """,
        ),
        Check(
            name="no_unit_has_two_experiments_of_a_layer",
            description="No task was given arms of two experiments of one layer while both were running.",
            search="""
                SELECT one.unit AS task_id, one.experiment, other.experiment AS other
                FROM exposures AS one
                JOIN exposures AS other ON other.unit = one.unit AND other.experiment > one.experiment
                JOIN experiments AS a ON a.experiment = one.experiment
                JOIN experiments AS b ON b.experiment = other.experiment AND b.layer = a.layer
                WHERE a.started_at < coalesce(b.ended_at, 'infinity')
                  AND b.started_at < coalesce(a.ended_at, 'infinity')
                  AND one.exposed_at::date = coalesce(%(day)s, one.exposed_at::date)
            """,
        ),
        Check(
            name="every_arm_is_one_of_its_experiment",
            description="Every exposure names an arm that its experiment defines.",
            search="""
                SELECT unit AS task_id, experiment, arm
                FROM exposures JOIN experiments USING (experiment)
                WHERE NOT EXISTS (
                    SELECT FROM jsonb_array_elements(definition -> 'arms') AS one WHERE one ->> 'name' = arm
                )
                  AND exposed_at::date = coalesce(%(day)s, exposed_at::date)
            """,
        ),
    ],
)
