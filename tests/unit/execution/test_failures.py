"""What providers' answers mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.failures import ERROR_TEXT_LIMIT, failure_reason, finish_reason, scrub
from cp_core.models.registry import Wire
from cp_core.tasks.reasons import TRANSIENT, Reason

OPENAI, RESPONSES, ANTHROPIC = Wire.OPENAI_CHAT, Wire.OPENAI_RESPONSES, Wire.ANTHROPIC_MESSAGES


@pytest.mark.parametrize(
    ("wire", "status", "error_type", "code", "message", "reason"),
    [
        # Told apart by code, although the status is the same.
        (OPENAI, 429, "tokens", "rate_limit_exceeded", "Rate limit reached on TPM", Reason.RATE_LIMITED),
        (OPENAI, 429, "insufficient_quota", "insufficient_quota", "Check billing", Reason.PROVIDER_QUOTA),
        # Gemini says this of its per-minute limit too, so the wording alone proves nothing.
        (OPENAI, 429, "", "", "You exceeded your current quota", Reason.RATE_LIMITED),
        (
            OPENAI,
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "maximum context length is 8192 tokens",
            Reason.CONTEXT_LENGTH_EXCEEDED,
        ),
        (
            OPENAI,
            400,
            "BadRequestError",
            "400",
            "This model's maximum context length is 4096 tokens.",
            Reason.CONTEXT_LENGTH_EXCEEDED,
        ),
        (OPENAI, 400, "invalid_request_error", "", "Invalid schema", Reason.INVALID_REQUEST),
        (OPENAI, 400, "", "content_filter", "filtered by policy", Reason.CONTENT_FILTERED),
        (OPENAI, 401, "invalid_request_error", "invalid_api_key", "", Reason.AUTH_FAILED),
        (OPENAI, 402, "", "", "Insufficient Balance", Reason.PROVIDER_QUOTA),
        (OPENAI, 403, "", "", "Country not supported", Reason.AUTH_FAILED),
        (OPENAI, 404, "invalid_request_error", "model_not_found", "", Reason.INVALID_REQUEST),
        (OPENAI, 408, "", "", "", Reason.TIMEOUT),
        (OPENAI, 422, "", "", "extra inputs", Reason.INVALID_REQUEST),
        (OPENAI, 302, "", "", "", Reason.INVALID_REQUEST),
        (OPENAI, 500, "server_error", "", "The server had an error", Reason.SERVER_ERROR),
        (OPENAI, 502, "", "", "<html>Bad gateway</html>", Reason.SERVER_ERROR),
        (OPENAI, 503, "server_error", "", "overloaded or not ready", Reason.OVERLOADED),
        (OPENAI, 504, "", "", "", Reason.TIMEOUT),
        (RESPONSES, 500, "", "server_error", "The model failed", Reason.SERVER_ERROR),
        (RESPONSES, 500, "", "rate_limit_exceeded", "Slow down", Reason.RATE_LIMITED),
        (RESPONSES, 500, "", "invalid_prompt", "Against the policy", Reason.INVALID_REQUEST),
        (ANTHROPIC, 429, "rate_limit_error", "", "would exceed your rate limit", Reason.RATE_LIMITED),
        (ANTHROPIC, 529, "overloaded_error", "", "Overloaded", Reason.OVERLOADED),
        (ANTHROPIC, 500, "overloaded_error", "", "Overloaded", Reason.OVERLOADED),
        (
            ANTHROPIC,
            400,
            "invalid_request_error",
            "",
            "Your credit balance is too low to access the Anthropic API.",
            Reason.PROVIDER_QUOTA,
        ),
        (
            ANTHROPIC,
            400,
            "invalid_request_error",
            "",
            "prompt is too long: 212345 tokens > 200000 maximum",
            Reason.CONTEXT_LENGTH_EXCEEDED,
        ),
        (
            ANTHROPIC,
            400,
            "invalid_request_error",
            "",
            "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
            Reason.CONTEXT_LENGTH_EXCEEDED,
        ),
        (ANTHROPIC, 400, "invalid_request_error", "", "Found 5 blocks", Reason.INVALID_REQUEST),
        (ANTHROPIC, 401, "authentication_error", "", "invalid x-api-key", Reason.AUTH_FAILED),
        (ANTHROPIC, 403, "permission_error", "", "", Reason.AUTH_FAILED),
        (ANTHROPIC, 413, "request_too_large", "", "", Reason.CONTEXT_LENGTH_EXCEEDED),
        (ANTHROPIC, 500, "api_error", "", "Internal server error", Reason.SERVER_ERROR),
    ],
)
def test_an_error_answer_has_the_reason_its_provider_means(
    wire: Wire, status: int, error_type: str, code: str, message: str, reason: Reason
) -> None:
    assert failure_reason(wire, status, error_type, code, message) is reason


@given(
    st.sampled_from(Wire),
    st.integers(100, 999),
    st.text(max_size=30),
    st.text(max_size=30),
    st.text(max_size=90),
)
def test_every_answer_has_a_reason(wire: Wire, status: int, error_type: str, code: str, message: str) -> None:
    assert isinstance(failure_reason(wire, status, error_type, code, message), Reason)


@given(st.sampled_from(Wire), st.integers(400, 499))
def test_of_the_4xx_only_timeouts_and_rate_limits_are_tried_again(wire: Wire, status: int) -> None:
    assert (failure_reason(wire, status, "", "", "") in TRANSIENT) == (status in {408, 429})


@given(st.sampled_from(Wire), st.integers(500, 599))
def test_every_5xx_is_tried_again(wire: Wire, status: int) -> None:
    assert failure_reason(wire, status, "", "", "") in TRANSIENT


@pytest.mark.parametrize(
    ("wire", "finish", "refused", "reason"),
    [
        (OPENAI, "stop", False, None),
        (OPENAI, "stop", True, Reason.REFUSED),
        (OPENAI, "length", False, Reason.TRUNCATED),
        (OPENAI, "content_filter", False, Reason.CONTENT_FILTERED),
        (OPENAI, "", False, None),
        (RESPONSES, "completed", False, None),
        (RESPONSES, "completed", True, Reason.REFUSED),
        (RESPONSES, "max_output_tokens", False, Reason.TRUNCATED),
        (RESPONSES, "content_filter", False, Reason.CONTENT_FILTERED),
        (RESPONSES, "incomplete", False, Reason.TRUNCATED),
        (ANTHROPIC, "end_turn", False, None),
        (ANTHROPIC, "stop_sequence", False, None),
        (ANTHROPIC, "max_tokens", False, Reason.TRUNCATED),
        (ANTHROPIC, "model_context_window_exceeded", False, Reason.CONTEXT_LENGTH_EXCEEDED),
        (ANTHROPIC, "refusal", False, Reason.REFUSED),
    ],
)
def test_a_finish_reason_says_whether_the_answer_is_one(
    wire: Wire, finish: str, refused: bool, reason: Reason | None
) -> None:
    assert finish_reason(wire, finish, refused=refused) is reason


def test_scrub_strikes_out_the_key_of_the_call_and_whatever_looks_like_one() -> None:
    said = "key hunter2hunter2 is wrong; not sk-proj-Ab12Cd34, sk-***1234, AIzaSyD-abcdef12 or Bearer xyz.abc"

    scrubbed = scrub(said, ("hunter2hunter2",))

    assert scrubbed == "key [key] is wrong; not [key], [key], [key] or Bearer [key]"


@given(st.text(max_size=3000), st.text("abcdef0123456789", min_size=8, max_size=40))
def test_scrubbed_text_is_short_printable_and_without_the_key(text: str, key: str) -> None:
    scrubbed = scrub(f"{text}{key}{text}{key}", (key,))

    assert len(scrubbed) <= ERROR_TEXT_LIMIT
    assert key not in scrubbed
    assert not scrubbed or scrubbed.isprintable()
