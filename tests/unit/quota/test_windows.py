"""Windows of quota: when each opens and ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.quota.windows import Window, bounds, has_ended

NOON_ON_A_SATURDAY = datetime(2026, 11, 21, 12, 30, 5, tzinfo=UTC)

instants = st.integers(0, 4_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        (Window.FIVE_HOUR, NOON_ON_A_SATURDAY, datetime(2026, 11, 21, 17, 30, 5, tzinfo=UTC)),
        (Window.DAILY, datetime(2026, 11, 21, tzinfo=UTC), datetime(2026, 11, 22, tzinfo=UTC)),
        (Window.WEEKLY, datetime(2026, 11, 16, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC)),
        (Window.MONTHLY, datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)),
    ],
)
def test_a_window_has_the_bounds_of_its_kind(window: Window, start: datetime, end: datetime) -> None:
    assert bounds(window, NOON_ON_A_SATURDAY) == (start, end)


def test_a_monthly_window_ends_with_the_year() -> None:
    december = bounds(Window.MONTHLY, datetime(2026, 12, 31, 23, 59, tzinfo=UTC))
    assert december == (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))


def test_a_day_is_a_day_in_utc_whatever_the_time_zone_of_the_instant() -> None:
    late_in_new_york = datetime(2026, 11, 20, 22, 0, tzinfo=timezone(timedelta(hours=-5)))
    assert bounds(Window.DAILY, late_in_new_york).start == datetime(2026, 11, 21, tzinfo=UTC)


def test_an_instant_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        bounds(Window.DAILY, NOON_ON_A_SATURDAY.replace(tzinfo=None))


@given(st.sampled_from(Window), instants)
def test_every_instant_lies_in_its_window_and_the_next_window_begins_where_it_ends(
    window: Window, now: datetime
) -> None:
    start, end = bounds(window, now)
    assert start <= now < end
    assert bounds(window, end).start == end


def test_a_window_that_never_opened_has_ended_and_an_end_is_exclusive() -> None:
    assert has_ended(None, NOON_ON_A_SATURDAY)
    assert has_ended(NOON_ON_A_SATURDAY, NOON_ON_A_SATURDAY)
    assert not has_ended(NOON_ON_A_SATURDAY + timedelta(microseconds=1), NOON_ON_A_SATURDAY)
