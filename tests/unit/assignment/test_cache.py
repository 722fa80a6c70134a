"""What a process remembers: for a while, not too much, and in many threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.assignment.cache import PlannerCache


def test_an_answer_is_remembered_until_its_time_is_up():
    cache = PlannerCache[str](ttl_seconds=10, most_entries=5)
    assert cache.get("key", now=100.0) is None
    cache.put("key", "answer", now=100.0)
    assert cache.get("key", now=109.9) == "answer"
    assert cache.get("key", now=110.0) is None
    assert len(cache) == 0
    assert (cache.hits, cache.misses, cache.hit_rate) == (1, 2, pytest.approx(1 / 3))


def test_a_clock_that_went_back_makes_an_answer_old_not_eternal():
    cache = PlannerCache[str](ttl_seconds=10, most_entries=5)
    cache.put("key", "answer", now=1e9)
    assert cache.get("key", now=0.0) is None


def test_the_least_recently_used_answer_is_forgotten_first():
    cache = PlannerCache[int](ttl_seconds=10, most_entries=2)
    cache.put("a", 1, now=0)
    cache.put("b", 2, now=0)
    assert cache.get("a", now=1) == 1
    cache.put("c", 3, now=1)
    assert [cache.get(key, now=1) for key in "abc"] == [1, None, 3]


def test_no_lookup_has_no_hit_rate_and_what_is_cleared_is_forgotten():
    cache = PlannerCache[int](ttl_seconds=10, most_entries=2)
    assert cache.hit_rate is None
    cache.put("a", 1, now=0)
    cache.clear()
    assert cache.get("a", now=0) is None


@given(st.lists(st.tuples(st.integers(0, 8), st.floats(0, 5)), max_size=60))
def test_never_more_than_allowed_and_never_older_than_allowed(puts):
    cache = PlannerCache[float](ttl_seconds=2, most_entries=4)
    now, written = 0.0, {}
    for key, wait in puts:
        now += wait
        found = cache.get(key, now)
        if found is not None:
            assert found == written[key]
            assert now - found < 2
        cache.put(key, now, now)
        written[key] = now
        assert len(cache) <= 4


def test_threads_count_every_lookup_once():
    cache = PlannerCache[int](ttl_seconds=10, most_entries=8)

    def work(number: int) -> None:
        for key in range(200):
            if cache.get(key % 16, now=1.0) is None:
                cache.put(key % 16, number + 1, now=1.0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache.hits + cache.misses == 8 * 200
    assert len(cache) == 8
