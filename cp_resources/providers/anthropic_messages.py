"""The Anthropic Messages wire.

Reference: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from cp_core.execution.cost import MalformedUsageError, parse_usage
from cp_core.execution.failures import finish_reason
from cp_core.execution.policy import ExecutionPolicy
from cp_core.models.registry import Wire
from cp_resources.providers.connections import Connections
from cp_resources.providers.endpoint import Endpoint
from cp_resources.providers.transport import Answer, malformed, post_json, wrong_fields
from cp_resources.providers.wire import ChatRequest, Completion

API_VERSION = "2023-06-01"


class _Block(BaseModel):
    type: str
    text: str = ""


class _Message(BaseModel):
    content: list[_Block]
    stop_reason: str | None = None
    usage: dict[str, Any] | None = None


class AnthropicMessagesClient:
    """Messages of one provider."""

    def __init__(self, connections: Connections, endpoint: Endpoint, policy: ExecutionPolicy) -> None:
        self._connections = connections
        self._url = f"{endpoint.base_url}/v1/messages"
        self._key = endpoint.api_key
        self._limit_bytes = policy.response_limit_bytes

    async def complete(self, request: ChatRequest) -> Completion:
        """See `ChatClient.complete`."""
        key = self._key.get_secret_value()
        answer = await post_json(
            self._connections,
            Wire.ANTHROPIC_MESSAGES,
            self._url,
            {
                "model": request.api_model,
                "max_tokens": request.max_output_tokens,
                "system": _system(request),
                "messages": [{"role": "user", "content": request.prompt.user}],
                **({"stream": True} if request.streams else {}),
            },
            headers={"x-api-key": key, "anthropic-version": API_VERSION, **request.headers},
            secret=key,
            timeout_seconds=request.timeout_seconds,
            limit_bytes=self._limit_bytes,
        )
        return _completion(answer)


def _system(request: ChatRequest) -> str | list[dict[str, Any]]:
    """The stable parts, each marked (two at most; the provider takes four marks): calls that share only the first
    part find it in the cache."""
    if not request.caches:
        return request.prompt.prefix
    parts = [{"type": "text", "text": part} for part in request.prompt.stable]
    return [{**part, "cache_control": {"type": "ephemeral"}} for part in parts]


def _completion(answer: Answer) -> Completion:
    try:
        body = _Message.model_validate(answer.body)
        usage = parse_usage(Wire.ANTHROPIC_MESSAGES, body.usage) if body.usage is not None else None
    except ValidationError as error:
        raise malformed(wrong_fields(error), answer) from error
    except MalformedUsageError as error:
        raise malformed(str(error), answer) from error
    stop = body.stop_reason or ""
    return Completion(
        text="".join(block.text for block in body.content if block.type == "text"),
        failure=finish_reason(Wire.ANTHROPIC_MESSAGES, stop),
        finish=stop,
        usage=usage,
        http_status=answer.status,
        request_id=answer.request_id,
        pause=answer.pause,
    )
