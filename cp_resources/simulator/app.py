"""The ASGI application: takes a call through authentication, limits, weather and truth, and answers it.

What is billed is what the client is told: a call whose client left before the answer, or that failed before
it, is billed nothing; a stream that the provider broke is billed what its first event said.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cp_resources.simulator import journal
from cp_resources.simulator.answers import REFUSAL, answer_text
from cp_resources.simulator.anthropic_wire import HOUR_SECONDS, AnthropicMessages
from cp_resources.simulator.catalogue import is_openai_reasoning, known_model
from cp_resources.simulator.openai_wire import OpenAIChat, OpenAIResponses
from cp_resources.simulator.options import Options
from cp_resources.simulator.shared import NO_LIMITS, Prefix, PromptCache, RateLimits
from cp_resources.simulator.truth import AttemptTruth, attempt_truth
from cp_resources.simulator.weather import Failure, failure_of, is_filtered, is_refused
from cp_resources.simulator.wire import (
    CHARACTERS_PER_TOKEN,
    NOTHING,
    Answer,
    Call,
    CallError,
    Ending,
    Kind,
    Usage,
    Wire,
    count_tokens,
)

FIRST_EVENT_SHARE = 0.4
"""The part of a stream's latency before its first event; the rest lies between its pieces of text."""

INJECTED_RETRY_AFTER_SECONDS = 1.0
TRICKLE_SECONDS = 0.05
"""Between two bytes of an answer that trickles: what is a moment's work takes about a minute."""
REASONING_SHARE = 0.4
CLIENT_LEFT = 499


def create_app(options: Options, state: Path, started_at: float | None = None) -> Starlette:
    """Return the application; processes that share the folder `state` are one simulator.

    `started_at` (seconds since the epoch, default now) is what storms are counted from.
    """
    simulation = Simulation(options, state, time.time() if started_at is None else started_at)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        simulation.close()

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "seed": options.seed})

    async def show_journal(request: Request) -> JSONResponse:
        task = request.query_params.get("task")
        if task is None:
            return JSONResponse(await asyncio.to_thread(journal.summary, simulation.journal.path))
        found = await asyncio.to_thread(lambda: list(journal.lines(simulation.journal.path, task)))
        return JSONResponse({"calls": found})

    endpoints: dict[str, Wire] = {
        "chat/completions": OpenAIChat(),
        "responses": OpenAIResponses(),
        "messages": AnthropicMessages(),
    }
    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/journal", show_journal),
            *(
                Route(f"/{{provider}}/v1/{path}", Endpoint(wire, simulation), methods=["POST"])
                for path, wire in endpoints.items()
            ),
        ],
        lifespan=lifespan,
    )


class Simulation:
    """The state behind all endpoints: limits, cache and journal, shared with the other processes."""

    def __init__(self, options: Options, state: Path, started_at: float) -> None:
        self.options = options
        self.started_at = started_at
        self.limits = RateLimits(state / "limits", options.requests_per_minute, options.tokens_per_minute)
        self.cache = PromptCache(state / "cache")
        self.journal = journal.Journal(options.journal or state / "journal.jsonl")

    def close(self) -> None:
        """Let go of the files."""
        self.limits.close()
        self.cache.close()
        self.journal.close()

    def check(self, call: Call) -> None:
        """Raise `CallError` for a call that the provider would not take to the model."""
        if self.options.models and call.model not in self.options.models:
            raise CallError(Kind.UNKNOWN_MODEL, model=call.model)
        known = known_model(call.model)
        if call.prompt_tokens > known.context_window:
            raise CallError(
                Kind.CONTEXT_TOO_LONG,
                tokens=call.prompt_tokens,
                window=known.context_window,
                param="messages",
            )
        if call.max_tokens and call.max_tokens > known.max_output_tokens:
            raise CallError(
                Kind.INVALID,
                param="max_tokens",
                message=f"max_tokens: {call.max_tokens} > {known.max_output_tokens}, the maximum here",
            )

    def failure(self, call: Call, truth: AttemptTruth, attempt: str) -> Failure | None:
        """Return how the weather makes this attempt fail, or None."""
        elapsed = time.time() - self.started_at
        key = (call.model, truth.task.key, attempt)
        return failure_of(self.options.seed, key, self.options.failure_share, self.options.storms, elapsed)

    def latency(self, truth: AttemptTruth) -> float:
        """Return the seconds that this attempt takes, at most ten times the median."""
        factor = truth.latency_factor * math.exp(self.options.latency_spread * truth.latency_noise)
        return self.options.latency_ms / 1000 * min(factor, 10.0)

    def answer(self, wire: Wire, call: Call, truth: AttemptTruth, attempt: str) -> Answer:
        """Return the answer, with its share of cached input as the prompt cache is now."""
        text, ending = self._text(wire, call, truth, attempt)
        scale = 0.0 if ending in (Ending.REFUSED, Ending.FILTERED) else self.options.token_scale
        output = round(scale * truth.output_tokens)
        reasons = wire.name.startswith("openai") and is_openai_reasoning(call.model)
        usage = Usage(
            input_tokens=call.prompt_tokens + round(scale * truth.input_tokens),
            output_tokens=max(count_tokens(text), 1) + output,
            reasoning_tokens=round(REASONING_SHARE * output) if reasons else 0,
        )
        found = self.cache.longest(call.cache_reads, time.time())
        cached = found.tokens if found else 0
        written = [p for p in call.cache_writes if p.tokens > cached] if wire.bills_cache_writes else []
        return Answer(
            id=secrets.token_hex(12),
            created=int(time.time()),
            text=text,
            ending=ending,
            usage=_with_cache(usage, cached, written),
        )

    def _text(self, wire: Wire, call: Call, truth: AttemptTruth, attempt: str) -> tuple[str, Ending]:
        seed, task = self.options.seed, truth.task.key
        if is_refused(seed, call.model, task, self.options.refusal_share):
            if wire.name.startswith("openai") and is_filtered(seed, call.model, task):
                return "", Ending.FILTERED
            return REFUSAL, Ending.REFUSED
        text = answer_text(truth, call.model, attempt)
        if call.max_tokens is not None and call.max_tokens < count_tokens(text):
            return text[: call.max_tokens * CHARACTERS_PER_TOKEN], Ending.TRUNCATED
        return text, Ending.COMPLETE


class Endpoint:
    """An ASGI application for one wire format."""

    def __init__(self, wire: Wire, simulation: Simulation) -> None:
        self.wire = wire
        self.simulation = simulation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        await Exchange(self.wire, self.simulation, scope, receive, send).serve()


@dataclass
class _Client:
    """Who calls: the request's headers, and the labels that travel with the call into the journal."""

    provider: str
    headers: dict[str, str]

    @property
    def task(self) -> str | None:
        return self.headers.get("x-control-panel-task")

    @property
    def attempt(self) -> str:
        """The attempt's number as the client counts it; an SDK's own retries count as attempts too."""
        named = self.headers.get("x-control-panel-attempt")
        retries = self.headers.get("x-stainless-retry-count", "0")
        if named is None:
            return str(1 + int(retries)) if retries.isdecimal() else "1"
        return named if retries == "0" else f"{named}.{retries}"


class Exchange:
    """One request and its response."""

    def __init__(
        self, wire: Wire, simulation: Simulation, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.wire = wire
        self.simulation = simulation
        self.receive = receive
        self.send = send
        self.client = _Client(
            scope["path_params"]["provider"],
            {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
        )
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.model = ""
        self.streamed = False
        self.allowance = NO_LIMITS
        self.gone: asyncio.Task[Any] | None = None

    async def serve(self) -> None:
        """Answer the call, or say what is wrong with it."""
        try:
            await self._answer()
        except CallError as error:
            await self._send_error(error)
        finally:
            if self.gone:
                self.gone.cancel()

    async def _answer(self) -> None:
        self.wire.authenticate(self.client.headers)
        call = self.wire.read(self.client.provider, await self._payload())
        self.model, self.streamed = call.model, call.stream
        self.simulation.check(call)
        attempt = self.client.attempt
        truth = attempt_truth(self.simulation.options.seed, call.model, call.task_text, attempt)
        answer = self.simulation.answer(self.wire, call, truth, attempt)
        self._pass_limits(call, answer)
        failure = self.simulation.failure(call, truth, attempt)
        latency = self.simulation.latency(truth)
        if call.stream:
            await self._stream(call, answer, failure, latency)
        else:
            await self._complete(call, answer, failure, latency)

    async def _payload(self) -> dict[str, Any]:
        limit = self.simulation.options.max_body_bytes
        body = bytearray()
        more = True
        while more:
            message = await self.receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                raise CallError(Kind.TOO_LARGE, limit=limit)
        try:
            payload = json.loads(body)
        except ValueError:
            payload = None
        if not isinstance(payload, dict):
            raise CallError(Kind.INVALID, message="The body of the request is not a JSON object.")
        return payload

    def _pass_limits(self, call: Call, answer: Answer) -> None:
        tokens = answer.usage.input_tokens + answer.usage.output_tokens
        scope = f"{self.client.provider}/{call.model}"
        self.allowance = self.simulation.limits.take(scope, tokens, time.time())
        if self.allowance.exceeded:
            raise CallError(
                Kind.RATE_LIMITED,
                retry_after=self.allowance.retry_after,
                what=self.allowance.exceeded,
                model=call.model,
            )

    async def _complete(self, call: Call, answer: Answer, failure: Failure | None, latency: float) -> None:
        if failure and failure not in (Failure.DISCONNECT, Failure.HANG, Failure.TRICKLE):
            await self._wait(latency * FIRST_EVENT_SHARE)
            raise _error_of(failure, call)
        if not await self._wait(math.inf if failure is Failure.HANG else latency):
            self._record(CLIENT_LEFT, "client-left", NOTHING)
            return
        body = json.dumps(self.wire.body(call, answer)).encode()
        if failure is Failure.DISCONNECT:
            self._record(200, failure, NOTHING)
            await self._start(200, {"content-length": str(len(body))})
            await self._write(body[: len(body) // 2])
            return
        self.simulation.cache.write(call.cache_writes, time.time())
        if failure is Failure.TRICKLE:
            await self._trickle(answer, body)
            return
        self._record(200, answer.ending, answer.usage)
        await self._respond(200, {}, body)

    async def _trickle(self, answer: Answer, body: bytes) -> None:
        await self._start(200, {"content-length": str(len(body))})
        for byte in body[:-1]:
            await self._write(bytes([byte]))
            if not await self._wait(TRICKLE_SECONDS):
                self._record(CLIENT_LEFT, "client-left", NOTHING)
                return
        self._record(200, answer.ending, answer.usage)
        await self._write(body[-1:], last=True)

    async def _stream(self, call: Call, answer: Answer, failure: Failure | None, latency: float) -> None:
        late = (Failure.DISCONNECT, Failure.HANG, Failure.MID_STREAM, Failure.TRICKLE)
        if failure and failure not in late:
            await self._wait(latency * FIRST_EVENT_SHARE)
            raise _error_of(failure, call)
        if not await self._wait(math.inf if failure is Failure.HANG else latency * FIRST_EVENT_SHARE):
            self._record(CLIENT_LEFT, "client-left", NOTHING)
            return
        events = self.wire.events(call, answer)
        self.simulation.cache.write(call.cache_writes, time.time())
        await self._start(200, {"content-type": "text/event-stream; charset=utf-8"})
        await self._write("".join(events.opening).encode())
        breaks = failure in (Failure.DISCONNECT, Failure.MID_STREAM)
        deltas = events.deltas[: len(events.deltas) // 2] if breaks else events.deltas
        pause = latency * (1 - FIRST_EVENT_SHARE) / max(len(events.deltas), 1)
        for delta in deltas:
            pause = TRICKLE_SECONDS * len(delta) if failure is Failure.TRICKLE else pause
            if not await self._wait(pause):
                self._record(CLIENT_LEFT, "client-left", events.told)
                return
            await self._write(delta.encode())
        if failure is Failure.DISCONNECT:
            self._record(200, failure, events.told)
        elif failure is Failure.MID_STREAM:
            self._record(200, failure, events.told)
            await self._write(events.broken.encode(), last=True)
        else:
            self._record(200, answer.ending, answer.usage)
            await self._write("".join(events.closing).encode(), last=True)

    async def _wait(self, seconds: float) -> bool:
        """Sleep; return False at once when the client leaves."""
        if seconds <= 0:
            return True
        if self.gone is None:
            self.gone = asyncio.ensure_future(self._until_client_leaves())
        timeout = None if math.isinf(seconds) else seconds
        await asyncio.wait({self.gone}, timeout=timeout)
        return not self.gone.done()

    async def _until_client_leaves(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def _send_error(self, error: CallError) -> None:
        status, headers, body = self.wire.error(error, self.request_id)
        self._record(status, error.kind, NOTHING)
        await self._respond(status, headers, json.dumps(body).encode())

    async def _respond(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        await self._start(status, {"content-length": str(len(body)), **headers})
        await self._write(body, last=True)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        every = self.wire.headers(self.request_id, self.allowance, time.time())
        merged = {"content-type": "application/json", **every, **headers}
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in merged.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})

    async def _write(self, body: bytes, *, last: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": not last})

    def _record(self, status: int, ending: str, usage: Usage) -> None:
        self.simulation.journal.write(
            journal.Entry(
                at=datetime.now(UTC).isoformat(),
                provider=self.client.provider,
                wire=self.wire.name,
                model=self.model,
                task=self.client.task,
                attempt=self.client.headers.get("x-control-panel-attempt"),
                request_id=self.request_id,
                status=status,
                ending=str(ending),
                streamed=self.streamed,
                input_tokens=usage.input_tokens,
                cached_tokens=usage.cached_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                output_tokens=usage.output_tokens,
            )
        )


def _error_of(failure: Failure, call: Call) -> CallError:
    """Return the error response of a failure; what is not a stream cannot break midway."""
    if failure is Failure.RATE_LIMITED:
        return CallError(
            Kind.RATE_LIMITED, retry_after=INJECTED_RETRY_AFTER_SECONDS, what="requests", model=call.model
        )
    if failure is Failure.MID_STREAM:
        return CallError(Kind.SERVER_ERROR)
    return CallError(Kind(failure))


def _with_cache(usage: Usage, cached: int, written: Iterable[Prefix]) -> Usage:
    """Return `usage` with the part of the input that was read from the cache, and the part written to it."""
    total, hour, end = 0, 0, cached
    for prefix in written:
        total += prefix.tokens - end
        hour += prefix.tokens - end if prefix.ttl == HOUR_SECONDS else 0
        end = prefix.tokens
    return replace(usage, cached_tokens=cached, cache_write_tokens=total, cache_write_hour_tokens=hour)
