"""The chat worker: asks a model over HTTP, and judges and prices its answer."""

from __future__ import annotations

import time
from dataclasses import replace
from http import HTTPStatus
from typing import Self
from urllib.parse import quote

from cp_core.execution.cost import NO_USAGE, cost_usd, usage_by_length
from cp_core.execution.outcome import AttemptResult, judge
from cp_core.execution.policy import ExecutionPolicy
from cp_core.execution.prompt import Prompt, PromptPolicy, chat_prompt, output_limit
from cp_core.execution.prompt_cache import PrefixUse, prefix_of
from cp_core.models.registry import Model, ModelRegistry, Provider, Wire
from cp_resources.executions import ClaimedTask
from cp_resources.providers.anthropic_messages import AnthropicMessagesClient
from cp_resources.providers.connections import Connections, tls_context
from cp_resources.providers.endpoint import Endpoint, provider_endpoint
from cp_resources.providers.openai_chat import OpenAIChatClient
from cp_resources.providers.openai_responses import OpenAIResponsesClient
from cp_resources.providers.wire import ChatClient, ChatRequest, Completion, ProviderError
from cp_resources.settings import Settings
from cp_resources.worker_kinds.priming import Primer


class ChatWorker:
    """Attempts by chat models of every provider that has a key. A context: connections close at its end.

    With CP_SIMULATOR_URL it stands in for every other kind too: nothing is executed, no endpoint is called.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        policy: ExecutionPolicy,
        settings: Settings,
        prompts: PromptPolicy | None = None,
        *,
        caches_prompts: bool = True,
    ) -> None:
        self._registry = registry
        self._policy = policy
        self._prompts = prompts or PromptPolicy()
        self._caches_prompts = caches_prompts
        self._primer = Primer(self._prompts.prime_seconds)
        self._connections: list[Connections] = []
        self._clients: dict[str, ChatClient] = {}
        tls = tls_context()
        for provider in registry.providers.values():
            endpoint = provider_endpoint(provider, settings)
            is_chat = provider.wire not in (Wire.COMMAND, Wire.ENDPOINT)
            if endpoint and (is_chat or settings.simulator_url):
                connections = Connections(policy, tls, through_proxy=settings.simulator_url is None)
                self._connections.append(connections)
                self._clients[provider.name] = chat_client(connections, provider, endpoint, policy)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connections in self._connections:
            await connections.aclose()

    @property
    def providers(self) -> frozenset[str]:
        """Names of the providers that have a key."""
        return frozenset(self._clients)

    async def attempt(self, claimed: ClaimedTask, *, seconds: float) -> AttemptResult:
        """See `WorkerKind.attempt`."""
        model = self._registry.model(claimed.model)
        prompt = chat_prompt(
            claimed.title,
            claimed.description,
            claimed.workspace,
            claimed.labels,
            policy=self._prompts,
            earlier_work=claimed.earlier_work,
        )
        prefix = prefix_of(prompt, model) if self._caches_prompts else None
        if prefix is None or not prefix.is_held:
            result = await self._ask(claimed, model, prompt, seconds, caches=prefix is not None)
            return replace(result, prefix_use=PrefixUse(prefix) if prefix else None)
        async with self._primer.turn(prefix.key) as turn:
            result = await self._ask(claimed, model, prompt, seconds - turn.waited_seconds, caches=True)
            turn.answered = result.http_status == HTTPStatus.OK
        return replace(result, prefix_use=PrefixUse(prefix, turn.is_first, turn.waited_seconds))

    async def _ask(
        self, claimed: ClaimedTask, model: Model, prompt: Prompt, seconds: float, *, caches: bool
    ) -> AttemptResult:
        request = self._request(claimed, model, prompt, seconds, caches)
        started = time.perf_counter()
        try:
            completion = await self._clients[claimed.provider].complete(request)
        except ProviderError as error:
            return _failed(error, model, _milliseconds_since(started))
        return self._answered(completion, prompt, model, _milliseconds_since(started))

    def _request(
        self, claimed: ClaimedTask, model: Model, prompt: Prompt, seconds: float, caches: bool
    ) -> ChatRequest:
        return ChatRequest(
            api_model=model.api_name,
            prompt=prompt,
            max_output_tokens=output_limit(
                prompt,
                expected_high=claimed.output_high,
                headroom=self._policy.output_headroom,
                floor=self._policy.output_tokens_floor,
                max_output_tokens=model.max_output_tokens,
                context_window=model.context_window,
            ),
            timeout_seconds=max(0.0, min(seconds, self._policy.timeout_seconds)),
            caches=caches,
            streams=self._registry.providers[claimed.provider].stream,
            headers={
                "x-control-panel-task": quote(claimed.task_id, safe="/:@#+,=~ "),
                "x-control-panel-attempt": str(claimed.attempt),
                "x-control-panel-execution": str(claimed.execution),
                **({"x-control-panel-run": quote(claimed.run_id)} if claimed.run_id else {}),
            },
        )

    def _answered(
        self, completion: Completion, prompt: Prompt, model: Model, latency_ms: float
    ) -> AttemptResult:
        usage = completion.usage or usage_by_length(prompt, completion.text)
        verdict = None if completion.failure else judge(completion.text, self._policy.success_quality)
        return AttemptResult(
            reason=verdict.reason if verdict else completion.failure,
            usage=usage,
            cost_usd=cost_usd(usage, model),
            quality=verdict.quality if verdict else None,
            evidence=verdict.evidence if verdict else None,
            output=completion.text,
            error=f"the answer ended with {completion.finish!r}" if completion.failure else None,
            http_status=completion.http_status,
            request_id=completion.request_id,
            latency_ms=latency_ms,
            pause=completion.pause,
        )


def chat_client(
    connections: Connections, provider: Provider, endpoint: Endpoint, policy: ExecutionPolicy
) -> ChatClient:
    """The client that speaks the provider's wire."""
    match provider.wire:
        case Wire.OPENAI_RESPONSES:
            return OpenAIResponsesClient(connections, endpoint, policy)
        case Wire.ANTHROPIC_MESSAGES:
            return AnthropicMessagesClient(connections, endpoint, policy)
        case _:
            return OpenAIChatClient(connections, provider, endpoint, policy)


def _failed(error: ProviderError, model: Model, latency_ms: float) -> AttemptResult:
    usage = error.usage or NO_USAGE
    return AttemptResult(
        reason=error.reason,
        usage=usage,
        cost_usd=cost_usd(usage, model),
        error=str(error),
        http_status=error.http_status,
        request_id=error.request_id,
        latency_ms=latency_ms,
        retry_after=error.retry_after,
        pause=error.pause,
    )


def _milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
