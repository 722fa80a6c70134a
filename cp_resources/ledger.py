"""The quota ledger in PostgreSQL: reads and stores what `cp_core.quota.journal` decides.

One lock orders all who change balances. It is taken late: a batch is decided and its transfers are written,
then the lock is taken, the balances are read anew and moved. Where something changed meanwhile (a balance no
longer suffices, a key is taken), the batch is undone and decided again. A key that another transaction is
writing is thus waited for without the lock, and in the order of the ids: no deadlock, unless two transactions
that call the ledger more than once use the same keys. The caller's transaction must be READ COMMITTED; its
end frees the lock. Time is the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from uuid import UUID

import psycopg
from psycopg import Rollback
from psycopg.errors import UniqueViolation

from cp_core.models.registry import ModelRegistry
from cp_core.quota.account import Account, AccountKind, AccountTerms, Unit
from cp_core.quota.journal import (
    Balance,
    Journal,
    LedgerError,
    Pending,
    Phase,
    QuotaBalance,
    Reservation,
    Resolution,
    Settlement,
    Transfer,
    Use,
    decide_reservations,
    decide_settlements,
    overrun_transfer,
    reservation_transfers,
    source,
    spent,
)
from cp_core.quota.windows import Window
from cp_resources.database import Database
from cp_resources.ledger_verification import LedgerReport, verify

__all__ = [
    "Ledger",
    "LedgerError",
    "LedgerReport",
    "Reservation",
    "Settlement",
    "reservation_transfers",
]

EXPIRY_BATCH = 1_000
MOST_ATTEMPTS = 100

_LATE_COMMIT = timedelta(hours=1)
"""What a transaction that lasted no longer than this reserved is not missed when it expires."""

_WRITERS_LOCK = 0x6370_6C65  # any number that only the ledger of this project takes
_LOCK = f"SELECT pg_advisory_xact_lock({_WRITERS_LOCK})"

_BALANCES = """
SELECT clock.now, account, kind, unit, "window", quota_limit, window_started_at, window_ends_at,
       debits_before_window, debits_pending, debits_posted, credits_pending, credits_posted
FROM (SELECT now()) AS clock LEFT JOIN cp.quota_accounts ON true
ORDER BY account COLLATE "C"
"""

_CREATE = """
INSERT INTO cp.quota_accounts (account, kind, unit, "window", quota_limit, may_go_negative, expired_until)
SELECT account, kind, unit, "window", quota_limit, kind = 'source', now()
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::numeric[])
    AS declared (account, kind, unit, "window", quota_limit)
ORDER BY account COLLATE "C"
ON CONFLICT (account) DO NOTHING
"""

_WRITE_TRANSFERS = """
COPY cp.quota_transfers (transfer_id, phase, debit_account, credit_account, amount, code, pending_id,
                         reservation, task, expires_at)
FROM STDIN (FORMAT BINARY)
"""
_TRANSFER_TYPES = ["uuid", "text", "text", "text", "numeric", "text", "uuid", "uuid", "int8", "timestamptz"]

_MOVE_BALANCES = """
UPDATE cp.quota_accounts AS stored
SET debits_pending = stored.debits_pending + move.debits_pending,
    debits_posted = stored.debits_posted + move.debits_posted,
    credits_pending = stored.credits_pending + move.credits_pending,
    credits_posted = stored.credits_posted + move.credits_posted
FROM unnest(%s::text[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[])
    AS move (account, debits_pending, debits_posted, credits_pending, credits_posted)
WHERE stored.account = move.account
"""

_STORE_WINDOW = """
UPDATE cp.quota_accounts
SET "window" = %s, quota_limit = %s, window_started_at = %s, window_ends_at = %s, debits_before_window = %s
WHERE account = %s
"""

# Each key is looked up by itself (OFFSET 0 keeps it so), and planned anew: in a table that has just begun to
# grow the planner would take a list of keys for half of all rows, and keep a plan made for an empty table.
_PENDINGS = """
SELECT pending.*
FROM unnest(%s::uuid[]) AS key,
LATERAL (
    SELECT transfer_id, reservation, debit_account, credit_account, amount, task,
           (SELECT phase FROM cp.quota_transfers WHERE pending_id = reserved.transfer_id)
    FROM cp.quota_transfers AS reserved
    WHERE phase = 'pending' AND reservation = key
    OFFSET 0
) AS pending
"""

_EXPIRED = """
SELECT reservation FROM cp.quota_transfers AS pending
WHERE phase = 'pending' AND expires_at <= now() AND expires_at >= %s
  AND NOT EXISTS (SELECT FROM cp.quota_transfers WHERE pending_id = pending.transfer_id)
ORDER BY expires_at
LIMIT %s
"""


class Ledger:
    """Accounts of quota, and what is reserved and used of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open_accounts(self, registry: ModelRegistry, within: psycopg.Connection | None = None) -> None:
        """Bring the accounts to what the registry declares: new ones, changed limits, windows that are over.

        An account that is declared no longer keeps its history and grants nothing. A repeat changes nothing.

        Args:
            within: the caller's transaction; without one it is a transaction of its own.
        """
        declared = {terms.account: terms for terms in registry.accounts()}
        with self._transaction(within) as connection:
            connection.execute(_LOCK)
            _create(connection, declared.values())
            journal = Journal(*_read(connection))
            for account, balance in journal.balances.items():
                if isinstance(balance, QuotaBalance):
                    journal.agree(account, declared.get(account))
            _store(connection, journal)

    def accounts(self, within: psycopg.Connection | None = None) -> list[Account]:
        """Every window and budget, as a reservation made now would find it, in the order of their names."""
        with self._transaction(within) as connection:
            balances, now = _read(connection)
        return [row.as_found_at(now) for row in balances.values() if isinstance(row, QuotaBalance)]

    def reserve(
        self,
        connection: psycopg.Connection,
        reservations: Sequence[Reservation],
        *,
        expires_in: timedelta,
    ) -> list[bool]:
        """Reserve in the given order what fits, in the caller's transaction.

        Returns:
            For each reservation whether it is made: all of its amounts, or none. A key that was reserved
            before is True and changes nothing, whatever became of it since.

        Raises:
            LedgerError: an account does not exist, or a key was reserved before over other accounts.
        """
        keys = [reservation.key for reservation in reservations]
        for _ in range(MOST_ATTEMPTS):
            balances, now = _read(connection)
            answers, transfers = decide_reservations(
                reservations, _pendings(connection, keys), balances, now, now + expires_in
            )
            if not transfers or _enter(connection, transfers, partial(_reserved, transfers)):
                return answers
        raise _changing_too_fast()

    def settle(self, connection: psycopg.Connection, settlements: Sequence[Settlement]) -> int:
        """Post what attempts used and free the rest, in the caller's transaction.

        What was used beyond the reservation, or under one that was voided, expired or never made, is charged
        as an overrun. Use is charged once a key and account: a repeat changes nothing.

        Returns:
            How many pending transfers were resolved.

        Raises:
            LedgerError: an account does not exist.
        """
        keys = [settlement.key for settlement in settlements]
        for _ in range(MOST_ATTEMPTS):
            resolutions, uses = decide_settlements(settlements, _pendings(connection, keys))
            transfers = [resolution.transfer for resolution in resolutions]
            settled = partial(_settled, connection, resolutions, uses)
            if not (transfers or uses) or _enter(connection, transfers, settled):
                return len(resolutions)
        raise _changing_too_fast()

    def expire_pending(self) -> int:
        """Void what expired unsettled, in batches of a transaction each; return how many transfers."""
        with self._database.transaction() as connection:
            (started, since) = connection.execute(
                "SELECT now(), min(expired_until) FROM cp.quota_accounts WHERE kind IN ('window', 'budget')"
            ).fetchone() or (None, None)
        if since is None:
            return 0
        voided = sum(self._expire_batches(since - _LATE_COMMIT))
        with self._database.transaction() as connection:
            connection.execute(_LOCK)
            connection.execute(
                "UPDATE cp.quota_accounts SET expired_until = greatest(expired_until, %s)", (started,)
            )
        return voided

    def verify(self) -> LedgerReport:
        """Recompute every balance from the transfers and compare."""
        return verify(self._database)

    def _transaction(self, within: psycopg.Connection | None) -> AbstractContextManager[psycopg.Connection]:
        return self._database.transaction() if within is None else nullcontext(within)

    def _expire_batches(self, since: datetime) -> Iterator[int]:
        while True:
            with self._database.transaction() as connection:
                expired = connection.execute(_EXPIRED, (since, EXPIRY_BATCH)).fetchall()
                yield self.settle(connection, [Settlement(key, {}) for (key,) in expired])
            if len(expired) < EXPIRY_BATCH:
                return


def _enter(
    connection: psycopg.Connection, transfers: list[Transfer], enter: Callable[[Journal], bool]
) -> bool:
    """Write what was decided and `enter` it under the lock; False, and nothing done, where that fails."""
    with suppress(UniqueViolation), connection.transaction():
        _write(connection, transfers)
        connection.execute(_LOCK)
        journal = Journal(*_read(connection))
        if not enter(journal):
            raise Rollback
        _store(connection, journal)
        return True
    return False


def _reserved(transfers: list[Transfer], journal: Journal) -> bool:
    return journal.reserve(transfers)


def _settled(
    connection: psycopg.Connection, resolutions: list[Resolution], uses: list[Use], journal: Journal
) -> bool:
    journal.resolve(resolutions)
    for use in _not_charged_before(connection, uses):
        journal.overrun(use)
    return True


def _changing_too_fast() -> LedgerError:
    return LedgerError(f"what was decided no longer held when it was entered, {MOST_ATTEMPTS} times in a row")


def _create(connection: psycopg.Connection, declared: Iterable[AccountTerms]) -> None:
    rows: list[tuple[str, str, str, str | None, Decimal | None]] = [
        (terms.account, str(terms.kind), str(terms.unit), str(terms.window), terms.limit)
        for terms in declared
    ]
    for unit in Unit:
        rows += [
            (source(unit), "source", str(unit), None, None),
            (spent(unit), "spent", str(unit), None, None),
        ]
    connection.execute(_CREATE, [list(column) for column in zip(*rows, strict=True)])


def _read(connection: psycopg.Connection) -> tuple[dict[str, Balance], datetime]:
    """Every balance by account, and the database's time: that of the transaction's start."""
    rows = connection.execute(_BALANCES).fetchall()
    return {account: _balance(account, *terms) for _, account, *terms in rows if account}, rows[0][0]


def _pendings(connection: psycopg.Connection, keys: list[UUID]) -> list[Pending]:
    rows = connection.execute(_PENDINGS, (keys,), prepare=False).fetchall()
    return [Pending._make((*row, phase and Phase(phase))) for *row, phase in rows]


def _balance(
    account: str,
    kind: str,
    unit: str,
    window: str | None,
    limit: Decimal | None,
    window_started_at: datetime | None,
    window_ends_at: datetime | None,
    debits_before_window: Decimal,
    *counters: Decimal,
) -> Balance:
    if window is None or limit is None:
        return Balance(account, Unit(unit), *counters)
    return QuotaBalance(
        account,
        Unit(unit),
        *counters,
        kind=AccountKind(kind),
        window=Window(window),
        limit=limit,
        window_started_at=window_started_at,
        window_ends_at=window_ends_at,
        debits_before_window=debits_before_window,
    )


def _not_charged_before(connection: psycopg.Connection, uses: list[Use]) -> list[Use]:
    if not uses:
        return []
    stored = connection.execute(
        "SELECT transfer_id FROM cp.quota_transfers WHERE transfer_id = ANY(%s)",
        ([overrun_transfer(use.key, use.account) for use in uses],),
    )
    charged = {transfer_id for (transfer_id,) in stored.fetchall()}
    return [use for use in uses if overrun_transfer(use.key, use.account) not in charged]


def _write(connection: psycopg.Connection, transfers: list[Transfer]) -> None:
    if not transfers:
        return
    with connection.cursor().copy(_WRITE_TRANSFERS) as copy:
        copy.set_types(_TRANSFER_TYPES)
        for transfer in sorted(transfers, key=lambda transfer: transfer.transfer_id.int):
            copy.write_row(transfer)


def _store(connection: psycopg.Connection, journal: Journal) -> None:
    _write(connection, journal.transfers)
    moves = [(account, *counters) for account, counters in journal.moves().items()]
    if moves:
        connection.execute(_MOVE_BALANCES, [list(column) for column in zip(*moves, strict=True)])
    for account in journal.rewindowed:
        row = journal.balances[account]
        if isinstance(row, QuotaBalance):
            connection.execute(
                _STORE_WINDOW,
                (
                    row.window,
                    row.limit,
                    row.window_started_at,
                    row.window_ends_at,
                    row.debits_before_window,
                    account,
                ),
            )
