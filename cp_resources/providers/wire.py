"""What a chat client is asked and what it gives back, whatever the provider's wire format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cp_core.execution.cost import Usage
from cp_core.execution.prompt import Prompt
from cp_core.tasks.reasons import Reason


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call.

    Attributes:
        api_model: the provider's name of the model.
        timeout_seconds: for the whole call, connecting included.
        headers: sent along, for correlation.
        caches: mark the prompt's stable parts for the provider's cache, where the wire has marks.
        streams: have the answer sent as it is made.
    """

    api_model: str
    prompt: Prompt
    max_output_tokens: int
    timeout_seconds: float
    headers: Mapping[str, str]
    caches: bool = False
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer of status 200, which is billed whether or not it is of use.

    Attributes:
        failure: why it is of no use (refused, cut, filtered); None for a finished answer.
        usage: None when the provider did not say.
        pause: seconds that the provider wants no further call, see `limits.pause_seconds`.
    """

    text: str
    failure: Reason | None
    finish: str
    usage: Usage | None
    http_status: int
    request_id: str | None
    pause: float = 0.0


class ProviderError(Exception):
    """A call that gave no answer. The text is scrubbed and cut: it may be stored and logged.

    Attributes:
        usage: what an answer that broke off had told of its use, which is billed; None when nothing did.
    """

    def __init__(
        self,
        reason: Reason,
        text: str,
        *,
        http_status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        pause: float = 0.0,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.http_status = http_status
        self.request_id = request_id
        self.retry_after = retry_after
        self.pause = pause
        self.usage: Usage | None = None


class ChatClient(Protocol):
    """A provider that answers chat requests."""

    async def complete(self, request: ChatRequest) -> Completion:
        """Ask once, without retrying.

        Raises:
            ProviderError: the provider could not be reached in time, failed, or answered with an error.
        """
        ...
