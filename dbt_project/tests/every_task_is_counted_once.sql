-- Days whose tasks by state do not add up to the tasks submitted.
{{ config(meta={"dagster": {"ref": {"name": "queue_health_per_day"}}}) }}

with counted as (
    select
        submission_day,
        sum(queued + deferred + assigned + running + succeeded + failed + cancelled + dead) as by_state,
        sum(tasks) as tasks
    from {{ ref("queue_health_per_day") }}
    where {{ day_filter() }}
    group by submission_day
),

submitted as (
    select submission_day, count(*) as tasks
    from {{ ref("stg_tasks") }}
    where {{ day_filter() }}
    group by submission_day
)

select submission_day
from counted
full join submitted using (submission_day)
where counted.by_state is distinct from submitted.tasks or counted.tasks is distinct from submitted.tasks
