"""Tokens and what they cost."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.cost import (
    MalformedUsageError,
    Usage,
    amounts_used,
    billed_usd,
    cost_usd,
    parse_usage,
    usage_by_length,
)
from cp_core.execution.prompt import Prompt
from cp_core.models.registry import Model, Tier, Wire
from cp_core.scoring.config import Domain

MODEL = Model(
    name="m",
    provider="p",
    api_name="m-1",
    tier=Tier.BUDGET,
    family="f",
    input_usd_per_million=Decimal("3"),
    cached_input_usd_per_million=Decimal("0.3"),
    cache_write_usd_per_million=Decimal("3.75"),
    output_usd_per_million=Decimal("15"),
    context_window=200_000,
    max_output_tokens=8_000,
    capability=dict.fromkeys(Domain, 0.5),
)
tokens = st.integers(0, 10**7)


def test_openai_counts_cached_tokens_within_the_prompt() -> None:
    usage = {
        "prompt_tokens": 2000,
        "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 1500},
    }

    assert parse_usage(Wire.OPENAI_CHAT, usage) == Usage(2000, 1500, 0, 100)


def test_anthropic_counts_cached_tokens_beside_the_input() -> None:
    usage = {
        "input_tokens": 500,
        "cache_read_input_tokens": 1500,
        "cache_creation_input_tokens": 700,
        "output_tokens": 100,
    }

    assert parse_usage(Wire.ANTHROPIC_MESSAGES, usage) == Usage(2700, 1500, 700, 100)


@pytest.mark.parametrize(
    ("wire", "usage"),
    [
        (Wire.OPENAI_CHAT, {"prompt_tokens": 10, "completion_tokens": 5}),
        (Wire.OPENAI_CHAT, {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None}),
        (
            Wire.OPENAI_CHAT,
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": None}},
        ),
        (Wire.OPENAI_RESPONSES, {"input_tokens": 10, "output_tokens": 5}),
        (Wire.OPENAI_RESPONSES, {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": None}),
        (Wire.COMMAND, {"input_tokens": 10, "output_tokens": 5}),
        (Wire.ENDPOINT, {"input_tokens": 10, "output_tokens": 5, "cached_input_tokens": None}),
        (Wire.ANTHROPIC_MESSAGES, {"input_tokens": 10, "output_tokens": 5}),
        (
            Wire.ANTHROPIC_MESSAGES,
            {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": None},
        ),
    ],
)
def test_cache_counts_may_be_left_out(wire: Wire, usage: dict[str, object]) -> None:
    assert parse_usage(wire, usage) == Usage(10, 0, 0, 5)


def test_the_input_of_responses_commands_and_endpoints_includes_its_cached_part() -> None:
    details = {"cached_tokens": 1500, "cache_write_tokens": 200}
    responses = {"input_tokens": 2000, "input_tokens_details": details, "output_tokens": 9}

    assert parse_usage(Wire.OPENAI_RESPONSES, responses) == Usage(2000, 1500, 200, 9)
    own = {"input_tokens": 2000, "cached_input_tokens": 1500, "output_tokens": 9}
    assert parse_usage(Wire.COMMAND, own) == parse_usage(Wire.ENDPOINT, own) == Usage(2000, 1500, 0, 9)


def test_usage_that_nobody_reports_is_counted_at_three_characters_a_token() -> None:
    assert usage_by_length(Prompt("x" * 60, "y" * 30), "z" * 12) == Usage(30, 0, 0, 4)


@pytest.mark.parametrize("count", [-1, 1.5, "12", True, None, 2**70])
def test_what_is_no_count_is_refused(count: object) -> None:
    with pytest.raises(MalformedUsageError, match="prompt_tokens"):
        parse_usage(Wire.OPENAI_CHAT, {"prompt_tokens": count, "completion_tokens": 5})


def test_each_kind_of_token_has_its_price() -> None:
    # 1,000 uncached at 3 + 1,500 cached at 0.3 + 500 written at 3.75 + 100 out at 15, per million
    usage = Usage(input_tokens=3000, cached_tokens=1500, cache_write_tokens=500, output_tokens=100)

    assert cost_usd(usage, MODEL) == Decimal("0.003") + Decimal("0.00045") + Decimal("0.001875") + Decimal(
        "0.0015"
    )


@given(tokens, tokens, tokens, tokens)
def test_cost_is_never_below_zero_and_grows_with_output(
    uncached: int, cached: int, written: int, out: int
) -> None:
    usage = Usage(uncached + cached + written, cached, written, out)
    more = Usage(uncached + cached + written, cached, written, out + 1)

    assert 0 <= cost_usd(usage, MODEL) < cost_usd(more, MODEL)


def test_a_subscription_is_charged_tokens_in_every_window_and_a_budget_dollars() -> None:
    usage, cost = Usage(input_tokens=1000, cached_tokens=900, output_tokens=200), Decimal("0.5")
    windows = {"plan/5-hour": Decimal(9), "plan/weekly": Decimal(9)}

    assert amounts_used(windows, "subscription:plan", usage, cost) == {
        "plan/5-hour": Decimal(1200),
        "plan/weekly": Decimal(1200),
    }
    assert amounts_used({"budget/api": Decimal(9)}, "budget:api", usage, cost) == {"budget/api": cost}
    assert (billed_usd("subscription:plan", cost), billed_usd("budget:api", cost)) == (0, cost)


def test_an_attempt_that_used_nothing_is_charged_nothing() -> None:
    assert amounts_used({"plan/weekly": Decimal(9)}, "subscription:plan", Usage(), Decimal(0)) == {}
