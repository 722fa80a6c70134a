"""What is publicly known of a simulated model, read from its name: its level and its limits.

How good a model really is lies in `truth`; the level here is only where its hidden skill is drawn around.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

PREMIUM, MID_PREMIUM, MID_RANGE, BUDGET = 2.3, 1.7, 1.0, 0.3
"""Levels of skill, in the logits of `truth.success_probability`."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Level of skill (None: unheard of), and the limits in tokens that a provider would hold a call to."""

    level: float | None
    context_window: int
    max_output_tokens: int


_FAMILIES: tuple[tuple[str, float, int, int], ...] = (
    # The first pattern that is found in the name holds: name, level, context window, output limit.
    (r"haiku-3|3-haiku|3-5-haiku", BUDGET, 200_000, 8_192),
    (r"haiku-4", MID_RANGE, 200_000, 64_000),
    (r"haiku", BUDGET, 1_000_000, 128_000),
    (r"gpt-3\.5", BUDGET, 16_385, 4_096),
    (r"gpt-4o-mini", BUDGET, 128_000, 16_384),
    (r"gpt-4\.1-(mini|nano)", BUDGET, 1_047_576, 32_768),
    (r"gpt-[5-9].*(nano|luna)", BUDGET, 922_000, 128_000),
    (r"gemini.*flash-lite", BUDGET, 1_048_576, 65_536),
    (r"deepseek.*flash", BUDGET, 1_000_000, 393_216),
    (r"qwen.*(flash|turbo)", BUDGET, 997_952, 131_072),
    (r"gemma|small|(^|[^0-9])[1-9]b\b", BUDGET, 131_072, 8_192),
    (r"opus-4-[0-5]|opus-4$", PREMIUM, 200_000, 64_000),
    (r"opus|fable", PREMIUM, 1_000_000, 128_000),
    (r"gpt-5\.5|gpt-5\.[4-9]-pro", PREMIUM, 1_050_000, 128_000),
    (r"gpt-[6-9].*astra|gpt-5\.6(-sol)?$", PREMIUM, 922_000, 128_000),
    (r"gpt-5.*-pro", PREMIUM, 400_000, 272_000),
    (r"gpt-5.*mini", MID_RANGE, 400_000, 128_000),
    (r"gpt-[5-9].*terra", MID_RANGE, 922_000, 128_000),
    (r"gpt-4\.1", MID_RANGE, 1_047_576, 32_768),
    (r"gpt-4", MID_RANGE, 128_000, 16_384),
    (r"(^|/)o[34]-mini", MID_RANGE, 200_000, 100_000),
    (r"gemini.*flash", MID_RANGE, 1_048_576, 65_536),
    (r"deepseek.*v4", MID_RANGE, 1_000_000, 393_216),
    (r"deepseek", MID_RANGE, 131_072, 65_536),
    (r"qwen.*(max|plus|coder)", MID_RANGE, 997_952, 131_072),
    (r"mistral-(large|medium)|devstral|codestral|kimi|glm", MID_RANGE, 1_048_576, 1_048_576),
    (r"sonnet-4-[0-5]|sonnet-4$", MID_PREMIUM, 200_000, 64_000),
    (r"sonnet", MID_PREMIUM, 1_000_000, 128_000),
    (r"gpt-5\.4", MID_PREMIUM, 1_050_000, 128_000),
    (r"gpt-[6-9]|gpt-5\.6", MID_PREMIUM, 922_000, 128_000),
    (r"gpt-5", MID_PREMIUM, 400_000, 128_000),
    (r"(^|/)o[13]\b", MID_PREMIUM, 200_000, 100_000),
    (r"gemini", MID_PREMIUM, 1_048_576, 1_048_576),
    (r"grok", MID_PREMIUM, 256_000, 256_000),
)
_PATTERNS = tuple(
    (re.compile(pattern), KnownModel(level, window, output)) for pattern, level, window, output in _FAMILIES
)
_UNHEARD_OF = KnownModel(level=None, context_window=1_048_576, max_output_tokens=1_048_576)
_REASONING = re.compile(r"(^|/)(o\d|gpt-[5-9])(?!.*chat)")


@lru_cache(maxsize=4096)
def known_model(name: str) -> KnownModel:
    """Return what is known of the model called `name`, as the provider's API calls it."""
    lowered = name.lower()
    return next((facts for pattern, facts in _PATTERNS if pattern.search(lowered)), _UNHEARD_OF)


@lru_cache(maxsize=4096)
def is_openai_reasoning(name: str) -> bool:
    """Whether OpenAI's API rejects `max_tokens` for this model, and bills hidden reasoning tokens."""
    return _REASONING.search(name.lower()) is not None
