"""Rate limits and the prompt cache, as several processes of one simulator share them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_resources.simulator.shared import Prefix, PromptCache, RateLimits, prefixes_of

NOW = 1_000_000.0


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[PromptCache]:
    opened = PromptCache(tmp_path / "cache")
    yield opened
    opened.close()


def test_a_minutes_worth_of_requests_passes_at_once_and_then_one_a_second(tmp_path: Path) -> None:
    limits = RateLimits(tmp_path / "limits", requests_per_minute=60, tokens_per_minute=None)
    assert all(limits.take("m", 10, NOW).exceeded is None for _ in range(60))
    denied = limits.take("m", 10, NOW)
    assert denied.exceeded == "requests"
    assert denied.retry_after == pytest.approx(1.0)
    assert denied.remaining == {"requests": 0}
    assert limits.take("m", 10, NOW + 0.9).exceeded == "requests"
    assert limits.take("m", 10, NOW + 1.0).exceeded is None


def test_a_call_may_overdraw_the_tokens_and_the_next_ones_wait_for_the_debt(tmp_path: Path) -> None:
    limits = RateLimits(tmp_path / "limits", requests_per_minute=None, tokens_per_minute=6000)
    assert limits.take("m", 9000, NOW).exceeded is None
    denied = limits.take("m", 1, NOW)
    assert denied.exceeded == "tokens"
    assert denied.retry_after == pytest.approx(30.0, abs=0.02)  # 3,000 tokens of debt at 100 a second
    assert limits.take("m", 1, NOW + 30.1).exceeded is None


def test_a_denied_call_is_charged_nothing(tmp_path: Path) -> None:
    limits = RateLimits(tmp_path / "limits", requests_per_minute=1, tokens_per_minute=6000)
    limits.take("m", 100, NOW)
    before = limits.take("m", 100, NOW)
    after = limits.take("m", 100, NOW)
    assert before.exceeded == after.exceeded == "requests"
    assert before.remaining == after.remaining == {"requests": 0, "tokens": 5900}


def test_each_model_has_its_own_limits(tmp_path: Path) -> None:
    limits = RateLimits(tmp_path / "limits", requests_per_minute=1, tokens_per_minute=None)
    assert limits.take("a", 1, NOW).exceeded is None
    assert limits.take("b", 1, NOW).exceeded is None
    assert limits.take("a", 1, NOW).exceeded == "requests"


def test_processes_share_the_limits(tmp_path: Path) -> None:
    one = RateLimits(tmp_path / "limits", requests_per_minute=1, tokens_per_minute=None)
    other = RateLimits(tmp_path / "limits", requests_per_minute=1, tokens_per_minute=None)
    assert one.take("m", 1, NOW).exceeded is None
    assert other.take("m", 1, NOW).exceeded == "requests"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 3000)), max_size=60))
def test_no_minute_lets_more_requests_pass_than_the_bucket_and_its_refill(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[float, int]]
) -> None:
    limits = RateLimits(tmp_path_factory.mktemp("limits") / "limits", 6, 10_000)
    now, passed = NOW, 0
    for pause, tokens in calls:
        now += pause
        passed += limits.take("m", tokens, now).exceeded is None
    limits.close()
    assert passed <= 6 + (now - NOW) / 10 + 1e-6


def test_a_prefix_is_found_once_written_and_until_it_expires(cache: PromptCache) -> None:
    prefix = Prefix(key=42, tokens=1024)
    assert cache.longest([prefix], NOW) is None
    cache.write([prefix], NOW)
    assert cache.longest([prefix], NOW + 299) == prefix


def test_reading_a_prefix_keeps_it_for_another_time_to_live(cache: PromptCache) -> None:
    prefix = Prefix(key=42, tokens=1024)
    cache.write([prefix], NOW)
    assert cache.longest([prefix], NOW + 200) == prefix
    assert cache.longest([prefix], NOW + 499) == prefix
    assert cache.longest([prefix], NOW + 799 + 1) is None


def test_the_longest_prefix_counts(cache: PromptCache) -> None:
    short, middle, long = (Prefix(key, tokens) for key, tokens in ((1, 1024), (2, 1152), (3, 1280)))
    cache.write([short, middle], NOW)
    assert cache.longest([short, middle, long], NOW) == middle


def test_an_hour_is_not_cut_short_by_a_reader_of_five_minutes(cache: PromptCache) -> None:
    cache.write([Prefix(key=7, tokens=2000, ttl=3600)], NOW)
    cache.longest([Prefix(key=7, tokens=2000)], NOW + 10)
    assert cache.longest([Prefix(key=7, tokens=2000)], NOW + 3500) is not None


def test_processes_share_the_cache(cache: PromptCache, tmp_path: Path) -> None:
    other = PromptCache(tmp_path / "cache")
    cache.write([Prefix(key=42, tokens=1024)], NOW)
    assert other.longest([Prefix(key=42, tokens=1024)], NOW) is not None


def test_a_full_neighbourhood_forgets_what_expires_first(cache: PromptCache) -> None:
    neighbours = [Prefix(key=5 + (i << 20), tokens=1024) for i in range(17)]
    for i, prefix in enumerate(neighbours):
        cache.write([prefix], NOW + i)
    found = [cache.longest([prefix], NOW + 20) is not None for prefix in neighbours]
    assert found == [False] + [True] * 16


def test_prefixes_depend_on_all_text_before_them_and_on_the_model() -> None:
    def keys(scope: str, *texts: str) -> list[int]:
        return [prefix.key for prefix in prefixes_of(scope, [(text, 1, 300.0) for text in texts])]

    assert keys("m", "a", "b")[0] == keys("m", "a", "c")[0]
    assert keys("m", "a", "b")[1] != keys("m", "x", "b")[1]
    assert keys("m", "a") != keys("n", "a")
