"""The endpoint worker: gives a task to an HTTP worker and waits for what comes of it.

The protocol is described in docs/workers.md. An endpoint is called at public addresses only, unless the operator
lists its network; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from cp_core.execution.cost import (
    NO_USAGE,
    MalformedUsageError,
    Usage,
    cost_usd,
    parse_usage,
    usage_by_length,
)
from cp_core.execution.evidence import FENCE, OPENING
from cp_core.execution.outcome import AttemptResult, judge
from cp_core.execution.policy import ExecutionPolicy
from cp_core.execution.prompt import Prompt, chat_prompt, output_limit
from cp_core.execution.retry import retry_after_seconds
from cp_core.models.registry import Model, ModelRegistry, Provider, Wire
from cp_core.tasks.reasons import TRANSIENT, Reason
from cp_resources.executions import ClaimedTask
from cp_resources.providers.connections import Connections, tls_context
from cp_resources.providers.endpoint import Endpoint, provider_endpoint
from cp_resources.providers.transport import Answer, malformed, request_json, wrong_fields
from cp_resources.providers.wire import ProviderError
from cp_resources.settings import Settings
from cp_resources.worker_kinds import CutOffError

POLL_SECONDS = 2.0
"""Between two looks at a task's status, when the endpoint does not ask for another time."""
SHORTEST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.2, 60.0
POLL_TIMEOUT_SECONDS = 30.0
FAILED_POLLS = 5
"""So many looks may fail in a row for a reason that passes, before the attempt does."""
CANCEL_SECONDS = 5.0
"""For telling an endpoint to stop."""
_STATUS_URL = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*){1,20}")


class _Accepted(BaseModel):
    status_url: str


class _Result(BaseModel):
    output: str
    evidence: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None


@dataclass(slots=True)
class _CalledOff:
    """What an endpoint says was used by a task that it was told to stop."""

    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True)
class _Worker:
    """One provider's HTTP worker."""

    provider: Provider
    endpoint: Endpoint
    connections: Connections
    limit_bytes: int

    async def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        timeout_seconds: float,
    ) -> Answer:
        key = self.endpoint.api_key.get_secret_value()
        return await request_json(
            self.connections,
            Wire.ENDPOINT,
            method,
            f"{self.endpoint.base_url}{path}",
            body,
            headers={"authorization": f"Bearer {key}", **headers},
            secret=key,
            timeout_seconds=timeout_seconds,
            limit_bytes=self.limit_bytes,
        )


class EndpointWorker:
    """Attempts by every endpoint that has a key. With CP_SIMULATOR_URL it serves none. A context."""

    def __init__(self, registry: ModelRegistry, policy: ExecutionPolicy, settings: Settings) -> None:
        self._registry = registry
        self._policy = policy
        self._workers: dict[str, _Worker] = {}
        for provider in registry.providers.values():
            endpoint = provider_endpoint(provider, settings)
            if provider.wire is Wire.ENDPOINT and endpoint and not settings.simulator_url:
                connections = Connections(policy, tls_context(), guarded=provider.allow_addresses)
                worker = _Worker(provider, endpoint, connections, policy.response_limit_bytes)
                self._workers[provider.name] = worker

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers.values():
            await worker.connections.aclose()

    @property
    def providers(self) -> frozenset[str]:
        """Names of the endpoints that have a key."""
        return frozenset(self._workers)

    async def attempt(self, claimed: ClaimedTask, *, seconds: float) -> AttemptResult:
        """See `WorkerKind.attempt`."""
        worker = self._workers[claimed.provider]
        model = self._registry.model(claimed.model)
        prompt = chat_prompt(claimed.title, claimed.description, claimed.workspace, claimed.labels)
        limit = min(seconds, worker.provider.timeout_seconds or self._policy.timeout_seconds)
        body = self._body(claimed, model, prompt, limit)
        started = time.perf_counter()
        called_off = _CalledOff()
        try:
            async with asyncio.timeout(limit):
                answer = await _work(worker, body, _headers(claimed), limit, called_off)
            return self._answered(answer, prompt, model, _milliseconds_since(started))
        except TimeoutError:
            return AttemptResult(
                Reason.TIMEOUT,
                usage=called_off.usage,
                cost_usd=cost_usd(called_off.usage, model),
                error=f"no result within {limit:g} s",
                latency_ms=_milliseconds_since(started),
            )
        except asyncio.CancelledError as cancelled:
            raise CutOffError(
                AttemptResult(
                    Reason.CANCELLED,
                    usage=called_off.usage,
                    cost_usd=cost_usd(called_off.usage, model),
                    latency_ms=_milliseconds_since(started),
                )
            ) from cancelled
        except ProviderError as failure:
            return AttemptResult(
                reason=failure.reason,
                usage=called_off.usage,
                cost_usd=cost_usd(called_off.usage, model),
                error=str(failure),
                http_status=failure.http_status,
                request_id=failure.request_id,
                latency_ms=_milliseconds_since(started),
                retry_after=failure.retry_after,
            )

    def _body(self, claimed: ClaimedTask, model: Model, prompt: Prompt, limit: float) -> dict[str, Any]:
        tokens = output_limit(
            prompt,
            expected_high=claimed.output_high,
            headroom=self._policy.output_headroom,
            floor=self._policy.output_tokens_floor,
            max_output_tokens=model.max_output_tokens,
            context_window=model.context_window,
        )
        return {
            "task_id": claimed.task_id,
            "attempt": claimed.attempt,
            "title": claimed.title,
            "description": claimed.description,
            "labels": list(claimed.labels),
            "workspace": claimed.workspace,
            "model": model.api_name,
            "limits": {
                "seconds": round(limit, 3),
                "output_tokens": tokens,
                "response_bytes": self._policy.response_limit_bytes,
            },
        }

    def _answered(self, answer: Answer, prompt: Prompt, model: Model, latency_ms: float) -> AttemptResult:
        result, usage = _parsed(answer)
        usage = usage or usage_by_length(prompt, result.output)
        verdict = judge(_with_evidence(result), self._policy.success_quality)
        return AttemptResult(
            reason=verdict.reason,
            usage=usage,
            cost_usd=cost_usd(usage, model),
            quality=verdict.quality,
            evidence=verdict.evidence,
            output=result.output,
            http_status=answer.status,
            request_id=answer.request_id,
            latency_ms=latency_ms,
        )


async def _work(
    worker: _Worker,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    limit: float,
    called_off: _CalledOff,
) -> Answer:
    """Give the task to the endpoint and return its result; tell it to stop when that is not waited for."""
    answer = await _send_surely(worker, "POST", "/tasks", body, headers, limit)
    if answer.status != 202:
        return answer
    path = _status_path(answer)
    try:
        return await _poll(worker, path, headers, _pause(answer))
    except (asyncio.CancelledError, ProviderError):
        with suppress(ProviderError, MalformedUsageError):
            answer = await _send_surely(worker, "DELETE", path, None, headers, CANCEL_SECONDS)
            if isinstance(usage := answer.body.get("usage"), Mapping):
                called_off.usage = parse_usage(Wire.ENDPOINT, usage)
        raise


async def _send_surely(
    worker: _Worker,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    headers: Mapping[str, str],
    limit: float,
) -> Answer:
    """Send a request, a second time when the connection broke: its key tells the endpoint that it is the same."""
    try:
        return await worker.send(method, path, body, headers, limit)
    except ProviderError as error:
        if error.reason is not Reason.CONNECTION:
            raise
    return await worker.send(method, path, body, headers, limit)


async def _poll(worker: _Worker, path: str, headers: Mapping[str, str], pause: float) -> Answer:
    failed = 0
    while True:
        await asyncio.sleep(pause)
        try:
            answer = await worker.send("GET", path, None, headers, POLL_TIMEOUT_SECONDS)
        except ProviderError as error:
            failed += 1
            # An error inside a 200 is the task's own end; others may be the server's, and pass.
            if error.http_status == 200 or error.reason not in TRANSIENT or failed >= FAILED_POLLS:
                raise
            pause = _bounded(error.retry_after)
            continue
        if answer.status != 202:
            return answer
        failed, pause = 0, _pause(answer)


def _status_path(answer: Answer) -> str:
    """Where to ask: a path below the base URL, so that nobody sends the key elsewhere."""
    try:
        path = _Accepted.model_validate(answer.body).status_url
    except ValidationError as error:
        raise malformed(wrong_fields(error), answer) from error
    if not _STATUS_URL.fullmatch(path):
        raise malformed("status_url: a path below the base URL, such as /tasks/17, is needed", answer)
    return path


def _pause(answer: Answer) -> float:
    return _bounded(retry_after_seconds(answer.headers, datetime.now(UTC)))


def _bounded(seconds: float | None) -> float:
    return min(max(POLL_SECONDS if seconds is None else seconds, SHORTEST_POLL_SECONDS), LONGEST_POLL_SECONDS)


def _headers(claimed: ClaimedTask) -> dict[str, str]:
    return {
        "idempotency-key": str(claimed.reservation),
        "x-control-panel-task": quote(claimed.task_id, safe="/:@#+,=~ "),
        "x-control-panel-attempt": str(claimed.attempt),
        "x-control-panel-execution": str(claimed.execution),
    }


def _parsed(answer: Answer) -> tuple[_Result, Usage | None]:
    try:
        result = _Result.model_validate(answer.body)
        usage = parse_usage(Wire.ENDPOINT, result.usage) if result.usage is not None else None
    except ValidationError as error:
        raise malformed(wrong_fields(error), answer) from error
    except MalformedUsageError as error:
        raise malformed(str(error), answer) from error
    return result, usage


def _with_evidence(result: _Result) -> str:
    """The output with the evidence that came beside it, where a chat model would have written it."""
    if result.evidence is None:
        return result.output
    return f"{result.output}\n{OPENING}\n{json.dumps(result.evidence)}\n{FENCE}"


def _milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
