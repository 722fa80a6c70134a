"""How limits are shared, how a minute is paced, and what rate-limit headers ask for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.limits import BURST, Pace, pause_seconds, share

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("limit", "wanted", "held", "in_use", "expected"),
    [
        (8, {"a": 8}, {}, 0, 8),
        (8, {"a": 8, "b": 8}, {}, 0, 4),
        (8, {"a": 8, "b": 8}, {"b": 8}, 0, 0),  # until the other lets go
        (8, {"a": 8, "b": 8}, {"b": 4}, 0, 4),
        (8, {"a": 8, "b": 1}, {"b": 1}, 0, 7),  # what others do not want
        (8, {"a": 8, "b": 8}, {"a": 8}, 6, 6),  # calls under way go on
        (8, {"a": 0, "b": 8}, {"a": 8}, 0, 0),
    ],
)
def test_a_worker_gets_its_fair_share_of_what_others_let_go(
    limit: int, wanted: dict[str, int], held: dict[str, int], in_use: int, expected: int
) -> None:
    assert share(limit, "a", wanted, held, in_use) == expected


def test_what_cannot_be_divided_goes_round() -> None:
    wanted = {"a": 1, "b": 1}

    assert [share(1, "a", wanted, {}, 0, turn=turn) for turn in range(4)] == [1, 0, 1, 0]
    assert [share(1, "b", wanted, {}, 0, turn=turn) for turn in range(4)] == [0, 1, 0, 1]


RENEWALS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 12), st.integers(0, 12), st.integers(0, 5)), max_size=60
)


@given(st.integers(1, 10), RENEWALS)
def test_whoever_asks_when_no_more_is_held_than_the_limit(
    limit: int, renewals: list[tuple[str, int, int, int]]
) -> None:
    wanted: dict[str, int] = {}
    held: dict[str, int] = {}
    for worker, wants, uses, turn in renewals:
        wanted[worker] = wants
        held[worker] = share(limit, worker, wanted, held, min(uses, held.get(worker, 0)), turn=turn)
        assert sum(held.values()) <= limit


@given(st.integers(1, 20), st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_after_everybody_has_asked_twice_nothing_that_is_wanted_lies_idle(
    limit: int, wants: list[int]
) -> None:
    wanted = {f"w{number}": amount for number, amount in enumerate(wants)}
    held = {"w0": min(limit, wants[0])}
    for _ in range(2):
        for worker in wanted:
            held[worker] = share(limit, worker, wanted, held, 0)

    assert sum(held.values()) == min(limit, sum(wants))


@given(st.integers(10, 600), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 4)), max_size=80))
def test_in_no_minute_more_is_begun_than_the_limit_and_what_the_last_one_was_too_large(
    limit: int, tries: list[tuple[float, int]]
) -> None:
    pace, now = Pace(limit, limit * BURST, 0.0), 0.0
    begun: list[tuple[float, int]] = []
    for gap, amount in tries:
        now += gap
        if pace.wait_seconds(now) == 0:
            pace.take(amount, now)
            begun.append((now, amount))

    for start, _ in begun:
        minute = [amount for at, amount in begun if start <= at < start + 60]
        assert sum(minute[:-1]) <= limit + 1e-6


def test_whoever_waits_as_long_as_told_may_begin() -> None:
    pace = Pace(60, 0.0, 0.0)

    wait = pace.wait_seconds(0.0)
    assert wait == pytest.approx(1 / 0.9)
    assert pace.wait_seconds(wait) == 0
    pace.take(100, wait)
    assert pace.wait_seconds(wait) == pytest.approx(100 / 0.9)


OPENAI = {"x-ratelimit-limit-requests": "1000", "x-ratelimit-limit-tokens": "200000"}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"x-ratelimit-remaining-requests": "999", "x-ratelimit-reset-requests": "6ms"}, 0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "620ms"}, 0.62),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30.5s"}, 90.5),
        # Nine of a thousand left for fifty seconds: one in five.
        (OPENAI | {"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "50s"}, 5),
        (
            {
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2026-03-04T12:00:07Z",
            },
            7,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-03-04T11:59:00Z",
            },
            0,
        ),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, 0),
        ({"x-ratelimit-remaining-requests": "none", "x-ratelimit-reset-requests": "6s"}, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9d"}, 3600),
    ],
)
def test_headers_say_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert pause_seconds(headers, NOW) == pytest.approx(seconds)


@given(st.dictionaries(st.sampled_from([*OPENAI, "x-ratelimit-reset-requests"]), st.text(max_size=20)))
def test_no_header_breaks_an_answer(headers: dict[str, str]) -> None:
    assert pause_seconds({"x-ratelimit-remaining-requests": "0", **headers}, NOW) >= 0
