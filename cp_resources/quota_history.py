"""What became of quota over some days: granted, used, lapsed; and what more of it would have been worth."""

from __future__ import annotations

from datetime import date

from cp_core.learning.cost_effectiveness import Price, Utilisation, price_of, utilisation
from cp_resources.database import Database

_UTILISATION = """
    SELECT account, unit,
        coalesce(sum(amount) FILTER (WHERE code IN ('grant', 'overrun') AND credit_account = account), 0),
        coalesce(sum(amount) FILTER (
            WHERE code IN ('use', 'overrun') AND phase IN ('post', 'single') AND debit_account = account
        ), 0),
        coalesce(sum(amount) FILTER (WHERE code = 'lapse' AND debit_account = account), 0)
    FROM quota_accounts
    LEFT JOIN (
        SELECT debit_account, credit_account, code, phase, sum(amount) AS amount
        FROM quota_transfers WHERE created_at >= %(first)s AND created_at < %(last)s::date + 1
        GROUP BY 1, 2, 3, 4
    ) AS moved ON account IN (debit_account, credit_account)
    WHERE kind IN ('window', 'budget')
    GROUP BY account, unit ORDER BY account
"""
_PRICES = """
    SELECT account, day, sum(price * tasks) / sum(tasks)
    FROM (
        SELECT key AS account, (decided_at AT TIME ZONE 'UTC')::date AS day, value::double precision AS price, tasks
        FROM assignment_batches CROSS JOIN LATERAL jsonb_each_text(prices)
        WHERE tasks > 0 AND decided_at >= %(first)s AND decided_at < %(last)s::date + 1
    ) AS priced
    GROUP BY account, day ORDER BY account, day
"""


class QuotaHistory:
    """Reads the ledger's transfers and the prices of batches. Days are of UTC, of when things happened."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def utilisation(self, first: date, last: date) -> tuple[Utilisation, ...]:
        """What was granted to each account from `first` to `last`, both included, and what became of it."""
        return tuple(
            utilisation(account, unit, granted=float(granted), used=float(used), lapsed=float(lapsed))
            for account, unit, granted, used, lapsed in self._database.fetch(
                _UTILISATION, {"first": first, "last": last}
            )
        )

    def prices(self, first: date, last: date) -> tuple[Price, ...]:
        """The mean price of each account on each day that held a round, weighed by the tasks of the round."""
        return tuple(
            price_of(account, day, price)
            for account, day, price in self._database.fetch(_PRICES, {"first": first, "last": last})
        )
