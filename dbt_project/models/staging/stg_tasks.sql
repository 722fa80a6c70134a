select
    id as task,
    task_id,
    submission_day,
    submitted_at,
    state,
    reason,
    priority,
    workspace,
    deadline,
    model,
    attempts,
    max_attempts,
    available_at,
    state_changed_at
from {{ source("cp", "tasks") }}
