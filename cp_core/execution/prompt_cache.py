"""Providers' prompt caches: which prefixes they hold, and what reading and writing them comes to.

A provider keeps the beginning of a prompt for some minutes, unless it is shorter than a minimum of the model's own
(`cache_minimum_tokens` in models.yaml), and charges less for it when another call begins the same. Anthropic caches
up to the points that are marked and charges more for writing; the others cache by themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from decimal import Decimal

from cp_core.execution.cost import MILLION, Usage
from cp_core.execution.prompt import Prompt
from cp_core.models.registry import Model

TIME_TO_LIVE_SECONDS = 300.0
"""How long a prefix is held since it was last used; five minutes at Anthropic, about that at the others."""
CHARACTERS_PER_TOKEN_OF_PROSE = 4
"""Of English prose, which is what prefixes are made of."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The stable beginning of a call's prompt, as its model's provider may hold it.

    Attributes:
        key: the same for calls that can share it.
        tokens: its length, estimated.
        minimum: tokens below which the provider does not hold it.
    """

    key: str
    tokens: int
    minimum: int

    @property
    def is_held(self) -> bool:
        """Whether it is long enough to be held."""
        return self.tokens >= self.minimum


@dataclass(frozen=True, slots=True)
class PrefixUse:
    """How an attempt used its prefix.

    Attributes:
        primed: it went first, so that the provider held the prefix for the others.
        waited_seconds: for another that went first.
    """

    prefix: Prefix
    primed: bool = False
    waited_seconds: float = 0.0


def prefix_of(prompt: Prompt, model: Model) -> Prefix | None:
    """The prefix of a call; None where holding it would make nothing cheaper."""
    if model.cached_input_usd_per_million >= model.input_usd_per_million:
        return None
    text = prompt.prefix
    key = hashlib.sha256("\0".join((model.provider, model.api_name, text)).encode()).hexdigest()
    return Prefix(key, len(text) // CHARACTERS_PER_TOKEN_OF_PROSE, model.cache_minimum_tokens)


@dataclass
class CacheSummary:
    """What prompt caching came to over some attempts.

    Attributes:
        read_tokens, written_tokens: as the providers counted them.
        saved_usd: by how much the tokens read were cheaper than input tokens at list price, whoever paid.
        surcharge_usd: by how much the tokens written were dearer.
        primed: attempts that went first with their prefix.
        waited: attempts that waited for one that did; `waited_seconds` in all.
        too_short: prefixes that no provider holds, the longest of each model.
    """

    read_tokens: int = 0
    written_tokens: int = 0
    saved_usd: Decimal = Decimal(0)
    surcharge_usd: Decimal = Decimal(0)
    primed: int = 0
    waited: int = 0
    waited_seconds: float = 0.0
    too_short: dict[str, Prefix] = field(default_factory=dict)

    def count(self, model: Model, usage: Usage, use: PrefixUse | None) -> None:
        """Add one attempt."""
        self.read_tokens += usage.cached_tokens
        self.written_tokens += usage.cache_write_tokens
        cheaper = model.input_usd_per_million - model.cached_input_usd_per_million
        dearer = model.cache_write_usd_per_million - model.input_usd_per_million
        self.saved_usd += usage.cached_tokens * cheaper / MILLION
        self.surcharge_usd += usage.cache_write_tokens * dearer / MILLION
        if use is None:
            return
        self.primed += use.primed
        self.waited += use.waited_seconds > 0
        self.waited_seconds += use.waited_seconds
        longest = self.too_short.get(model.name)
        if not use.prefix.is_held and (longest is None or use.prefix.tokens > longest.tokens):
            self.too_short[model.name] = use.prefix
