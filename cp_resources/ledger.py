"""The quota ledger in PostgreSQL: reads and stores what `cp_core.quota.journal` decides.

A batch of reservations is two round trips: one reads what the decision needs, one enters what was decided. What is
decided, is decided in Python alone; `cp.enter_transfers`, a function of the database, writes the transfers, takes the
one lock that orders all who change balances, and moves the balances. The constraint that no account goes below zero
then says whether the decision still holds. Where it does not, or a key is taken, nothing is done and the batch is
decided again. A batch of settlements is one round trip: `cp.settle_transfers` posts and voids what is pending, whoever
comes first, and returns what is to be charged beyond. The lock is taken late, so that writing is not waited for; and a
key that another transaction is writing is waited for without the lock, and in the order of the ids: no deadlock, unless
two transactions that call the ledger more than once use the same keys. The caller's transaction must be READ COMMITTED;
its end frees the lock. Time is the database's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import numpy as np
import psycopg
from psycopg import Rollback

from cp_core.models.registry import ModelRegistry
from cp_core.quota.account import Account, AccountKind, AccountTerms, Unit
from cp_core.quota.holds import Holds
from cp_core.quota.journal import (
    Balance,
    Code,
    Journal,
    LedgerError,
    Moves,
    Phase,
    QuotaBalance,
    Reservation,
    Settlement,
    Transfer,
    Use,
    decide_reservations,
    held_by,
    overrun_transfer,
    reservation_transfers,
    source,
    spent,
    windows_to_open,
)
from cp_core.quota.windows import Window
from cp_resources import arrays
from cp_resources.arrays import array
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
_HOLD_ATTEMPTS = 3

Parameter = str | arrays.Binary

_LATE_COMMIT = timedelta(hours=1)
"""What a transaction that lasted no longer than this reserved is not missed when it expires."""

_LOCK = "SELECT cp.lock_ledger()"

# With every balance: the database's time, and which of the given keys were reserved before, over which accounts.
_BALANCES = """
SELECT clock.now, made.keys, made.accounts, account, kind, unit, "window", quota_limit, window_started_at,
       window_ends_at, debits_before_window, debits_pending, debits_posted, credits_pending, credits_posted
FROM (SELECT now()) AS clock
CROSS JOIN (
    SELECT array_agg(reservation) AS keys, array_agg(debit_account) AS accounts
    FROM cp.pending_transfers(%s::uuid[])
) AS made
LEFT JOIN cp.quota_accounts ON true
ORDER BY account COLLATE "C"
"""

_SETTLE = "SELECT * FROM cp.settle_transfers(%s::uuid[], %s::uuid[], %s::text[], %s::numeric[])"

_CREATE = """
INSERT INTO cp.quota_accounts (account, kind, unit, "window", quota_limit, may_go_negative, expired_until)
SELECT account, kind, unit, "window", quota_limit, kind = 'source', now()
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::numeric[])
    AS declared (account, kind, unit, "window", quota_limit)
ORDER BY account COLLATE "C"
ON CONFLICT (account) DO NOTHING
"""

_ENTER = """
SELECT cp.enter_transfers(
    %s::uuid[], %s::numeric[], %s::uuid[], %s::uuid[], %s::bigint[], %s::int[],
    %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[],
    %s::text[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[]
)
"""

_STORE_WINDOW = """
UPDATE cp.quota_accounts
SET "window" = %s, quota_limit = %s, window_started_at = %s, window_ends_at = %s, debits_before_window = %s
WHERE account = %s
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
            journal = _journal(connection)
            for account, balance in journal.balances.items():
                if isinstance(balance, QuotaBalance):
                    journal.agree(account, declared.get(account))
            _store(connection, journal)

    def accounts(self, within: psycopg.Connection | None = None) -> list[Account]:
        """Every window and budget, as a reservation made now would find it, in the order of their names."""
        with self._transaction(within) as connection:
            balances, _, now = _read(connection)
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
        keys = [reservation.key for reservation in reservations]
        for _ in range(MOST_ATTEMPTS):
            balances, made, now = _read(connection, keys)
            answers, transfers = decide_reservations(reservations, made, balances, now, now + expires_in)
            to_open = windows_to_open(transfers, balances, now)
            if not transfers or _hold(connection, _columns_of(transfers), held_by(transfers), to_open):
                return answers
        raise _changing_too_fast()

    def hold_all(self, connection: psycopg.Connection, holds: Holds, *, expires_in: timedelta) -> bool:
        """Reserve all of `holds`, in the caller's transaction, or nothing and return False.

        Their keys must be new: one that was reserved before over the same accounts is told by False, as is what does
        not fit. `reserve` then says which.

        Raises:
            LedgerError: an account does not exist.
        """
        if not holds.totals:
            return True
        for _ in range(_HOLD_ATTEMPTS):
            balances, _, now = _read(connection)
            if not holds.fit(balances, now):
                return False
            moves, to_open = holds.moves(balances), holds.to_open(balances, now)
            if _hold(connection, _columns_held(holds, balances, now + expires_in), moves, to_open):
                return True
        return False

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
        first: dict[str, Mapping[str, Decimal]] = {}
        for settlement in settlements:
            first.setdefault(settlement.key.hex, settlement.used)
        used = [
            (key, account, amount)
            for key, of_key in first.items()
            for account, amount in of_key.items()
            if amount
        ]
        [(resolved, *beyond)] = connection.execute(_SETTLE, (array(first), *_turned(used, 3))).fetchall()
        _charge(connection, [Use(*use) for use in zip(*(column or () for column in beyond), strict=True)])
        return int(resolved)

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


def _hold(connection: psycopg.Connection, pendings: _Columns, moves: Moves, to_open: set[str]) -> bool:
    """Hold what was reserved, in windows that it opens; False, and nothing done, where it fits no more."""
    if not to_open:
        return _enter(connection, pendings, moves)
    with connection.transaction():
        if _enter(connection, pendings, {}):
            journal = _journal(connection)
            journal.open_windows(to_open)
            _store(connection, journal)
            if _enter(connection, _NO_TRANSFERS, moves):
                return True
        raise Rollback
    return False


def _charge(connection: psycopg.Connection, uses: list[Use]) -> None:
    """Charge what was not reserved. The lock is held, so what was charged before can be seen."""
    if not uses:
        return
    journal = _journal(connection)
    for use in _not_charged_before(connection, uses):
        journal.overrun(use)
    _store(connection, journal)


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


def _read(
    connection: psycopg.Connection, keys: Sequence[UUID] = ()
) -> tuple[dict[str, Balance], dict[UUID, set[str]], datetime]:
    """Every balance by account; those of `keys` that were reserved before, with their accounts; the time.

    The time is the database's, of the transaction's start.
    """
    rows = connection.execute(_BALANCES, (array(key.hex for key in keys),)).fetchall()
    now, made_keys, made_accounts = rows[0][:3]
    made: dict[UUID, set[str]] = {}
    for key, account in zip(made_keys or (), made_accounts or (), strict=True):
        made.setdefault(key, set()).add(account)
    balances = {row[3]: _balance(*row[3:]) for row in rows if row[3]}
    return balances, made, now


def _journal(connection: psycopg.Connection) -> Journal:
    balances, _, now = _read(connection)
    return Journal(balances, now)


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


class _Columns(NamedTuple):
    """Transfers as arrays of the database: an array an attribute, and the forms that they share, counted from 1."""

    ids: Parameter
    amounts: Parameter
    pending_ids: Parameter
    reservations: Parameter
    tasks: Parameter
    form_of: Parameter
    forms: Sequence[tuple[object, ...]]


_NO_TRANSFERS = _Columns("{}", "{}", "{}", "{}", "{}", "{}", ())


def _columns_of(transfers: Sequence[Transfer]) -> _Columns:
    forms: dict[tuple[object, ...], int] = {}
    form_of = [
        forms.setdefault((t.phase, t.code, t.debit_account, t.credit_account, t.expires_at), len(forms) + 1)
        for t in transfers
    ]
    return _Columns(
        array([t.transfer_id.hex for t in transfers]),
        array([t.amount for t in transfers]),
        array([t.pending_id and t.pending_id.hex for t in transfers]),
        array([t.reservation and t.reservation.hex for t in transfers]),
        array([t.task for t in transfers]),
        array(form_of),
        list(forms),
    )


def _columns_held(holds: Holds, balances: Mapping[str, Balance], expires_at: datetime) -> _Columns:
    """The pending transfers of `holds`; they have a form an account, and resolve nothing."""
    keys = np.frombuffer(b"".join(holds.keys), dtype="V16")
    forms = [
        (Phase.PENDING, Code.USE, account, spent(balances[account].unit), expires_at)
        for account in holds.accounts
    ]
    return _Columns(
        arrays.uuids(holds.transfer_ids()),
        arrays.numerics(holds.whole, holds.nano),
        "{}",
        arrays.uuids(keys[holds.key]),
        arrays.int8s(holds.tasks[holds.key]),
        array((holds.account + 1).tolist()),
        forms,
    )


def _enter(connection: psycopg.Connection, transfers: _Columns, moves: Moves) -> bool:
    """Write transfers, take the lock, move balances; False, and nothing done, where that cannot be."""
    *columns, forms = transfers
    [(entered,)] = connection.execute(
        _ENTER,
        (
            *columns,
            *_turned(forms, 5),
            *_turned([(account, *counters) for account, counters in moves.items()], 5),
        ),
    ).fetchall()
    return bool(entered)


def _turned(rows: Iterable[tuple[object, ...]], width: int) -> list[str]:
    """The rows, turned."""
    return [array(column) for column in zip(*rows, strict=True)] or [array(())] * width


def _store(connection: psycopg.Connection, journal: Journal) -> None:
    """Store what a journal entered under the lock: there, nothing can have changed meanwhile."""
    if not _enter(connection, _columns_of(journal.transfers), journal.moves()):
        raise LedgerError("what the journal entered under the lock does not fit the accounts")
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
