"""Verification of the ledger: recomputes every balance from the transfers, in SQL, and says what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg

from cp_core.quota.journal import opening_grant
from cp_core.quota.windows import Window
from cp_resources.database import Database


@dataclass(frozen=True)
class LedgerReport:
    """What a verification found.

    Attributes:
        accounts: how many accounts were recomputed.
        transfers: from how many transfers.
        differences: one sentence each; empty when the ledger balances.
    """

    accounts: int
    transfers: int
    differences: tuple[str, ...]

    @property
    def balanced(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def verify(database: Database) -> LedgerReport:
    """Recompute everything from one snapshot of the transfers. Writers go on meanwhile."""
    with database.transaction() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        differences = [
            *_rows(connection, _COUNTERS),
            *_rows(connection, _WRONG_TRANSFERS),
            *_rows(connection, _SIDES),
            *_rows(connection, _BELOW_ZERO),
            *_window_differences(connection),
        ]
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM cp.quota_accounts), (SELECT count(*) FROM cp.quota_transfers)"
        ).fetchone()
    accounts, transfers = counts or (0, 0)
    return LedgerReport(accounts, transfers, tuple(differences))


_COUNTERS: LiteralString = """
WITH moves AS (
    SELECT debit_account AS account, 'debits_posted' AS counter, amount FROM cp.quota_transfers
    WHERE phase IN ('single', 'post')
    UNION ALL
    SELECT credit_account, 'credits_posted', amount FROM cp.quota_transfers WHERE phase IN ('single', 'post')
    UNION ALL
    SELECT side.account, side.counter, unresolved.amount
    FROM cp.quota_transfers AS unresolved,
         LATERAL (VALUES (debit_account, 'debits_pending'), (credit_account, 'credits_pending'))
             AS side (account, counter)
    WHERE unresolved.phase = 'pending'
      AND NOT EXISTS (SELECT FROM cp.quota_transfers WHERE pending_id = unresolved.transfer_id)
), recomputed AS (
    SELECT account, counter, sum(amount) AS amount FROM moves GROUP BY account, counter
), stored AS (
    SELECT account, counter, amount FROM cp.quota_accounts,
        LATERAL (VALUES ('debits_pending', debits_pending), ('debits_posted', debits_posted),
                        ('credits_pending', credits_pending), ('credits_posted', credits_posted))
            AS counters (counter, amount)
)
SELECT format('account %s: %s is %s, but its transfers add up to %s', account, counter,
              trim_scale(stored.amount), trim_scale(coalesce(recomputed.amount, 0)))
FROM stored LEFT JOIN recomputed USING (account, counter)
WHERE stored.amount <> coalesce(recomputed.amount, 0)
UNION ALL
SELECT DISTINCT format('account %s: does not exist, but has transfers', account)
FROM recomputed WHERE account NOT IN (SELECT account FROM cp.quota_accounts)
ORDER BY 1
"""

_WRONG_TRANSFERS: LiteralString = """
SELECT format('transfer %s: resolves %s, which is not a pending transfer', r.transfer_id, r.pending_id)
FROM cp.quota_transfers r JOIN cp.quota_transfers p ON p.transfer_id = r.pending_id
WHERE p.phase <> 'pending'
UNION ALL
SELECT format('transfer %s: posts %s of the %s that %s reserved', r.transfer_id, trim_scale(r.amount),
              trim_scale(p.amount), p.transfer_id)
FROM cp.quota_transfers r JOIN cp.quota_transfers p ON p.transfer_id = r.pending_id
WHERE r.phase = 'post' AND r.amount > p.amount
UNION ALL
SELECT format('transfer %s: moves %s -> %s, but %s, which it resolves, moves %s -> %s', r.transfer_id,
              r.debit_account, r.credit_account, p.transfer_id, p.debit_account, p.credit_account)
FROM cp.quota_transfers r JOIN cp.quota_transfers p ON p.transfer_id = r.pending_id
WHERE (r.debit_account, r.credit_account) <> (p.debit_account, p.credit_account)
UNION ALL
SELECT format('pending transfer %s: resolved %s times', pending_id, count(*))
FROM cp.quota_transfers WHERE pending_id IS NOT NULL GROUP BY pending_id HAVING count(*) > 1
UNION ALL
SELECT format('transfer %s: moves %s of %s to %s of %s', transfer_id, debit.unit, debit.account, credit.unit,
              credit.account)
FROM cp.quota_transfers
JOIN cp.quota_accounts AS debit ON debit.account = debit_account
JOIN cp.quota_accounts AS credit ON credit.account = credit_account
WHERE debit.unit <> credit.unit
"""

_SIDES: LiteralString = """
SELECT format('unit %s: %s debits are %s, but %s credits are %s', unit, phase, trim_scale(sum(debits)),
              phase, trim_scale(sum(credits)))
FROM cp.quota_accounts,
    LATERAL (VALUES ('posted', debits_posted, credits_posted), ('pending', debits_pending, credits_pending))
        AS sides (phase, debits, credits)
GROUP BY unit, phase
HAVING sum(debits) <> sum(credits)
ORDER BY unit, phase
"""

_BELOW_ZERO: LiteralString = """
SELECT format('account %s: holds %s, below zero', account,
              trim_scale(credits_posted - debits_posted - debits_pending))
FROM cp.quota_accounts
WHERE NOT may_go_negative AND credits_posted - debits_posted - debits_pending < 0
ORDER BY account
"""

_USED_IN_WINDOW: LiteralString = """
SELECT format('account %%s: %%s used in this window, but its transfers since the opening add up to %%s',
              account, trim_scale(debits_posted - debits_before_window), trim_scale(used))
FROM cp.quota_accounts
JOIN unnest(%s::text[], %s::uuid[]) AS opening (account, transfer_id) USING (account)
JOIN cp.quota_transfers AS grants USING (transfer_id),
LATERAL (
    SELECT coalesce(sum(amount), 0) AS used FROM cp.quota_transfers
    WHERE debit_account = account AND sequence > grants.sequence AND phase IN ('single', 'post')
      AND code IN ('use', 'overrun')
) AS since
WHERE debits_posted - debits_before_window < used
ORDER BY account
"""


def _rows(
    connection: psycopg.Connection, query: LiteralString, parameters: Sequence[object] | None = None
) -> list[str]:
    return [text for (text,) in connection.execute(query, parameters).fetchall()]


def _window_differences(connection: psycopg.Connection) -> list[str]:
    opened = connection.execute(
        """SELECT account, "window", window_started_at FROM cp.quota_accounts
           WHERE window_started_at IS NOT NULL"""
    ).fetchall()
    grants = [opening_grant(account, Window(window), started) for account, window, started in opened]
    return _rows(connection, _USED_IN_WINDOW, ([account for account, *_ in opened], grants))
