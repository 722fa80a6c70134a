{{ config(indexes=[{"columns": ["submission_day", "model"], "unique": true}]) }}

select
    submission_day,
    model,
    count(*) as attempts,
    count(distinct task) as tasks,
    count(*) filter (where has_succeeded) as succeeded,
    -- an attempt that a person called off says nothing of its model
    count(*) filter (where has_succeeded)::double precision
    / nullif(count(*) filter (where state <> 'cancelled'), 0) as success_rate,
    avg(quality) as quality_mean,
    sum(input_tokens)::bigint as input_tokens,
    sum(cached_tokens)::bigint as cached_tokens,
    sum(output_tokens)::bigint as output_tokens,
    sum(cost_usd) as cost_usd,
    sum(billed_usd) as billed_usd,
    coalesce(sum(score) filter (where has_succeeded), 0) as value_delivered,
    percentile_cont(0.5) within group (order by latency_ms) as latency_p50_ms,
    percentile_cont(0.95) within group (order by latency_ms) as latency_p95_ms
from {{ ref("executions") }}
where state <> 'running' and {{ of_the_day() }}
group by submission_day, model
