"""How likely each model's work is good enough, as a table that predictions read."""

import math
from collections.abc import Sequence

from dagster import AssetExecutionContext, MaterializeResult, ResourceParam, asset

from cp_assets.checks import Check, checks_of
from cp_assets.learning.performance import performance_metrics
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bars, table
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.observations import Observations


@asset(
    deps=[performance_metrics],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="learning",
    kinds={"python", "scikitlearn", "postgres"},
    description="The probability that a model's work is good enough, by model, domain and complexity, from the "
    "estimates of the window that ends with the day; with what it is worth on tasks that it was not made from. And "
    "what texts say beside it, where they predict later days better than the table alone.",
)
def success_model(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
    observations: ResourceParam[Observations],
) -> MaterializeResult[None]:
    """Make the table of the day, and judge it."""
    from cp_core.learning.decay import WINDOW_DAYS
    from cp_core.learning.estimates import estimate_performance
    from cp_core.learning.success_cells import find_success
    from cp_resources.champion import ConfigurationStore
    from cp_resources.learning_results import LearningResults
    from cp_resources.text_learning import learn_from_texts

    day = day_of(context)
    outcomes = observations.window(day, WINDOW_DAYS)
    in_force = ConfigurationStore(database).in_force_before(day, configuration.files)
    texts = learn_from_texts(database, day, outcomes, in_force)
    found = find_success(estimate_performance(outcomes), outcomes)
    found = found.model_copy(update={"texts": texts})
    LearningResults(database).write(
        day, "success_model", found, config_hash=configuration.content_hash, run_id=context.run_id
    )
    rows = [
        (model, domain.value, complexity.value, round(rate, 4))
        for model, domains in found.cells.items()
        for domain, complexities in domains.items()
        for complexity, rate in complexities.items()
    ]
    quality = found.quality
    sizes = {model: _size(weights) for model, weights in texts.success.items()}
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(rows),
            "observations": len(outcomes),
            "cells": table(["model", "domain", "complexity", "success"], rows),
            "effective n": bars(
                dict(found.effective_n), title="Attempts behind each model, weighed by age", axis="attempts"
            ),
            "calibration": table(
                ["predicted", "came"],
                zip(quality.predicted, quality.observed, strict=True) if quality else (),
            ),
            "texts": texts.says,
            "trait model": texts.trait_model or "none",
            "what texts say": bars(
                sizes,
                title="How far the traits of a text move each model",
                axis="log-odds a trait, all together",
            ),
            "kind alone, and kind and text, on later days": table(
                ["measure", "kind", "kind and text"],
                [
                    (name, *pair)
                    for name, pair in (("AUC", texts.auc), ("Brier score", texts.brier))
                    if pair is not None
                ],
            ),
            **(
                {"Brier score": quality.brier, "calibration error": quality.calibration_error}
                if quality
                else {}
            ),
            **({"AUC": quality.auc} if quality and quality.auc is not None else {}),
        }
    )


def _size(weights: Sequence[float]) -> float:
    return math.hypot(*weights)


success_model_checks = checks_of(
    "success_model",
    [
        Check(
            name="every_estimated_model_has_a_table",
            description="The table has each model that performance was estimated for on the day, and no other.",
            search="""
                SELECT day, estimated.model, learned.model AS model_of_table
                FROM (
                    SELECT DISTINCT day, model FROM performance_estimates WHERE day = coalesce(%(day)s, day)
                ) AS estimated
                FULL JOIN (
                    SELECT day, jsonb_object_keys(content -> 'cells') AS model FROM learning_results
                    WHERE asset = 'success_model' AND day = coalesce(%(day)s, day)
                ) AS learned USING (day, model)
                WHERE (estimated.model IS NULL OR learned.model IS NULL)
                  AND day IN (SELECT day FROM learning_results WHERE asset = 'success_model')
            """,
        ),
        Check(
            name="probabilities_are_neither_nought_nor_one",
            description="Every learned probability lies between 0.001 and 0.999: nothing is certain.",
            search="""
                SELECT day, model.key AS model, domain.key AS domain, complexity.key AS complexity, complexity.value
                FROM learning_results,
                     jsonb_each(content -> 'cells') AS model,
                     jsonb_each(model.value) AS domain,
                     jsonb_each(domain.value) AS complexity
                WHERE asset = 'success_model' AND day = coalesce(%(day)s, day)
                  AND NOT complexity.value::float8 BETWEEN 0.001 AND 0.999
            """,
        ),
    ],
)
