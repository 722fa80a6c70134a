"""Which prefixes a provider holds, and what reading and writing them comes to, by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from cp_core.execution.cost import Usage
from cp_core.execution.prompt import Prompt
from cp_core.execution.prompt_cache import CacheSummary, PrefixUse, prefix_of
from cp_core.models.registry import Model
from cp_core.scoring.config import Domain


def model(**changes: Any) -> Model:
    """3 dollars per million input tokens, 0.30 read from the cache, 3.75 written to it."""
    return Model.model_validate(
        {
            "name": "sonnet",
            "provider": "anthropic",
            "api_name": "sonnet-1",
            "tier": "mid-premium",
            "family": "claude",
            "input_usd_per_million": 3,
            "cached_input_usd_per_million": "0.3",
            "cache_write_usd_per_million": "3.75",
            "output_usd_per_million": 15,
            "cache_minimum_tokens": 100,
            "context_window": 200_000,
            "max_output_tokens": 50_000,
            "capability": dict.fromkeys(Domain, 0.8),
            **changes,
        }
    )


def prompt(characters: int, task: str = "a task") -> Prompt:
    return Prompt("x" * characters, task)


def test_calls_share_a_prefix_whatever_their_tasks_and_only_at_one_model() -> None:
    first = prefix_of(prompt(400, "one"), model())
    second = prefix_of(prompt(400, "another"), model())

    assert first == second
    assert first is not None
    for other in (
        prefix_of(prompt(401), model()),
        prefix_of(prompt(400), model(api_name="sonnet-2")),
        prefix_of(prompt(400), model(provider="another")),
    ):
        assert other is not None
        assert other.key != first.key


def test_a_prefix_is_held_from_the_minimum_on() -> None:
    held, too_short = prefix_of(prompt(400), model()), prefix_of(prompt(396), model())

    assert held is not None
    assert (held.tokens, held.minimum, held.is_held) == (100, 100, True)
    assert too_short is not None
    assert (too_short.tokens, too_short.is_held) == (99, False)


def test_there_is_nothing_to_hold_where_reading_is_no_cheaper() -> None:
    assert prefix_of(prompt(9_000), model(cached_input_usd_per_million=3)) is None


def test_what_was_saved_and_what_writing_cost_is_against_the_price_of_input() -> None:
    prefix = prefix_of(prompt(4_000), model())
    assert prefix is not None
    cache = CacheSummary()

    cache.count(model(), Usage(2_000, 0, 1_000, 100), PrefixUse(prefix, primed=True))
    cache.count(model(), Usage(2_000, 1_000, 0, 100), PrefixUse(prefix, waited_seconds=0.5))
    cache.count(model(), Usage(2_000, 1_000, 0, 100), PrefixUse(prefix))
    cache.count(model(), Usage(50, 0, 0, 100), None)

    assert (cache.read_tokens, cache.written_tokens) == (2_000, 1_000)
    assert cache.saved_usd == Decimal("0.0054")  # 2,000 x (3 - 0.3) / 1,000,000
    assert cache.surcharge_usd == Decimal("0.00075")  # 1,000 x (3.75 - 3) / 1,000,000
    assert (cache.primed, cache.waited, cache.waited_seconds, cache.too_short) == (1, 1, 0.5, {})


def test_of_prefixes_that_are_too_short_the_longest_of_each_model_is_told() -> None:
    cache = CacheSummary()
    for characters in (40, 80, 60):
        prefix = prefix_of(prompt(characters), model())
        assert prefix is not None
        cache.count(model(), Usage(), PrefixUse(prefix))

    assert {name: prefix.tokens for name, prefix in cache.too_short.items()} == {"sonnet": 20}
