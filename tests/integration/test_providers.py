"""Chat clients against a provider on loopback that answers in every way a provider may."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr
from stub_provider import (
    Call,
    Reply,
    StubProvider,
    anthropic_answer,
    anthropic_error,
    openai_answer,
    openai_error,
    output_text,
    responses_answer,
)

from cp_core.execution.cost import Usage
from cp_core.execution.policy import ExecutionPolicy
from cp_core.execution.prompt import Prompt
from cp_core.models.registry import ModelRegistry, Provider, Wire
from cp_core.scoring.config import Domain
from cp_core.tasks.reasons import Reason
from cp_resources.configuration import load_configuration
from cp_resources.providers.anthropic_messages import AnthropicMessagesClient
from cp_resources.providers.connections import Connections, tls_context
from cp_resources.providers.endpoint import (
    Endpoint,
    ProviderKeyError,
    provider_endpoint,
    require_keys,
    unset_keys,
)
from cp_resources.providers.openai_chat import OpenAIChatClient
from cp_resources.providers.openai_responses import OpenAIResponsesClient
from cp_resources.providers.wire import ChatClient, ChatRequest, Completion, ProviderError
from cp_resources.settings import PROJECT_ROOT, Settings

TLS = tls_context()
KEY = "planted-secret-7f3a"
CHAT_WIRES = (Wire.OPENAI_CHAT, Wire.OPENAI_RESPONSES, Wire.ANTHROPIC_MESSAGES)
POLICY = ExecutionPolicy(connect_timeout_seconds=2, read_timeout_seconds=2, response_limit_bytes=4096)
OPENAI = Provider(
    name="one", wire=Wire.OPENAI_CHAT, base_url="https://api.one.example/v1", api_key_env="ONE_KEY"
)
ANTHROPIC = Provider(
    name="two", wire=Wire.ANTHROPIC_MESSAGES, base_url="https://api.two.example", api_key_env="TWO_KEY"
)


def ask(
    wire: Wire,
    url: str,
    *,
    provider: Provider = OPENAI,
    seconds: float = 5.0,
    policy: ExecutionPolicy = POLICY,
) -> Completion:
    async def call() -> Completion:
        endpoint = Endpoint(url, SecretStr(KEY))
        connections = Connections(policy, TLS, through_proxy=False)
        client: ChatClient
        if wire is Wire.OPENAI_CHAT:
            client = OpenAIChatClient(connections, provider, endpoint, policy)
        elif wire is Wire.OPENAI_RESPONSES:
            client = OpenAIResponsesClient(connections, endpoint, policy)
        else:
            client = AnthropicMessagesClient(connections, endpoint, policy)
        request = ChatRequest(
            api_model="some-model",
            prompt=Prompt("Be brief.", "Do it: ü"),
            max_output_tokens=77,
            timeout_seconds=seconds,
            headers={"x-control-panel-task": "t-1", "x-control-panel-attempt": "2"},
        )
        try:
            return await client.complete(request)
        finally:
            await connections.aclose()

    return asyncio.run(call())


def failure(wire: Wire, reply: Reply, *, seconds: float = 5.0) -> ProviderError:
    with StubProvider(lambda _: reply) as provider, pytest.raises(ProviderError) as caught:
        ask(wire, provider.url, seconds=seconds)
    assert KEY not in str(caught.value)
    return caught.value


def always(reply: Reply) -> Callable[[Call], Reply]:
    return lambda _: reply


def test_an_openai_call_carries_key_messages_limit_and_correlation() -> None:
    with StubProvider(always(Reply(openai_answer("Done.")))) as provider:
        ask(Wire.OPENAI_CHAT, f"{provider.url}/v1")
    [call] = provider.calls

    assert call.path == "/v1/chat/completions"
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert (call.task, call.attempt) == ("t-1", 2)
    assert call.body == {
        "model": "some-model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Do it: ü"},
        ],
        "max_tokens": 77,
    }


def test_openai_itself_is_sent_the_limit_under_its_newer_name() -> None:
    itself = OPENAI.model_copy(update={"base_url": "https://api.openai.com/v1"})
    with StubProvider(always(Reply(openai_answer("Done.")))) as provider:
        ask(Wire.OPENAI_CHAT, provider.url, provider=itself)

    assert provider.calls[0].body["max_completion_tokens"] == 77
    assert "max_tokens" not in provider.calls[0].body


def test_a_responses_call_carries_key_instructions_input_and_limit_and_asks_not_to_be_stored() -> None:
    with StubProvider(always(Reply(responses_answer(output_text("Done."))))) as provider:
        ask(Wire.OPENAI_RESPONSES, f"{provider.url}/v1")
    [call] = provider.calls

    assert call.path == "/v1/responses"
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert (call.task, call.attempt) == ("t-1", 2)
    assert call.body == {
        "model": "some-model",
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": "Do it: ü"}],
        "max_output_tokens": 77,
        "store": False,
    }


def test_an_anthropic_call_carries_key_version_system_and_limit() -> None:
    with StubProvider(always(Reply(anthropic_answer("Done.")))) as provider:
        ask(Wire.ANTHROPIC_MESSAGES, provider.url)
    [call] = provider.calls

    assert call.path == "/v1/messages"
    assert (call.headers["x-api-key"], call.headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert call.body == {
        "model": "some-model",
        "max_tokens": 77,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Do it: ü"}],
    }


def test_an_openai_answer_gives_text_usage_with_its_cached_part_and_the_id_of_the_call() -> None:
    reply = Reply(openai_answer("Done.", prompt=2000, cached=1500), headers={"x-request-id": "req-9"})
    with StubProvider(always(reply)) as provider:
        completion = ask(Wire.OPENAI_CHAT, provider.url)

    assert completion == Completion("Done.", None, "stop", Usage(2000, 1500, 0, 20), 200, "req-9")


def test_a_responses_answer_gives_the_text_of_its_messages_and_usage_with_its_cached_part() -> None:
    body = responses_answer(output_text("Hello "), output_text("there."), input_tokens=2000, cached=1500)
    with StubProvider(always(Reply(body, headers={"x-request-id": "req-9"}))) as provider:
        completion = ask(Wire.OPENAI_RESPONSES, provider.url)

    assert completion == Completion("Hello there.", None, "completed", Usage(2000, 1500, 0, 20), 200, "req-9")


def test_a_response_that_failed_is_an_error_although_its_status_is_200() -> None:
    said = {"code": "server_error", "message": "The model failed to generate a response."}
    error = failure(Wire.OPENAI_RESPONSES, Reply(responses_answer(status="failed", error=said)))

    assert (error.reason, str(error)) == (Reason.SERVER_ERROR, said["message"])


def test_a_response_that_has_not_ended_is_no_answer() -> None:
    error = failure(Wire.OPENAI_RESPONSES, Reply(responses_answer(status="in_progress")))

    assert error.reason is Reason.SERVER_ERROR
    assert "in_progress" in str(error)


def test_an_anthropic_answer_gives_the_text_of_all_blocks_and_the_whole_prompt_as_input() -> None:
    body = anthropic_answer("there.", fresh=500, read=1500, written=700)
    body["content"] = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Hello "},
        *body["content"],
    ]
    with StubProvider(always(Reply(body, headers={"request-id": "req_9"}))) as provider:
        completion = ask(Wire.ANTHROPIC_MESSAGES, provider.url)

    assert completion == Completion(
        "Hello there.", None, "end_turn", Usage(2700, 1500, 700, 20), 200, "req_9"
    )


@pytest.mark.parametrize(
    ("wire", "body", "reason"),
    [
        (Wire.OPENAI_CHAT, openai_answer(None, refusal="I can't help with that."), Reason.REFUSED),
        (Wire.OPENAI_CHAT, openai_answer('{"a":', finish="length"), Reason.TRUNCATED),
        (Wire.OPENAI_CHAT, openai_answer("", finish="content_filter"), Reason.CONTENT_FILTERED),
        (
            Wire.OPENAI_RESPONSES,
            responses_answer(output_text("par"), status="incomplete", incomplete="max_output_tokens"),
            Reason.TRUNCATED,
        ),
        (
            Wire.OPENAI_RESPONSES,
            responses_answer(status="incomplete", incomplete="content_filter"),
            Reason.CONTENT_FILTERED,
        ),
        (
            Wire.OPENAI_RESPONSES,
            responses_answer(output_text("par"), status="incomplete", incomplete="some news"),
            Reason.TRUNCATED,
        ),
        (
            Wire.OPENAI_RESPONSES,
            responses_answer({"type": "refusal", "refusal": "I can't help with that."}),
            Reason.REFUSED,
        ),
        (Wire.ANTHROPIC_MESSAGES, {**anthropic_answer("", stop="refusal"), "content": []}, Reason.REFUSED),
        (Wire.ANTHROPIC_MESSAGES, anthropic_answer("par", stop="max_tokens"), Reason.TRUNCATED),
        (
            Wire.ANTHROPIC_MESSAGES,
            anthropic_answer("par", stop="model_context_window_exceeded"),
            Reason.CONTEXT_LENGTH_EXCEEDED,
        ),
    ],
)
def test_an_answer_of_no_use_says_why_and_is_still_billed(
    wire: Wire, body: dict[str, Any], reason: Reason
) -> None:
    with StubProvider(always(Reply(body))) as provider:
        completion = ask(wire, provider.url)

    assert completion.failure is reason
    assert completion.usage == Usage(100, 0, 0, 20)


def test_an_answer_without_usage_is_an_answer() -> None:
    body = openai_answer("Done.")
    del body["usage"]
    with StubProvider(always(Reply(body))) as provider:
        assert ask(Wire.OPENAI_CHAT, provider.url).usage is None


@pytest.mark.parametrize(
    ("wire", "reply", "reason", "retry_after"),
    [
        (
            Wire.OPENAI_CHAT,
            Reply(openai_error("Slow down", "requests", "rate_limit_exceeded"), 429, {"Retry-After": "7"}),
            Reason.RATE_LIMITED,
            7.0,
        ),
        (
            Wire.OPENAI_CHAT,
            Reply(openai_error("Slow down", "tokens"), 429, {"retry-after": "1", "retry-after-ms": "620"}),
            Reason.RATE_LIMITED,
            0.62,
        ),
        (
            Wire.OPENAI_CHAT,
            Reply(openai_error("Pay", "insufficient_quota", "insufficient_quota"), 429),
            Reason.PROVIDER_QUOTA,
            None,
        ),
        (Wire.OPENAI_CHAT, Reply(openai_error("Oops", "server_error"), 500), Reason.SERVER_ERROR, None),
        (Wire.OPENAI_CHAT, Reply(b"<html>Bad gateway</html>", 502), Reason.SERVER_ERROR, None),
        (Wire.OPENAI_CHAT, Reply(b"", 503), Reason.OVERLOADED, None),
        (Wire.OPENAI_CHAT, Reply({"error": "plain words"}, 400), Reason.INVALID_REQUEST, None),
        (Wire.OPENAI_CHAT, Reply({"error": {"code": 429, "message": "Busy"}}), Reason.RATE_LIMITED, None),
        (Wire.OPENAI_CHAT, Reply({"error": {"message": "Upstream"}}), Reason.SERVER_ERROR, None),
        (
            Wire.ANTHROPIC_MESSAGES,
            Reply(anthropic_error("Overloaded", "overloaded_error"), 529),
            Reason.OVERLOADED,
            None,
        ),
        (
            Wire.ANTHROPIC_MESSAGES,
            Reply(anthropic_error("prompt is too long: 9 > 8", "invalid_request_error"), 400),
            Reason.CONTEXT_LENGTH_EXCEEDED,
            None,
        ),
    ],
)
def test_an_error_answer_is_told_by_its_status_code_and_words(
    wire: Wire, reply: Reply, reason: Reason, retry_after: float | None
) -> None:
    error = failure(wire, reply)

    assert (error.reason, error.retry_after) == (reason, retry_after)
    assert error.http_status == reply.status
    assert str(error)


@pytest.mark.parametrize("wire", CHAT_WIRES)
@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"null",
        b'"words"',
        b"{}",
        b'{"choices": [], "content": "x"}',
        b"[" * 4000,
        b'{"choices": [{"message": {"content": "x"}}], "content": [], "usage": {"prompt_tokens": -1}}',
        b"\xff\xfe",
    ],
)
def test_a_malformed_answer_is_the_servers_fault_and_worth_another_try(wire: Wire, body: bytes) -> None:
    error = failure(wire, Reply(body))

    assert error.reason is Reason.SERVER_ERROR
    assert "malformed answer" in str(error)


def test_a_redirect_is_not_followed() -> None:
    with StubProvider(always(Reply(openai_answer("Stolen.")))) as elsewhere:
        error = failure(Wire.OPENAI_CHAT, Reply(b"", 307, {"location": elsewhere.url}))

    assert error.reason is Reason.INVALID_REQUEST
    assert elsewhere.calls == []


def test_a_key_that_the_provider_repeats_is_struck_out() -> None:
    error = failure(
        Wire.OPENAI_CHAT,
        Reply(openai_error(f"Incorrect API key provided: {KEY}.", "x", "invalid_api_key"), 401),
    )

    assert error.reason is Reason.AUTH_FAILED
    assert str(error) == "Incorrect API key provided: [key]."


def test_a_provider_that_never_answers_times_out() -> None:
    assert failure(Wire.OPENAI_CHAT, Reply(delay=30), seconds=0.3).reason is Reason.TIMEOUT


def test_a_body_that_trickles_in_ends_with_the_calls_own_time() -> None:
    started = time.monotonic()
    # a byte every 50 ms: no single read is slow, the whole would take 20 seconds
    error = failure(Wire.OPENAI_CHAT, Reply(openai_answer("Done."), trickle=0.05), seconds=0.5)

    assert error.reason is Reason.TIMEOUT
    assert time.monotonic() - started < 5


def test_silence_within_a_body_ends_with_the_read_timeout() -> None:
    policy = POLICY.model_copy(update={"read_timeout_seconds": 0.2})
    with (
        StubProvider(always(Reply(openai_answer("Done."), trickle=5.0))) as provider,
        pytest.raises(ProviderError) as caught,
    ):
        ask(Wire.OPENAI_CHAT, provider.url, seconds=30, policy=policy)

    assert caught.value.reason is Reason.TIMEOUT


def test_a_connection_cut_within_the_body_is_a_connection_failure() -> None:
    assert failure(Wire.OPENAI_CHAT, Reply(openai_answer("Done."), cut_after=20)).reason is Reason.CONNECTION


def test_a_refused_connection_is_a_connection_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ProviderError) as caught:
            ask(Wire.OPENAI_CHAT, url)

    assert caught.value.reason is Reason.CONNECTION


def test_an_answer_above_the_limit_is_not_read_to_its_end() -> None:
    error = failure(Wire.OPENAI_CHAT, Reply(openai_answer("x" * 5000)))

    assert error.reason is Reason.TRUNCATED
    assert "4096 bytes" in str(error)


def test_an_error_answer_above_the_limit_keeps_its_own_reason() -> None:
    assert failure(Wire.OPENAI_CHAT, Reply(b"x" * 5000, 500)).reason is Reason.SERVER_ERROR


@pytest.mark.parametrize(
    ("provider", "url"),
    [(OPENAI, "http://127.0.0.1:9/one/v1"), (ANTHROPIC, "http://127.0.0.1:9/two")],
)
def test_the_simulator_stands_in_for_every_provider(provider: Provider, url: str) -> None:
    endpoint = provider_endpoint(provider, Settings(simulator_url="http://127.0.0.1:9/"), {"ONE_KEY": KEY})

    assert endpoint == Endpoint(url, SecretStr("simulated"))


def test_the_key_comes_from_the_variable_that_the_provider_names() -> None:
    assert provider_endpoint(OPENAI, Settings(), {"ONE_KEY": f" {KEY}\n"}) == Endpoint(
        "https://api.one.example/v1", SecretStr(KEY)
    )


@pytest.mark.parametrize("environment", [{}, {"ONE_KEY": ""}, {"ONE_KEY": " "}])
def test_a_provider_without_key_has_no_endpoint(environment: dict[str, str]) -> None:
    assert provider_endpoint(OPENAI, Settings(), environment) is None


def test_a_missing_key_is_told_with_the_variable_to_set_and_the_models_that_need_it() -> None:
    model = {
        "api_name": "x",
        "tier": "budget",
        "family": "f",
        "input_usd_per_million": 1,
        "output_usd_per_million": 1,
        "context_window": 1000,
        "max_output_tokens": 100,
        "capability": dict.fromkeys(Domain, 0.5),
    }
    registry = ModelRegistry.model_validate(
        {
            "providers": {"one": OPENAI.model_dump(), "two": ANTHROPIC.model_dump()},
            "models": {
                "small": {"provider": "one", **model},
                "large": {"provider": "one", **model},
                "other": {"provider": "two", **model},
            },
        }
    )

    require_keys({"other", "model of a former configuration"}, registry, {"two"})
    with pytest.raises(ProviderKeyError, match=r"ONE_KEY \(for large, small\)"):
        require_keys({"small", "large", "other"}, registry, {"two"})


def test_variables_without_a_key_are_named_for_enabled_models_only() -> None:
    registry = load_configuration(PROJECT_ROOT / "config").registry
    variables = {provider.api_key_env for provider in registry.providers.values()}
    kept = registry.models["claude-opus-5-5"]
    one_model = registry.model_copy(
        update={
            "models": {
                name: model.model_copy(update={"enabled": model is kept})
                for name, model in registry.models.items()
            }
        }
    )

    assert set(unset_keys(registry, Settings(simulator_url=None), {"OPENAI_API_KEY": KEY})) == variables - {
        "OPENAI_API_KEY"
    }
    assert unset_keys(one_model, Settings(simulator_url=None), {}) == ["ANTHROPIC_API_KEY"]
    assert unset_keys(registry, Settings(simulator_url="http://127.0.0.1:9"), {}) == []
