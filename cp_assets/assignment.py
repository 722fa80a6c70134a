"""Group `assignment`: which model does which task, and what pays for it."""

from datetime import date
from typing import Any

from dagster import (
    AssetCheckSeverity,
    AssetExecutionContext,
    MaterializeResult,
    ResourceParam,
    asset,
)

from cp_assets.checks import DECLARED_MODELS, Check, Findings, Scope, checks_of
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bars, counts, table
from cp_assets.queue import scored_tasks
from cp_assets.registry import model_registry
from cp_core.assignment.strategies import Strategy
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
_ROUND = """
    SELECT strategy, objective, bound, gap, prices, alternatives
    FROM assignment_batches WHERE submission_day = %s
    ORDER BY run_id IS NOT DISTINCT FROM %s DESC, tasks DESC, decided_at DESC LIMIT 1
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
            **_proof(database, day, context.run_id),
        }
    )


def _proof(database: Database, day: date, run_id: str) -> dict[str, Any]:
    """How near to the best the largest round of the run was, its prices, and what other strategies would have given.

    The written policy asks for no prices: what is shown are those of the best assignment, and what it left of that.
    """
    found = database.fetch(_ROUND, [day, run_id])
    if not found:
        return {}
    [(decided_by, objective, bound, gap, prices, alternatives)] = found
    judged = alternatives["tasks" if decided_by == Strategy.TIERED else "of"]
    return {
        "gap": gap,
        "bound": bound,
        "value captured": bars(
            {"nothing exceeds": bound, decided_by: objective},
            title=f"Value captured against the bound, {judged:,} tasks",
            axis="value points",
        ),
        "prices": bars(
            dict(_unit_price(account, price) for account, price in prices.items()),
            title="What more quota would be worth",
            axis="value points",
        ),
        "strategies compared": table(
            ["strategy", "assigned", "value", "successes", "list USD", "billed USD", "tokens", "seconds"],
            (
                [
                    strategy.value,
                    *(one[key] for key in ("assigned", "value", "successes", "list_usd", "billed_usd")),
                    round(one["tokens"]),
                    one["seconds"],
                ]
                for strategy in Strategy
                if (one := alternatives["strategies"].get(strategy))
            ),
        ),
        "compared on": f"{alternatives['tasks']:,} of {alternatives['of']:,} tasks",
    }


def _unit_price(account: str, price: float) -> tuple[str, float]:
    """The account with a unit that people count in, and the price of one."""
    if account.startswith("budget/"):
        return f"{account}, a dollar", price
    return f"{account}, a million tokens", price * 1e6


def _starving(scope: Scope) -> Findings:
    """Tasks that were outbid, or passed over by a round, when they should have been served first."""
    policies = scope.configuration.policies
    return scope.search(
        """
        SELECT task_id, submitted_at, reason, available_at
        FROM tasks
        CROSS JOIN LATERAL (
            SELECT submitted_at + make_interval(secs => %(overdue_seconds)s) AS overdue_at,
                   available_at - make_interval(secs => %(defer_seconds)s) AS looked_at
        ) AS times
        WHERE state IN ('queued', 'deferred') AND reason IN ('OUTBID', 'COST_ABOVE_VALUE')
          AND (looked_at > overdue_at OR EXISTS (
              SELECT FROM assignment_batches AS round
              WHERE round.submission_day = tasks.submission_day
                AND round.decided_at > greatest(overdue_at, available_at) + interval '5 minutes'
          ))
          AND submission_day = coalesce(%(day)s, submission_day)
        """,
        overdue_seconds=policies.fairness.overdue_hours * 3600,
        defer_seconds=policies.assignment.defer_seconds,
    )


assignments_checks = checks_of(
    "assignments",
    [
        Check(
            name="tier_conforms_to_band",
            description="Every task was given a model of a tier that the written policy allows its score, or of one "
            "beside those where the policy was relaxed.",
            blocking=True,
            search=f"""
                WITH declared AS MATERIALIZED ({DECLARED_MODELS}),
                bands AS MATERIALIZED (
                    SELECT config_hash, (band ->> 'at_least')::float8 AS at_least, band -> 'tiers' AS tiers,
                           lead((band ->> 'at_least')::float8, 1, 101) OVER higher AS below
                    FROM config_versions,
                         jsonb_array_elements(content #> '{{policies,assignment,bands}}') AS band
                    WINDOW higher AS (PARTITION BY config_hash ORDER BY (band ->> 'at_least')::float8)
                ),
                decided AS (
                    SELECT task, model, config_hash, tier, explanation,
                           (explanation ->> 'value_score')::float8 AS score
                    FROM assignments JOIN declared USING (config_hash, model)
                    WHERE outcome = 'assigned' AND strategy = 'tiered'
                      AND submission_day = coalesce(%(day)s, submission_day)
                )
                SELECT task_id, decided.model, tier, score, tiers AS allowed
                FROM decided
                JOIN bands USING (config_hash)
                JOIN tasks ON tasks.id = decided.task
                WHERE score >= at_least AND score < below AND NOT tiers ? tier
                  AND NOT (explanation ? 'tiers_either_side' AND explanation #> '{{band,tiers}}' ? tier)
            """,
        ),
        Check(
            name="context_fits",
            description="The upper end of a task's token estimate fits the context window of every model of its plan.",
            blocking=True,
            search=f"""
                WITH declared AS MATERIALIZED ({DECLARED_MODELS})
                SELECT task_id, stage.model, input_high + output_high AS needed, context_window
                FROM assignments AS decided
                CROSS JOIN LATERAL jsonb_to_recordset(plan) AS stage (model text)
                JOIN declared ON declared.config_hash = decided.config_hash AND declared.model = stage.model
                JOIN task_scores ON task_scores.task = decided.task
                JOIN tasks ON tasks.id = decided.task
                WHERE outcome = 'assigned' AND input_high + output_high > context_window
                  AND decided.submission_day = coalesce(%(day)s, decided.submission_day)
            """,
        ),
        Check(
            name="one_live_assignment_per_task",
            description="An assigned or running task points to its own newest decision, and names the model of the "
            "stage that its plan stands at.",
            blocking=True,
            search="""
                SELECT task_id, state, tasks.assignment, newest.id AS newest_assignment,
                       tasks.model, newest.model AS newest_model
                FROM tasks
                LEFT JOIN LATERAL (
                    SELECT id, plan -> tasks.stage ->> 'model' AS model FROM assignments
                    WHERE task = tasks.id AND outcome = 'assigned' ORDER BY id DESC LIMIT 1
                ) AS newest ON true
                WHERE state IN ('assigned', 'running')
                  AND (tasks.assignment, tasks.model) IS DISTINCT FROM (newest.id, newest.model)
                  AND submission_day = coalesce(%(day)s, submission_day)
            """,
        ),
        Check(
            name="no_task_is_assigned_twice",
            description="No task holds quota under two decisions at once.",
            blocking=True,
            search="""
                SELECT task_id, count(DISTINCT decided.id) AS decisions
                FROM assignments AS decided
                JOIN tasks ON tasks.id = decided.task
                JOIN quota_transfers AS held ON held.reservation = decision_id AND held.phase = 'pending'
                WHERE outcome = 'assigned'
                  AND NOT EXISTS (SELECT FROM quota_transfers WHERE pending_id = held.transfer_id)
                  AND decided.submission_day = coalesce(%(day)s, decided.submission_day)
                GROUP BY task_id HAVING count(DISTINCT decided.id) > 1
            """,
        ),
        Check(
            name="gap_is_within_bound",
            description="No round of the solver left more of its bound than the policy allows. Below 1,000 tasks the "
            "gap may be what whole tasks cannot avoid: one task of 100 points an account that has a price.",
            severity=AssetCheckSeverity.WARN,
            search="""
                SELECT id::text AS round, strategy, tasks, gap, allowed
                FROM assignment_batches
                JOIN config_versions USING (config_hash)
                CROSS JOIN LATERAL (
                    SELECT coalesce((content #>> '{policies,assignment,most_gap}')::float8, 0.005) AS most_gap,
                           (SELECT count(*) FROM jsonb_each(prices) WHERE value::float8 > 0) AS priced
                ) AS policy
                CROSS JOIN LATERAL (
                    SELECT CASE
                        WHEN tasks >= 10000 THEN most_gap / 5
                        WHEN tasks >= 1000 THEN most_gap
                        ELSE greatest(most_gap, 100 * priced / nullif(bound, 0))
                    END AS allowed
                ) AS threshold
                WHERE gap > allowed AND strategy <> 'tiered' AND submission_day = coalesce(%(day)s, submission_day)
            """,
        ),
        Check(
            name="nothing_starves",
            description="A task that has waited fairness.overdue_hours is served before all that have not: none is "
            "outbid, and no round passes it over.",
            search=_starving,
        ),
        Check(
            name="every_assignment_is_reserved",
            description="What an assigned task is expected to use was reserved in the ledger.",
            blocking=True,
            search="""
                SELECT task_id, assignments.id AS assignment, funding
                FROM tasks JOIN assignments ON assignments.id = tasks.assignment
                WHERE state IN ('assigned', 'running')
                  AND NOT EXISTS (
                      SELECT FROM quota_transfers WHERE reservation = decision_id AND phase = 'pending'
                  )
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
