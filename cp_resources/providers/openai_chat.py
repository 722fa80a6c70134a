"""The OpenAI chat completions wire, which many other providers speak too.

Reference: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from cp_core.execution.cost import MalformedUsageError, parse_usage
from cp_core.execution.failures import finish_reason
from cp_core.execution.policy import ExecutionPolicy
from cp_core.models.registry import Provider, Wire
from cp_resources.providers.connections import Connections
from cp_resources.providers.endpoint import Endpoint
from cp_resources.providers.transport import Answer, malformed, post_json, wrong_fields
from cp_resources.providers.wire import ChatRequest, Completion


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _ChatCompletion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: dict[str, Any] | None = None


class OpenAIChatClient:
    """Chat completions of one provider."""

    def __init__(
        self, connections: Connections, provider: Provider, endpoint: Endpoint, policy: ExecutionPolicy
    ) -> None:
        self._connections = connections
        self._url = f"{endpoint.base_url}/chat/completions"
        self._key = endpoint.api_key
        self._limit_bytes = policy.response_limit_bytes
        self._limit_name = _output_limit_name(provider)

    async def complete(self, request: ChatRequest) -> Completion:
        """See `ChatClient.complete`."""
        key = self._key.get_secret_value()
        answer = await post_json(
            self._connections,
            Wire.OPENAI_CHAT,
            self._url,
            {
                "model": request.api_model,
                "messages": [
                    {"role": "system", "content": request.prompt.prefix},
                    {"role": "user", "content": request.prompt.user},
                ],
                self._limit_name: request.max_output_tokens,
                **({"stream": True, "stream_options": {"include_usage": True}} if request.streams else {}),
            },
            headers={"authorization": f"Bearer {key}", **request.headers},
            secret=key,
            timeout_seconds=request.timeout_seconds,
            limit_bytes=self._limit_bytes,
        )
        return _completion(answer)


def _output_limit_name(provider: Provider) -> str:
    """OpenAI's newer models reject `max_tokens`; other servers of this wire know no other name."""
    host = urlsplit(provider.base_url).hostname or ""
    return "max_completion_tokens" if host == "api.openai.com" else "max_tokens"


def _completion(answer: Answer) -> Completion:
    try:
        body = _ChatCompletion.model_validate(answer.body)
        usage = parse_usage(Wire.OPENAI_CHAT, body.usage) if body.usage is not None else None
    except ValidationError as error:
        raise malformed(wrong_fields(error), answer) from error
    except MalformedUsageError as error:
        raise malformed(str(error), answer) from error
    choice = body.choices[0]
    finish = choice.finish_reason or ""
    return Completion(
        text=choice.message.content or choice.message.refusal or "",
        failure=finish_reason(Wire.OPENAI_CHAT, finish, refused=bool(choice.message.refusal)),
        finish=finish,
        usage=usage,
        http_status=answer.status,
        request_id=answer.request_id,
        pause=answer.pause,
    )
