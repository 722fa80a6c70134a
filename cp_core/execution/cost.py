"""What an attempt used, the wires' token counts brought to one footing, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from cp_core.execution.prompt import CHARACTERS_PER_TOKEN, Prompt
from cp_core.models.registry import Model, Wire

MILLION = Decimal(1_000_000)
SMALLEST_USD = Decimal("0.000000001")


class MalformedUsageError(ValueError):
    """The provider's token counts are not counts."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt. `input_tokens` is the whole prompt: uncached, cached and cache-written."""

    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0

    @property
    def total(self) -> int:
        """Tokens that count against a subscription's window."""
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()


def parse_usage(wire: Wire, usage: Mapping[str, Any]) -> Usage:
    """The `usage` object of an answer.

    OpenAI's prompt_tokens (in Responses: input_tokens) include the cached ones; Anthropic's input_tokens
    include neither those read from the cache nor those written to it. Commands and endpoints report
    input_tokens, of which cached_input_tokens were read from a cache, and output_tokens.

    Raises:
        MalformedUsageError: a count is missing, negative or not a whole number.
    """
    if wire is Wire.ANTHROPIC_MESSAGES:
        cached = _count(usage, "cache_read_input_tokens", required=False)
        written = _count(usage, "cache_creation_input_tokens", required=False)
        return Usage(
            _count(usage, "input_tokens") + cached + written, cached, written, _count(usage, "output_tokens")
        )
    if wire is Wire.OPENAI_RESPONSES:
        return _responses_usage(usage)
    if wire in (Wire.COMMAND, Wire.ENDPOINT):
        read = _count(usage, "input_tokens")
        cached = _count(usage, "cached_input_tokens", required=False)
        return Usage(read, min(cached, read), 0, _count(usage, "output_tokens"))
    details = usage.get("prompt_tokens_details")
    prompt = _count(usage, "prompt_tokens")
    cached = _count(details, "cached_tokens", required=False) if isinstance(details, Mapping) else 0
    return Usage(prompt, min(cached, prompt), 0, _count(usage, "completion_tokens"))


def usage_by_length(prompt: Prompt, answer: str) -> Usage:
    """A guess that errs on the high side, for where usage is not reported."""
    return Usage(
        input_tokens=prompt.characters // CHARACTERS_PER_TOKEN,
        output_tokens=len(answer) // CHARACTERS_PER_TOKEN,
    )


def cost_usd(usage: Usage, model: Model) -> Decimal:
    """List price of the tokens, in US dollars, to nine places."""
    uncached = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
    price = (
        uncached * model.input_usd_per_million
        + usage.cached_tokens * model.cached_input_usd_per_million
        + usage.cache_write_tokens * model.cache_write_usd_per_million
        + usage.output_tokens * model.output_usd_per_million
    )
    return (price / MILLION).quantize(SMALLEST_USD)


def amounts_used(
    accounts: Mapping[str, Decimal], funding: str, usage: Usage, cost: Decimal
) -> dict[str, Decimal]:
    """What an attempt takes from each account that was reserved for it.

    Args:
        accounts: the accounts of the reservation, with the amounts reserved.
        funding: "subscription:NAME", whose windows are charged tokens, or "budget:NAME", charged US dollars.

    Returns:
        Nothing at all when nothing was used: the reservation is then voided.
    """
    used = Decimal(usage.total) if funding.startswith("subscription:") else cost
    return dict.fromkeys(accounts, used) if used else {}


def billed_usd(funding: str, cost: Decimal) -> Decimal:
    """What of the list price went against a money budget: nothing where a subscription paid."""
    return cost if funding.startswith("budget:") else Decimal(0)


def _responses_usage(usage: Mapping[str, Any]) -> Usage:
    read = _count(usage, "input_tokens")
    given = usage.get("input_tokens_details")
    details = given if isinstance(given, Mapping) else {}
    cached = min(_count(details, "cached_tokens", required=False), read)
    written = min(_count(details, "cache_write_tokens", required=False), read - cached)
    return Usage(read, cached, written, _count(usage, "output_tokens"))


def _count(usage: Mapping[str, Any], name: str, *, required: bool = True) -> int:
    value = usage.get(name)
    if value is None and not required:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise MalformedUsageError(f"usage.{name} is {value!r}, but must be a whole number of tokens")
    return value
