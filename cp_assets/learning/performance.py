"""What the outcomes of a day say of each model."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dagster import AssetExecutionContext, AssetKey, MaterializeResult, ResourceParam, asset

from cp_assets.checks import Check, checks_of
from cp_assets.learning.drift import DRIFT_CHECKS
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bars, table
from cp_resources.database import Database
from cp_resources.observations import Observations

if TYPE_CHECKING:
    import pandas as pd


@asset(
    deps=[AssetKey(["marts", "executions"])],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="learning",
    kinds={"python", "pandas", "postgres"},
    description="Success, quality, tokens against estimate, cost, value per dollar and latency of each "
    "model, by domain and complexity and as a whole: plain over the tasks submitted on a day, and as estimates over "
    "the window that ends with it, in which outcomes fade, small groups are shrunk and each number has an interval.",
)
def performance_metrics(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    observations: ResourceParam[Observations],
) -> MaterializeResult[None]:
    """Measure the day anew, and put it in place of what was stored."""
    from cp_core.learning.decay import WINDOW_DAYS
    from cp_core.learning.estimates import estimate_performance
    from cp_core.learning.performance import ALL, measure_performance
    from cp_core.learning.ranking import rank_models
    from cp_resources.performance import PerformanceStore

    day = day_of(context)
    store = PerformanceStore(database)
    metrics = measure_performance(store.attempts(day))
    store.replace_day(day, metrics)
    estimates = estimate_performance(observations.window(day, WINDOW_DAYS))
    store.replace_estimates(day, estimates)
    ranking = rank_models(estimates, ALL, ALL)

    models = metrics[metrics["domain"] == ALL].sort_values("value_delivered", ascending=False)
    judged = models.dropna(subset=["quality_mean"])
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(metrics),
            "attempts": int(models["attempts"].sum()),
            "cost in USD": float(models["cost_usd"].sum()),
            "value delivered": float(models["value_delivered"].sum()),
            "estimates": len(estimates),
            "ranking": table(*_columns_of(ranking, _RANKING)),
            "best": bars(
                dict(zip(ranking["model"], ranking["probability_best"], strict=True)),
                title="Probability that no model succeeds more often",
                axis="probability",
                upto=1,
            ),
            "value by model": table(*_columns_of(models, _VALUE)),
            "estimates and latency by model": table(*_columns_of(models, _ESTIMATES)),
            "quality by model": bars(
                dict(zip(judged["model"], judged["quality_mean"], strict=True)),
                title="Mean quality by model",
                axis="quality",
                upto=10,
            ),
        }
    )


_VALUE = {
    "model": "model",
    "attempts": "attempts",
    "success_rate": "success",
    "quality_mean": "quality",
    "cost_usd": "USD",
    "value_delivered": "value",
    "value_per_usd": "value per USD",
}
_RANKING = {
    "model": "model",
    "success": "success",
    "low": "low",
    "high": "high",
    "probability_best": "probability of being best",
    "effective_n": "effective n",
}
_ESTIMATES = {
    "model": "model",
    "input_error_ratio": "input, actual over estimate",
    "output_error_ratio": "output, actual over estimate",
    "latency_p50_ms": "p50 ms",
    "latency_p95_ms": "p95 ms",
}


def _columns_of(
    models: "pd.DataFrame", shown: Mapping[str, str]
) -> tuple[list[str], Iterable[tuple[Any, ...]]]:
    """Some columns of a frame under the names they are shown by, and their rows."""
    return list(shown.values()), models[list(shown)].itertuples(index=False, name=None)


performance_metrics_checks = checks_of(
    "performance_metrics",
    [
        Check(
            name="every_model_with_attempts_is_measured",
            description="A model with an ended attempt has its row as a whole, and no other model has.",
            search="""
                SELECT submission_day, model, made.attempts, measured.attempts AS measured_attempts
                FROM (
                    SELECT submission_day, model, count(*) AS attempts FROM marts.executions
                    WHERE state NOT IN ('running', 'cancelled') AND submission_day = coalesce(%(day)s, submission_day)
                    GROUP BY submission_day, model
                ) AS made
                FULL JOIN (
                    SELECT day AS submission_day, model, attempts
                    FROM performance_metrics
                    WHERE domain = 'all' AND complexity = 'all' AND day = coalesce(%(day)s, day)
                ) AS measured USING (submission_day, model)
                WHERE made.attempts IS DISTINCT FROM measured.attempts
            """,
        ),
        Check(
            name="cells_add_up",
            description="Attempts, successes, tokens and cost of a model's cells add up to its whole.",
            search="""
                SELECT day, model, whole.attempts, cells.attempts AS attempts_of_cells,
                       whole.cost_usd, cells.cost_usd AS cost_of_cells
                FROM (
                    SELECT day, model, sum(attempts) AS attempts, sum(succeeded) AS succeeded,
                           sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
                           sum(cost_usd) AS cost_usd
                    FROM performance_metrics WHERE domain <> 'all' AND day = coalesce(%(day)s, day)
                    GROUP BY day, model
                ) AS cells
                FULL JOIN (
                    SELECT * FROM performance_metrics WHERE domain = 'all' AND day = coalesce(%(day)s, day)
                ) AS whole USING (day, model)
                WHERE (cells.attempts, cells.succeeded) IS DISTINCT FROM (whole.attempts, whole.succeeded)
                   OR (cells.input_tokens, cells.output_tokens, cells.cost_usd)
                      IS DISTINCT FROM (whole.input_tokens, whole.output_tokens, whole.cost_usd)
            """,
        ),
        Check(
            name="cost_and_tokens_equal_the_attempts",
            description="What the models of a day cost and used is what its attempts did, to the last digit.",
            search="""
                SELECT submission_day, made.cost_usd, measured.cost_usd AS measured_cost_usd,
                       made.tokens, measured.tokens AS measured_tokens
                FROM (
                    SELECT submission_day, sum(cost_usd) AS cost_usd,
                           sum(input_tokens + output_tokens) AS tokens
                    FROM marts.executions
                    WHERE state NOT IN ('running', 'cancelled') AND submission_day = coalesce(%(day)s, submission_day)
                    GROUP BY submission_day
                ) AS made
                FULL JOIN (
                    SELECT day AS submission_day, sum(cost_usd) AS cost_usd,
                           sum(input_tokens + output_tokens) AS tokens
                    FROM performance_metrics WHERE domain = 'all' AND day = coalesce(%(day)s, day)
                    GROUP BY day
                ) AS measured USING (submission_day)
                WHERE (made.cost_usd, made.tokens) IS DISTINCT FROM (measured.cost_usd, measured.tokens)
            """,
        ),
        Check(
            name="rates_are_within_their_scale",
            description="Success rates lie within 0 and 1, qualities within 0 and 10; no ratio is negative.",
            search="""
                SELECT day, model, domain, complexity, success_rate, quality_mean,
                       input_error_ratio, output_error_ratio
                FROM performance_metrics
                WHERE NOT (
                    success_rate BETWEEN 0 AND 1 AND coalesce(quality_mean, 0) BETWEEN 0 AND 10
                    AND coalesce(input_error_ratio, 0) >= 0 AND coalesce(output_error_ratio, 0) >= 0
                ) AND day = coalesce(%(day)s, day)
            """,
        ),
        *DRIFT_CHECKS,
    ],
)
