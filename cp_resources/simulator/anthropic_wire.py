"""Anthropic's Messages format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from cp_resources.simulator.shared import (
    DEFAULT_TTL_SECONDS,
    MINIMUM_PREFIX_TOKENS,
    Allowance,
    Prefix,
    prefixes_of,
)
from cp_resources.simulator.wire import (
    API_KEY,
    Answer,
    Call,
    CallError,
    Ending,
    EventStream,
    Kind,
    Usage,
    Wire,
    block_text,
    count_tokens,
    event,
    pieces,
    positive_integer,
    require_messages,
    require_model,
)

MAXIMUM_BREAKPOINTS = 4
LOOKBACK_BLOCKS = 20
"""A cached prefix is looked for this many blocks before a breakpoint."""

HOUR_SECONDS = 3600.0

_ERRORS: dict[Kind, tuple[int, str, str]] = {
    # kind: status, type, message
    Kind.AUTHENTICATION: (401, "authentication_error", "invalid x-api-key"),
    Kind.INVALID: (400, "invalid_request_error", "{message}"),
    Kind.UNKNOWN_MODEL: (404, "not_found_error", "model: {model}"),
    Kind.CONTEXT_TOO_LONG: (
        400,
        "invalid_request_error",
        "prompt is too long: {tokens} tokens > {window} maximum",
    ),
    Kind.TOO_LARGE: (413, "request_too_large", "Request is larger than {limit} bytes"),
    Kind.RATE_LIMITED: (
        429,
        "rate_limit_error",
        "This request exceeds the rate limit on {what} per minute for {model}.",
    ),
    Kind.OUT_OF_CREDIT: (
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the API: add credits under Plans & Billing.",
    ),
    Kind.SERVER_ERROR: (500, "api_error", "Internal server error"),
    Kind.UNAVAILABLE: (503, "api_error", "Service unavailable"),
    Kind.OVERLOADED: (529, "overloaded_error", "Overloaded"),
}


class AnthropicMessages(Wire):
    """POST /v1/messages."""

    name = "anthropic-messages"
    bills_cache_writes = True

    def authenticate(self, headers: Mapping[str, str]) -> None:
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if API_KEY not in (headers.get("x-api-key"), bearer):
            raise CallError(Kind.AUTHENTICATION)
        if "anthropic-version" not in headers:
            raise CallError(Kind.INVALID, message="anthropic-version: header is required")

    def read(self, provider: str, payload: Mapping[str, Any]) -> Call:
        model = require_model(payload)
        max_tokens = positive_integer(payload, "max_tokens")
        if max_tokens is None:
            raise CallError(Kind.INVALID, message="max_tokens: Field required")
        messages = require_messages(payload, ("user", "assistant"))
        for i, (_, content) in enumerate(messages):
            if not content or not isinstance(content, str | list):
                raise CallError(Kind.INVALID, message=f"messages.{i}: content must not be empty")
        blocks = list(_blocks(payload, messages))
        reads, writes = _cache_prefixes(f"{provider}/{model}", blocks)
        return Call(
            model=model,
            task_text="\n".join(text for role, text, _ in blocks if role == "user") or blocks[-1][1],
            prompt_tokens=sum(count_tokens(text) for _, text, _ in blocks),
            max_tokens=max_tokens,
            stream=bool(payload.get("stream")),
            include_usage=True,
            cache_reads=reads,
            cache_writes=writes,
        )

    def body(self, call: Call, answer: Answer) -> dict[str, Any]:
        content = [] if _declined(answer) else [{"type": "text", "text": answer.text}]
        return self._message(call, answer, content, _stop_reason(answer), _usage(answer.usage)) | _details(
            answer
        )

    def events(self, call: Call, answer: Answer) -> EventStream:
        told = Usage(
            input_tokens=answer.usage.input_tokens,
            output_tokens=1,
            cached_tokens=answer.usage.cached_tokens,
            cache_write_tokens=answer.usage.cache_write_tokens,
            cache_write_hour_tokens=answer.usage.cache_write_hour_tokens,
        )

        def send(type_: str, **fields: Any) -> str:
            return event({"type": type_, **fields}, type_)

        opening = [send("message_start", message=self._message(call, answer, [], None, _usage(told)))]
        deltas, block_stop = [], []
        if not _declined(answer):
            opening += [
                send("content_block_start", index=0, content_block={"type": "text", "text": ""}),
                send("ping"),
            ]
            deltas = [
                send("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
                for piece in pieces(answer.text)
            ]
            block_stop = [send("content_block_stop", index=0)]
        end = {"stop_reason": _stop_reason(answer), "stop_sequence": None, **_details(answer)}
        used = _usage(answer.usage)
        counts = {name: used[name] for name in used if name.endswith("_tokens")}
        _, _, broken = self.error(CallError(Kind.OVERLOADED), answer.id)
        return EventStream(
            opening=opening,
            deltas=deltas,
            closing=[*block_stop, send("message_delta", delta=end, usage=counts), send("message_stop")],
            broken=event(broken, "error"),
            told=told,
        )

    def error(self, error: CallError, request_id: str) -> tuple[int, dict[str, str], dict[str, Any]]:
        status, type_, message = _ERRORS[error.kind]
        headers = {}
        if error.retry_after is not None:
            headers["retry-after"] = str(max(round(error.retry_after + 0.5), 1))
        if status in (429, 529):
            headers["x-should-retry"] = "true"
        body = {"type": type_, "message": message.format_map(error.facts)}
        return status, headers, {"type": "error", "error": body, "request_id": request_id}

    def headers(self, request_id: str, allowance: Allowance, now: float) -> dict[str, str]:
        headers = {
            "request-id": request_id,
            "anthropic-organization-id": "00000000-0000-0000-0000-000000000000",
        }
        for name, limit in allowance.limit.items():
            whole_again = datetime.fromtimestamp(now + allowance.reset[name], UTC)
            headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
            headers[f"anthropic-ratelimit-{name}-remaining"] = str(allowance.remaining[name])
            headers[f"anthropic-ratelimit-{name}-reset"] = whole_again.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers

    def _message(
        self,
        call: Call,
        answer: Answer,
        content: list[dict[str, Any]],
        stop_reason: str | None,
        usage: dict[str, Any],
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{answer.id}",
            "type": "message",
            "role": "assistant",
            "model": call.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": usage,
        }


def _blocks(
    payload: Mapping[str, Any], messages: list[tuple[str, Any]]
) -> Iterator[tuple[str, str, float | None]]:
    """Yield role, text and time to live (seconds; None without a breakpoint) of every block, tools first."""
    sections = [("tools", payload.get("tools") or []), ("system", payload.get("system") or []), *messages]
    for role, content in sections:
        for block in [content] if isinstance(content, str) else content:
            ttl = None
            if isinstance(block, dict) and isinstance(block.get("cache_control"), dict):
                ttl = HOUR_SECONDS if block["cache_control"].get("ttl") == "1h" else DEFAULT_TTL_SECONDS
                block = {key: value for key, value in block.items() if key != "cache_control"}
            yield role, block_text(block), ttl


def _cache_prefixes(
    scope: str, blocks: list[tuple[str, str, float | None]]
) -> tuple[list[Prefix], list[Prefix]]:
    """Return the prefixes that a call reads (up to 20 blocks before a breakpoint) and writes (at them)."""
    breakpoints = [i for i, (_, _, ttl) in enumerate(blocks) if ttl]
    if not breakpoints:
        return [], []
    if len(breakpoints) > MAXIMUM_BREAKPOINTS:
        raise CallError(
            Kind.INVALID,
            message=f"A maximum of {MAXIMUM_BREAKPOINTS} blocks with cache_control may be provided. "
            f"Found {len(breakpoints)}.",
        )
    tokens, texts = 0, []
    for role, text, ttl in blocks[: breakpoints[-1] + 1]:
        tokens += count_tokens(text)
        texts.append((f"{role}\x1f{text}", tokens, ttl or DEFAULT_TTL_SECONDS))
    prefixes = prefixes_of(scope, texts)
    near = {i for at in breakpoints for i in range(max(at - LOOKBACK_BLOCKS, 0), at + 1)}
    long_enough = [i for i in sorted(near) if prefixes[i].tokens >= MINIMUM_PREFIX_TOKENS]
    return [prefixes[i] for i in long_enough], [prefixes[i] for i in long_enough if i in breakpoints]


def _declined(answer: Answer) -> bool:
    return answer.ending in (Ending.REFUSED, Ending.FILTERED)


def _stop_reason(answer: Answer) -> str:
    if _declined(answer):
        return "refusal"
    return "max_tokens" if answer.ending is Ending.TRUNCATED else "end_turn"


def _details(answer: Answer) -> dict[str, Any]:
    if not _declined(answer):
        return {}
    return {"stop_details": {"type": "refusal", "category": None, "explanation": None}}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's `input_tokens` are those neither read from the cache nor written to it."""
    return {
        "input_tokens": usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens - usage.cache_write_hour_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_hour_tokens,
        },
        "output_tokens": usage.output_tokens,
        "service_tier": "standard",
    }
