"""The quota ledger in PostgreSQL: reads and stores what `cp_core.quota.journal` decides.

Whoever changes a balance first locks the `source` accounts, then `spent` and the rest by name: two writers
wait for each other and never deadlock, however many calls they make in one transaction. Time is the
database's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import LiteralString
from uuid import UUID

import psycopg

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

_COUNTERS = "debits_pending, debits_posted, credits_pending, credits_posted"
_COLUMNS = f"""
    account, kind, unit, "window", quota_limit, window_started_at, window_ends_at, debits_before_window,
    {_COUNTERS}, now() AS read_at
"""

_LOCK = f"""
SELECT {_COLUMNS} FROM cp.quota_accounts
WHERE account = ANY(%s) OR kind IN ('source', 'spent')
ORDER BY kind <> 'source', account COLLATE "C"
FOR NO KEY UPDATE
"""

_LOCK_ALL = f"""
SELECT {_COLUMNS} FROM cp.quota_accounts ORDER BY kind <> 'source', account COLLATE "C" FOR NO KEY UPDATE
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
INSERT INTO cp.quota_transfers (transfer_id, phase, debit_account, credit_account, amount, code, pending_id,
                                reservation, task, expires_at)
SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::numeric[], %s::text[], %s::uuid[],
                     %s::uuid[], %s::bigint[], %s::timestamptz[])
"""

_STORE_BALANCES = """
UPDATE cp.quota_accounts AS stored
SET debits_pending = entered.debits_pending, debits_posted = entered.debits_posted,
    credits_pending = entered.credits_pending, credits_posted = entered.credits_posted,
    "window" = entered."window", quota_limit = entered.quota_limit,
    window_started_at = entered.window_started_at, window_ends_at = entered.window_ends_at,
    debits_before_window = entered.debits_before_window
FROM unnest(%s::text[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[],
            %s::text[], %s::numeric[], %s::timestamptz[], %s::timestamptz[], %s::numeric[])
    AS entered (account, debits_pending, debits_posted, credits_pending, credits_posted,
                "window", quota_limit, window_started_at, window_ends_at, debits_before_window)
WHERE stored.account = entered.account
"""

_PENDINGS = """
SELECT transfer_id, reservation, debit_account, credit_account, amount, task
FROM cp.quota_transfers WHERE phase = 'pending' AND reservation = ANY(%s)
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
            _create(connection, declared.values())
            balances, now = _read(connection, _LOCK_ALL)
            journal = Journal(balances, now)
            for account, balance in balances.items():
                if isinstance(balance, QuotaBalance):
                    journal.agree(account, declared.get(account))
            _store(connection, journal, balances)

    def accounts(self) -> list[Account]:
        """Every window and budget, as a reservation made now would find it, in the order of their names."""
        with self._database.transaction() as connection:
            balances, now = _read(
                connection,
                f"""SELECT {_COLUMNS} FROM cp.quota_accounts
                    WHERE kind IN ('window', 'budget') ORDER BY account COLLATE "C" """,
            )
        return [row.as_found_at(now) for row in balances.values() if isinstance(row, QuotaBalance)]

    def reserve(
        self,
        connection: psycopg.Connection,
        reservations: Sequence[Reservation],
        *,
        expires_in: timedelta,
    ) -> list[bool]:
        """Reserve in the given order what fits. The accounts stay locked until the caller's transaction ends.

        Returns:
            For each reservation whether it is made: all of its amounts, or none. A key that was reserved
            before is True and changes nothing, whatever became of it since.

        Raises:
            LedgerError: an account does not exist, or a key was reserved before over other accounts.
        """
        if not reservations:
            return []
        accounts = {account for reservation in reservations for account in reservation.amounts}
        balances, now = _lock(connection, accounts)
        made: dict[UUID, set[str]] = {}
        for pending in _pendings(connection, [r.key for r in reservations]):
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
        _store(connection, journal, balances)
        return answers

    def settle(self, connection: psycopg.Connection, settlements: Sequence[Settlement]) -> int:
        """Post what attempts used and free the rest, inside the caller's transaction.

        What was used beyond the reservation, or under one that was voided, expired or never made, is charged
        as an overrun. Use is charged once a key and account: a repeat changes nothing.

        Returns:
            How many pending transfers were resolved.

        Raises:
            LedgerError: an account does not exist.
        """
        pendings = _pendings(connection, [settlement.key for settlement in settlements])
        accounts = {account for settlement in settlements for account in settlement.used}
        accounts |= {pending.debit_account for pending in pendings}
        if not accounts:
            return 0
        balances, now = _lock(connection, accounts)
        journal = Journal(balances, now)
        pendings = _with_resolutions(connection, pendings)
        overruns = _stored_overruns(connection, settlements, pendings)
        resolved = settle(journal, settlements, pendings, overruns)
        _store(connection, journal, balances)
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
            connection.execute(_LOCK_ALL)
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


def _lock(connection: psycopg.Connection, accounts: Iterable[str]) -> tuple[dict[str, Balance], datetime]:
    return _read(connection, _LOCK, [list(accounts)])


def _read(
    connection: psycopg.Connection, query: LiteralString, parameters: Sequence[object] | None = None
) -> tuple[dict[str, Balance], datetime]:
    """Balances by account, and the database's time: that of the transaction's start."""
    rows = connection.execute(query, parameters).fetchall()
    now = rows[0][-1] if rows else datetime.now(UTC)
    return {row[0]: _balance(*row[:-1]) for row in rows}, now


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


def _pendings(connection: psycopg.Connection, keys: list[UUID]) -> list[Pending]:
    return [Pending(*row) for row in connection.execute(_PENDINGS, (keys,)).fetchall()]


def _with_resolutions(connection: psycopg.Connection, pendings: list[Pending]) -> list[Pending]:
    resolutions: dict[UUID, str] = dict(
        connection.execute(
            "SELECT pending_id, phase FROM cp.quota_transfers WHERE pending_id = ANY(%s)",
            ([pending.transfer_id for pending in pendings],),
        ).fetchall()
    )
    return [
        pending._replace(resolved_by=Phase(resolutions[pending.transfer_id]))
        if pending.transfer_id in resolutions
        else pending
        for pending in pendings
    ]


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


def _store(connection: psycopg.Connection, journal: Journal, balances: Mapping[str, Balance]) -> None:
    if journal.transfers:
        columns = [list(column) for column in zip(*journal.transfers, strict=True)]
        connection.execute(_STORE_TRANSFERS, columns)
    if journal.changed:
        rows = [_stored_form(balances[account]) for account in sorted(journal.changed)]
        connection.execute(_STORE_BALANCES, [list(column) for column in zip(*rows, strict=True)])


def _stored_form(balance: Balance) -> tuple[object, ...]:
    counters = (
        balance.account,
        balance.debits_pending,
        balance.debits_posted,
        balance.credits_pending,
        balance.credits_posted,
    )
    if not isinstance(balance, QuotaBalance):
        return (*counters, None, None, None, None, Decimal(0))
    return (
        *counters,
        balance.window,
        balance.limit,
        balance.window_started_at,
        balance.window_ends_at,
        balance.debits_before_window,
    )
