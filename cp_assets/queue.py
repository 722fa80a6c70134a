"""Group `queue`: the tasks of a day, and what each is worth."""

from dagster import (
    AssetCheckSeverity,
    AssetExecutionContext,
    MaterializeResult,
    ResourceParam,
    asset,
)

from cp_assets.checks import Check, checks_of
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bars, counts, histogram, table
from cp_resources.configuration import Configuration
from cp_resources.database import Database

SCORE_BIN = 5

_BY_STATE = "SELECT state, count(*) FROM tasks WHERE submission_day = %s GROUP BY state ORDER BY 2 DESC, 1"
_BY_PRIORITY = """
    SELECT 'P' || priority, count(*) FROM tasks WHERE submission_day = %s GROUP BY priority ORDER BY priority
"""
_BY_WORKSPACE = """
    SELECT workspace, count(*), min(submitted_at), max(submitted_at)
    FROM tasks WHERE submission_day = %s GROUP BY workspace ORDER BY 2 DESC, 1 LIMIT 20
"""
_SCORED = """
    SELECT count(*), count(override_score), coalesce(sum(input_mean), 0), coalesce(sum(output_mean), 0)
    FROM task_scores WHERE submission_day = %s
"""
_BY_DOMAIN = """
    SELECT domain, count(*) FROM task_scores WHERE submission_day = %s GROUP BY domain ORDER BY 2 DESC, 1
"""
_BY_COMPLEXITY = """
    SELECT complexity, count(*) FROM task_scores WHERE submission_day = %s
    GROUP BY complexity ORDER BY min(complexity_factor)
"""
_BY_RISK = "SELECT risk, count(*) FROM task_scores WHERE submission_day = %s GROUP BY risk ORDER BY 2 DESC, 1"
_BY_SCORE = f"""
    SELECT least(floor(effective_score / {SCORE_BIN}) * {SCORE_BIN}, {100 - SCORE_BIN}),
           count(*)
    FROM task_scores WHERE submission_day = %s GROUP BY 1 ORDER BY 1
"""


@asset(
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="queue",
    kinds={"postgres", "table"},
    description="The tasks submitted on a day, as intake stored them, and where each stands now.",
)
def task_queue(context: AssetExecutionContext, database: ResourceParam[Database]) -> MaterializeResult[None]:
    """Observe the day's tasks; intake wrote them."""
    day = day_of(context)
    by_state = dict(database.fetch(_BY_STATE, [day]))
    by_priority = dict(database.fetch(_BY_PRIORITY, [day]))
    return MaterializeResult(
        metadata={
            "dagster/row_count": sum(by_state.values()),
            "by state": counts("state", by_state),
            "by priority": counts("priority", by_priority),
            "priorities": bars(by_priority, title="Tasks by priority", axis="tasks"),
            "by workspace": table(
                ["workspace", "tasks", "first", "last"], database.fetch(_BY_WORKSPACE, [day])
            ),
        }
    )


@asset(
    deps=[task_queue],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="queue",
    kinds={"python", "pandas", "postgres"},
    description="The value score (0 to 100) and token estimate of each task of a day, with every factor.",
)
def scored_tasks(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
) -> MaterializeResult[None]:
    """Score the day's tasks that have no score yet; a score that stands is not changed here."""
    from cp_resources.scores import ScoreStore

    day = day_of(context)
    newly_scored = ScoreStore(database).score_day(day, configuration)
    context.log.info(f"scored {newly_scored:,} tasks")

    [(tasks, overridden, input_tokens, output_tokens)] = database.fetch(_SCORED, [day])
    return MaterializeResult(
        metadata={
            "dagster/row_count": tasks,
            "scored in this run": newly_scored,
            "overridden by a person": overridden,
            "expected input tokens": round(input_tokens),
            "expected output tokens": round(output_tokens),
            "by domain": counts("domain", dict(database.fetch(_BY_DOMAIN, [day]))),
            "by complexity": counts("complexity", dict(database.fetch(_BY_COMPLEXITY, [day]))),
            "by risk": counts("risk", dict(database.fetch(_BY_RISK, [day]))),
            "value scores": histogram(
                dict(database.fetch(_BY_SCORE, [day])),
                title="Tasks by value score",
                axis="value score",
                width=SCORE_BIN,
                upto=100,
            ),
            "configuration": configuration.content_hash,
        }
    )


task_queue_checks = checks_of(
    "task_queue",
    [
        Check(
            name="every_task_has_its_payload",
            description="Each task has the title and description that scoring and execution read.",
            blocking=True,
            search="""
                SELECT task_id, state FROM tasks LEFT JOIN task_payloads ON task_payloads.task = tasks.id
                WHERE task_payloads.task IS NULL AND submission_day = coalesce(%(day)s, submission_day)
            """,
        ),
        Check(
            name="dependencies_are_known",
            description="Every dependency of an open task has been submitted; else the task waits for ever.",
            severity=AssetCheckSeverity.WARN,
            search="""
                SELECT waiting.task_id, dependency AS unknown_dependency
                FROM tasks AS waiting, unnest(waiting.dependencies) AS dependency
                WHERE waiting.state IN ('queued', 'deferred', 'assigned')
                  AND waiting.submission_day = coalesce(%(day)s, waiting.submission_day)
                  AND NOT EXISTS (SELECT FROM tasks AS known WHERE known.task_id = dependency)
            """,
        ),
        Check(
            name="no_dependency_cycle",
            description="No open task waits for itself through others: none of them could ever start.",
            search="""
                WITH RECURSIVE waits AS (
                    SELECT task_id AS start, dependency
                    FROM tasks, unnest(dependencies) AS dependency
                    WHERE state IN ('queued', 'deferred')
                      AND submission_day = coalesce(%(day)s, submission_day)
                    UNION
                    SELECT waits.start, next_one
                    FROM waits
                    JOIN tasks ON tasks.task_id = waits.dependency AND state IN ('queued', 'deferred')
                    CROSS JOIN unnest(tasks.dependencies) AS next_one
                )
                SELECT start AS task_id FROM waits WHERE start = dependency
            """,
        ),
        Check(
            name="no_lease_is_stuck",
            description="No task is held by a worker that stopped renewing its lease over 5 minutes ago.",
            severity=AssetCheckSeverity.WARN,
            search="""
                SELECT task_id, lease_owner, lease_expires_at FROM tasks
                WHERE state = 'running' AND lease_expires_at < now() - interval '5 minutes'
                  AND submission_day = coalesce(%(day)s, submission_day)
            """,
        ),
    ],
)

scored_tasks_checks = checks_of(
    "scored_tasks",
    [
        Check(
            name="every_open_task_is_scored",
            description="No open task has waited for its score for longer than a minute.",
            blocking=True,
            search="""
                SELECT task_id, state, state_changed_at AS waits_since
                FROM tasks LEFT JOIN task_scores ON task_scores.task = tasks.id
                WHERE task_scores.task IS NULL AND state IN ('queued', 'deferred', 'assigned', 'running')
                  AND state_changed_at < now() - interval '1 minute'
                  AND tasks.submission_day = coalesce(%(day)s, tasks.submission_day)
            """,
        ),
        Check(
            name="score_follows_from_its_factors",
            description="score = clamp((priority x complexity + time bonus) x domain x risk, 0, 100)",
            blocking=True,
            search="""
                SELECT task_id, score, recomputed
                FROM task_scores
                JOIN tasks ON tasks.id = task_scores.task
                CROSS JOIN LATERAL (
                    SELECT least(100, greatest(0,
                        (priority_points * complexity_factor + time_bonus) * domain_factor * risk_factor
                    )) AS recomputed
                )
                WHERE abs(score - recomputed) > 1e-6
                  AND task_scores.submission_day = coalesce(%(day)s, task_scores.submission_day)
            """,
        ),
        Check(
            name="estimates_are_ordered",
            description="0 < low <= median <= high, and low <= mean <= high, for input and output tokens.",
            blocking=True,
            search="""
                SELECT task_id, input_low, input_median, input_mean, input_high,
                       output_low, output_median, output_mean, output_high
                FROM task_scores JOIN tasks ON tasks.id = task_scores.task
                WHERE NOT (
                    0 < input_low AND input_low <= input_median AND input_median <= input_high
                    AND input_mean BETWEEN input_low AND input_high
                    AND 0 < output_low AND output_low <= output_median AND output_median <= output_high
                    AND output_mean BETWEEN output_low AND output_high
                ) AND task_scores.submission_day = coalesce(%(day)s, task_scores.submission_day)
            """,
        ),
        Check(
            name="queue_carries_the_effective_score",
            description="The queue is ordered by a person's override, or else by the computed score.",
            blocking=True,
            search="""
                SELECT task_id, value_score, effective_score
                FROM task_scores JOIN tasks ON tasks.id = task_scores.task
                WHERE value_score IS DISTINCT FROM effective_score
                  AND (value_score IS NOT NULL OR state IN ('assigned', 'running'))
                  AND task_scores.submission_day = coalesce(%(day)s, task_scores.submission_day)
            """,
        ),
    ],
)
