{{ config(indexes=[{"columns": ["submission_day", "priority"], "unique": true}]) }}

with first_attempts as (
    select task, min(started_at) as started_at
    from {{ ref("stg_executions") }}
    where {{ of_the_day() }}
    group by task
),

deferrals as (
    select task, count(*) as times
    from {{ ref("stg_assignments") }}
    where outcome = 'deferred' and {{ of_the_day() }}
    group by task
)

select
    tasks.submission_day,
    tasks.priority,
    count(*) as tasks,
    {% for state in ["queued", "deferred", "assigned", "running", "succeeded", "failed", "cancelled", "dead"] -%}
    count(*) filter (where tasks.state = '{{ state }}') as {{ state }},
    {% endfor -%}
    count(*) filter (where tasks.attempts > 1) as retried,
    coalesce(sum(deferrals.times), 0) as deferrals,
    avg(scores.score) as score_mean,
    percentile_cont(0.5) within group (
        order by extract(epoch from first_attempts.started_at - tasks.submitted_at)
    ) as wait_p50_seconds,
    percentile_cont(0.95) within group (
        order by extract(epoch from first_attempts.started_at - tasks.submitted_at)
    ) as wait_p95_seconds
from {{ ref("stg_tasks") }} as tasks
left join {{ ref("stg_task_scores") }} as scores on scores.task = tasks.task
left join first_attempts on first_attempts.task = tasks.task
left join deferrals on deferrals.task = tasks.task
where {{ of_the_day("tasks.submission_day") }}
group by tasks.submission_day, tasks.priority
