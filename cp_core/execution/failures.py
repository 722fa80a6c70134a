"""What a provider's answer means: one table from status, error code, wording and stop reason to a `Reason`.

Sources: the error references of OpenAI (platform.openai.com/docs/guides/error-codes) and Anthropic
(docs.anthropic.com/en/api/errors), and the codes that OpenAI-compatible servers are known to send.
"""

from __future__ import annotations

from dataclasses import dataclass

from cp_core.execution.scrubbing import strike_secrets, strike_values
from cp_core.models.registry import Wire
from cp_core.tasks.reasons import Reason

ERROR_TEXT_LIMIT = 500
"""Most characters kept of what a provider said."""

ANY = None


@dataclass(frozen=True, slots=True)
class FailureRule:
    """One row of the table. A column that is ANY matches everything; the first row that matches decides."""

    reason: Reason
    wire: Wire | None
    status: range | None
    error: frozenset[str] | None
    """The error's `type` or `code`."""
    phrase: str | None
    """Part of the error's message, in lower case."""


def _rule(
    reason: Reason,
    *,
    wire: Wire | None = ANY,
    status: int | range | None = ANY,
    error: str | None = ANY,
    phrase: str | None = ANY,
) -> FailureRule:
    return FailureRule(
        reason,
        wire,
        range(status, status + 1) if isinstance(status, int) else status,
        frozenset(error.split()) if error else None,
        phrase,
    )


FAILURES: tuple[FailureRule, ...] = (
    # Says so whatever the status: mid-stream errors and gateways carry no status of their own.
    _rule(Reason.OVERLOADED, error="overloaded_error overloaded slow_down"),
    _rule(Reason.PROVIDER_QUOTA, error="insufficient_quota billing_hard_limit_reached billing_error"),
    _rule(Reason.CONTEXT_LENGTH_EXCEEDED, error="context_length_exceeded request_too_large"),
    _rule(Reason.CONTENT_FILTERED, error="content_filter content_policy_violation"),
    _rule(Reason.RATE_LIMITED, error="rate_limit_exceeded rate_limit_error"),
    _rule(Reason.INVALID_REQUEST, wire=Wire.OPENAI_RESPONSES, error="invalid_prompt"),
    # Told apart only by wording.
    _rule(
        Reason.PROVIDER_QUOTA, wire=Wire.ANTHROPIC_MESSAGES, status=400, phrase="credit balance is too low"
    ),
    _rule(Reason.CONTEXT_LENGTH_EXCEEDED, status=400, phrase="prompt is too long"),
    _rule(Reason.CONTEXT_LENGTH_EXCEEDED, status=400, phrase="exceed context limit"),
    _rule(Reason.CONTEXT_LENGTH_EXCEEDED, status=400, phrase="maximum context length"),
    # By status.
    _rule(Reason.AUTH_FAILED, status=401),
    _rule(Reason.PROVIDER_QUOTA, status=402),
    _rule(Reason.AUTH_FAILED, status=403),
    _rule(Reason.TIMEOUT, status=408),
    _rule(Reason.CONTEXT_LENGTH_EXCEEDED, status=413),
    _rule(Reason.RATE_LIMITED, status=429),
    _rule(Reason.OVERLOADED, status=503),
    _rule(Reason.TIMEOUT, status=504),
    _rule(Reason.OVERLOADED, status=529),
    _rule(Reason.SERVER_ERROR, status=range(500, 1000)),
    # Any other 4xx, and redirects, which are never followed.
    _rule(Reason.INVALID_REQUEST),
)

FINISHES: dict[tuple[Wire, str], Reason] = {
    (Wire.OPENAI_CHAT, "length"): Reason.TRUNCATED,
    (Wire.OPENAI_CHAT, "content_filter"): Reason.CONTENT_FILTERED,
    (Wire.OPENAI_RESPONSES, "incomplete"): Reason.TRUNCATED,
    (Wire.OPENAI_RESPONSES, "max_output_tokens"): Reason.TRUNCATED,
    (Wire.OPENAI_RESPONSES, "content_filter"): Reason.CONTENT_FILTERED,
    (Wire.ANTHROPIC_MESSAGES, "max_tokens"): Reason.TRUNCATED,
    (Wire.ANTHROPIC_MESSAGES, "model_context_window_exceeded"): Reason.CONTEXT_LENGTH_EXCEEDED,
    (Wire.ANTHROPIC_MESSAGES, "refusal"): Reason.REFUSED,
}
"""Finish and stop reasons of a 200 that are failures all the same. Every other one is a finished answer."""


def failure_reason(wire: Wire, status: int, error_type: str, error_code: str, message: str) -> Reason:
    """The reason of an error answer.

    Args:
        status: HTTP status; of an error inside a 200, the status it names, else 500.
        error_type: the error's `type`, or "".
        error_code: the error's `code`, or "".
        message: what the provider says, or "".
    """
    said = message.lower()
    return next(
        rule.reason
        for rule in FAILURES
        if (rule.wire is ANY or rule.wire is wire)
        and (rule.status is ANY or status in rule.status)
        and (rule.error is ANY or error_type in rule.error or error_code in rule.error)
        and (rule.phrase is ANY or rule.phrase in said)
    )


def finish_reason(wire: Wire, finish: str, *, refused: bool = False) -> Reason | None:
    """The reason of a 200 whose answer is none, or None when it is a finished answer.

    Args:
        finish: the wire's finish or stop reason; in Responses the status, or why it is incomplete.
        refused: the answer carries a refusal instead of content (OpenAI's `refusal`).
    """
    return FINISHES.get((wire, finish)) or (Reason.REFUSED if refused else None)


def scrub(text: str, secrets: tuple[str, ...] = ()) -> str:
    """What may be stored and logged of a provider's words: no keys, no control characters, 500 characters.

    Args:
        secrets: values that must not appear, such as the key of the call; what looks like a key goes too.
    """
    text = strike_secrets(strike_values(text, secrets)[: 20 * ERROR_TEXT_LIMIT])
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:ERROR_TEXT_LIMIT]
