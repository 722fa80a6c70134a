"""The ledger's rules on values: windows that turn over, limits that change, use that was not reserved."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.quota.account import AccountKind, AccountTerms, Unit
from cp_core.quota.journal import (
    Balance,
    Code,
    Counters,
    Journal,
    LedgerError,
    Moves,
    QuotaBalance,
    Reservation,
    Use,
    decide_reservations,
    held_by,
    reservation_transfers,
    windows_to_open,
)
from cp_core.quota.windows import Window

SATURDAY = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SUNDAY = SATURDAY + timedelta(days=1)
IN_AN_HOUR = SATURDAY + timedelta(hours=1)
KEY = UUID("00000000-0000-0000-0000-00000000000a")
OTHER_KEY = UUID("00000000-0000-0000-0000-00000000000b")
PLAN = "plan/daily"
SHORT = "plan/5-hour"


def _balances(limit: int = 100, window: Window = Window.DAILY) -> dict[str, Balance]:
    accounts = [Balance("source:tokens", Unit.TOKENS), Balance("spent:tokens", Unit.TOKENS)]
    quota = f"plan/{window}"
    accounts.append(
        QuotaBalance(quota, Unit.TOKENS, kind=AccountKind.WINDOW, window=window, limit=Decimal(limit))
    )
    return {balance.account: balance for balance in accounts}


def _opened(limit: int = 100) -> Journal:
    journal = Journal(_balances(limit), SATURDAY)
    journal.turn_over(PLAN)
    return journal


def _plan(journal: Journal, account: str = PLAN) -> QuotaBalance:
    balance = journal.balances[account]
    assert isinstance(balance, QuotaBalance)
    return balance


def _reserve(journal: Journal, amount: str, key: UUID = KEY, account: str = PLAN) -> bool:
    wanted = [Reservation(key, {account: Decimal(amount)})]
    [made], transfers = decide_reservations(wanted, {}, journal.balances, SATURDAY, IN_AN_HOUR)
    journal.open_windows(windows_to_open(transfers, journal.balances, SATURDAY))
    _move(journal, held_by(transfers))
    return made


def _move(journal: Journal, moves: Moves) -> None:
    """Move balances as the database does."""
    for account, added in moves.items():
        balance = journal.balances[account]
        balance.debits_pending += added.debits_pending
        balance.debits_posted += added.debits_posted
        balance.credits_pending += added.credits_pending
        balance.credits_posted += added.credits_posted


def _settle(journal: Journal, reserved: int, used: int, key: UUID = KEY) -> None:
    """Settle as the database does, and charge what it leaves."""
    amount = Decimal(reserved)
    posted = min(amount, Decimal(used))
    debits = Counters(debits_pending=-amount, debits_posted=posted)
    _move(journal, {PLAN: debits, "spent:tokens": Counters(credits_pending=-amount, credits_posted=posted)})
    if used > posted:
        journal.overrun(Use(key, PLAN, used - posted, None))


def test_what_was_used_is_posted_and_the_rest_is_free_again() -> None:
    journal = _opened(100)
    assert _reserve(journal, "60")
    assert (_plan(journal).held, _plan(journal).debits_pending) == (40, 60)
    _settle(journal, 60, 45)
    assert (_plan(journal).held, _plan(journal).debits_pending, _plan(journal).used) == (55, 0, 45)


def test_a_reservation_that_does_not_fit_changes_nothing() -> None:
    journal = _opened(100)
    assert not _reserve(journal, "100.000000001")
    assert (_plan(journal).held, _plan(journal).debits_pending) == (100, 0)
    assert _reserve(journal, "100", OTHER_KEY)


def test_use_beyond_the_reservation_is_taken_from_the_account_and_the_rest_from_the_source() -> None:
    journal = _opened(100)
    _reserve(journal, "60")
    _settle(journal, 60, 130)
    assert (_plan(journal).held, _plan(journal).used) == (0, 130)
    assert journal.balances["spent:tokens"].held == 130
    assert journal.balances["source:tokens"].held == -130  # 100 granted, 30 drawn
    overruns = [transfer.amount for transfer in journal.transfers if transfer.code is Code.OVERRUN]
    assert overruns == [30, 70]  # drawn from the source; charged beyond the 60 that were posted


def test_a_new_day_lapses_what_is_left_and_grants_the_limit_less_what_is_still_reserved() -> None:
    saturday = _opened(100)
    _reserve(saturday, "30")
    sunday = Journal(saturday.balances, SUNDAY)
    assert _plan(saturday).as_found_at(SUNDAY).available == 70
    sunday.turn_over(PLAN)
    assert [(t.code, t.amount) for t in sunday.transfers] == [(Code.LAPSE, 70), (Code.GRANT, 70)]
    plan = _plan(sunday)
    assert (plan.held, plan.debits_pending, plan.used) == (70, 30, 0)
    assert plan.window_ends_at == datetime(2026, 11, 23, tzinfo=UTC)


def test_opening_the_same_window_twice_would_give_the_same_grant() -> None:
    first, second = _opened(), _opened()
    assert first.transfers[0].transfer_id == second.transfers[0].transfer_id


def test_a_five_hour_window_opens_with_the_first_reservation() -> None:
    journal = Journal(_balances(100, Window.FIVE_HOUR), SATURDAY)
    journal.agree(SHORT, AccountTerms(SHORT, AccountKind.WINDOW, Unit.TOKENS, Window.FIVE_HOUR, Decimal(100)))
    closed = _plan(journal, SHORT).as_found_at(SATURDAY)
    assert (closed.available, closed.window_started_at, closed.window_ends_at) == (100, None, None)
    assert journal.transfers == []

    assert not _reserve(journal, "101", account=SHORT)
    assert _plan(journal, SHORT).window_started_at is None
    assert _reserve(journal, "10", account=SHORT)
    opened = _plan(journal, SHORT).as_found_at(SATURDAY)
    assert (opened.available, opened.pending) == (90, 10)
    assert opened.window_ends_at == SATURDAY + timedelta(hours=5)


def _limited(limit: int) -> AccountTerms:
    return AccountTerms(PLAN, AccountKind.WINDOW, Unit.TOKENS, Window.DAILY, Decimal(limit))


@pytest.mark.parametrize(
    ("limit", "available"),
    [(150, 100), (100, 50), (80, 30), (50, 0), (10, 0)],
)
def test_a_changed_limit_leaves_the_limit_less_what_was_used_and_reserved(limit: int, available: int) -> None:
    journal = _opened(100)
    _reserve(journal, "30")
    _settle(journal, 30, 30)
    _reserve(journal, "20", OTHER_KEY)
    journal.agree(PLAN, _limited(limit))
    account = _plan(journal).as_found_at(SATURDAY)
    assert (account.available, account.used, account.pending) == (available, 30, 20)


def test_a_limit_that_is_lowered_and_raised_again_is_as_if_nothing_had_happened() -> None:
    journal = _opened(100)
    _reserve(journal, "80")
    _settle(journal, 80, 80)
    for limit in (50, 100, 50, 100):
        journal.agree(PLAN, _limited(limit))
    assert (_plan(journal).held, _plan(journal).used) == (20, 80)
    assert len({transfer.transfer_id for transfer in journal.transfers}) == len(journal.transfers)


def test_an_account_that_is_declared_no_longer_grants_nothing() -> None:
    journal = _opened(100)
    journal.agree(PLAN, None)
    assert _plan(journal).as_found_at(SATURDAY).available == 0
    assert _plan(journal).as_found_at(SUNDAY).available == 0


def test_an_account_cannot_count_something_else_than_before() -> None:
    terms = AccountTerms(PLAN, AccountKind.BUDGET, Unit.USD, Window.DAILY, Decimal(1))
    with pytest.raises(LedgerError, match="give the new one another name"):
        _opened().agree(PLAN, terms)


@pytest.mark.parametrize("amount", ["-1", "NaN", "Infinity"])
def test_an_amount_is_a_number_of_zero_or_more(amount: str) -> None:
    with pytest.raises(LedgerError, match="an amount of 0 or more"):
        Reservation(KEY, {PLAN: Decimal(amount)})


def test_a_reservation_names_an_account_that_exists() -> None:
    with pytest.raises(LedgerError, match="names no account"):
        Reservation(KEY, {})
    with pytest.raises(LedgerError, match="no quota account 'plan/hourly'"):
        _reserve(_opened(), "1", account="plan/hourly")
    with pytest.raises(LedgerError, match="no quota account 'source:tokens'"):
        _reserve(_opened(), "1", account="source:tokens")


def test_ids_of_a_reservation_follow_from_its_key_and_accounts() -> None:
    assert reservation_transfers(KEY, [PLAN, SHORT]) == [uuid5(KEY, PLAN), uuid5(KEY, SHORT)]


entries = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(0, 90)), min_size=1, max_size=12
)


@given(entries, st.randoms(use_true_random=False))
def test_the_order_of_settling_changes_neither_what_was_spent_nor_what_is_left_within_the_limit(
    wanted: list[tuple[int, int, int]], random: object
) -> None:
    def play(shuffled: bool) -> tuple[Decimal, Decimal, Decimal]:
        journal = _opened(1_000_000)
        made = []
        for position, (_, reserved, used) in enumerate(wanted):
            key = uuid5(KEY, str(position))
            _reserve(journal, str(reserved), key)
            made.append((reserved, used, key))
        if shuffled:
            random.shuffle(made)  # type: ignore[attr-defined]
        for settled in made:
            _settle(journal, *settled)
        plan = _plan(journal)
        return plan.held, plan.used, journal.balances["spent:tokens"].held

    assert play(shuffled=True) == play(shuffled=False)
    assert play(shuffled=False)[1] == sum(used for _, _, used in wanted)


@given(entries)
def test_debits_equal_credits_and_no_account_goes_below_zero(wanted: list[tuple[int, int, int]]) -> None:
    journal = _opened(100)
    for position, (_, reserved, used) in enumerate(wanted):
        key = uuid5(KEY, str(position))
        if _reserve(journal, str(reserved), key):
            _settle(journal, reserved, used, key)
        assert _plan(journal).held >= 0
    totals: Counter[str] = Counter()
    for balance in journal.balances.values():
        for side, amount in balance.counters()._asdict().items():
            totals[side] += amount
    assert totals["debits_posted"] == totals["credits_posted"]
    assert totals["debits_pending"] == totals["credits_pending"] == 0
