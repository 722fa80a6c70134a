{{ config(indexes=[{"columns": ["execution"], "unique": true}, {"columns": ["submission_day"]}]) }}

select
    executions.execution,
    executions.submission_day,
    executions.task,
    tasks.task_id,
    executions.attempt,
    executions.stage,
    executions.model,
    executions.provider,
    executions.funding,
    executions.state,
    executions.has_succeeded,
    executions.reason,
    tasks.state as task_state,
    tasks.priority,
    tasks.workspace,
    scores.domain,
    scores.complexity,
    scores.risk,
    scores.score,
    scores.expected_input_tokens,
    scores.expected_output_tokens,
    executions.input_tokens,
    executions.cached_tokens,
    executions.cache_write_tokens,
    executions.output_tokens,
    executions.cost_usd,
    executions.billed_usd,
    executions.latency_ms,
    executions.quality,
    executions.started_at,
    executions.finished_at
from {{ ref("stg_executions") }} as executions
inner join {{ ref("stg_tasks") }} as tasks on tasks.task = executions.task
inner join {{ ref("stg_task_scores") }} as scores on scores.task = executions.task
where {{ of_the_day("executions.submission_day") }}
