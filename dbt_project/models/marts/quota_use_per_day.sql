{{ config(indexes=[{"columns": ["submission_day", "account"], "unique": true}]) }}

with reservations as (
    select
        pending.submission_day,
        pending.account,
        pending.unit,
        pending.task,
        pending.amount as reserved,
        case when resolved.phase = 'post' then resolved.amount else 0 end as used,
        0::numeric as overrun,
        resolved.transfer_id is null as is_open
    from {{ ref("stg_quota_uses") }} as pending
    left join {{ ref("stg_quota_uses") }} as resolved
        on resolved.pending_id = pending.transfer_id
    where pending.phase = 'pending' and {{ of_the_day("pending.submission_day") }}
),

overruns as (
    select submission_day, account, unit, task, 0::numeric as reserved, amount as used, amount as overrun, false as is_open
    from {{ ref("stg_quota_uses") }}
    where phase = 'single' and {{ of_the_day() }}
),

uses as (
    select * from reservations
    union all
    select * from overruns
)

select
    submission_day,
    account,
    unit,
    count(distinct task) as tasks,
    sum(reserved) as reserved,
    sum(used) as used,
    sum(overrun) as overrun,
    coalesce(sum(reserved) filter (where is_open), 0) as still_reserved,
    sum(reserved) - coalesce(sum(reserved) filter (where is_open), 0) - sum(used - overrun) as returned
from uses
group by submission_day, account, unit
