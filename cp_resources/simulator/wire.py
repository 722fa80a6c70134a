"""What all wire formats have in common: a call read from a request, an answer, an error."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cp_resources.simulator.shared import Allowance, Prefix

API_KEY = "simulated"
"""The one key that is accepted."""

CHARACTERS_PER_TOKEN = 4


class Kind(StrEnum):
    """What kept a call from being answered; each wire has its own status and words for it."""

    AUTHENTICATION = "authentication"
    INVALID = "invalid"
    UNKNOWN_MODEL = "unknown-model"
    CONTEXT_TOO_LONG = "context-too-long"
    TOO_LARGE = "too-large"
    RATE_LIMITED = "rate-limited"
    OUT_OF_CREDIT = "out-of-credit"
    SERVER_ERROR = "server-error"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"


class CallError(Exception):
    """A call that is not answered. `facts` fill the wire's words; `retry_after` is in seconds."""

    def __init__(self, kind: Kind, *, retry_after: float | None = None, **facts: str | int) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retry_after = retry_after
        self.facts = facts


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the simulator sees it.

    `task_text` is the text of the user's messages; the truth depends on it. `cache_reads` and `cache_writes`
    are the prefixes that this call may find in the prompt cache, and leaves there.
    """

    model: str
    task_text: str
    prompt_tokens: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    cache_reads: Sequence[Prefix]
    cache_writes: Sequence[Prefix]


class Ending(StrEnum):
    """How an answer ends."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    FILTERED = "filtered"


@dataclass(frozen=True, slots=True)
class Usage:
    """Billed tokens. `input_tokens` counts all input, cached or not; `output_tokens` the reasoning too.

    `cache_write_hour_tokens` is the part of `cache_write_tokens` that lives for an hour instead of five
    minutes.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_hour_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back for a call, before a wire gives it a form."""

    id: str
    created: int
    text: str
    ending: Ending
    usage: Usage


@dataclass(frozen=True, slots=True)
class EventStream:
    """The events of a streamed answer, each as it goes over the wire.

    `broken` ends the stream in place of `closing` when the provider fails in the middle; `told` is what the
    provider has billed by then.
    """

    opening: Sequence[str]
    deltas: Sequence[str]
    closing: Sequence[str]
    broken: str
    told: Usage


NOTHING = Usage(0, 0)


class Wire(ABC):
    """One format: how a request is read, and how answers and errors are written."""

    name: str
    bills_cache_writes: bool = False

    @abstractmethod
    def authenticate(self, headers: Mapping[str, str]) -> None:
        """Raise `CallError` unless the headers carry the key and what else must be there."""

    @abstractmethod
    def read(self, provider: str, payload: Mapping[str, Any]) -> Call:
        """Return the call in a request's JSON object, or raise `CallError`."""

    @abstractmethod
    def body(self, call: Call, answer: Answer) -> dict[str, Any]:
        """Return the JSON object of an answer that is not streamed."""

    @abstractmethod
    def events(self, call: Call, answer: Answer) -> EventStream:
        """Return the events of a streamed answer."""

    @abstractmethod
    def error(self, error: CallError, request_id: str) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Return status, headers and JSON object of an error."""

    @abstractmethod
    def headers(self, request_id: str, allowance: Allowance, now: float) -> dict[str, str]:
        """Return the headers that go with every response, with the state of the rate limits."""


def count_tokens(text: str) -> int:
    """Return the simulated number of tokens of `text`: one for every four characters."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def require_model(payload: Mapping[str, Any]) -> str:
    """Return the model's name, or raise `CallError`."""
    model = payload.get("model")
    if not isinstance(model, str) or not model:
        raise CallError(Kind.INVALID, param="model", message="model: a name is required")
    return model


def require_messages(payload: Mapping[str, Any], roles: Sequence[str]) -> list[tuple[str, Any]]:
    """Return role and content of every message, or raise `CallError`."""
    messages = payload.get("messages")
    if not isinstance(messages, list) or not messages:
        raise CallError(Kind.INVALID, param="messages", message="messages: at least one message is required")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in roles:
            raise CallError(
                Kind.INVALID,
                param=f"messages[{i}].role",
                message=f"messages.{i}: role must be one of {', '.join(roles)}",
            )
    return [(message["role"], message.get("content")) for message in messages]


def positive_integer(payload: Mapping[str, Any], field: str) -> int | None:
    """Return the field's value, None where it is absent or null, or raise `CallError`."""
    value = payload.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CallError(Kind.INVALID, param=field, message=f"{field}: expected an integer of at least 1")
    return value


def block_text(block: Any) -> str:
    """Return the text of one part of a message; what is not text counts as its JSON."""
    if isinstance(block, str):
        return block
    if isinstance(block, dict) and isinstance(block.get("text"), str):
        return str(block["text"])
    return json.dumps(block)


def event(payload: Mapping[str, Any], name: str | None = None) -> str:
    """Return a server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(payload)}\n\n"


def pieces(text: str, size: int = 48) -> list[str]:
    """Cut `text` into the pieces that a stream sends."""
    return [text[i : i + size] for i in range(0, len(text), size)]
