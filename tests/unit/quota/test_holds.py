"""Reservations as columns say the same as reservations one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest

from cp_core.quota.account import AccountKind, Unit
from cp_core.quota.holds import Holds
from cp_core.quota.journal import (
    Balance,
    Counters,
    LedgerError,
    QuotaBalance,
    Reservation,
    decide_reservations,
    held_by,
)
from cp_core.quota.windows import Window

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
FIRST, SECOND = UUID(int=1), UUID(int=2)
HOLDS = Holds(
    [FIRST.bytes, SECOND.bytes],
    np.array([11, 12]),
    ("max/weekly", "budget/api"),
    key=np.array([0, 1, 1]),
    account=np.array([0, 0, 1]),
    whole=np.array([70, 30, 1]),
    nano=np.array([0, 0, 500_000_000]),
)
ONE_BY_ONE = [
    Reservation(FIRST, {"max/weekly": Decimal(70)}, 11),
    Reservation(SECOND, {"max/weekly": Decimal(30), "budget/api": Decimal("1.5")}, 12),
]


def balances(tokens: int = 100, ends_at: datetime = NOW + timedelta(days=1)) -> dict[str, Balance]:
    weekly = QuotaBalance(
        "max/weekly",
        Unit.TOKENS,
        credits_posted=Decimal(tokens),
        kind=AccountKind.WINDOW,
        window=Window.WEEKLY,
        limit=Decimal(tokens),
        window_started_at=NOW,
        window_ends_at=ends_at,
    )
    budget = QuotaBalance(
        "budget/api",
        Unit.USD,
        credits_posted=Decimal(2),
        kind=AccountKind.BUDGET,
        window=Window.MONTHLY,
        limit=Decimal(2),
        window_started_at=NOW,
        window_ends_at=NOW + timedelta(days=1),
    )
    return {"max/weekly": weekly, "budget/api": budget}


def test_the_transfers_and_what_they_hold_are_those_of_reservations_one_by_one() -> None:
    answers, transfers = decide_reservations(ONE_BY_ONE, {}, balances(), NOW, NOW)
    assert answers == [True, True]
    assert [UUID(bytes=row.tobytes()) for row in HOLDS.transfer_ids()] == [
        transfer.transfer_id for transfer in transfers
    ]
    assert HOLDS.moves(balances()) == held_by(transfers)


def test_both_sides_hold_the_same() -> None:
    moves = HOLDS.moves(balances())
    assert moves["max/weekly"] == Counters(debits_pending=Decimal(100))
    assert moves["spent:usd"] == Counters(credits_pending=Decimal("1.5"))


@pytest.mark.parametrize(("tokens", "fits"), [(100, True), (99, False)], ids=["just enough", "one too few"])
def test_all_of_it_fits_or_nothing(tokens: int, fits: bool) -> None:
    assert HOLDS.fit(balances(tokens), NOW) is fits


def test_an_account_whose_window_has_ended_is_to_be_opened() -> None:
    assert HOLDS.to_open(balances(ends_at=NOW), NOW) == {"max/weekly"}


def test_an_account_that_does_not_exist_is_refused() -> None:
    with pytest.raises(LedgerError, match="max/weekly"):
        HOLDS.fit({}, NOW)
