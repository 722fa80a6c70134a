-- Days whose cost, tokens or attempts by model do not add up to those of the attempts.
{{ config(meta={"dagster": {"ref": {"name": "models_per_day"}}}) }}

with by_model as (
    select submission_day, sum(attempts) as attempts, sum(input_tokens) as input_tokens, sum(cost_usd) as cost_usd
    from {{ ref("models_per_day") }}
    where {{ day_filter() }}
    group by submission_day
),

by_attempt as (
    select submission_day, count(*) as attempts, sum(input_tokens) as input_tokens, sum(cost_usd) as cost_usd
    from {{ ref("executions") }}
    where state <> 'running' and {{ day_filter() }}
    group by submission_day
)

select submission_day
from by_model
full join by_attempt using (submission_day, attempts, input_tokens, cost_usd)
where by_model is null or by_attempt is null
