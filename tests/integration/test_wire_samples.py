"""What each answer that providers are known to send comes to, from samples of their wires."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub_provider import Reply, StubProvider
from test_providers import ask

from cp_core.execution.cost import Usage
from cp_core.execution.policy import ExecutionPolicy
from cp_core.models.registry import Wire
from cp_core.tasks.reasons import Reason
from cp_resources.providers.wire import ProviderError

POLICY = ExecutionPolicy(connect_timeout_seconds=5, read_timeout_seconds=5, response_limit_bytes=100_000)
WIRES = {"o.chat": Wire.OPENAI_CHAT, "o.resp": Wire.OPENAI_RESPONSES, "a": Wire.ANTHROPIC_MESSAGES}

ANSWERS: dict[str, tuple[Reason | None, str]] = {
    "o.chat.json": (None, '{"a":1}'),
    "o.chat.tool": (None, ""),
    "o.chat.stream": (None, '{"a":1}'),
    "o.chat.length": (Reason.TRUNCATED, '{"a":'),
    "o.chat.refusal": (Reason.REFUSED, "I'm sorry, I can't assist with that request."),
    "o.chat.filter": (Reason.CONTENT_FILTERED, ""),
    "o.resp.ok": (None, '{"a":1}'),
    "o.resp.stream": (None, '{"a":1}'),
    "o.resp.length": (Reason.TRUNCATED, '{"a":'),
    "o.resp.refusal": (Reason.REFUSED, "I'm sorry"),
    "a.text": (None, "hi"),
    "a.tool": (None, ""),
    "a.stream": (None, '{"results":[{"b":1}]}'),
    "a.stream.tool": (None, ""),
    "a.length": (Reason.TRUNCATED, ""),
    "a.refusal": (Reason.REFUSED, ""),
    "a.ctx": (Reason.CONTEXT_LENGTH_EXCEEDED, "par"),
}
ERRORS: dict[str, tuple[Reason, float | None]] = {
    "o.resp.failed": (Reason.SERVER_ERROR, None),
    "o.429.tpm": (Reason.RATE_LIMITED, 0.62),
    "o.429.quota": (Reason.PROVIDER_QUOTA, None),
    "o.400.ctx": (Reason.CONTEXT_LENGTH_EXCEEDED, None),
    "o.400.schema": (Reason.INVALID_REQUEST, None),
    "o.401": (Reason.AUTH_FAILED, None),
    "o.500": (Reason.SERVER_ERROR, None),
    "o.503": (Reason.OVERLOADED, None),
    "a.stream.midfail": (Reason.OVERLOADED, None),
    "a.429": (Reason.RATE_LIMITED, 7.0),
    "a.529": (Reason.OVERLOADED, None),
    "a.400.ctx": (Reason.CONTEXT_LENGTH_EXCEEDED, None),
    "a.400.cachepts": (Reason.INVALID_REQUEST, None),
    "a.413": (Reason.CONTEXT_LENGTH_EXCEEDED, None),
    "a.401": (Reason.AUTH_FAILED, None),
    "a.credit": (Reason.PROVIDER_QUOTA, None),
    "a.500": (Reason.SERVER_ERROR, None),
}
USED = Usage(input_tokens=2153, cached_tokens=1920, output_tokens=129)
"""Of every OpenAI sample: 2,153 tokens of prompt, of which 1,920 were cached."""


@pytest.fixture(scope="module")
def samples(shared_data: Callable[[str], Path]) -> dict[str, Any]:
    return runpy.run_path(str(shared_data("../wire/samples.py")))["S"]


def asked(samples: dict[str, Any], name: str) -> Any:
    status, headers, body = samples[name]
    reply = Reply(body.encode() if isinstance(body, str) else body, status, headers)
    wire = WIRES.get(name.rpartition(".")[0]) or WIRES["a" if name.startswith("a.") else "o.chat"]
    with StubProvider(lambda _: reply) as provider:
        return ask(wire, provider.url, policy=POLICY)


def test_every_sample_is_looked_at(samples: dict[str, Any]) -> None:
    assert set(samples) == ANSWERS.keys() | ERRORS.keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_status_200_is_its_text_or_says_why_it_is_of_no_use(samples, name) -> None:
    answer = asked(samples, name)
    assert (answer.failure, answer.text) == ANSWERS[name]
    assert answer.usage is not None


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_its_reason_and_says_when_to_come_back(samples, name) -> None:
    with pytest.raises(ProviderError) as caught:
        asked(samples, name)
    assert caught.value.reason is ERRORS[name][0]
    assert caught.value.retry_after == ERRORS[name][1]


@pytest.mark.parametrize("name", ["o.chat.json", "o.chat.stream", "o.resp.ok", "o.resp.stream"])
def test_a_stream_counts_the_tokens_that_the_same_answer_counts_at_once(samples, name) -> None:
    assert asked(samples, name).usage == USED


def test_a_stream_that_breaks_in_the_middle_is_charged_what_it_had_told(samples) -> None:
    with pytest.raises(ProviderError) as caught:
        asked(samples, "a.stream.midfail")
    # 518 tokens of prompt that no cache held, 1,633 that were written to it, and the first of the answer
    assert caught.value.usage == Usage(input_tokens=518 + 1633, cache_write_tokens=1633, output_tokens=1)


def test_a_stream_without_its_end_is_a_lost_connection_and_charged_too(samples) -> None:
    status, headers, body = samples["a.stream"]
    unended = {"a.cut": (status, headers, body[: body.index("event: message_delta")])}
    with pytest.raises(ProviderError) as caught:
        asked(unended, "a.cut")
    assert caught.value.reason is Reason.CONNECTION
    assert caught.value.usage == Usage(input_tokens=518 + 1633, cache_write_tokens=1633, output_tokens=1)
