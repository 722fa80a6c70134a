"""The simulator on a real loopback port, with the official SDKs in strict mode as independent clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from cp_core.execution.evidence import parse_evidence
from cp_core.execution.quality import quality_score
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import SimulatorError, running, serve
from cp_resources.simulator.truth import attempt_truth, task_truth
from cp_resources.simulator.weather import Failure, Storm, failure_of, is_filtered

TASK = "Title: Retry\n\nThe webhook handler must not run twice when the sender retries."
MESSAGES: Any = [{"role": "user", "content": TASK}]
CALM = {"latency_ms": 0.0, "failure_share": 0.0, "refusal_share": 0.0}


def _openai(url: str, provider: str = "openai", **options: Any) -> openai.OpenAI:
    options = {"api_key": "simulated", "max_retries": 0, **options}
    return openai.OpenAI(base_url=f"{url}/{provider}/v1", _strict_response_validation=True, **options)


def _anthropic(url: str, **options: Any) -> anthropic.Anthropic:
    options = {"api_key": "simulated", "max_retries": 0, **options}
    return anthropic.Anthropic(base_url=f"{url}/anthropic", _strict_response_validation=True, **options)


@pytest.fixture(scope="module")
def calm() -> Iterator[str]:
    """A simulator without latency, failures and refusals."""
    with running(Options(**CALM)) as url:
        yield url


@contextlib.contextmanager
def _stormy(kind: Failure) -> Iterator[str]:
    with running(Options(**CALM, storms=(Storm(0, 1000, 1.0, kind),))) as url:
        yield url


def _text_where(condition: Any) -> str:
    return next(text for text in (f"Task number {i}" for i in range(500)) if condition(text))


# Answers


def test_chat_completions_pass_the_strict_sdk(calm: str) -> None:
    answer = _openai(calm).chat.completions.create(model="gpt-5.4", messages=MESSAGES)
    assert answer.choices[0].finish_reason == "stop"
    assert parse_evidence(answer.choices[0].message.content or "") is not None
    assert answer.model == "gpt-5.4"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_responses_pass_the_strict_sdk(calm: str) -> None:
    answer = _openai(calm).responses.create(model="gpt-5.4", input=TASK)
    assert answer.status == "completed"
    assert parse_evidence(answer.output_text) is not None
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens > 0


def test_messages_pass_the_strict_sdk(calm: str) -> None:
    answer = _anthropic(calm).messages.create(model="claude-sonnet-4-6", max_tokens=4000, messages=MESSAGES)
    assert answer.stop_reason == "end_turn"
    assert parse_evidence(answer.content[0].text) is not None
    assert answer._request_id


def test_every_format_gives_the_same_answer_streamed_and_whole(calm: str) -> None:
    chat = _openai(calm).chat.completions
    whole = chat.create(model="m", messages=MESSAGES)
    chunks = list(
        chat.create(model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "stop"
    ]

    responses = _openai(calm).responses
    response = responses.create(model="m", input=TASK)
    events = list(responses.create(model="m", input=TASK, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == response.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage == response.usage
    assert [event.sequence_number for event in events] == list(range(len(events)))

    messages = _anthropic(calm).messages
    message = messages.create(model="m", max_tokens=4000, messages=MESSAGES)
    with messages.stream(model="m", max_tokens=4000, messages=MESSAGES) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].text == message.content[0].text
    assert streamed.stop_reason == "end_turn"
    assert (streamed.usage.input_tokens, streamed.usage.output_tokens) == (
        message.usage.input_tokens,
        message.usage.output_tokens,
    )


def test_a_stream_without_include_usage_has_none(calm: str) -> None:
    chunks = list(_openai(calm).chat.completions.create(model="m", messages=MESSAGES, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_an_answer_longer_than_the_limit_is_cut(calm: str) -> None:
    chat = _openai(calm).chat.completions.create(model="m", messages=MESSAGES, max_completion_tokens=16)
    assert chat.choices[0].finish_reason == "length"
    assert len(chat.choices[0].message.content or "") == 16 * 4
    response = _openai(calm).responses.create(model="m", input=TASK, max_output_tokens=16)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    events = list(_openai(calm).responses.create(model="m", input=TASK, max_output_tokens=16, stream=True))
    assert events[-1].type == "response.incomplete"
    message = _anthropic(calm).messages.create(model="m", max_tokens=16, messages=MESSAGES)
    assert message.stop_reason == "max_tokens"
    assert parse_evidence(message.content[0].text) is None


def test_refusals_take_each_formats_own_form() -> None:
    with running(Options(**CALM | {"refusal_share": 1.0})) as url:
        text = _text_where(lambda text: not is_filtered(7, "m", task_truth(7, text).key))
        asked: Any = [{"role": "user", "content": text}]
        choice = _openai(url).chat.completions.create(model="m", messages=asked).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("stop", None)
        assert choice.message.refusal
        response = _openai(url).responses.create(model="m", input=text)
        assert response.output[0].content[0].type == "refusal"
        events = list(_openai(url).responses.create(model="m", input=text, stream=True))
        assert "response.refusal.done" in [event.type for event in events]
        chunks = list(_openai(url).chat.completions.create(model="m", messages=asked, stream=True))
        assert "".join(chunk.choices[0].delta.refusal or "" for chunk in chunks)
        message = _anthropic(url).messages.create(model="m", max_tokens=4000, messages=asked)
        assert (message.stop_reason, message.content) == ("refusal", [])
        with _anthropic(url).messages.stream(model="m", max_tokens=4000, messages=asked) as stream:
            assert stream.get_final_message().stop_reason == "refusal"
        assert message.usage.output_tokens < 20


def test_openai_filters_some_of_what_is_refused() -> None:
    with running(Options(**CALM | {"refusal_share": 1.0})) as url:
        text = _text_where(lambda text: is_filtered(7, "m", task_truth(7, text).key))
        chat = _openai(url).chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
        assert chat.choices[0].finish_reason == "content_filter"
        response = _openai(url).responses.create(model="m", input=text)
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "content_filter"


# Requests that a provider would not take


def test_a_wrong_key_is_rejected(calm: str) -> None:
    with pytest.raises(openai.AuthenticationError) as error:
        _openai(calm, api_key="wrong").chat.completions.create(model="m", messages=MESSAGES)
    assert error.value.code == "invalid_api_key"
    with pytest.raises(anthropic.AuthenticationError):
        _anthropic(calm, api_key="wrong").messages.create(model="m", max_tokens=9, messages=MESSAGES)
    assert httpx.post(f"{calm}/openai/v1/responses", json={}).status_code == 401


def test_a_prompt_beyond_the_models_window_is_rejected(calm: str) -> None:
    long: Any = [{"role": "user", "content": "word " * 170_000}]  # 850,000 characters: 212,500 tokens
    with pytest.raises(openai.BadRequestError) as chat:
        _openai(calm).chat.completions.create(model="gpt-4o", messages=long)
    assert chat.value.code == "context_length_exceeded"
    assert "128000" in str(chat.value)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 212500 tokens > 200000 maximum"):
        _anthropic(calm).messages.create(model="claude-haiku-4-5", max_tokens=9, messages=long)


def test_a_model_that_is_not_served_does_not_exist() -> None:
    with running(Options(**CALM, models=frozenset({"gpt-5.4"}))) as url:
        assert _openai(url).chat.completions.create(model="gpt-5.4", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError) as error:
            _openai(url).chat.completions.create(model="gpt-9", messages=MESSAGES)
        assert error.value.code == "model_not_found"
        with pytest.raises(anthropic.NotFoundError):
            _anthropic(url).messages.create(model="claude-9", max_tokens=9, messages=MESSAGES)


@pytest.mark.parametrize(
    ("path", "payload", "named"),
    [
        ("chat/completions", {"messages": MESSAGES}, "model"),
        ("chat/completions", {"model": "m"}, "messages"),
        ("chat/completions", {"model": "m", "messages": []}, "messages"),
        ("chat/completions", {"model": "m", "messages": [{"role": "boss", "content": "x"}]}, "messages.0"),
        ("chat/completions", {"model": "m", "messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"model": "gpt-5.4", "messages": MESSAGES, "max_tokens": 9}, "max_tokens"),
        ("chat/completions", {"model": "gpt-5.4", "messages": MESSAGES, "temperature": 0.1}, "temperature"),
        ("responses", {"model": "m"}, "input"),
        ("messages", {"model": "m", "messages": MESSAGES}, "max_tokens"),
        ("messages", {"max_tokens": 9, "messages": MESSAGES}, "model"),
        (
            "messages",
            {"model": "m", "max_tokens": 9, "messages": [{"role": "system", "content": "x"}]},
            "role",
        ),
        (
            "messages",
            {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": ""}]},
            "content",
        ),
        ("messages", {"model": "claude-haiku-4-5", "max_tokens": 65_000, "messages": MESSAGES}, "64000"),
    ],
)
def test_a_bad_request_says_which_field_is_wrong(
    calm: str, path: str, payload: dict[str, Any], named: str
) -> None:
    headers = {
        "authorization": "Bearer simulated",
        "x-api-key": "simulated",
        "anthropic-version": "2023-06-01",
    }
    response = httpx.post(f"{calm}/p/v1/{path}", json=payload, headers=headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_body_that_is_no_json_object_is_a_bad_request(calm: str, body: bytes) -> None:
    headers = {"authorization": "Bearer simulated"}
    response = httpx.post(f"{calm}/p/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400


def test_anthropic_asks_for_its_version_header(calm: str) -> None:
    response = httpx.post(f"{calm}/p/v1/messages", json={}, headers={"x-api-key": "simulated"})
    assert response.status_code == 400
    assert "anthropic-version" in response.json()["error"]["message"]


def test_a_body_that_is_too_large_is_rejected() -> None:
    with running(Options(**CALM, max_body_bytes=10_000)) as url:
        large: Any = [{"role": "user", "content": "x" * 20_000}]
        with pytest.raises(anthropic.APIStatusError) as error:
            _anthropic(url).messages.create(model="m", max_tokens=9, messages=large)
        assert (error.value.status_code, error.value.body["error"]["type"]) == (413, "request_too_large")
        with pytest.raises(openai.APIStatusError) as chat:
            _openai(url).chat.completions.create(model="m", messages=large)
        assert chat.value.status_code == 413


# Weather


@pytest.mark.parametrize(
    ("kind", "openai_status", "anthropic_status", "type_"),
    [
        (Failure.SERVER_ERROR, 500, 500, "api_error"),
        (Failure.UNAVAILABLE, 503, 503, "api_error"),
        (Failure.OVERLOADED, 503, 529, "overloaded_error"),
        (Failure.RATE_LIMITED, 429, 429, "rate_limit_error"),
        (Failure.OUT_OF_CREDIT, 429, 400, "invalid_request_error"),
    ],
)
def test_failures_have_the_providers_status(
    kind: Failure, openai_status: int, anthropic_status: int, type_: str
) -> None:
    with _stormy(kind) as url:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError) as chat:
                _openai(url).chat.completions.create(model="m", messages=MESSAGES, stream=stream)
            assert chat.value.status_code == openai_status
            with pytest.raises(anthropic.APIStatusError) as message:
                _anthropic(url).messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=stream)
            assert message.value.status_code == anthropic_status
            assert message.value.body["error"]["type"] == type_
        assert httpx.get(f"{url}/journal").json()["total"]["input_tokens"] == 0
        if kind is Failure.RATE_LIMITED:
            assert float(chat.value.response.headers["retry-after-ms"]) == 1000
            assert int(message.value.response.headers["retry-after"]) >= 1
        if kind is Failure.OUT_OF_CREDIT:
            assert chat.value.code == "insufficient_quota"
            assert "credit balance is too low" in str(message.value)


def test_a_dropped_connection_is_billed_nothing_when_nothing_was_said() -> None:
    with _stormy(Failure.DISCONNECT) as url:
        with pytest.raises(openai.APIConnectionError):
            _openai(url).chat.completions.create(model="m", messages=MESSAGES)
        with pytest.raises(anthropic.APIConnectionError):
            _anthropic(url).messages.create(model="m", max_tokens=9, messages=MESSAGES)
        assert httpx.get(f"{url}/journal").json()["total"]["output_tokens"] == 0


def test_a_stream_that_breaks_is_billed_what_it_said() -> None:
    with _stormy(Failure.MID_STREAM) as url:
        with pytest.raises(openai.APIError):
            list(_openai(url).chat.completions.create(model="m", messages=MESSAGES, stream=True))
        assert httpx.get(f"{url}/journal").json()["total"]["input_tokens"] == 0
        events = list(_openai(url).responses.create(model="m", input=TASK, stream=True))
        assert events[-1].type == "response.failed"
        stream = _anthropic(url).messages.create(model="m", max_tokens=4000, messages=MESSAGES, stream=True)
        told = next(iter(stream)).message.usage
        with pytest.raises(anthropic.APIStatusError) as error:
            list(stream)
        assert error.value.body["error"]["type"] == "overloaded_error"
        total = httpx.get(f"{url}/journal").json()["total"]
        assert (total["input_tokens"], total["output_tokens"]) == (told.input_tokens, 1)


def test_a_client_that_leaves_before_the_answer_is_billed_nothing() -> None:
    with running(Options(**CALM | {"latency_ms": 20_000.0})) as url:
        with pytest.raises(openai.APITimeoutError):
            _openai(url, timeout=0.2).chat.completions.create(model="m", messages=MESSAGES)
        journal = _eventually(lambda: httpx.get(f"{url}/journal").json(), lambda found: found["by_ending"])
        assert journal["by_ending"] == {"client-left": 1}
        assert journal["total"]["input_tokens"] == 0


def test_a_hanging_provider_never_answers() -> None:
    with _stormy(Failure.HANG) as url, pytest.raises(anthropic.APITimeoutError):
        _anthropic(url, timeout=0.3).messages.create(model="m", max_tokens=9, messages=MESSAGES)


def test_a_trickling_answer_begins_at_once_and_is_not_billed_to_a_client_that_leaves() -> None:
    body = {"model": "m", "messages": MESSAGES}
    headers = {"authorization": "Bearer simulated"}
    with (
        _stormy(Failure.TRICKLE) as url,
        httpx.stream("POST", f"{url}/p/v1/chat/completions", json=body, headers=headers) as response,
    ):
        assert next(response.iter_raw()) == b"{"
        response.close()
        journal = _eventually(lambda: httpx.get(f"{url}/journal").json(), lambda found: found["by_ending"])
        assert journal["by_ending"] == {"client-left": 1}
        assert journal["total"]["output_tokens"] == 0


def test_an_attempt_that_failed_may_succeed_when_it_is_repeated() -> None:
    def fails(text: str, attempt: str) -> bool:
        return failure_of(7, ("m", task_truth(7, text).key, attempt), 0.5, (), 0) is Failure.SERVER_ERROR

    text = _text_where(
        lambda text: (
            fails(text, "1") and failure_of(7, ("m", task_truth(7, text).key, "2"), 0.5, (), 0) is None
        )
    )
    asked: Any = [{"role": "user", "content": text}]
    with running(Options(**CALM | {"failure_share": 0.5})) as url:
        chat = _openai(url).chat.completions
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                chat.create(model="m", messages=asked, extra_headers={"x-control-panel-attempt": "1"})
        assert chat.create(model="m", messages=asked, extra_headers={"x-control-panel-attempt": "2"})
        retrying = _openai(url, max_retries=1).chat.completions
        assert retrying.create(model="m", messages=asked)  # the SDK's own retry is an attempt as well


def test_latency_is_really_waited_for_and_a_stream_begins_earlier() -> None:
    with running(Options(**CALM | {"latency_ms": 400.0, "latency_spread": 0.0})) as url:
        latency = 0.400 * attempt_truth(7, "m", TASK, "1").latency_factor
        client = _openai(url).chat.completions
        list(client.create(model="m", messages=MESSAGES, stream=True))  # opens the connection
        started = time.perf_counter()
        client.create(model="m", messages=MESSAGES)
        whole = time.perf_counter() - started
        started = time.perf_counter()
        stream = iter(client.create(model="m", messages=MESSAGES, stream=True))
        next(stream)
        first = time.perf_counter() - started
        list(stream)
        streamed = time.perf_counter() - started
        assert min(whole, streamed) >= latency
        assert first >= 0.4 * latency
        assert streamed - first >= 0.3 * latency


# Limits and the prompt cache


def test_rate_limits_are_told_in_headers_and_held() -> None:
    with running(Options(**CALM, requests_per_minute=2, tokens_per_minute=10_000_000)) as url:
        chat = _openai(url).chat.completions.with_raw_response
        first = chat.create(model="m", messages=MESSAGES)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert re.fullmatch(r"\d+(\.\d+)?s", first.headers["x-ratelimit-reset-requests"])
        usage = first.parse().usage
        assert usage is not None
        assert int(first.headers["x-ratelimit-remaining-tokens"]) == pytest.approx(
            10_000_000 - usage.total_tokens, abs=1
        )
        chat.create(model="m", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError) as error:
            chat.create(model="m", messages=MESSAGES)
        assert error.value.code == "rate_limit_exceeded"
        assert 0 < float(error.value.response.headers["retry-after-ms"]) <= 30_000
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 31

        messages = _anthropic(url).messages.with_raw_response
        for remaining in ("1", "0"):
            response = messages.create(model="m", max_tokens=4000, messages=MESSAGES)
            assert response.headers["anthropic-ratelimit-requests-remaining"] == remaining
        reset = response.headers["anthropic-ratelimit-requests-reset"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reset)
        with pytest.raises(anthropic.RateLimitError) as limited:
            messages.create(model="m", max_tokens=4000, messages=MESSAGES)
        assert int(limited.value.response.headers["retry-after"]) >= 1


def test_without_limits_no_limit_is_told(calm: str) -> None:
    response = _openai(calm).chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
    assert not [name for name in response.headers if "ratelimit" in name]


def test_openai_caches_a_long_prefix_by_itself_in_steps_of_128_tokens(calm: str) -> None:
    prefix = "You are a careful engineer. " * 200  # 5,600 characters: 1,400 tokens

    def cached(question: str, model: str = "cache-model") -> int:
        answer = _openai(calm).chat.completions.create(
            model=model,
            messages=[{"role": "system", "content": prefix}, {"role": "user", "content": question}],
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached("First?") == 0
    assert cached("Second?") == 1024 + 2 * 128  # the longest step within the common 1,400 tokens
    assert cached("Third?", model="another") == 0


def test_a_short_prompt_is_not_cached(calm: str) -> None:
    for _ in range(2):
        answer = _openai(calm).chat.completions.create(model="short", messages=MESSAGES)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_anthropic_caches_up_to_breakpoints_and_bills_the_write(calm: str) -> None:
    def ask(question: str, ttl: dict[str, str] | None = None, size: int = 8000) -> anthropic.types.Usage:
        system: Any = [
            {"type": "text", "text": "s" * size, "cache_control": {"type": "ephemeral", **(ttl or {})}}
        ]
        return (
            _anthropic(calm)
            .messages.create(
                model=f"cached-{size}",
                max_tokens=4000,
                system=system,
                messages=[{"role": "user", "content": question}],
            )
            .usage
        )

    first, second = ask("First?"), ask("Second?")
    assert (first.cache_creation_input_tokens, first.cache_read_input_tokens) == (2000, 0)
    assert (second.cache_creation_input_tokens, second.cache_read_input_tokens) == (0, 2000)
    below_the_minimum = ask("First?", size=4092)  # 1,023 tokens
    assert below_the_minimum.cache_creation_input_tokens == 0
    hour = ask("First?", ttl={"ttl": "1h"}, size=12_000)
    assert hour.cache_creation is not None
    assert hour.cache_creation.ephemeral_1h_input_tokens == 3000
    assert hour.cache_creation.ephemeral_5m_input_tokens == 0


def test_a_later_breakpoint_reads_the_earlier_prefix_and_writes_the_rest(calm: str) -> None:
    def block(letter: str) -> dict[str, Any]:
        return {"type": "text", "text": letter * 4800, "cache_control": {"type": "ephemeral"}}

    def ask(*blocks: dict[str, Any]) -> tuple[int | None, int | None]:
        messages: Any = [{"role": "user", "content": list(blocks)}]
        usage = _anthropic(calm).messages.create(model="steps", max_tokens=4000, messages=messages).usage
        return usage.cache_read_input_tokens, usage.cache_creation_input_tokens

    assert ask(block("a")) == (0, 1200)
    assert ask(block("a"), block("b")) == (1200, 1200)
    assert ask(block("a"), block("b")) == (2400, 0)
    with pytest.raises(anthropic.BadRequestError, match="maximum of 4 blocks"):
        ask(*map(block, "abcde"))


def test_a_prefix_is_seen_only_once_its_first_answer_has_begun() -> None:
    system = "s" * 8000

    def ask(url: str, question: str) -> int:
        answer = _openai(url).chat.completions.create(
            model="m", messages=[{"role": "system", "content": system}, {"role": "user", "content": question}]
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    with running(Options(**CALM | {"latency_ms": 1000.0, "latency_spread": 0.0})) as url:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda i: ask(url, f"Question {i}?"), range(4)))
        assert together == [0, 0, 0, 0]
        assert ask(url, "After them?") > 0


# Truth over the wire


def test_premium_models_succeed_more_often_than_budget_models(calm: str) -> None:
    with httpx.Client(headers={"authorization": "Bearer simulated"}) as client:

        def quality(model: str, i: int) -> float:
            text = f"Title: Report {i}\n\nThe export of report {i} fails when the customer has no address."
            response = client.post(
                f"{calm}/openai/v1/chat/completions",
                json={"model": model, "messages": [{"role": "user", "content": text}]},
            )
            return quality_score(parse_evidence(response.json()["choices"][0]["message"]["content"]))

        def rate(model: str) -> float:
            return statistics.mean(quality(model, i) >= 6 for i in range(200))

        assert rate("claude-opus-5-5") > rate("gpt-6-luna") + 0.05


def test_usage_is_the_prompt_and_the_answer_and_the_simulated_agent_turns(calm: str) -> None:
    def usage(url: str) -> tuple[int, int]:
        answer = _openai(url).chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert answer.usage is not None
        return answer.usage.prompt_tokens, answer.usage.completion_tokens

    with running(Options(**CALM, token_scale=0.0)) as bare_url:
        bare = usage(bare_url)
    truth = attempt_truth(7, "gpt-4o", TASK, "1")
    assert bare[0] < 30
    assert bare[1] < 150
    assert usage(calm) == (bare[0] + truth.input_tokens, bare[1] + truth.output_tokens)


def test_the_system_prompt_does_not_change_the_truth(calm: str) -> None:
    def text(system: str) -> str:
        answer = _anthropic(calm).messages.create(
            model="m", max_tokens=4000, system=system, messages=MESSAGES
        )
        return answer.content[0].text

    assert text("Be brief.") == text("Be thorough.")


# The journal


def test_the_journal_equals_what_the_clients_were_told(tmp_path: Path) -> None:
    told = {"input_tokens": 0, "output_tokens": 0, "cached_tokens": 0}
    path = tmp_path / "journal.jsonl"
    options = Options(**CALM | {"failure_share": 0.3}, journal=path)
    failures = 0
    with running(options) as url:
        for i in range(60):
            text = "Same beginning. " * 300 + f"Case {i}."
            headers = {"x-control-panel-task": f"task-{i}", "x-control-panel-attempt": "1"}
            try:
                if i % 2:
                    chat = _openai(url).chat.completions.create(
                        model="m", messages=[{"role": "user", "content": text}], extra_headers=headers
                    )
                    told["input_tokens"] += chat.usage.prompt_tokens
                    told["output_tokens"] += chat.usage.completion_tokens
                    told["cached_tokens"] += chat.usage.prompt_tokens_details.cached_tokens
                else:
                    usage = (
                        _anthropic(url)
                        .messages.create(
                            model="m",
                            max_tokens=4000,
                            messages=[{"role": "user", "content": text}],
                            cache_control={"type": "ephemeral"},
                            extra_headers=headers,
                        )
                        .usage
                    )
                    told["cached_tokens"] += usage.cache_read_input_tokens
                    told["output_tokens"] += usage.output_tokens
                    told["input_tokens"] += usage.input_tokens + usage.cache_read_input_tokens
                    told["input_tokens"] += usage.cache_creation_input_tokens
            except (openai.APIError, anthropic.APIError):
                failures += 1
        total = httpx.get(f"{url}/journal").json()["total"]
        calls = httpx.get(f"{url}/journal", params={"task": "task-7"}).json()["calls"]
    assert total["calls"] == 60
    assert 5 < failures < 40
    assert {name: total[name] for name in told} == told
    assert told["cached_tokens"] > 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["task"] for line in lines] == [f"task-{i}" for i in range(60)]
    assert calls == [lines[7]]
    assert lines[7]["attempt"] == "1"


# Processes


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "cp_cli.main", "simulate", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.fullmatch(r"ready http://127\.0\.0\.1:\d+\n", line)
        yield process, line.split()[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _outcomes(url: str, start: int, count: int) -> dict[int, tuple[str, int, int]]:
    found = {}
    with httpx.Client(headers={"authorization": "Bearer simulated"}) as client:
        for i in range(start, start + count):
            response = client.post(
                f"{url}/openai/v1/chat/completions",
                json={"model": "gpt-5.4", "messages": [{"role": "user", "content": f"Task {i}"}]},
                headers={"connection": "close"},
            )
            body = response.json()
            found[i] = (
                body["choices"][0]["message"]["content"],
                body["usage"]["prompt_tokens"],
                body["usage"]["completion_tokens"],
            )
    return found


def test_several_processes_answer_as_one_does_and_end_together(calm: str) -> None:
    quiet = ("--latency-ms", "0", "--failure-share", "0", "--refusal-share", "0", "--rpm", "60")
    with _process("--workers", "3", *quiet) as (process, url):
        began = time.monotonic()
        backwards = dict(sorted(_outcomes(url, 0, 40).items(), reverse=True))
        assert backwards == _outcomes(calm, 0, 40)
        assert httpx.get(f"{url}/journal").json()["total"]["calls"] == 40
        limited = _openai(url).chat.completions.with_raw_response.create(model="gpt-5.4", messages=MESSAGES)
        refilled_at_most = time.monotonic() - began  # one a second
        left = int(limited.headers["x-ratelimit-remaining-requests"])
        assert 60 - 41 <= left <= 60 - 41 + refilled_at_most
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert not _listens(url)  # any process left over would hold the port


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_it_cleanly_even_with_a_call_in_flight(workers: str) -> None:
    with _process("--workers", workers, "--latency-ms", "60000", "--failure-share", "0") as (process, url):
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(_openai(url).chat.completions.create, model="m", messages=MESSAGES)
            time.sleep(0.3)  # lets the call arrive; were it later, it would be refused all the same
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(15) == 0
            assert isinstance(call.exception(15), openai.APIError)
        assert not _listens(url)


def test_processes_do_not_outlive_the_one_that_started_them() -> None:
    with _process("--workers", "2") as (process, url):
        process.kill()
        process.wait()
        _eventually(lambda: _listens(url), lambda listens: not listens)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SimulatorError, match=rf"port {port} on 127\.0\.0\.1 is in use"):
            serve(Options(), port, 1, print)
        command = [sys.executable, "-m", "cp_cli.main", "simulate", "--port", str(port)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.returncode == 2
        assert run.stderr.startswith(f"error: port {port}")
        assert run.stdout == ""


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=r"nowhere/journal\.jsonl cannot be written: No such file"):
        serve(Options(journal=tmp_path / "nowhere" / "journal.jsonl"), 0, 1, print)


def test_it_listens_on_loopback_only(calm: str) -> None:
    assert calm.startswith("http://127.0.0.1:")
    assert httpx.get(f"{calm}/healthz").json() == {"status": "ok", "seed": 7}


def _listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) == 0


def _eventually(value: Any, wanted: Any, seconds: float = 15) -> Any:
    deadline = time.monotonic() + seconds
    while not wanted(found := value()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.05)
    return found
