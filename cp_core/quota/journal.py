"""The ledger's rules: double entry, append only, two phases. `cp_resources.ledger` reads and stores.

A batch of reservations is decided as transfers, and as what these add to the counters of the accounts. A journal
enters what follows beside it: windows that turn over, use that was not reserved. Every entry moves both sides of a
transfer at once, so debits equal credits by construction. What was reserved is settled where it is stored, by
`cp.settle_transfers`: posted up to what was used, voided where nothing was, once.

    grant     source  -> account   at the opening of a window, or when a limit was raised
    lapse     account -> source    what a window left over, or what a lowered limit takes away
    use       account -> spent     reserved as a pending transfer; then posted for what was used, or voided
    overrun   account -> spent     used beyond what was reserved; what the account lacks comes from source
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from operator import add, sub
from typing import NamedTuple
from uuid import UUID, uuid5

from cp_core.quota.account import Account, AccountKind, AccountTerms, Unit
from cp_core.quota.windows import Window, bounds, has_ended

SMALLEST_AMOUNT = Decimal("0.000000001")
"""Amounts are kept to this: nine decimals, as the database stores them."""

_ZERO = Decimal(0)
_LEDGER = UUID("6f0d6f5e-6a0c-5d0e-9c42-3f2f7f1f6a51")  # names the ids of transfers that no reservation has


class LedgerError(ValueError):
    """The ledger was asked for something that makes no sense. The text says what."""


class Phase(StrEnum):
    """`single` moves at once; `pending` holds until a `post` or a `void` resolves it."""

    SINGLE = "single"
    PENDING = "pending"
    POST = "post"
    VOID = "void"


class Code(StrEnum):
    """What a transfer is for."""

    GRANT = "grant"
    LAPSE = "lapse"
    USE = "use"
    OVERRUN = "overrun"


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one attempt at a task may use: all of it is reserved, over every account, or nothing.

    Attributes:
        key: the attempt's own; a repeat of a key changes nothing.
        amounts: by account, in the account's unit.
        task: the internal id of the task, where there is one.
    """

    key: UUID
    amounts: Mapping[str, Decimal]
    task: int | None = None

    def __post_init__(self) -> None:
        if not self.amounts:
            raise LedgerError(f"reservation {self.key} names no account")
        object.__setattr__(self, "amounts", _exact(self.key, self.amounts))


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the attempt that reserved under `key` really used, by account: nothing voids the reservation."""

    key: UUID
    used: Mapping[str, Decimal]

    def __post_init__(self) -> None:
        object.__setattr__(self, "used", _exact(self.key, self.used))


class Transfer(NamedTuple):
    """One row of the ledger."""

    transfer_id: UUID
    phase: Phase
    debit_account: str
    credit_account: str
    amount: Decimal
    code: Code
    pending_id: UUID | None = None
    reservation: UUID | None = None
    task: int | None = None
    expires_at: datetime | None = None


class Counters(NamedTuple):
    """The four sums of an account, or what was added to them."""

    debits_pending: Decimal = _ZERO
    debits_posted: Decimal = _ZERO
    credits_pending: Decimal = _ZERO
    credits_posted: Decimal = _ZERO

    def plus(self, other: Counters) -> Counters:
        """Both together."""
        return Counters(*map(add, self, other))


Moves = dict[str, Counters]
"""What is added to the counters, by account."""


@dataclass(slots=True)
class Balance:
    """The counters of one account, of any kind."""

    account: str
    unit: Unit
    debits_pending: Decimal = _ZERO
    debits_posted: Decimal = _ZERO
    credits_pending: Decimal = _ZERO
    credits_posted: Decimal = _ZERO

    def counters(self) -> Counters:
        """The four sums as they are now."""
        return Counters(self.debits_pending, self.debits_posted, self.credits_pending, self.credits_posted)

    @property
    def held(self) -> Decimal:
        """What was granted and is neither used, lapsed nor reserved."""
        return self.credits_posted - self.debits_posted - self.debits_pending


@dataclass(slots=True, kw_only=True)
class QuotaBalance(Balance):
    """The counters of an account that holds quota, with the terms of its window.

    Attributes:
        debits_before_window: posted debits that are not use in this window: earlier windows, and what lapsed.
    """

    kind: AccountKind
    window: Window
    limit: Decimal
    window_started_at: datetime | None = None
    window_ends_at: datetime | None = None
    debits_before_window: Decimal = _ZERO

    @property
    def used(self) -> Decimal:
        """What was used since the window opened."""
        return self.debits_posted - self.debits_before_window

    def has_ended(self, now: datetime) -> bool:
        """Whether a reservation made at `now` opens a new window."""
        return has_ended(self.window_ends_at, now)

    def available_at(self, now: datetime) -> Decimal:
        """What can be reserved at `now`."""
        return self.granted_at_opening() if self.has_ended(now) else self.held

    def granted_at_opening(self) -> Decimal:
        """What a window opened now would make available: reservations of earlier windows still count."""
        return max(_ZERO, self.limit - self.debits_pending)

    def as_found_at(self, now: datetime) -> Account:
        """The account as a reservation made at `now` would find it."""
        started_at, ends_at = self.window_started_at, self.window_ends_at
        if self.has_ended(now):
            started_at, ends_at = (
                (None, None) if self.window.opens_with_first_use else bounds(self.window, now)
            )
        return Account(
            account=self.account,
            kind=self.kind,
            unit=self.unit,
            window=self.window,
            limit=self.limit,
            used=_ZERO if self.has_ended(now) else self.used,
            pending=self.debits_pending,
            available=self.available_at(now),
            window_started_at=started_at,
            window_ends_at=ends_at,
        )


def source(unit: Unit) -> str:
    """The account that grants come from. It may go below zero: its debt is what was granted."""
    return f"source:{unit}"


def spent(unit: Unit) -> str:
    """The account that use goes to. Two windows of one subscription both pay into it for the same tokens."""
    return f"spent:{unit}"


def reservation_transfers(key: UUID, accounts: Iterable[str]) -> list[UUID]:
    """Ids of the pending transfers that a reservation makes, in the order of `accounts`."""
    return [uuid5(key, account) for account in accounts]


class Use(NamedTuple):
    """What an attempt used without having reserved it."""

    key: UUID
    account: str
    amount: Decimal
    task: int | None


def decide_reservations(
    reservations: Sequence[Reservation],
    made: Mapping[UUID, set[str]],
    balances: Mapping[str, Balance],
    now: datetime,
    expires_at: datetime,
) -> tuple[list[bool], list[Transfer]]:
    """Take in the given order what fits: each reservation over all of its accounts, or not at all.

    Args:
        reservations: what is wanted.
        made: the keys that were reserved before, with their accounts.
        balances: by account.
        now: windows that ended by then are counted as if they had been opened anew.
        expires_at: of the pending transfers.

    Returns:
        For each reservation whether it is made, now or before; and the transfers that make it.

    Raises:
        LedgerError: an account does not exist, or a key was reserved before over other accounts.
    """
    made = dict(made)
    wanted = {account for reservation in reservations for account in reservation.amounts}
    rows = {account: quota_account(balances, account) for account in wanted}
    available = {account: row.available_at(now) for account, row in rows.items()}
    answers, transfers = [], []
    for reservation in reservations:
        key, amounts = reservation.key, reservation.amounts
        known = made.get(key)
        if known is not None and known != amounts.keys():
            raise LedgerError(
                f"reservation {key} was made before over {', '.join(sorted(known))}, "
                f"not {', '.join(sorted(amounts))}: another attempt needs another key"
            )
        fits = known is None and all(available[account] >= amount for account, amount in amounts.items())
        answers.append(fits or known is not None)
        if not fits:
            continue
        made[key] = set(amounts)
        for account, amount in amounts.items():
            available[account] -= amount
            transfers.append(
                Transfer(
                    transfer_id=uuid5(key, account),
                    phase=Phase.PENDING,
                    debit_account=account,
                    credit_account=spent(rows[account].unit),
                    amount=amount,
                    code=Code.USE,
                    reservation=key,
                    task=reservation.task,
                    expires_at=expires_at,
                )
            )
    return answers, transfers


def windows_to_open(pendings: Iterable[Transfer], balances: Mapping[str, Balance], now: datetime) -> set[str]:
    """The accounts of pending transfers whose window has ended: what is reserved opens a new one."""
    accounts = {pending.debit_account for pending in pendings}
    return {account for account in accounts if quota_account(balances, account).has_ended(now)}


def held_by(pendings: Iterable[Transfer]) -> Moves:
    """What pending transfers hold, on both sides, until they are resolved."""
    held: dict[tuple[str, str], Decimal] = {}
    for pending in pendings:
        sides = pending.debit_account, pending.credit_account
        held[sides] = held.get(sides, _ZERO) + pending.amount
    moves: Moves = {}
    for (debit, credit), amount in held.items():
        for account, added in (
            (debit, Counters(debits_pending=amount)),
            (credit, Counters(credits_pending=amount)),
        ):
            moves[account] = moves.get(account, Counters()).plus(added)
    return moves


class Journal:
    """Entries over `balances` (by account, and kept up to date) at the instant `now`.

    Attributes:
        transfers: what was entered beside the batch that was decided before.
        rewindowed: accounts whose limit or window is no longer as it was.
    """

    def __init__(self, balances: Mapping[str, Balance], now: datetime) -> None:
        self.balances = balances
        self._now = now
        self.transfers: list[Transfer] = []
        self.rewindowed: set[str] = set()
        self._before = {account: balance.counters() for account, balance in balances.items()}

    def moves(self) -> Moves:
        """What was added to the counters, by account."""
        added = {
            account: Counters(*map(sub, self.balances[account].counters(), before))
            for account, before in self._before.items()
        }
        return {account: counters for account, counters in added.items() if any(counters)}

    def open_windows(self, accounts: Iterable[str]) -> None:
        """Turn over those of `accounts` whose window has ended and was not opened meanwhile."""
        for account in accounts:
            if self._account(account).has_ended(self._now):
                self.turn_over(account)

    def overrun(self, use: Use) -> None:
        """Charge what was used without being reserved. What the account does not hold, its source grants."""
        key, account, amount, task = use
        row = self._account(account)
        lacking = amount - row.held
        if lacking > 0:
            drawn = uuid5(key, f"{account}/drawn")
            self._move(drawn, source(row.unit), account, lacking, Code.OVERRUN, key, task)
        charge = overrun_transfer(key, account)
        self._move(charge, account, spent(row.unit), amount, Code.OVERRUN, key, task)

    def turn_over(self, account: str) -> None:
        """Close the account's window and open the one of now: what is left lapses, the limit is granted anew.

        Reservations that are still pending count against the new window, because their use will fall into it.
        """
        row = self._account(account)
        start, end = bounds(row.window, self._now)
        window = f"{account}/{row.window}/{start.isoformat()}"
        if row.held > 0:
            self._move(uuid5(_LEDGER, f"{window}/lapse"), account, source(row.unit), row.held, Code.LAPSE)
        row.debits_before_window = row.debits_posted
        row.window_started_at, row.window_ends_at = start, end
        self.rewindowed.add(account)
        self._move(
            opening_grant(account, row.window, start),
            source(row.unit),
            account,
            row.granted_at_opening(),
            Code.GRANT,
        )

    def agree(self, account: str, terms: AccountTerms | None) -> None:
        """Bring a stored account to what the registry promises now; to nothing where it promises nothing.

        Calendar windows that are over turn over. A limit that changed within a window is granted or lapses by
        the difference, never below what was used and reserved.
        """
        row = self._account(account)
        if terms and (terms.kind, terms.unit) != (row.kind, row.unit):
            raise LedgerError(
                f"account {account} counts {row.unit} of a {row.kind}; it cannot count {terms.unit} of a "
                f"{terms.kind}: give the new one another name"
            )
        window = terms.window if terms else row.window
        limit = terms.limit if terms else _ZERO
        if (row.window, row.limit) != (window, limit):
            self._adopt(row, window, limit)
        if terms and row.has_ended(self._now) and not row.window.opens_with_first_use:
            self.turn_over(account)

    def _adopt(self, row: QuotaBalance, window: Window, limit: Decimal) -> None:
        self.rewindowed.add(row.account)
        open_now = not row.has_ended(self._now)
        if open_now and window != row.window:
            row.window_started_at, row.window_ends_at = bounds(window, self._now)
        row.window, row.limit = window, limit
        if not open_now:
            return
        missing = max(_ZERO, limit - row.used - row.debits_pending) - row.held
        # Either entry moves a posted counter, so the pair of counters never names two adjustments.
        name = uuid5(_LEDGER, f"{row.account}/limit/{row.debits_posted}/{row.credits_posted}")
        if missing > 0:
            self._move(name, source(row.unit), row.account, missing, Code.GRANT)
        if missing < 0:
            self._move(name, row.account, source(row.unit), -missing, Code.LAPSE)
            row.debits_before_window -= missing

    def _account(self, name: str) -> QuotaBalance:
        return quota_account(self.balances, name)

    def _move(
        self,
        transfer_id: UUID,
        debit: str,
        credit: str,
        amount: Decimal,
        code: Code,
        key: UUID | None = None,
        task: int | None = None,
    ) -> None:
        self.balances[debit].debits_posted += amount
        self.balances[credit].credits_posted += amount
        self.transfers.append(
            Transfer(transfer_id, Phase.SINGLE, debit, credit, amount, code, reservation=key, task=task)
        )


def opening_grant(account: str, window: Window, start: datetime) -> UUID:
    """Id of the grant that opens a window."""
    return uuid5(_LEDGER, f"{account}/{window}/{start.isoformat()}/grant")


def overrun_transfer(key: UUID, account: str) -> UUID:
    """Id of the transfer that charges what the attempt `key` used of `account` beyond its reservation."""
    return uuid5(key, f"{account}/overrun")


def quota_account(balances: Mapping[str, Balance], name: str) -> QuotaBalance:
    """The balance of an account that holds quota.

    Raises:
        LedgerError: there is none of this name.
    """
    row = balances.get(name)
    if not isinstance(row, QuotaBalance):
        raise LedgerError(f"there is no quota account {name!r}; open the registry's accounts first")
    return row


def _exact(key: UUID, amounts: Mapping[str, Decimal]) -> dict[str, Decimal]:
    exact = {}
    for account, amount in amounts.items():
        value = Decimal(amount)
        if not value.is_finite() or value < 0:
            raise LedgerError(f"{key}: an amount of 0 or more is needed for {account}, not {amount}")
        exact[account] = value.quantize(SMALLEST_AMOUNT)
    return exact
