"""Striking secrets out of text, wherever text is kept: errors, events, log lines, the request log.

What is known to be a secret goes by its value; what only looks like one goes by its shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

STRUCK = "[key]"
"""Stands where a secret stood."""

# Each shape keeps its first group, which says what was there. The shapes are those of the providers' own keys
# (OpenAI, Anthropic, xAI, Groq, Google), of the services that tasks speak of, of the headers that carry keys,
# and of addresses with a password.
_SHAPES: tuple[re.Pattern[str], ...] = (
    re.compile(
        r"()-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]{0,10000}-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
    ),
    re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://[^\s:/@\"']{0,200}:)[^\s/@\"']{1,500}(?=@)", re.IGNORECASE),
    re.compile(
        r"(\b(?:proxy-)?authorization\\?[\"']?\s{0,3}[:=]\s{0,3}\\?[\"']?(?:(?:basic|bearer|token)\s{1,3})?)"
        r"[^\s\"'\\,;}&]{4,}",
        re.IGNORECASE,
    ),
    re.compile(
        r"(\b(?:x-)?(?:goog-)?api[-_]?key\\?[\"']?\s{0,3}[:=]\s{0,3}\\?[\"']?)[^\s\"'\\,;}&]{4,}",
        re.IGNORECASE,
    ),
    re.compile(r"(\bbearer\s{1,3})[^\s\"'\\,;}&]+", re.IGNORECASE),
    re.compile(r"(\bpassword\s{0,3}=\s{0,3})[^\s\"'\\,;}&]+", re.IGNORECASE),
    re.compile(r"()\b(?:sk|pk|rk|key|gsk|xai)[-_][\w*.-]{4,}"),
    re.compile(r"()\bAIza[\w-]{8,}"),
    re.compile(r"()\b(?:gh[pousr]_|github_pat_|glpat-|hf_|xox[abposr]-)[\w-]{8,}"),
    re.compile(r"()\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
)

_MARKS = (
    "-----begin",
    "://",
    "authorization",
    "key",
    "bearer",
    "password",
    *(f"{prefix}{joint}" for prefix in ("sk", "pk", "rk", "xai") for joint in "-_"),
    "aiza",
    *(f"gh{kind}_" for kind in "pousr"),
    "github_pat_",
    "glpat-",
    "hf_",
    "xox",
    "akia",
    "asia",
)
"""One of these, in lower case, is in every text that a shape fits: looking for them is much quicker than for shapes."""


def strike_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with `STRUCK` in place of every secret in it.

    Args:
        secrets: values that must not appear, also not percent-encoded; what has the shape of a key goes too.
    """
    text = strike_values(text, secrets)
    lowered = text.lower()
    if text.isascii() and not any(map(lowered.__contains__, _MARKS)):
        return text
    for shape in _SHAPES:
        text = shape.sub(rf"\g<1>{STRUCK}", text)
    return text


def strike_values(text: str, secrets: Iterable[str]) -> str:
    """`text` without these very values. For text that may rightly hold what only looks like a key."""
    # the longest first: one secret may be the beginning of another
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, STRUCK).replace(quote(secret, safe=""), STRUCK)
    return text


def strike_from_record(value: Any, secrets: Sequence[str] = ()) -> Any:
    """The same JSON-like value with every text in it, keys included, without secrets."""
    if isinstance(value, str):
        return strike_secrets(value, secrets)
    if isinstance(value, Mapping):
        return {
            strike_from_record(key, secrets): strike_from_record(inner, secrets)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [strike_from_record(inner, secrets) for inner in value]
    return value
