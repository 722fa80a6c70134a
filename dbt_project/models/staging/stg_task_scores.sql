select
    task,
    submission_day,
    complexity,
    domain,
    risk,
    score as computed_score,
    effective_score as score,
    override_score is not null as is_overridden,
    input_mean as expected_input_tokens,
    output_mean as expected_output_tokens,
    scored_at
from {{ source("cp", "task_scores") }}
