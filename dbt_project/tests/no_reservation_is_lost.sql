-- Accounts for which what tasks reserved is not what they used of it, gave back or still hold, by the transfers.
{{ config(meta={"dagster": {"ref": {"name": "quota_use_per_day"}}}) }}

with transfers as (
    select
        submission_day,
        account,
        sum(amount) filter (where phase = 'pending') as reserved,
        sum(amount) filter (where phase in ('post', 'single')) as used
    from {{ ref("stg_quota_uses") }}
    where {{ day_filter() }} and phase <> 'void'
    group by submission_day, account
),

mart as (
    select * from {{ ref("quota_use_per_day") }} where {{ day_filter() }}
)

select submission_day, account, mart.reserved, transfers.reserved as reserved_by_transfers
from mart
full join transfers using (submission_day, account)
where
    mart.reserved is distinct from coalesce(transfers.reserved, 0)
    or mart.used is distinct from coalesce(transfers.used, 0)
    or mart.returned < 0
