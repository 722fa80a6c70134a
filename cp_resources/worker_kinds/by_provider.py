"""All kinds of workers as one: each task goes to the kind that serves its model's provider."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

from cp_core.execution.outcome import AttemptResult
from cp_core.models.registry import ModelRegistry
from cp_core.policy.policies import Policies
from cp_resources.executions import ClaimedTask
from cp_resources.settings import Settings
from cp_resources.worker_kinds import WorkerKind
from cp_resources.worker_kinds.chat import ChatWorker
from cp_resources.worker_kinds.command import CommandWorker
from cp_resources.worker_kinds.endpoint import EndpointWorker


class WorkersByProvider:
    """Attempts by the models of every provider that can be reached. A context: what it opened is closed."""

    def __init__(self, registry: ModelRegistry, policies: Policies, settings: Settings) -> None:
        policy = policies.execution
        caches = policies.flags.prompt_caching
        self._opened = (
            ChatWorker(registry, policy, settings, policies.prompt, caches_prompts=caches),
            CommandWorker(registry, policy, settings),
            EndpointWorker(registry, policy, settings),
        )
        self._kinds: dict[str, WorkerKind] = {
            provider: kind for kind in self._opened for provider in kind.providers
        }
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for kind in self._opened:
            await self._closing.enter_async_context(kind)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    @property
    def providers(self) -> frozenset[str]:
        """Names of the providers that can be reached."""
        return frozenset(self._kinds)

    async def attempt(self, claimed: ClaimedTask, *, seconds: float) -> AttemptResult:
        """See `WorkerKind.attempt`."""
        return await self._kinds[claimed.provider].attempt(claimed, seconds=seconds)
