"""transfers that are settled in one call

Revision: 0014
Follows: 0013
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# What was used of each account under each key: up to what is reserved it is posted, what is reserved and was not used
# at all is voided. Whoever resolved a transfer first has resolved it: it is waited for, and left as it is. The lock
# is taken last; what is returned is the use that is not covered, to be charged under it. Pending transfers are looked
# up one by one, as in cp.pending_transfers; what is joined with them are arrays of the same length.
SETTLE_TRANSFERS = """
    CREATE FUNCTION cp.settle_transfers(
        keys uuid[], used_keys uuid[], used_accounts text[], used_amounts numeric[],
        OUT resolved bigint, OUT beyond_keys uuid[], OUT beyond_accounts text[], OUT beyond_amounts numeric[],
        OUT beyond_tasks bigint[]
    ) LANGUAGE plpgsql
        SET enable_seqscan = off SET enable_nestloop = off SET enable_mergejoin = off
    AS $$
    DECLARE
        debits text[]; credits text[]; all_freed numeric[]; all_posted numeric[]; are_resolved boolean[];
    BEGIN
        WITH used AS MATERIALIZED (
            SELECT * FROM unnest(used_keys, used_accounts, used_amounts) AS one (key, account, amount)
        ),
        held AS MATERIALIZED (
            SELECT reserved.*
            FROM unnest(keys) AS key,
            LATERAL (
                SELECT transfer_id, reservation, debit_account, credit_account, amount, task
                FROM cp.quota_transfers
                WHERE phase = 'pending' AND reservation = key
                OFFSET 0
            ) AS reserved
        ),
        entered AS (
            INSERT INTO cp.quota_transfers
                (transfer_id, phase, pending_id, reservation, debit_account, credit_account, amount, code, task)
            SELECT gen_random_uuid(), CASE WHEN used.key IS NULL THEN 'void' ELSE 'post' END, held.transfer_id,
                   held.reservation, held.debit_account, held.credit_account, least(used.amount, held.amount),
                   'use', held.task
            FROM held LEFT JOIN used ON used.key = held.reservation AND used.account = held.debit_account
            ORDER BY held.transfer_id
            ON CONFLICT (pending_id) DO NOTHING
            RETURNING pending_id, phase, amount
        ),
        settled AS MATERIALIZED (
            SELECT held.*, CASE WHEN entered.phase = 'post' THEN entered.amount ELSE 0 END AS posted
            FROM held JOIN entered ON entered.pending_id = held.transfer_id
        ),
        moved AS (
            SELECT debit_account, credit_account, count(*) AS transfers, sum(amount) AS freed, sum(posted) AS posted
            FROM settled GROUP BY debit_account, credit_account
        ),
        beyond AS (
            SELECT used.key, used.account, used.amount - coalesce(settled.posted, 0) AS amount,
                   settled.transfer_id IS NOT NULL AS is_resolved
            FROM used LEFT JOIN settled ON settled.reservation = used.key AND settled.debit_account = used.account
            WHERE used.amount > coalesce(settled.posted, 0)
        )
        SELECT coalesce(sum(moved.transfers), 0), array_agg(moved.debit_account), array_agg(moved.credit_account),
               array_agg(moved.freed), array_agg(moved.posted),
               (SELECT array_agg(key) FROM beyond), (SELECT array_agg(account) FROM beyond),
               (SELECT array_agg(amount) FROM beyond), (SELECT array_agg(is_resolved) FROM beyond)
        INTO resolved, debits, credits, all_freed, all_posted,
             beyond_keys, beyond_accounts, beyond_amounts, are_resolved
        FROM moved;

        IF resolved = 0 AND beyond_keys IS NULL THEN
            RETURN;
        END IF;
        PERFORM cp.lock_ledger();
        UPDATE cp.quota_accounts AS stored
        SET debits_pending = stored.debits_pending - move.debits_freed,
            debits_posted = stored.debits_posted + move.debits_posted,
            credits_pending = stored.credits_pending - move.credits_freed,
            credits_posted = stored.credits_posted + move.credits_posted
        FROM (
            SELECT side.account, sum(side.debits_freed) AS debits_freed, sum(side.debits_posted) AS debits_posted,
                   sum(side.credits_freed) AS credits_freed, sum(side.credits_posted) AS credits_posted
            FROM unnest(debits, credits, all_freed, all_posted) AS pair (debit, credit, freed, posted),
            LATERAL (VALUES (pair.debit, pair.freed, pair.posted, 0, 0), (pair.credit, 0, 0, pair.freed, pair.posted))
                AS side (account, debits_freed, debits_posted, credits_freed, credits_posted)
            GROUP BY side.account
        ) AS move
        WHERE stored.account = move.account;

        IF beyond_keys IS NOT NULL THEN
            -- what was posted before is settled, and this a repeat
            SELECT array_agg(use.key), array_agg(use.account), array_agg(use.amount), array_agg(use.task)
            INTO beyond_keys, beyond_accounts, beyond_amounts, beyond_tasks
            FROM (
                SELECT one.*, (
                    SELECT pending.task FROM cp.quota_transfers AS pending
                    WHERE pending.phase = 'pending' AND pending.reservation = one.key LIMIT 1
                ) AS task
                FROM unnest(beyond_keys, beyond_accounts, beyond_amounts, are_resolved)
                    AS one (key, account, amount, is_resolved)
            ) AS use
            WHERE use.is_resolved OR (
                SELECT resolution.phase FROM cp.quota_transfers AS pending
                JOIN LATERAL (
                    SELECT phase FROM cp.quota_transfers WHERE pending_id = pending.transfer_id OFFSET 0
                ) AS resolution ON true
                WHERE pending.phase = 'pending' AND pending.reservation = use.key
                    AND pending.debit_account = use.account
            ) IS DISTINCT FROM 'post';
        END IF;
    END
    $$
"""


def upgrade() -> None:
    op.execute(SETTLE_TRANSFERS)


def downgrade() -> None:
    op.execute("DROP FUNCTION cp.settle_transfers")
