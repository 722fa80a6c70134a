"""When a failed attempt may be tried again: backoff with full jitter, and what the provider asked for.

Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

LONGEST_RETRY_AFTER_SECONDS = 86_400.0
"""A provider that asks for more than a day is taken to mean a day."""


class BackoffPolicy(Protocol):
    """The part of a policy that delays are made from."""

    @property
    def backoff_base_seconds(self) -> float:
        """Ceiling of the first retry's delay."""

    @property
    def backoff_cap_seconds(self) -> float:
        """Ceiling of any retry's delay."""


def retry_delay(attempt: int, policy: BackoffPolicy, *, jitter: float, retry_after: float | None) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1).

    Args:
        jitter: a random number in [0, 1): the share of the ceiling that is waited.
        retry_after: seconds the provider asked for; never undercut.
    """
    ceiling = min(policy.backoff_cap_seconds, policy.backoff_base_seconds * 2.0 ** min(attempt - 1, 60))
    return max(jitter * ceiling, retry_after or 0.0)


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that `retry-after-ms` or `retry-after` ask for, or None when neither says something usable.

    Args:
        headers: response headers, names in lower case.
        now: UTC; an HTTP date counts from here.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None:
        return _bounded(seconds)
    moment = _http_date(value)
    return None if moment is None else _bounded((moment - now).total_seconds())


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _http_date(value: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
