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
    (r"haiku-3|3-haiku", BUDGET, 200_000, 8_192),
    (r"gpt-3\.5", BUDGET, 16_385, 4_096),
    (r"gpt-4o-mini", BUDGET, 128_000, 16_384),
    (r"gpt-4\.1-(mini|nano)", BUDGET, 1_047_576, 32_768),
    (r"gpt-[56].*(nano|luna)", BUDGET, 272_000, 128_000),
    (r"gemini.*flash-lite", BUDGET, 1_048_576, 65_536),
    (r"qwen.*(flash|turbo)", BUDGET, 997_952, 32_768),
    (r"gemma|small|(^|[^0-9])[1-9]b\b", BUDGET, 131_072, 8_192),
    (r"opus-4-[0-5]|opus-4$|opus-4-20", PREMIUM, 200_000, 64_000),
    (r"opus|fable", PREMIUM, 1_000_000, 128_000),
    (r"gpt-5\.[4-9]-pro|gpt-5\.5", PREMIUM, 1_050_000, 128_000),
    (r"gpt-6-astra|gpt-5\.6(-sol)?$", PREMIUM, 922_000, 128_000),
    (r"gpt-5.*-pro", PREMIUM, 400_000, 128_000),
    (r"haiku", MID_RANGE, 200_000, 64_000),
    (r"gpt-5.*mini", MID_RANGE, 272_000, 128_000),
    (r"gpt-4\.1", MID_RANGE, 1_047_576, 32_768),
    (r"gpt-4", MID_RANGE, 128_000, 16_384),
    (r"o[34]-mini", MID_RANGE, 200_000, 100_000),
    (r"gemini.*flash", MID_RANGE, 1_048_576, 65_536),
    (r"deepseek.*(v4|pro)", MID_RANGE, 1_000_000, 65_536),
    (r"deepseek", MID_RANGE, 131_072, 65_536),
    (r"kimi|glm|qwen.*(plus|coder)|devstral|codestral|mistral-(large|medium)", MID_RANGE, 202_745, 65_536),
    (r"sonnet-4-[0-5]|sonnet-4$|sonnet-4-20", MID_PREMIUM, 200_000, 64_000),
    (r"sonnet", MID_PREMIUM, 1_000_000, 128_000),
    (r"gpt-5\.4", MID_PREMIUM, 1_050_000, 128_000),
    (r"gpt-6|gpt-5\.6", MID_PREMIUM, 922_000, 128_000),
    (r"gpt-5", MID_PREMIUM, 272_000, 128_000),
    (r"(^|/)o[13]\b", MID_PREMIUM, 200_000, 100_000),
    (r"gemini.*pro", MID_PREMIUM, 1_048_576, 65_536),
    (r"grok|qwen.*max", MID_PREMIUM, 256_000, 65_536),
)
_PATTERNS = tuple(
    (re.compile(pattern), KnownModel(level, window, output)) for pattern, level, window, output in _FAMILIES
)
_UNHEARD_OF = KnownModel(level=None, context_window=200_000, max_output_tokens=64_000)
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
