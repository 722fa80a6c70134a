"""When a failed attempt may be tried again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.policy import ExecutionPolicy
from cp_core.execution.retry import LONGEST_RETRY_AFTER_SECONDS, retry_after_seconds, retry_delay

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
POLICY = ExecutionPolicy(backoff_base_seconds=2, backoff_cap_seconds=10)
jitters = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(("attempt", "ceiling"), [(1, 2), (2, 4), (3, 8), (4, 10), (60, 10), (10_000, 10)])
def test_the_ceiling_doubles_with_each_attempt_up_to_the_cap(attempt: int, ceiling: float) -> None:
    assert retry_delay(attempt, POLICY, jitter=0.5, retry_after=None) == ceiling / 2


@given(st.integers(1, 100), jitters, st.none() | st.floats(0, 1e6))
def test_a_delay_never_undercuts_what_the_provider_asked_for(
    attempt: int, jitter: float, retry_after: float | None
) -> None:
    delay = retry_delay(attempt, POLICY, jitter=jitter, retry_after=retry_after)

    assert delay >= (retry_after or 0)
    assert delay <= max(POLICY.backoff_cap_seconds, retry_after or 0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "1", "retry-after-ms": "620"}, 0.62),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        ({"retry-after": "Mon, 04 May 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 04 May 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Mon, 04 May 2026 14:00:30 +0200"}, 30.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "999999999"}, LONGEST_RETRY_AFTER_SECONDS),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, LONGEST_RETRY_AFTER_SECONDS),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": "Mon, 99 May 2026 12:00:30 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_breaks_the_worker(value: str) -> None:
    seconds = retry_after_seconds({"retry-after": value}, NOW)

    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER_SECONDS
