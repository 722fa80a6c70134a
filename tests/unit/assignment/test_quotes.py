"""Prices between the rounds: what a late round may change of what the day found, and what not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from cp_core.assignment.quotes import Quote, quotes_after
from cp_core.quota.account import Account, AccountKind, Unit
from cp_core.quota.windows import Window

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)  # a Wednesday
MIDNIGHT = datetime(2026, 3, 5, tzinfo=UTC)


def account(window: Window = Window.DAILY, ends_at: datetime | None = MIDNIGHT) -> Account:
    some = Decimal(100)
    return Account(
        "max/window", AccountKind.WINDOW, Unit.TOKENS, window, some, some, some, some, None, ends_at
    )


def after(
    price: float, tasks: int, before: Quote | None = None, now: datetime = NOW, held: Account | None = None
) -> Quote:
    known = {} if before is None else {"max/window": before}
    return quotes_after({"max/window": price}, tasks, [held or account()], known, now)["max/window"]


def test_the_first_round_of_a_window_is_quoted_as_it_is() -> None:
    assert after(0.8, 1000) == Quote(0.8, 1000, MIDNIGHT)


def test_a_small_late_round_hardly_lowers_what_the_day_found() -> None:
    assert after(0.0, 10, before=Quote(0.8, 990, MIDNIGHT)) == Quote(pytest.approx(0.792), 1000, MIDNIGHT)


def test_a_round_as_large_as_the_day_lowers_it_by_half() -> None:
    assert after(0.0, 500, before=Quote(0.8, 500, MIDNIGHT)).price == pytest.approx(0.4)


def test_a_higher_price_counts_at_once_however_small_the_round() -> None:
    assert after(2.0, 1, before=Quote(0.8, 999, MIDNIGHT)) == Quote(2.0, 1000, MIDNIGHT)


def test_a_window_that_opened_anew_forgets_what_the_one_before_cost() -> None:
    assert after(0.1, 5, before=Quote(0.8, 990, NOW)) == Quote(0.1, 5, MIDNIGHT)


def test_a_window_that_opens_with_its_first_use_is_quoted_as_if_it_opened_now() -> None:
    assert after(0.5, 5, held=account(Window.FIVE_HOUR, None)).until == NOW + timedelta(hours=5)


def test_rounds_without_tasks_change_nothing_and_what_has_no_price_has_no_quote() -> None:
    assert after(0.0, 0, before=Quote(0.8, 0, MIDNIGHT)).price == 0.0
    assert quotes_after({}, 5, [account()], {}, NOW) == {}
