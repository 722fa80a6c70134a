"""The SQL of claims, leases and outcomes: what `cp_resources.executions` sends, with why it is written so.

Statements that find a task by its primary key do not name its state: the planner would start from the partial
index of that state instead. They name what only that state has: the owner of the lease, the attempt.
"""

from __future__ import annotations

from typing import LiteralString

from cp_resources.outbox import completed_notices

# Value with aging: every ten minutes since its submission are worth one point. As all tasks age alike their order never
# changes, so an index holds it. A task of value v goes before all that are submitted (100 - v) x 10 minutes after it,
# however valuable they are: nothing waits behind newer tasks for more than 16 h 40 min of submissions.
RANK: LiteralString = "t.value_score - date_part('epoch', timezone('UTC', t.submitted_at)) / 600"

# Asked again at the claim: what a task waited for may have been sent back since it was assigned.
DEPENDENCIES_HOLD: LiteralString = """
    (t.dependencies IS NULL OR NOT EXISTS (
        SELECT FROM unnest(t.dependencies) AS wanted (task_id)
        LEFT JOIN cp.tasks d USING (task_id)
        WHERE d.state IS DISTINCT FROM 'succeeded'
    ))
"""

# Of a task `t`, the attempts made under its current decision. A first attempt need not be counted.
ATTEMPTS_OF_DECISION: LiteralString = (
    "(SELECT count(*) FROM cp.executions e WHERE e.task = t.id AND e.assignment = t.assignment)"
)

# Planning a claim anew takes a tenth of its time, and always gives the same plan. Left to itself, the planner takes the
# general one for dearer, as it reckons with more models.
PLAN_ONCE: LiteralString = "SET LOCAL plan_cache_mode = force_generic_plan"

# One index descent a model, so that a model whose slots are taken costs nothing.
_BEST: LiteralString = f"""
    SELECT t.id, {RANK} AS rank
    FROM cp.tasks t
    WHERE t.state = 'assigned' AND t.submission_day = %(day)s AND t.model = free.model
        AND t.available_at <= clock_timestamp()
        AND (t.deadline IS NULL OR t.deadline > clock_timestamp() OR NOT %(enforce)s)
        AND {DEPENDENCIES_HOLD}
"""
_IN_ORDER: LiteralString = f"ORDER BY {RANK} DESC, t.id"

# How many of each model are among the best is looked up first, so that no more are locked than are taken: what one
# worker locks, the others pass over. Where others hold so many that a share cannot be had, the rest comes from what
# is left of any model. The fences make sure that each inner scan runs, and locks, only once; the array, that the
# update goes by the primary key.
CLAIM: LiteralString = f"""
WITH free AS MATERIALIZED (
    SELECT *
    FROM unnest(%(models)s::text[], %(slots)s::int[], %(providers)s::text[]) AS f (model, slots, provider)
),
shares AS MATERIALIZED (
    SELECT best.model, count(*) AS slots
    FROM (
        SELECT free.model
        FROM free CROSS JOIN LATERAL ({_BEST} {_IN_ORDER} LIMIT free.slots) AS waiting
        ORDER BY waiting.rank DESC, waiting.id
        LIMIT %(limit)s
    ) AS best
    GROUP BY best.model
),
foremost AS MATERIALIZED (
    SELECT free.model, locked.id, locked.rank
    FROM shares AS free
    CROSS JOIN LATERAL ({_BEST} {_IN_ORDER} LIMIT free.slots FOR NO KEY UPDATE SKIP LOCKED) AS locked
),
rest AS MATERIALIZED (
    SELECT locked.id, locked.rank
    FROM (
        SELECT model, least(
            slots - (SELECT count(*) FROM foremost WHERE foremost.model = f.model),
            %(limit)s - (SELECT count(*) FROM foremost)
        ) AS slots
        FROM free AS f
    ) AS free
    CROSS JOIN LATERAL (
        {_BEST} AND t.id <> ALL (ARRAY(SELECT id FROM foremost))
        {_IN_ORDER} LIMIT free.slots FOR NO KEY UPDATE SKIP LOCKED
    ) AS locked
),
candidates AS (
    SELECT id, rank FROM foremost UNION ALL SELECT id, rank FROM rest
),
picked AS MATERIALIZED (
    SELECT id FROM candidates ORDER BY rank DESC, id LIMIT %(limit)s
),
claimed AS (
    UPDATE cp.tasks t
    SET state = 'running', attempts = t.attempts + 1, reason = NULL,
        lease_owner = %(worker)s,
        lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s),
        state_changed_at = clock_timestamp()
    WHERE t.id = ANY (ARRAY(SELECT id FROM picked))
    RETURNING t.id, t.task_id, t.submission_day, t.attempts, t.stage, t.model, t.assignment, t.workspace,
        t.deadline, {RANK} AS rank
),
planned AS MATERIALIZED (
    SELECT t.*, free.provider, a.decision_id, a.plan -> t.stage AS stage_of_plan, a.expected_cost_usd,
        CASE WHEN t.attempts = 1 THEN 1 ELSE {ATTEMPTS_OF_DECISION} + 1 END AS decision_attempt
    FROM claimed t
    JOIN free ON free.model = t.model
    JOIN cp.assignments a ON a.id = t.assignment
),
begun AS (
    INSERT INTO cp.executions
        (task, assignment, submission_day, attempt, stage, model, provider, funding, worker, run_id, started_at)
    SELECT id, assignment, submission_day, attempts, stage, model, provider, stage_of_plan ->> 'funding',
        %(worker)s, %(run_id)s, clock_timestamp()
    FROM planned
    RETURNING id, task, provider, funding, started_at
)
SELECT c.id, c.task_id, b.id, c.attempts::int, c.decision_id, c.decision_attempt, c.model, b.provider, b.funding,
    coalesce(c.stage_of_plan -> 'needs', c.stage_of_plan -> 'amounts')::text,
    p.title, p.description, c.workspace, p.labels, s.output_high,
    CASE WHEN %(enforce)s THEN extract(epoch FROM c.deadline - clock_timestamp())::float8 END,
    %(run_id)s::text, c.stage::int,
    CASE WHEN %(hand_on)s AND c.stage > 0 THEN (
        SELECT e.output FROM cp.executions e
        WHERE e.task = c.id AND e.assignment = c.assignment AND e.stage < c.stage AND e.output IS NOT NULL
        ORDER BY e.attempt DESC LIMIT 1
    ) END,
    b.started_at, s.input_mean + s.output_mean, c.expected_cost_usd
FROM planned c
JOIN begun b ON b.task = c.id
JOIN cp.task_payloads p ON p.task = c.id
JOIN cp.task_scores s ON s.task = c.id
ORDER BY c.rank DESC, c.id
"""

# Locked in the order of their ids, as everywhere: who cancels the same tasks meanwhile waits, and neither is undone.
HEARTBEAT: LiteralString = """
WITH held AS MATERIALIZED (
    SELECT t.id, t.attempts
    FROM unnest(%(tasks)s::bigint[], %(attempts)s::int[]) AS claimed (id, attempt)
    JOIN cp.tasks t ON t.id = claimed.id AND t.attempts = claimed.attempt
    WHERE t.lease_owner = %(worker)s
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
)
UPDATE cp.tasks t
SET lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s)
FROM held
WHERE t.id = held.id
RETURNING t.id, held.attempts AS attempt
"""

# Hardly ever does a row fit, and the partial index holds no other: asking costs next to nothing.
CALLED_OFF: LiteralString = """
SELECT t.id, t.attempts::int AS attempt, c.requested_by, c.reason
FROM cp.tasks t JOIN cp.cancellations c ON c.id = t.cancellation
WHERE t.state = 'running' AND t.cancellation IS NOT NULL AND t.lease_owner = %(worker)s
"""

# What a task's reservation is known by.
DECISION_COLUMNS: LiteralString = f"""
    t.id, t.attempts::int AS attempts, t.max_attempts::int AS max_attempts, a.decision_id, a.plan,
    t.stage::int AS stage,
    CASE WHEN %(enforce)s THEN extract(epoch FROM t.deadline - clock_timestamp())::float8 END AS deadline_in,
    {ATTEMPTS_OF_DECISION}
"""

# The lease owner names the running state: only a running task has one. Naming the state itself would let the
# planner start from the partial index of all running tasks instead of from the primary key.
LOCK_LEASED: LiteralString = f"""
SELECT {DECISION_COLUMNS} AS decision_attempt, t.cancellation IS NOT NULL AS is_called_off
FROM cp.tasks t JOIN cp.assignments a ON a.id = t.assignment
WHERE t.id = ANY(%(tasks)s::bigint[]) AND t.lease_owner = %(worker)s
ORDER BY t.id
FOR NO KEY UPDATE OF t
"""

# The time of the transaction's start, and not the clock's, so that the index is read no further than that.
LOCK_EXPIRED: LiteralString = f"""
WITH t AS MATERIALIZED (
    SELECT id, attempts, max_attempts, deadline, assignment, stage, cancellation
    FROM cp.tasks
    WHERE state = 'running' AND lease_expires_at < now()
    ORDER BY lease_expires_at LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT {DECISION_COLUMNS} AS decision_attempt, t.cancellation IS NOT NULL AS is_called_off
FROM t JOIN cp.assignments a ON a.id = t.assignment
"""

# What is left alone by an open breaker for longer than tasks are patient goes back, but for the last of each model.
LOCK_UNFIT: LiteralString = f"""
WITH open AS MATERIALIZED (
    SELECT provider, model FROM cp.breakers
    WHERE state = 'open' AND retry_at > clock_timestamp() + make_interval(secs => %(patience)s)
),
left_alone AS MATERIALIZED (
    SELECT registered.model FROM unnest(%(enabled)s::text[], %(providers)s::text[]) AS registered (model, provider)
    WHERE EXISTS (
        SELECT FROM open WHERE open.provider = registered.provider AND open.model IN ('*', registered.model)
    )
),
sent_back AS MATERIALIZED (
    SELECT paused.id FROM left_alone CROSS JOIN LATERAL (
        SELECT t.id FROM cp.tasks t
        WHERE t.state = 'assigned' AND t.submission_day = %(day)s AND t.model = left_alone.model
        ORDER BY coalesce(t.deadline, 'infinity') DESC, t.id DESC OFFSET %(trials)s LIMIT %(limit)s
    ) AS paused
),
t AS MATERIALIZED (
    SELECT t.id, attempts, max_attempts, deadline, assignment, stage,
        CASE WHEN model <> ALL(%(enabled)s::text[]) THEN 'MODEL_DISABLED'
             WHEN NOT {DEPENDENCIES_HOLD} THEN 'DEPENDENCY_PENDING'
             ELSE 'BREAKER_OPEN' END AS reason
    FROM cp.tasks t
    WHERE state = 'assigned' AND submission_day = %(day)s
        AND (
            (%(enforce)s AND deadline <= clock_timestamp())
            OR model <> ALL(%(enabled)s::text[])
            OR NOT {DEPENDENCIES_HOLD}
            OR id IN (SELECT id FROM sent_back)
        )
    LIMIT %(limit)s
    FOR NO KEY UPDATE OF t SKIP LOCKED
)
SELECT t.reason, {DECISION_COLUMNS} + 1 AS decision_attempt
FROM t JOIN cp.assignments a ON a.id = t.assignment
"""

MOVE_TASKS: LiteralString = """
UPDATE cp.tasks t
SET state = r.state, reason = r.reason,
    available_at = clock_timestamp() + make_interval(secs => r.delay),
    stage = CASE r.state WHEN 'assigned' THEN r.stage WHEN 'queued' THEN 0 ELSE t.stage END,
    lease_owner = NULL, lease_expires_at = NULL, state_changed_at = clock_timestamp(),
    assignment = CASE WHEN r.state = 'queued' THEN NULL ELSE t.assignment END,
    model = CASE r.state WHEN 'queued' THEN NULL WHEN 'assigned' THEN r.model ELSE t.model END
FROM unnest(%(id)s::bigint[], %(attempts)s::int[], %(state)s::text[], %(reason)s::text[], %(delay)s::float8[],
        %(stage)s::smallint[], %(model)s::text[])
    AS r (id, attempts, state, reason, delay, stage, model)
WHERE t.id = r.id AND t.attempts = r.attempts
"""

RETRIES_OF_TODAY: LiteralString = """
SELECT count(e.id) AS made, extract(epoch FROM day.ends_at - clock_timestamp())::float8 AS until_tomorrow
FROM (
    SELECT date_trunc('day', clock_timestamp(), 'UTC') AS begins_at,
        date_trunc('day', clock_timestamp(), 'UTC') + interval '1 day' AS ends_at
) AS day
LEFT JOIN cp.executions e ON e.attempt > 1 AND e.attempt - e.stage > 1 AND e.started_at >= day.begins_at
GROUP BY day.ends_at
"""

RELEASE: LiteralString = """
WITH held AS MATERIALIZED (
    SELECT t.id, t.attempts
    FROM unnest(%(tasks)s::bigint[], %(attempts)s::int[]) AS claimed (id, attempt)
    JOIN cp.tasks t ON t.id = claimed.id AND t.attempts = claimed.attempt
    WHERE t.lease_owner = %(worker)s AND t.cancellation IS NULL
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
),
released AS (
    UPDATE cp.tasks t
    SET state = 'assigned', attempts = t.attempts - 1, lease_owner = NULL, lease_expires_at = NULL,
        state_changed_at = clock_timestamp()
    FROM held
    WHERE t.id = held.id
    RETURNING t.id, held.attempts
)
DELETE FROM cp.executions e USING released
WHERE e.task = released.id AND e.attempt = released.attempts AND e.state = 'running'
RETURNING e.task
"""

RESULT_COLUMNS: LiteralString = """
FROM unnest(
    %(id)s::bigint[], %(state)s::text[], %(reason)s::text[], %(error)s::text[], %(http_status)s::smallint[],
    %(request_id)s::text[], %(input_tokens)s::bigint[], %(cached_tokens)s::bigint[],
    %(cache_write_tokens)s::bigint[], %(output_tokens)s::bigint[], %(cost_usd)s::numeric[],
    %(billed_usd)s::numeric[], %(latency_ms)s::float8[], %(quality)s::float8[], %(evidence)s::text[],
    %(output)s::text[]
) AS r (id, state, reason, error, http_status, request_id, input_tokens, cached_tokens, cache_write_tokens,
    output_tokens, cost_usd, billed_usd, latency_ms, quality, evidence, output)
"""

ENDING_COLUMNS: LiteralString = """
    state = r.state, reason = r.reason, error = r.error, quality = r.quality, evidence = r.evidence::jsonb,
    output = r.output, finished_at = clock_timestamp()
"""

USE_COLUMNS: LiteralString = """
    http_status = r.http_status, request_id = r.request_id, input_tokens = r.input_tokens,
    cached_tokens = r.cached_tokens, cache_write_tokens = r.cache_write_tokens,
    output_tokens = r.output_tokens, cost_usd = r.cost_usd, billed_usd = r.billed_usd,
    latency_ms = r.latency_ms
"""

FINISH_EXECUTIONS: LiteralString = f"""
UPDATE cp.executions e
SET {ENDING_COLUMNS}, {USE_COLUMNS}
{RESULT_COLUMNS}
WHERE e.id = r.id AND e.state = 'running'
"""

_TELL: LiteralString = completed_notices(
    "moved AS t LEFT JOIN finished AS last ON last.task = t.id",
    title="t.title",
    funding="last.funding",
    expected="t.expected",
)

# What succeeded needs to know nothing of its task but whose it is, and its notice nothing that was not known at the
# claim: all in one statement, tasks locked in order.
SUCCEED: LiteralString = f"""
WITH held AS MATERIALIZED (
    SELECT t.id, claimed.execution, claimed.title, claimed.expected
    FROM unnest(
        %(task)s::bigint[], %(attempt)s::int[], %(id)s::bigint[], %(title)s::text[], %(expected)s::numeric[]
    ) AS claimed (id, attempt, execution, title, expected)
    JOIN cp.tasks t ON t.id = claimed.id AND t.attempts = claimed.attempt
    WHERE t.lease_owner = %(worker)s
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
),
finished AS (
    UPDATE cp.executions e
    SET {ENDING_COLUMNS}, {USE_COLUMNS}
    {RESULT_COLUMNS} JOIN held ON held.execution = r.id
    WHERE e.id = held.execution AND e.state = 'running'
    RETURNING e.task, e.model, e.funding, e.quality, e.cost_usd
),
moved AS (
    UPDATE cp.tasks t
    SET state = %(to)s, reason = NULL, available_at = clock_timestamp(), lease_owner = NULL,
        lease_expires_at = NULL, state_changed_at = clock_timestamp()
    FROM held
    WHERE t.id = held.id
    RETURNING held.execution, held.title, held.expected, t.id, t.task_id, t.state, t.reason, t.value_score, t.model,
        t.attempts
),
told AS ({_TELL})
SELECT execution FROM moved
"""

# Once only: what a late answer used stands in the row afterwards, and the mark in `evidence` with it.
RECORD_LATE: LiteralString = f"""
UPDATE cp.executions e
SET error = 'the answer came after the lease had been lost', evidence = '{{"late": true}}', {USE_COLUMNS}
{RESULT_COLUMNS}
WHERE e.id = r.id AND e.state = 'lost' AND e.evidence IS NULL
"""

LOSE_EXECUTIONS: LiteralString = """
UPDATE cp.executions e
SET state = 'lost', reason = 'LEASE_EXPIRED', error = r.error, finished_at = clock_timestamp()
FROM unnest(%(task)s::bigint[], %(attempt)s::int[], %(error)s::text[]) AS r (task, attempt, error)
WHERE e.task = r.task AND e.attempt = r.attempt AND e.state = 'running'
"""

# A deferred task may move when a task that it depends on has ended; one deferred for quota is not worth waiting for, as
# nothing of this day's work brings quota. What waits for a breaker is told apart: its time comes without any change.
OPEN_TASKS: LiteralString = """
WITH closed_off AS MATERIALIZED (
    SELECT registered.model, max(
        CASE b.state WHEN 'open' THEN b.retry_at ELSE clock_timestamp() + interval '1 second' END
    ) AS until
    FROM cp.breakers b
    JOIN unnest(%(models)s::text[], %(providers)s::text[]) AS registered (model, provider)
        ON b.provider = registered.provider AND b.model IN ('*', registered.model)
    WHERE b.state <> 'closed'
    GROUP BY registered.model
)
SELECT t.state, count(*) AS count,
    extract(epoch FROM min(
        CASE WHEN t.state <> 'deferred' THEN greatest(t.available_at, closed_off.until)
             WHEN t.reason = 'DEPENDENCY_PENDING' THEN clock_timestamp() END
    ) - clock_timestamp())::float8 AS available_in,
    extract(epoch FROM greatest(
        min(t.available_at) FILTER (WHERE t.state = 'deferred' AND t.reason = 'BREAKER_OPEN'),
        (SELECT min(until) FROM closed_off)
    ) - clock_timestamp())::float8
        * CASE WHEN bool_or(t.state = 'deferred' AND t.reason = 'BREAKER_OPEN') THEN 1 END AS breaker_in
FROM cp.tasks t LEFT JOIN closed_off ON closed_off.model = t.model
WHERE t.submission_day = %(day)s AND t.state IN ('queued', 'deferred', 'assigned', 'running')
GROUP BY t.state
"""

# One look into the index a model, however many tasks wait.
WAITING_MODELS: LiteralString = """
SELECT asked.model FROM unnest(%(models)s::text[]) AS asked (model)
WHERE EXISTS (
    SELECT FROM cp.tasks t WHERE t.state = 'assigned' AND t.submission_day = %(day)s AND t.model = asked.model
)
"""

ASSIGNED_MODELS: LiteralString = """
SELECT DISTINCT model FROM cp.tasks WHERE submission_day = %(day)s AND state = 'assigned'
"""
