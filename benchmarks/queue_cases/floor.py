"""The floors: hand-written SQL, a few statements a batch, that leaves the same rows behind as the platform.

`drain` claims under a lease with SKIP LOCKED, the most valuable first, and begins an execution for each task, in one
statement and one transaction; then, in another, it finishes executions and tasks, posts the reservations, leaves
notices and moves the balances last. It finds everything by primary key and trusts what it read: no lease is checked, no
late or repeated answer noticed, nothing is voided, charged as an overrun, retried, scrubbed or judged, prompts are
not read, and rows of accounts are locked instead of the ledger. Triggers and constraints of the tables hold for it.
Its claim locks no more than it takes, as the platform's does; where other workers hold the best of a model, it may take
fewer than a batch, and the platform's looks for the rest.

`drain_bare` only claims and completes: the state of the task, and neither execution nor ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any, LiteralString

import psycopg

from benchmarks.queue_cases import platform
from cp_resources.execution_queries import RANK

prepare = platform.prepare

_WAITING: LiteralString = f"""
SELECT id, {RANK} AS rank FROM cp.tasks t
WHERE state = 'assigned' AND submission_day = %(day)s AND model = free.model
ORDER BY {RANK} DESC, id
"""

_PICK: LiteralString = f"""
WITH shares AS MATERIALIZED (
    SELECT best.model, count(*) AS slots
    FROM (
        SELECT free.model
        FROM unnest(%(models)s::text[]) AS free (model)
        CROSS JOIN LATERAL ({_WAITING} LIMIT %(batch)s) AS waiting
        ORDER BY waiting.rank DESC, waiting.id LIMIT %(batch)s
    ) AS best
    GROUP BY best.model
),
picked AS MATERIALIZED (
    SELECT locked.id FROM shares AS free
    CROSS JOIN LATERAL ({_WAITING} LIMIT free.slots FOR NO KEY UPDATE SKIP LOCKED) AS locked
),
claimed AS (
    UPDATE cp.tasks t
    SET state = 'running', attempts = attempts + 1, lease_owner = %(worker)s,
        lease_expires_at = clock_timestamp() + interval '1 minute', state_changed_at = clock_timestamp()
    WHERE t.id = ANY (ARRAY(SELECT id FROM picked))
    RETURNING t.id, t.assignment, t.submission_day, t.attempts, t.model
)
"""

_CLAIM: LiteralString = (
    _PICK
    + """
INSERT INTO cp.executions (task, assignment, submission_day, attempt, model, provider, funding, worker, started_at)
SELECT id, assignment, submission_day, attempts, model, 'local', 'budget:all', %(worker)s, clock_timestamp()
FROM claimed
RETURNING id, task
"""
)

_CLAIM_BARE: LiteralString = _PICK + "SELECT NULL, id FROM claimed"

_FINISH: LiteralString = """
WITH finished AS (
    UPDATE cp.executions
    SET state = 'succeeded', finished_at = clock_timestamp(), http_status = 200, request_id = 'req_1',
        input_tokens = 20000, output_tokens = 2000, cost_usd = %(cost)s, billed_usd = %(cost)s, latency_ms = 900,
        quality = 8, evidence = '{"schema_valid": true}', output = 'Done: the button listens again.'
    WHERE id = ANY(%(executions)s)
),
moved AS (
    UPDATE cp.tasks
    SET state = 'succeeded', lease_owner = NULL, lease_expires_at = NULL, state_changed_at = clock_timestamp()
    WHERE id = ANY(%(tasks)s)
),
told AS (
    INSERT INTO cp.outbox (task, kind, payload)
    SELECT task, 'completed', '{}' FROM unnest(%(tasks)s) AS task
)
INSERT INTO cp.quota_transfers (transfer_id, phase, pending_id, reservation, debit_account, credit_account, amount,
                                code, task)
SELECT gen_random_uuid(), 'post', transfer_id, reservation, debit_account, credit_account, %(cost)s, 'use', task
FROM cp.quota_transfers WHERE task = ANY(%(tasks)s) AND phase = 'pending'
"""

# By itself and last: others wait for these rows from here to the end of the transaction.
_MOVE_BALANCES: LiteralString = """
WITH locked AS MATERIALIZED (
    SELECT account FROM cp.quota_accounts WHERE account = ANY(ARRAY[%(account)s, 'spent:usd'])
    ORDER BY account FOR NO KEY UPDATE
)
UPDATE cp.quota_accounts
SET debits_pending = debits_pending - CASE WHEN kind = 'budget' THEN %(reserved)s ELSE 0 END,
    debits_posted = debits_posted + CASE WHEN kind = 'budget' THEN %(used)s ELSE 0 END,
    credits_pending = credits_pending - CASE WHEN kind = 'budget' THEN 0 ELSE %(reserved)s END,
    credits_posted = credits_posted + CASE WHEN kind = 'budget' THEN 0 ELSE %(used)s END
FROM locked WHERE quota_accounts.account = locked.account
"""

_COMPLETE_BARE: LiteralString = """
UPDATE cp.tasks
SET state = 'succeeded', lease_owner = NULL, lease_expires_at = NULL, state_changed_at = clock_timestamp()
WHERE id = ANY(%(tasks)s)
"""


def drain(url: str, worker: int, start: Barrier) -> tuple[int, float]:
    """Claim and complete, with executions, ledger and notices."""
    return _drain(url, worker, start, _CLAIM, _complete)


def drain_bare(url: str, worker: int, start: Barrier) -> tuple[int, float]:
    """Claim and complete the tasks alone."""
    return _drain(url, worker, start, _CLAIM_BARE, _complete_bare)


def _drain(
    url: str, worker: int, start: Barrier, claim: LiteralString, complete: Callable[..., None]
) -> tuple[int, float]:
    parameters = {
        "models": list(platform.MODELS),
        "day": platform.DAY,
        "batch": platform.BATCH,
        "worker": f"worker-{worker}",
    }
    done = 0
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        start.wait()
        while rows := connection.execute(claim, parameters).fetchall():
            complete(connection, rows)
            done += len(rows)
    return done, time.time()


def _complete(connection: psycopg.Connection, rows: list[tuple[Any, ...]]) -> None:
    with connection.transaction(), connection.pipeline():
        connection.execute(
            _FINISH,
            {
                "executions": [execution for execution, _ in rows],
                "tasks": [task for _, task in rows],
                "cost": platform.COST,
            },
        )
        connection.execute(
            _MOVE_BALANCES,
            {
                "used": platform.COST * len(rows),
                "reserved": platform.RESERVED * len(rows),
                "account": platform.ACCOUNT,
            },
        )


def _complete_bare(connection: psycopg.Connection, rows: list[tuple[Any, ...]]) -> None:
    connection.execute(_COMPLETE_BARE, {"tasks": [task for _, task in rows]})
