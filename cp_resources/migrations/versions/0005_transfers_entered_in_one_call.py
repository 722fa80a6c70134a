"""transfers that are entered in one call

Revision: 0005
Follows: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Only the ledger of this project takes this number.
LOCK_LEDGER = """
    CREATE FUNCTION cp.lock_ledger() RETURNS void LANGUAGE sql
    AS 'SELECT pg_advisory_xact_lock(1668312165)'
"""

# Each key is looked up by itself, by the index: in a table that has just begun to grow the planner would take a
# list of keys for half of all rows, and keep a plan made for an empty table.
PENDING_TRANSFERS = """
    CREATE FUNCTION cp.pending_transfers(keys uuid[])
    RETURNS TABLE (transfer_id uuid, reservation uuid, debit_account text, credit_account text,
                   amount numeric, task bigint, resolved_by text)
    LANGUAGE plpgsql STABLE
        SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
    BEGIN
        RETURN QUERY
        SELECT reserved.*
        FROM unnest(keys) AS key,
        LATERAL (
            SELECT pending.transfer_id, pending.reservation, pending.debit_account, pending.credit_account,
                   pending.amount, pending.task,
                   (SELECT resolution.phase FROM cp.quota_transfers AS resolution
                    WHERE resolution.pending_id = pending.transfer_id)
            FROM cp.quota_transfers AS pending
            WHERE pending.phase = 'pending' AND pending.reservation = key
            OFFSET 0
        ) AS reserved;
    END
    $$
"""

# An array an attribute of the transfers; what they share is a form, counted from 1. The block undoes what it wrote
# when a transfer exists already, or when an account would go below zero.
ENTER_TRANSFERS = """
    CREATE FUNCTION cp.enter_transfers(
        ids uuid[], amounts numeric[], pending_ids uuid[], reservations uuid[], tasks bigint[], forms int[],
        phases text[], codes text[], debits text[], credits text[], expiries timestamptz[],
        moved text[], pending_debits numeric[], posted_debits numeric[], pending_credits numeric[],
        posted_credits numeric[]
    ) RETURNS boolean LANGUAGE plpgsql
        SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
    DECLARE violated text;
    BEGIN
        IF cardinality(ids) > 0 THEN
            INSERT INTO cp.quota_transfers
                (transfer_id, phase, pending_id, reservation, debit_account, credit_account, amount, code, task,
                 expires_at)
            SELECT entry.id, phases[entry.form], entry.pending_id, entry.reservation, debits[entry.form],
                   credits[entry.form], entry.amount, codes[entry.form], entry.task, expiries[entry.form]
            FROM unnest(ids, amounts, pending_ids, reservations, tasks, forms)
                AS entry (id, amount, pending_id, reservation, task, form)
            ORDER BY entry.id;
        END IF;
        PERFORM cp.lock_ledger();
        UPDATE cp.quota_accounts AS stored
        SET debits_pending = stored.debits_pending + move.debits_pending,
            debits_posted = stored.debits_posted + move.debits_posted,
            credits_pending = stored.credits_pending + move.credits_pending,
            credits_posted = stored.credits_posted + move.credits_posted
        FROM unnest(moved, pending_debits, posted_debits, pending_credits, posted_credits)
            AS move (account, debits_pending, debits_posted, credits_pending, credits_posted)
        WHERE stored.account = move.account;
        RETURN true;
    EXCEPTION
        WHEN unique_violation THEN
            RETURN false;
        WHEN check_violation THEN
            GET STACKED DIAGNOSTICS violated = CONSTRAINT_NAME;
            IF violated <> 'ck_quota_accounts_not_below_zero' THEN
                RAISE;
            END IF;
            RETURN false;
    END
    $$
"""

# As before, but one look at the accounts for all transfers between the same two.
CHECK_TRANSFERS = """
    CREATE OR REPLACE FUNCTION cp.check_transfers() RETURNS trigger LANGUAGE plpgsql
        SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
    DECLARE wrong text;
    BEGIN
        SELECT format('transfer %s moves %s of %s to %s of %s', moved.transfer_id, debit.unit,
                      moved.debit_account, credit.unit, moved.credit_account)
        INTO wrong
        FROM (
            SELECT debit_account, credit_account, min(transfer_id::text) AS transfer_id
            FROM entered GROUP BY debit_account, credit_account
        ) AS moved
        LEFT JOIN cp.quota_accounts AS debit ON debit.account = moved.debit_account
        LEFT JOIN cp.quota_accounts AS credit ON credit.account = moved.credit_account
        WHERE debit.unit IS DISTINCT FROM credit.unit OR debit.unit IS NULL
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION '%', wrong USING ERRCODE = 'foreign_key_violation',
                HINT = 'both accounts must exist and count the same unit';
        END IF;

        SELECT format('transfer %s is a %s of %s from %s to %s', entered.transfer_id, entered.phase,
                      entered.amount, entered.debit_account, entered.credit_account)
        INTO wrong
        FROM entered
        LEFT JOIN cp.quota_transfers AS pending
            ON pending.transfer_id = entered.pending_id AND pending.phase = 'pending'
        WHERE entered.pending_id IS NOT NULL
          AND (pending.transfer_id IS NULL OR entered.amount > pending.amount
               OR (entered.debit_account, entered.credit_account)
                  <> (pending.debit_account, pending.credit_account))
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION '%', wrong USING ERRCODE = 'foreign_key_violation',
                HINT = 'it must resolve a pending transfer of at least as much between the same accounts';
        END IF;
        RETURN NULL;
    END
    $$
"""


def upgrade() -> None:
    for function in (LOCK_LEDGER, PENDING_TRANSFERS, ENTER_TRANSFERS, CHECK_TRANSFERS):
        op.execute(function)


def downgrade() -> None:
    op.execute("DROP FUNCTION cp.enter_transfers")
    op.execute("DROP FUNCTION cp.pending_transfers")
    op.execute("DROP FUNCTION cp.lock_ledger")
