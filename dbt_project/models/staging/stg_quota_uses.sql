-- One row a transfer that was made for a task: what it reserved, used or gave back.
select
    transfers.transfer_id,
    transfers.pending_id,
    transfers.phase,
    transfers.code,
    transfers.amount,
    accounts.account,
    accounts.unit,
    tasks.id as task,
    tasks.submission_day,
    transfers.created_at
from {{ source("cp", "quota_transfers") }} as transfers
inner join {{ source("cp", "quota_accounts") }} as accounts
    on accounts.account = transfers.debit_account and accounts.kind in ('window', 'budget', 'source')
inner join {{ source("cp", "tasks") }} as tasks on tasks.id = transfers.task
