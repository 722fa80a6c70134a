-- Attempts that the mart lacks, and answered attempts whose figures differ from what was recorded. An attempt that
-- was under way, or began, while the mart was built is neither; a lost one may still be charged late.
{{ config(meta={"dagster": {"ref": {"name": "executions"}}}) }}

with recorded as (
    select * from {{ ref("stg_executions") }} where {{ day_filter() }}
),

mart as (
    select * from {{ ref("executions") }} where {{ day_filter() }}
)

select recorded.execution
from recorded
left join mart on mart.execution = recorded.execution
where
    recorded.execution <= (select max(execution) from mart)
    and (
        mart.execution is null
        or (
            mart.state in ('succeeded', 'failed', 'cancelled')
            and (mart.state, mart.input_tokens, mart.output_tokens, mart.cost_usd)
            is distinct from
            (recorded.state, recorded.input_tokens, recorded.output_tokens, recorded.cost_usd)
        )
    )
