"""The quota ledger in PostgreSQL: reads and stores what `cp_core.quota.journal` decides.

One lock orders all writers, so that none deadlocks however many calls it makes in a transaction. It is taken
late: a batch is decided and its transfers are written, then the lock is taken and the few balances are moved.
Where something changed meanwhile (a balance would go below zero, a key is taken), the batch is undone and
decided again under the lock. The caller's transaction must be READ COMMITTED; its end frees the lock. Time is
the database's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

import psycopg
from psycopg.errors import CheckViolation, UniqueViolation

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
    Settlement,
    overrun_transfer,
    reservation_transfers,
    settle,
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

_STORE_TRANSFERS = """
COPY cp.quota_transfers (transfer_id, phase, debit_account, credit_account, amount, code, pending_id,
                         reservation, task, expires_at)
FROM STDIN (FORMAT BINARY)
"""
_TRANSFER_TYPES = ["uuid", "text", "text", "text", "numeric", "text", "uuid", "uuid", "int8", "timestamptz"]

_MOVE_BALANCES = f"""
WITH writers AS MATERIALIZED ({_LOCK})
UPDATE cp.quota_accounts AS stored
SET debits_pending = stored.debits_pending + move.debits_pending,
    debits_posted = stored.debits_posted + move.debits_posted,
    credits_pending = stored.credits_pending + move.credits_pending,
    credits_posted = stored.credits_posted + move.credits_posted
FROM writers, unnest(%s::text[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[])
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

    def open_accounts(self, registry: ModelRegistry) -> None:
        """Bring the accounts to what the registry declares: new ones, changed limits, windows that are over.

        An account that is declared no longer keeps its history and grants nothing. A repeat changes nothing.
        """
        declared = {terms.account: terms for terms in registry.accounts()}
        with self._database.transaction() as connection:
            connection.execute(_LOCK)
            _create(connection, declared.values())
            journal = Journal(*_read(connection))
            for account, balance in journal.balances.items():
                if isinstance(balance, QuotaBalance):
                    journal.agree(account, declared.get(account))
            _store(connection, journal)

    def accounts(self) -> list[Account]:
        """Every window and budget, as a reservation made now would find it, in the order of their names."""
        with self._database.transaction() as connection:
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
        if not reservations:
            return []
        journal, answers = _reserve(connection, reservations, expires_in)
        if all(answers) and not journal.rewindowed and _store_unless_changed(connection, journal):
            return answers
        connection.execute(_LOCK)
        journal, answers = _reserve(connection, reservations, expires_in)
        _store(connection, journal)
        return answers

    def settle(self, connection: psycopg.Connection, settlements: Sequence[Settlement]) -> int:
        """Post what attempts used and free the rest, in the caller's transaction.

        What was used beyond the reservation, or under one that was voided, expired or never made, is charged
        as an overrun. Use is charged once a key and account: a repeat changes nothing.

        Returns:
            How many pending transfers were resolved.

        Raises:
            LedgerError: an account does not exist.
        """
        if not settlements:
            return 0
        journal, resolved, overran = _settle(connection, settlements)
        if not overran and _store_unless_changed(connection, journal):
            return resolved
        connection.execute(_LOCK)
        journal, resolved, _ = _settle(connection, settlements)
        _store(connection, journal)
        return resolved

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

    def _expire_batches(self, since: datetime) -> Iterator[int]:
        while True:
            with self._database.transaction() as connection:
                expired = connection.execute(_EXPIRED, (since, EXPIRY_BATCH)).fetchall()
                yield self.settle(connection, [Settlement(key, {}) for (key,) in expired])
            if len(expired) < EXPIRY_BATCH:
                return


def _reserve(
    connection: psycopg.Connection, reservations: Sequence[Reservation], expires_in: timedelta
) -> tuple[Journal, list[bool]]:
    balances, now, pendings = _read_with_pendings(connection, [r.key for r in reservations])
    made: dict[UUID, set[str]] = {}
    for pending in pendings:
        made.setdefault(pending.reservation, set()).add(pending.debit_account)
    journal = Journal(balances, now)
    answers = []
    for reservation in reservations:
        known = made.get(reservation.key)
        if known is not None and known != reservation.amounts.keys():
            raise LedgerError(
                f"reservation {reservation.key} was made before over {', '.join(sorted(known))}, "
                f"not {', '.join(sorted(reservation.amounts))}: another attempt needs another key"
            )
        answer = known is not None or journal.reserve(reservation, now + expires_in)
        if answer:
            made[reservation.key] = set(reservation.amounts)
        answers.append(answer)
    return journal, answers


def _settle(connection: psycopg.Connection, settlements: Sequence[Settlement]) -> tuple[Journal, int, bool]:
    """The journal, how many pending transfers it resolves, and whether it charges overruns."""
    balances, now, pendings = _read_with_pendings(connection, [s.key for s in settlements])
    journal = Journal(balances, now)
    resolved = settle(journal, settlements, pendings, _stored_overruns(connection, settlements, pendings))
    return journal, resolved, len(journal.transfers) > resolved


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


def _read_with_pendings(
    connection: psycopg.Connection, keys: list[UUID]
) -> tuple[dict[str, Balance], datetime, list[Pending]]:
    balances, now = _read(connection)
    rows = connection.execute(_PENDINGS, (keys,), prepare=False).fetchall()
    return balances, now, [Pending._make((*row, phase and Phase(phase))) for *row, phase in rows]


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


def _stored_overruns(
    connection: psycopg.Connection, settlements: Sequence[Settlement], pendings: list[Pending]
) -> set[UUID]:
    """Ids of overruns that are stored already: only use without an open reservation may have one."""
    unresolved = {(p.reservation, p.debit_account) for p in pendings if p.resolved_by is None}
    possible = [
        overrun_transfer(settlement.key, account)
        for settlement in settlements
        for account in settlement.used
        if (settlement.key, account) not in unresolved
    ]
    if not possible:
        return set()
    stored = connection.execute(
        "SELECT transfer_id FROM cp.quota_transfers WHERE transfer_id = ANY(%s)", (possible,)
    )
    return {transfer_id for (transfer_id,) in stored.fetchall()}


def _store_unless_changed(connection: psycopg.Connection, journal: Journal) -> bool:
    """Store what was decided without the lock; False, and nothing stored, where that no longer holds."""
    try:
        with connection.transaction():
            _store(connection, journal)
    except (CheckViolation, UniqueViolation):
        return False
    return True


def _store(connection: psycopg.Connection, journal: Journal) -> None:
    if journal.transfers:
        with connection.cursor().copy(_STORE_TRANSFERS) as copy:
            copy.set_types(_TRANSFER_TYPES)
            for transfer in journal.transfers:
                copy.write_row(transfer)
        moves = [(account, *counters) for account, counters in journal.moves().items()]
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
