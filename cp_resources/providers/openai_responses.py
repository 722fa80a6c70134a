"""The OpenAI Responses wire.

Reference: https://platform.openai.com/docs/api-reference/responses
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

_WIRE = Wire.OPENAI_RESPONSES
_ENDED = ("completed", "incomplete")


class _Part(BaseModel):
    type: str
    text: str = ""
    refusal: str = ""


class _Item(BaseModel):
    """One item of the output: a message, or something else (reasoning) whose content is left alone."""

    type: str
    content: list[_Part] | None = None


class _Incomplete(BaseModel):
    reason: str | None = None


class _Response(BaseModel):
    status: str
    output: list[_Item]
    incomplete_details: _Incomplete | None = None
    usage: dict[str, Any] | None = None


class OpenAIResponsesClient:
    """Responses of one provider, which it is told not to store."""

    def __init__(self, connections: Connections, endpoint: Endpoint, policy: ExecutionPolicy) -> None:
        self._connections = connections
        self._url = f"{endpoint.base_url}/responses"
        self._key = endpoint.api_key
        self._limit_bytes = policy.response_limit_bytes

    async def complete(self, request: ChatRequest) -> Completion:
        """See `ChatClient.complete`."""
        key = self._key.get_secret_value()
        answer = await post_json(
            self._connections,
            _WIRE,
            self._url,
            {
                "model": request.api_model,
                "instructions": request.prompt.prefix,
                "input": [{"role": "user", "content": request.prompt.user}],
                "max_output_tokens": request.max_output_tokens,
                "store": False,
                **({"stream": True} if request.streams else {}),
            },
            headers={"authorization": f"Bearer {key}", **request.headers},
            secret=key,
            timeout_seconds=request.timeout_seconds,
            limit_bytes=self._limit_bytes,
        )
        return _completion(answer)


def _completion(answer: Answer) -> Completion:
    try:
        body = _Response.model_validate(answer.body)
        usage = parse_usage(_WIRE, body.usage) if body.usage is not None else None
    except ValidationError as error:
        raise malformed(wrong_fields(error), answer) from error
    except MalformedUsageError as error:
        raise malformed(str(error), answer) from error
    if body.status not in _ENDED:
        raise malformed(f"status: {body.status[:40]!r} is no end of a response", answer)
    parts = [part for item in body.output if item.type == "message" for part in item.content or ()]
    refusal = "".join(part.refusal for part in parts if part.type == "refusal")
    finish = body.status
    if finish == "incomplete" and body.incomplete_details and body.incomplete_details.reason:
        finish = body.incomplete_details.reason
    return Completion(
        text="".join(part.text for part in parts if part.type == "output_text") or refusal,
        # an incomplete response is one for whatever reason
        failure=finish_reason(_WIRE, finish, refused=bool(refusal)) or finish_reason(_WIRE, body.status),
        finish=finish,
        usage=usage,
        http_status=answer.status,
        request_id=answer.request_id,
        pause=answer.pause,
    )
