"""Answers that come as server-sent events, put together into the JSON body that the same wire gives at once.

References: https://developers.openai.com/api/docs/guides/streaming-responses (both OpenAI wires) and
https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cp_core.models.registry import Wire

MEDIA_TYPE = "text/event-stream"


@dataclass(slots=True)
class Gathered:
    """What a stream came to.

    Attributes:
        body: as the wire's answer without a stream; after a break what came until then, its usage among it.
        error: the error object of an event that broke the stream; None without one.
        is_whole: whether the stream told its end.
    """

    body: dict[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    is_whole: bool = False


def gather(wire: Wire, content: bytes) -> Gathered:
    """Put the events of a stream together. What is no event of the wire is passed over."""
    gathered = Gathered()
    take = _TAKES[wire]
    for event in _events(content):
        if event.get("error") and event.get("type", "error") == "error":
            gathered.error = (
                event["error"] if isinstance(event["error"], Mapping) else {"message": event["error"]}
            )
        elif event.get("type") == "error":  # Responses: the event is the error
            gathered.error = {**event, "type": event.get("code")}
        else:
            take(gathered, event)
    return gathered


def _events(content: bytes) -> Iterator[dict[str, Any]]:
    for block in content.decode(errors="replace").replace("\r\n", "\n").split("\n\n"):
        lines = [line[5:].lstrip() for line in block.split("\n") if line.startswith("data:")]
        try:
            event = json.loads("\n".join(lines))
        except (ValueError, RecursionError):
            continue  # a comment, OpenAI's [DONE], or a piece of an event that the connection cut
        if isinstance(event, dict):
            yield event


def _take_chunk(gathered: Gathered, chunk: Mapping[str, Any]) -> None:
    """Chat completions: pieces of the first choice; usage comes in a last chunk without choices."""
    body = gathered.body or {
        "choices": [{"message": {"content": None, "refusal": None}, "finish_reason": None}]
    }
    gathered.body = body
    if chunk.get("usage"):
        body["usage"] = chunk["usage"]
    for piece in (chunk.get("choices") or [])[:1]:
        choice, delta = body["choices"][0], piece.get("delta") or {}
        for name in ("content", "refusal"):
            if delta.get(name):
                choice["message"][name] = (choice["message"][name] or "") + delta[name]
        if piece.get("finish_reason"):
            choice["finish_reason"] = piece["finish_reason"]
            gathered.is_whole = True


def _take_response_event(gathered: Gathered, event: Mapping[str, Any]) -> None:
    """Responses: the last event carries the whole response."""
    if event.get("type") not in ("response.completed", "response.incomplete", "response.failed"):
        return
    gathered.body = event.get("response") or {}
    gathered.error = gathered.body.get("error")
    gathered.is_whole = True


def _take_message_event(gathered: Gathered, event: Mapping[str, Any]) -> None:
    """Messages: a message without content, its blocks piece by piece, then what is known at the end."""
    body = gathered.body
    match event.get("type"):
        case "message_start":
            gathered.body = {**(event.get("message") or {}), "content": []}
        case "content_block_start":
            body.setdefault("content", []).append(dict(event.get("content_block") or {}))
        case "content_block_delta" if body.get("content"):
            block, delta = body["content"][-1], event.get("delta") or {}
            if delta.get("type") == "text_delta":
                block["text"] = block.get("text", "") + delta.get("text", "")
        case "message_delta":
            body |= event.get("delta") or {}
            body["usage"] = {**(body.get("usage") or {}), **(event.get("usage") or {})}
        case "message_stop":
            gathered.is_whole = True


_TAKES = {
    Wire.OPENAI_CHAT: _take_chunk,
    Wire.OPENAI_RESPONSES: _take_response_event,
    Wire.ANTHROPIC_MESSAGES: _take_message_event,
}
STREAMING = frozenset(_TAKES)
"""The wires that answers can be streamed on."""
