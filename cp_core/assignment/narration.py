"""An explanation in words: what `control-panel assign --explain` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from cp_core.tasks.reasons import Reason

_RULES = {
    "only": "nothing else that the policy allows can pay for the task now",
    "subscription_first": "in this band a subscription goes before money",
    "tier": "this band prefers its tier",
    "family": "its family is preferred for the task's domain",
    "prepaid": "it is paid for in advance",
    "capability": "it is more able in the task's domain",
    "cost": "it costs less at list price",
    "name": "they are equal in all else, and its name comes first",
}

_REASONS = {
    Reason.CONTEXT_TOO_SMALL: "the task may exceed its context window or its longest output",
    Reason.TIER_NOT_ALLOWED: "the band does not allow its tier",
    Reason.CAPABILITY_MISSING: "it has no capability in the task's domain",
    Reason.BREAKER_OPEN: "calls to it fail and are paused",
    Reason.QUOTA_EXHAUSTED: "less remains than the task needs",
    Reason.QUOTA_KEPT_FOR_CRITICAL: "what remains is kept for more valuable tasks",
    Reason.QUOTA_TOO_SMALL: "even a full window grants less than the task needs",
    Reason.DEADLINE_TOO_CLOSE: "too little time is left before the deadline",
    Reason.MODEL_DISABLED: "it is switched off in models.yaml",
    Reason.FAILED_BEFORE: "it failed at this task, and would again",
    Reason.NO_ELIGIBLE_PLAN: "no model can be given this task as things are configured",
    Reason.VALUE_TOO_LOW: "the policy defers the tasks of its band",
    Reason.INSUFFICIENT_TIER_CAPACITY: "the tiers of its band have no quota left for it; another tier has",
    Reason.INSUFFICIENT_GLOBAL_CAPACITY: "no tier has quota left for it",
    Reason.DEADLINE_PASSED: "its deadline has passed",
    Reason.DEPENDENCY_FAILED: "a task that it depends on ended without success",
    Reason.DEPENDENCY_PENDING: "a task that it depends on has not succeeded yet",
}


def in_words(explanation: Mapping[str, Any], reason: Reason | None = None) -> str:
    """Lines of text that say why a decision is what it is.

    Args:
        explanation: as `cp_core.assignment.explain` makes it and `assignments.explanation` holds it.
        reason: why the task was not assigned, if it was not.
    """
    return "\n".join(_lines(explanation, reason))


def meaning(reason: Reason) -> str:
    """What a reason code says, in words; the code itself where nothing needs adding."""
    return _REASONS.get(reason, reason.value)


def _lines(explanation: Mapping[str, Any], reason: Reason | None) -> Iterator[str]:
    yield _value(explanation)
    tokens = explanation["tokens"]
    yield (
        f"expected tokens: {tokens['input_mean']:,} in (up to {tokens['input_high']:,}), "
        f"{tokens['output_mean']:,} out (up to {tokens['output_high']:,})"
    )
    if reason is not None:
        yield f"not assigned: {reason}, {meaning(reason)}"
    if "deadline" in explanation:
        yield f"deadline: {explanation['deadline']}"
    if "dependencies" in explanation:
        yield f"depends on: {', '.join(explanation['dependencies'])}"
    if explanation.get("candidates"):
        yield "may be given, most preferred first:"
        yield from map(_candidate, explanation["candidates"])
    if "why" in explanation:
        yield _why(explanation["why"])
    if explanation.get("excluded"):
        yield "may not be given:"
        yield from _excluded(explanation["excluded"])
    if explanation.get("accounts"):
        yield "accounts before the decision:"
        for account, standing in explanation["accounts"].items():
            yield f"  {account}: {_remaining(account, standing['remaining'])} left, {standing['state']}"


def _value(explanation: Mapping[str, Any]) -> str:
    band = explanation["band"]
    upper = "100" if band["below"] is None else f"below {band['below']:g}"
    first = ", subscription first" if band["subscription_first"] else ""
    return (
        f"value score {explanation['value_score']:g} ({explanation['domain']}): "
        f"band {band['at_least']:g} to {upper} allows {' or '.join(band['tiers'])}{first}"
    )


def _candidate(candidate: Mapping[str, Any]) -> str:
    return (
        f"  {candidate['model']} ({candidate['funding']}): {candidate['tier']}, "
        f"capability {candidate['capability']:g}, ${candidate['cost_usd']:,.4f} at list price"
    )


def _why(why: Mapping[str, str]) -> str:
    if "over" not in why:
        return f"why the first: {_RULES[why['rule']]}"
    return f"why the first and not {why['over']}: {_RULES[why['rule']]}"


def _excluded(excluded: list[Mapping[str, Any]]) -> Iterator[str]:
    by_reason = itemgetter("reason")
    for reason, entries in groupby(sorted(excluded, key=by_reason), key=by_reason):
        yield f"  {reason}, {meaning(Reason(reason))}:"
        for entry in entries:
            figures = ", ".join(
                f"{name.replace('_', ' ')} {f'{value:,}' if isinstance(value, int | float) else value}"
                for name, value in entry.items()
                if name not in ("reason", "models")
            )
            yield f"    {', '.join(entry['models'])}" + (f": {figures}" if figures else "")


def _remaining(account: str, remaining: float) -> str:
    return f"${remaining:,.2f}" if account.startswith("budget/") else f"{remaining:,} tokens"
