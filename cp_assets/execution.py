"""Group `execution`: what came of each task."""

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckSeverity,
    AssetExecutionContext,
    Config,
    MaterializeResult,
    ResourceParam,
    asset,
)
from pydantic import Field

from cp_assets.assignment import assignments
from cp_assets.checks import DECLARED_MODELS, Check, Findings, Scope, checks_of
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bars, counts, table
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.settings import Settings

if TYPE_CHECKING:
    from cp_core.execution.prompt_cache import CacheSummary
    from cp_resources.worker import DrainSummary

PROGRESS_SECONDS = 10

_BY_STATE = "SELECT state, count(*) FROM tasks WHERE submission_day = %s GROUP BY state ORDER BY 2 DESC, 1"
_BY_REASON = """
    SELECT reason, count(*) FROM executions
    WHERE submission_day = %s AND reason IS NOT NULL GROUP BY reason ORDER BY 2 DESC, 1
"""
_LEFT_ALONE = """
    SELECT provider, model, state, reason, retry_at FROM breakers WHERE state <> 'closed' ORDER BY 1
"""
_BY_MODEL = """
    SELECT model, count(*), count(*) FILTER (WHERE state = 'succeeded'), avg(quality), sum(input_tokens),
           sum(cached_tokens), sum(output_tokens), sum(cost_usd), sum(billed_usd)
    FROM executions WHERE submission_day = %s AND state <> 'running' GROUP BY model ORDER BY 2 DESC, 1
"""
_BY_STAGE = """
    SELECT stage + 1, count(*), count(*) FILTER (WHERE state = 'succeeded'),
           count(*) FILTER (WHERE reason = 'LOW_QUALITY'), avg(quality), sum(input_tokens + output_tokens),
           sum(cost_usd), sum(billed_usd)
    FROM executions WHERE submission_day = %s AND state <> 'running' GROUP BY stage ORDER BY stage
"""


class DrainConfig(Config):
    """How long one run may work on its day."""

    time_budget_seconds: float = Field(
        default=600, gt=0, description="What is not done by then is left to the next run."
    )


@asset(
    deps=[assignments],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="execution",
    kinds={"python", "http", "postgres"},
    description="Every attempt at a task of a day, with its tokens, cost, quality and evidence, and where "
    "the task stands after it. Materializing it executes the assigned tasks.",
)
def execution_outcomes(
    context: AssetExecutionContext,
    config: DrainConfig,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
    settings: ResourceParam[Settings],
) -> MaterializeResult[None]:
    """Execute the day's tasks until none is left that can move, or the time budget ends."""
    from cp_resources.assigner import Assigner
    from cp_resources.ledger import Ledger
    from cp_resources.scores import ScoreStore
    from cp_resources.worker import drain

    day = day_of(context)
    ledger = Ledger(database)
    scores = ScoreStore(database)
    assigner = Assigner(database, ledger, configuration)

    def assign_again() -> None:
        """Decide what came back for another model, and what was submitted since the run began."""
        scores.score_day(day, configuration)
        assigner.assign_day(day, run_id=context.run_id)

    summary = drain(
        database,
        ledger,
        configuration,
        settings,
        day,
        worker_name=f"run-{context.run_id[:8]}",
        time_budget=timedelta(seconds=config.time_budget_seconds),
        run_id=context.run_id,
        on_progress=_Progress(context),
        assign_again=assign_again,
    )

    by_model = database.fetch(_BY_MODEL, [day])
    return MaterializeResult(
        metadata={
            "dagster/row_count": sum(attempts for _, attempts, *_ in by_model),
            "attempts in this run": summary.attempts,
            "why this run ended": str(summary.ended),
            "seconds in this run": round(summary.seconds, 1),
            "cost in USD": float(sum(row[7] for row in by_model)),
            "tasks by state": counts("state", dict(database.fetch(_BY_STATE, [day]))),
            "models left alone now": table(
                ["provider", "model", "state", "reason", "tried from"], database.fetch(_LEFT_ALONE)
            ),
            "failed attempts by reason": counts("reason", dict(database.fetch(_BY_REASON, [day]))),
            "by model": table(
                [
                    "model",
                    "attempts",
                    "succeeded",
                    "quality",
                    "input",
                    "cached",
                    "output",
                    "USD",
                    "billed USD",
                ],
                by_model,
            ),
            "by stage": table(
                ["stage", "attempts", "succeeded", "low quality", "quality", "tokens", "USD", "billed USD"],
                database.fetch(_BY_STAGE, [day]),
            ),
            "escalated in this run": summary.escalated,
            **_prompt_cache(summary.cache),
            "successes by model": bars(
                {model: succeeded for model, _, succeeded, *_ in by_model},
                title="Successful attempts by model",
                axis="attempts",
            ),
        }
    )


def _prompt_cache(cache: "CacheSummary") -> dict[str, Any]:
    """What prompt caching came to in this run."""
    return {
        "prompt cache": table(
            ["", "in this run"],
            [
                ("tokens read", cache.read_tokens),
                ("tokens written", cache.written_tokens),
                ("USD saved, at list price", round(cache.saved_usd, 6)),
                ("USD paid more for writing, at list price", round(cache.surcharge_usd, 6)),
                ("calls that went first with a prefix", cache.primed),
                ("calls that waited for one", cache.waited),
            ],
        ),
        "prompts not cached: what they share is too short": table(
            ["model", "shared tokens", "minimum"],
            [(model, prefix.tokens, prefix.minimum) for model, prefix in sorted(cache.too_short.items())],
        ),
    }


class _Progress:
    """Writes how far the drain is into the run's log, every few seconds."""

    def __init__(self, context: AssetExecutionContext) -> None:
        self._log = context.log
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, summary: "DrainSummary") -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROGRESS_SECONDS
        eta = "" if summary.eta_seconds is None else f", about {summary.eta_seconds:,.0f} s left"
        states = ", ".join(f"{count:,} {state}" for state, count in sorted(summary.moved_to.items()))
        self._log.info(
            f"{summary.attempts:,} attempts in {summary.seconds:,.0f} s "
            f"({60 * summary.attempts / max(summary.seconds, 1):,.0f} a minute), {summary.cost_usd:.4f} USD; "
            f"tasks went to: {states}; {sum(summary.open.values()):,} were open{eta}"
        )


def _ledger_differences(scope: Scope) -> Findings:
    from cp_resources.ledger import Ledger

    report = Ledger(scope.database).verify()
    return Findings.of([{"difference": str(difference)} for difference in report.differences])


def _wrong_costs(scope: Scope) -> Findings:
    """Attempts whose cost fits neither the configuration they were decided by nor the one in use now."""
    return scope.search(
        f"""
        WITH declared AS MATERIALIZED ({DECLARED_MODELS}),
        priced AS (
            SELECT executions.id, executions.task, attempt, executions.model, cost_usd,
                   (
                       (input_tokens - cached_tokens - cache_write_tokens) * input_usd_per_million
                       + cached_tokens * cached_input_usd_per_million
                       + cache_write_tokens * cache_write_usd_per_million
                       + output_tokens * output_usd_per_million
                   ) / 1e6 AS tokens_times_price
            FROM executions
            JOIN assignments ON assignments.id = executions.assignment
            LEFT JOIN declared ON declared.model = executions.model
                AND declared.config_hash IN (assignments.config_hash, %(current)s)
            WHERE executions.submission_day = coalesce(%(day)s, executions.submission_day)
        )
        SELECT task_id, attempt, priced.model, cost_usd, min(tokens_times_price) AS tokens_times_price
        FROM priced JOIN tasks ON tasks.id = priced.task
        GROUP BY priced.id, task_id, attempt, priced.model, cost_usd
        HAVING coalesce(min(abs(cost_usd - tokens_times_price)) > 1e-9, true)
        """,
        current=scope.configuration.content_hash,
    )


execution_outcomes_checks = checks_of(
    "execution_outcomes",
    [
        Check(
            name="every_task_is_final_or_waits",
            description="What could have been executed a minute ago has been; else the time budget ended. "
            "Tasks that came too late to be scored in the run are the next run's.",
            severity=AssetCheckSeverity.WARN,
            search="""
                SELECT task_id, state, reason, available_at FROM tasks
                WHERE greatest(available_at, state_changed_at) < now() - interval '1 minute'
                  AND EXISTS (SELECT FROM task_scores WHERE task = tasks.id)
                  AND (state IN ('queued', 'assigned')
                       OR (state = 'running' AND lease_expires_at < now() - interval '1 minute'))
                  AND submission_day = coalesce(%(day)s, submission_day)
            """,
        ),
        Check(
            name="what_waits_says_why",
            description="Every deferred, failed or dead task has its reason.",
            search="""
                SELECT task_id, state, state_changed_at FROM tasks
                WHERE state IN ('deferred', 'failed', 'dead') AND reason IS NULL
                  AND submission_day = coalesce(%(day)s, submission_day)
            """,
        ),
        Check(
            name="ended_tasks_hold_no_quota",
            description="Whatever was reserved for a task that has ended was used or given back.",
            search="""
                SELECT task_id, state, pending.debit_account AS account, pending.amount
                FROM tasks
                JOIN quota_transfers AS pending ON pending.task = tasks.id AND pending.phase = 'pending'
                LEFT JOIN quota_transfers AS resolution ON resolution.pending_id = pending.transfer_id
                WHERE state IN ('succeeded', 'failed', 'cancelled', 'dead') AND resolution.transfer_id IS NULL
                  AND submission_day = coalesce(%(day)s, submission_day)
            """,
        ),
        Check(
            name="cost_is_tokens_times_price",
            description="Each attempt costs its tokens at the list prices of its configuration.",
            search=_wrong_costs,
        ),
        Check(
            name="ledger_is_balanced",
            description="Every account's balance is what its transfers add up to, and debits equal credits.",
            search=_ledger_differences,
        ),
    ],
)
