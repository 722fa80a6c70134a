select
    id as assignment,
    decision_id,
    task,
    submission_day,
    decided_at,
    strategy,
    outcome,
    reason,
    model,
    funding,
    expected_cost_usd,
    config_hash,
    run_id
from {{ source("cp", "assignments") }}
