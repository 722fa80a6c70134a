"""OpenAI's two formats: chat completions and Responses. Many providers speak the former."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from cp_resources.simulator.catalogue import is_openai_reasoning
from cp_resources.simulator.shared import (
    DEFAULT_TTL_SECONDS,
    MINIMUM_PREFIX_TOKENS,
    Allowance,
    Prefix,
    prefixes_of,
)
from cp_resources.simulator.wire import (
    API_KEY,
    CHARACTERS_PER_TOKEN,
    NOTHING,
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

CACHE_STEP_TOKENS = 128
"""Prefixes are cached in steps of this many tokens beyond the minimum, without being asked to."""

_ERRORS: dict[Kind, tuple[int, str, str | None, str]] = {
    # kind: status, type, code, message
    Kind.AUTHENTICATION: (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    Kind.INVALID: (400, "invalid_request_error", None, "{message}"),
    Kind.UNKNOWN_MODEL: (
        404,
        "invalid_request_error",
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    Kind.CONTEXT_TOO_LONG: (
        400,
        "invalid_request_error",
        "context_length_exceeded",
        "This model's maximum context length is {window} tokens, but the request has {tokens} tokens.",
    ),
    Kind.TOO_LARGE: (413, "invalid_request_error", None, "The request body is larger than {limit} bytes."),
    Kind.RATE_LIMITED: (
        429,
        "{what}",
        "rate_limit_exceeded",
        "Rate limit reached for {model} on {what} per minute. Please try again later.",
    ),
    Kind.OUT_OF_CREDIT: (
        429,
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota: check your plan and billing details.",
    ),
    Kind.SERVER_ERROR: (500, "server_error", None, "The server had an error while processing the request."),
    Kind.UNAVAILABLE: (503, "server_error", None, "The server is not ready yet."),
    Kind.OVERLOADED: (503, "server_error", None, "The server is currently overloaded with other requests."),
}


class _OpenAIWire(Wire):
    """What both formats share: the key, the errors, the headers and the automatic prompt cache."""

    def authenticate(self, headers: Mapping[str, str]) -> None:
        if headers.get("authorization") != f"Bearer {API_KEY}":
            raise CallError(Kind.AUTHENTICATION)

    def error(self, error: CallError, request_id: str) -> tuple[int, dict[str, str], dict[str, Any]]:
        status, type_, code, message = _ERRORS[error.kind]
        body = {
            "message": message.format_map(error.facts),
            "type": type_.format_map(error.facts),
            "param": error.facts.get("param"),
            "code": error.facts.get("code", code),
        }
        headers = {}
        if error.retry_after is not None:
            headers["retry-after"] = str(max(round(error.retry_after + 0.5), 1))
            headers["retry-after-ms"] = str(max(round(error.retry_after * 1000), 1))
        return status, headers, {"error": body}

    def headers(self, request_id: str, allowance: Allowance, now: float) -> dict[str, str]:
        headers = {
            "x-request-id": request_id,
            "openai-version": "2020-10-01",
            "openai-organization": "simulated",
        }
        for name, limit in allowance.limit.items():
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(allowance.remaining[name])
            headers[f"x-ratelimit-reset-{name}"] = _duration(allowance.reset[name])
        return headers


class OpenAIChat(_OpenAIWire):
    """POST /v1/chat/completions."""

    name = "openai-chat"

    def read(self, provider: str, payload: Mapping[str, Any]) -> Call:
        model = require_model(payload)
        roles = ("developer", "system", "user", "assistant", "tool", "function")
        turns = [(role, _content_text(content)) for role, content in require_messages(payload, roles)]
        _reject_unsupported(model, payload)
        limit = positive_integer(payload, "max_completion_tokens") or positive_integer(payload, "max_tokens")
        options = payload.get("stream_options") or {}
        return _call(provider, payload, turns, limit, include_usage=bool(options.get("include_usage")))

    def body(self, call: Call, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "annotations": [],
        }
        if answer.ending is Ending.REFUSED:
            message |= {"content": None, "refusal": answer.text}
        return {
            **self._head(call, answer, "chat.completion"),
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish(answer)}
            ],
            "usage": _chat_usage(answer.usage),
        }

    def events(self, call: Call, answer: Answer) -> EventStream:
        head = self._head(call, answer, "chat.completion.chunk")
        usage = {"usage": None} if call.include_usage else {}

        def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return event({**head, "choices": [choice], **usage})

        field = "refusal" if answer.ending is Ending.REFUSED else "content"
        closing = [chunk({}, self._finish(answer))]
        if call.include_usage:
            closing.append(event({**head, "choices": [], "usage": _chat_usage(answer.usage)}))
        _, _, broken = self.error(CallError(Kind.SERVER_ERROR), answer.id)
        return EventStream(
            opening=[chunk({"role": "assistant", "content": "", "refusal": None})],
            deltas=[chunk({field: piece}) for piece in pieces(answer.text)],
            closing=[*closing, "data: [DONE]\n\n"],
            broken=event(broken),
            told=NOTHING,
        )

    def _head(self, call: Call, answer: Answer, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{answer.id}",
            "object": kind,
            "created": answer.created,
            "model": call.model,
            "service_tier": "default",
            "system_fingerprint": "fp_simulated",
        }

    def _finish(self, answer: Answer) -> str:
        return {Ending.TRUNCATED: "length", Ending.FILTERED: "content_filter"}.get(answer.ending, "stop")


class OpenAIResponses(_OpenAIWire):
    """POST /v1/responses."""

    name = "openai-responses"

    def read(self, provider: str, payload: Mapping[str, Any]) -> Call:
        require_model(payload)
        items = payload.get("input")
        if isinstance(items, str) and items:
            items = [{"role": "user", "content": items}]
        if not isinstance(items, list) or not items:
            raise CallError(Kind.INVALID, param="input", message="input: a text or items are required")
        turns = [
            (str(item.get("role", "item")), _content_text(item.get("content", item)))
            if isinstance(item, dict)
            else ("item", block_text(item))
            for item in items
        ]
        if isinstance(instructions := payload.get("instructions"), str):
            turns.insert(0, ("instructions", instructions))
        return _call(
            provider, payload, turns, positive_integer(payload, "max_output_tokens"), include_usage=True
        )

    def body(self, call: Call, answer: Answer) -> dict[str, Any]:
        status, reason = {
            Ending.TRUNCATED: ("incomplete", "max_output_tokens"),
            Ending.FILTERED: ("incomplete", "content_filter"),
        }.get(answer.ending, ("completed", None))
        output = [] if answer.ending is Ending.FILTERED else [self._message(answer, status)]
        return self._response(call, answer, status, output, reason, _responses_usage(answer.usage))

    def events(self, call: Call, answer: Answer) -> EventStream:
        numbers = count()

        def send(type_: str, **fields: Any) -> str:
            return event({"type": type_, "sequence_number": next(numbers), **fields}, type_)

        started = self._response(call, answer, "in_progress", [], None, None)
        final = self.body(call, answer)
        opening = [send("response.created", response=started), send("response.in_progress", response=started)]
        deltas, ending = [], []
        for message in final["output"]:
            part = message["content"][0]
            place: dict[str, Any] = {"item_id": message["id"], "output_index": 0, "content_index": 0}
            refused = answer.ending is Ending.REFUSED
            kind, field = ("refusal", "refusal") if refused else ("output_text", "text")
            logprobs: dict[str, Any] = {} if refused else {"logprobs": []}
            unwritten = {**message, "status": "in_progress", "content": []}
            opening += [
                send("response.output_item.added", output_index=0, item=unwritten),
                send("response.content_part.added", **place, part={**part, field: ""}),
            ]
            deltas = [
                send(f"response.{kind}.delta", **place, delta=piece, **logprobs)
                for piece in pieces(part[field])
            ]
            ending = [
                send(f"response.{kind}.done", **place, **{field: part[field]}, **logprobs),
                send("response.content_part.done", **place, part=part),
                send("response.output_item.done", output_index=0, item=message),
            ]
        error = {"code": "server_error", "message": "The model failed to generate a response."}
        failed = self._response(call, answer, "failed", [], None, None) | {"error": error}
        return EventStream(
            opening=opening,
            deltas=deltas,
            closing=[*ending, send(f"response.{final['status']}", response=final)],
            broken=send("response.failed", response=failed),
            told=NOTHING,
        )

    def _message(self, answer: Answer, status: str) -> dict[str, Any]:
        part: dict[str, Any] = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        if answer.ending is Ending.REFUSED:
            part = {"type": "refusal", "refusal": answer.text}
        return {
            "id": f"msg_{answer.id}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [part],
        }

    def _response(
        self,
        call: Call,
        answer: Answer,
        status: str,
        output: list[dict[str, Any]],
        reason: str | None,
        usage: dict[str, Any] | None,
    ) -> dict[str, Any]:
        return {
            "id": f"resp_{answer.id}",
            "object": "response",
            "created_at": answer.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "instructions": None,
            "max_output_tokens": call.max_tokens,
            "max_tool_calls": None,
            "metadata": {},
            "model": call.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": usage,
            "user": None,
        }


def _call(
    provider: str,
    payload: Mapping[str, Any],
    turns: list[tuple[str, str]],
    max_tokens: int | None,
    *,
    include_usage: bool,
) -> Call:
    prompt = "\x1f".join(part for turn in turns for part in turn)
    prefixes = _automatic_prefixes(f"{provider}/{payload['model']}", prompt)
    return Call(
        model=payload["model"],
        task_text="\n".join(text for role, text in turns if role == "user") or prompt,
        prompt_tokens=count_tokens(prompt),
        max_tokens=max_tokens,
        stream=bool(payload.get("stream")),
        include_usage=include_usage,
        cache_reads=prefixes,
        cache_writes=prefixes,
    )


def _automatic_prefixes(scope: str, prompt: str) -> list[Prefix]:
    """Return the prefixes of 1,024, 1,152, 1,280, ... tokens."""
    step = CACHE_STEP_TOKENS * CHARACTERS_PER_TOKEN
    ends = range(MINIMUM_PREFIX_TOKENS * CHARACTERS_PER_TOKEN, len(prompt) + 1, step)
    return prefixes_of(
        scope,
        (
            (prompt[0 if i == 0 else end - step : end], end // CHARACTERS_PER_TOKEN, DEFAULT_TTL_SECONDS)
            for i, end in enumerate(ends)
        ),
    )


def _content_text(content: Any) -> str:
    if content is None:
        return ""
    return "\n".join(map(block_text, content)) if isinstance(content, list) else block_text(content)


def _reject_unsupported(model: str, payload: Mapping[str, Any]) -> None:
    """Raise `CallError` for what OpenAI's reasoning models do not take in chat completions."""
    if not is_openai_reasoning(model):
        return
    if payload.get("max_tokens") is not None:
        raise CallError(
            Kind.INVALID,
            param="max_tokens",
            code="unsupported_parameter",
            message="'max_tokens' is not supported with this model: use 'max_completion_tokens' instead.",
        )
    if payload.get("temperature") not in (None, 1):
        raise CallError(
            Kind.INVALID,
            param="temperature",
            code="unsupported_value",
            message="'temperature' takes only its default of 1 with this model.",
        )


def _chat_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _responses_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _duration(seconds: float) -> str:
    """Return `seconds` as OpenAI writes them: 6ms, 1.25s, 2m5s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{int(rest)}s" if minutes else f"{round(rest, 2):g}s"
