"""Group `assignment`: which model does which task, and what pays for it."""

from dagster import AssetExecutionContext, MaterializeResult, ResourceParam, asset

from cp_assets.checks import Check, checks_of
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bars, counts, table
from cp_assets.queue import scored_tasks
from cp_assets.registry import model_registry
from cp_resources.configuration import Configuration
from cp_resources.database import Database

_BY_OUTCOME = """
    SELECT outcome || coalesce(': ' || reason, ''), count(*)
    FROM assignments WHERE submission_day = %s GROUP BY 1 ORDER BY 2 DESC, 1
"""
_BY_MODEL = """
    SELECT model, funding, count(*), sum(expected_cost_usd)
    FROM assignments WHERE submission_day = %s AND outcome = 'assigned'
    GROUP BY model, funding ORDER BY 3 DESC, 1, 2
"""


@asset(
    deps=[model_registry, scored_tasks],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="assignment",
    kinds={"python", "numpy", "postgres"},
    description="The decision about each task of a day: its model and what pays for it, reserved in the "
    "ledger, or why there is none, with the explanation.",
)
def assignments(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
) -> MaterializeResult[None]:
    """Decide the day's tasks that wait for a decision."""
    from cp_resources.assigner import Assigner
    from cp_resources.ledger import Ledger

    day = day_of(context)
    ledger = Ledger(database)
    summary = Assigner(database, ledger, configuration).assign_day(day, run_id=context.run_id)
    context.log.info(str(summary))

    by_outcome = dict(database.fetch(_BY_OUTCOME, [day]))
    by_model = database.fetch(_BY_MODEL, [day])
    per_model: dict[str, float] = {}
    for model, _, tasks, _ in by_model:
        per_model[model] = per_model.get(model, 0) + tasks
    return MaterializeResult(
        metadata={
            "dagster/row_count": sum(by_outcome.values()),
            "this run": str(summary),
            "by outcome": counts("outcome", by_outcome),
            "by model": table(["model", "paid by", "decisions", "expected USD"], by_model),
            "tasks by model": bars(per_model, title="Decisions by model", axis="decisions"),
            "quota left": table(
                ["account", "unit", "available", "limit", "state"],
                (
                    (account.account, account.unit, account.available, account.limit, account.state)
                    for account in ledger.accounts()
                ),
            ),
            "configuration": configuration.content_hash,
        }
    )


assignments_checks = checks_of(
    "assignments",
    [
        Check(
            name="tier_conforms_to_band",
            description="Every task was given a model of a tier that the written policy allows its score.",
            blocking=True,
            search="""
                SELECT task_id, decided.model, tier, score, band -> 'tiers' AS allowed
                FROM assignments AS decided
                JOIN tasks ON tasks.id = decided.task
                JOIN config_versions AS version USING (config_hash)
                CROSS JOIN LATERAL (
                    SELECT (explanation ->> 'value_score')::float8 AS score,
                           content #>> ARRAY['models', 'models', decided.model, 'tier'] AS tier
                ) AS decision
                CROSS JOIN LATERAL (
                    SELECT band FROM jsonb_array_elements(content #> '{policies,assignment,bands}') AS band
                    WHERE (band ->> 'at_least')::float8 <= score
                    ORDER BY (band ->> 'at_least')::float8 DESC LIMIT 1
                ) AS bands
                WHERE outcome = 'assigned' AND strategy = 'tiered' AND NOT band -> 'tiers' ? tier
                  AND decided.submission_day = coalesce(%(day)s, decided.submission_day)
            """,
        ),
        Check(
            name="context_fits",
            description="The upper end of a task's token estimate fits its model's context window.",
            blocking=True,
            search="""
                SELECT task_id, decided.model, input_high + output_high AS needed, context_window
                FROM assignments AS decided
                JOIN tasks ON tasks.id = decided.task
                JOIN task_scores ON task_scores.task = decided.task
                JOIN config_versions AS version ON version.config_hash = decided.config_hash
                CROSS JOIN LATERAL (
                    SELECT (content #>> ARRAY['models', 'models', decided.model, 'context_window'])::bigint
                           AS context_window
                ) AS model
                WHERE outcome = 'assigned' AND input_high + output_high > context_window
                  AND decided.submission_day = coalesce(%(day)s, decided.submission_day)
            """,
        ),
        Check(
            name="one_live_assignment_per_task",
            description="An assigned or running task points to its own newest decision, and names its model.",
            blocking=True,
            search="""
                SELECT task_id, state, tasks.assignment, newest.id AS newest_assignment,
                       tasks.model, newest.model AS newest_model
                FROM tasks
                LEFT JOIN LATERAL (
                    SELECT id, model FROM assignments
                    WHERE task = tasks.id AND outcome = 'assigned' ORDER BY id DESC LIMIT 1
                ) AS newest ON true
                WHERE state IN ('assigned', 'running')
                  AND (tasks.assignment, tasks.model) IS DISTINCT FROM (newest.id, newest.model)
                  AND submission_day = coalesce(%(day)s, submission_day)
            """,
        ),
        Check(
            name="every_assignment_is_reserved",
            description="What an assigned task is expected to use was reserved in the ledger.",
            blocking=True,
            search="""
                SELECT task_id, assignments.id AS assignment, funding
                FROM tasks JOIN assignments ON assignments.id = tasks.assignment
                WHERE state IN ('assigned', 'running')
                  AND (cardinality(transfers) = 0 OR EXISTS (
                      SELECT FROM unnest(transfers) AS transfer
                      LEFT JOIN quota_transfers ON transfer_id = transfer AND phase = 'pending'
                      WHERE transfer_id IS NULL
                  ))
                  AND tasks.submission_day = coalesce(%(day)s, tasks.submission_day)
            """,
        ),
        Check(
            name="no_account_is_overdrawn",
            description="No quota window or budget has more used and reserved than it was granted.",
            blocking=True,
            search="""
                SELECT account, credits_posted AS granted, debits_posted AS used, debits_pending AS reserved
                FROM quota_accounts
                WHERE kind IN ('window', 'budget') AND credits_posted - debits_posted - debits_pending < 0
            """,
        ),
    ],
)
