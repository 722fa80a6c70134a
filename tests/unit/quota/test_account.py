"""States of an account by what remains."""

from __future__ import annotations

from decimal import Decimal

import pytest

from cp_core.quota.account import Account, AccountKind, AccountState, Unit
from cp_core.quota.windows import Window


def _account(available: str, limit: str = "1000") -> Account:
    return Account(
        account="plan/daily",
        kind=AccountKind.WINDOW,
        unit=Unit.TOKENS,
        window=Window.DAILY,
        limit=Decimal(limit),
        used=Decimal(0),
        pending=Decimal(0),
        available=Decimal(available),
    )


@pytest.mark.parametrize(
    ("available", "state"),
    [
        ("1000", AccountState.FULL),
        ("800.000000001", AccountState.FULL),
        ("800", AccountState.MEDIUM),
        ("500.000000001", AccountState.MEDIUM),
        ("500", AccountState.LOW),
        ("200.000000001", AccountState.LOW),
        ("200", AccountState.CRITICAL),
        ("0.000000001", AccountState.CRITICAL),
        ("0", AccountState.EXHAUSTED),
    ],
)
def test_the_state_says_what_remains(available: str, state: AccountState) -> None:
    assert _account(available).state is state


def test_an_account_that_grants_nothing_is_exhausted() -> None:
    assert _account("0", limit="0").state is AccountState.EXHAUSTED
    assert _account("0", limit="0").remaining_share == 0
