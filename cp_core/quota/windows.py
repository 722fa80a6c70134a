"""Quota windows: how long each lasts and when one opens. Pure functions of an instant in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple


class Window(StrEnum):
    """How often a quota is granted anew.

    A 5-hour window opens with its first use; the others follow the calendar in UTC, a week from Monday.
    """

    FIVE_HOUR = "5-hour"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"

    @property
    def opens_with_first_use(self) -> bool:
        """Whether a window stays closed until something is reserved in it."""
        return self is Window.FIVE_HOUR


class Bounds(NamedTuple):
    """One window: from `start`, inclusive, to `end`, exclusive. Both in UTC."""

    start: datetime
    end: datetime


def bounds(window: Window, now: datetime) -> Bounds:
    """The window of this kind that holds at `now`; a 5-hour window starts at `now` itself.

    Args:
        window: which kind.
        now: an instant with a time zone.

    Raises:
        ValueError: `now` has no time zone.
    """
    if now.tzinfo is None:
        raise ValueError(f"an instant with a time zone is needed, not {now!r}")
    now = now.astimezone(UTC)
    if window is Window.FIVE_HOUR:
        return Bounds(now, now + timedelta(hours=5))
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if window is Window.DAILY:
        return Bounds(midnight, midnight + timedelta(days=1))
    if window is Window.WEEKLY:
        monday = midnight - timedelta(days=midnight.weekday())
        return Bounds(monday, monday + timedelta(weeks=1))
    first = midnight.replace(day=1)
    return Bounds(first, (first + timedelta(days=31)).replace(day=1))


def has_ended(window_ends_at: datetime | None, now: datetime) -> bool:
    """Whether a window that ends at `window_ends_at` (None: it never opened) is over at `now`."""
    return window_ends_at is None or window_ends_at <= now
