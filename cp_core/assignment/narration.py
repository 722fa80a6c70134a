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

_SETTLED_BY = {
    "prices": "it is worth most after the price of what it draws",
    "rounding": "at these prices others are as good: this one fits what the batch leaves of the accounts",
    "exploration": "drawn on purpose from an adjacent tier, so that outcomes show what it gives",
    "overdue": "the task had waited too long and was served before the others",
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
    Reason.OUTBID: "what it needs is worth more to other tasks now; its own value grows while it waits",
    Reason.COST_ABOVE_VALUE: "every plan costs more money than the task is worth",
    Reason.WORKSPACE_CAP: "its workspace has as many tasks assigned or running as it may have at once",
    Reason.DEADLINE_PASSED: "its deadline has passed",
    Reason.DEPENDENCY_FAILED: "a task that it depends on ended without success",
    Reason.DEPENDENCY_PENDING: "a task that it depends on has not succeeded yet",
}


def in_words(explanation: Mapping[str, Any], reason: Reason | None = None) -> str:
    """Lines of text that say why a decision is what it is.

    Args:
        explanation: as `cp_core.assignment.explain` or, for the solver's strategies, `cp_core.assignment.verdicts`
            makes it and `assignments.explanation` holds it.
        reason: why the task was not assigned, if it was not.
    """
    if "invalid" in explanation:
        return _invalid(explanation["invalid"])
    lines = _market_lines if "strategy" in explanation else _lines
    return "\n".join([*lines(explanation, reason), *_lacking(explanation.get("lacking", []))])


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
    yield from _conditions(explanation, reason)
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


def _conditions(explanation: Mapping[str, Any], reason: Reason | None) -> Iterator[str]:
    """What stands in a task's way, or may."""
    if reason is not None:
        yield f"not assigned: {reason}, {meaning(reason)}"
    if "deadline" in explanation:
        yield f"deadline: {explanation['deadline']}"
    if "dependencies" in explanation:
        yield f"depends on: {', '.join(explanation['dependencies'])}"


def _market_lines(explanation: Mapping[str, Any], reason: Reason | None) -> Iterator[str]:
    """The lines of a decision that prices settled."""
    yield (
        f"value score {explanation['value_score']:g}, worth {explanation['aged_value']:.2f} points after waiting "
        f"{explanation['waiting_hours']:.1f} h ({explanation['domain']}, {explanation['complexity']}, "
        f"{explanation['risk']}); strategy {explanation['strategy']}"
    )
    yield (
        f"expected tokens: {explanation['input_mean']:,.0f} in (median {explanation['input_median']:,.0f}), "
        f"{explanation['output_mean']:,.0f} out (median {explanation['output_median']:,.0f})"
    )
    yield from _conditions(explanation, reason)
    if "plan" in explanation:
        yield "chosen:" if reason is None else "was to be given:"
        yield _weighed(explanation["plan"])
        yield f"why: {_SETTLED_BY[explanation['decided_by']]}"
    if explanation.get("alternatives"):
        yield "next best:" if "plan" in explanation else "nearest to being given:"
        yield from map(_weighed, explanation["alternatives"])
    if "probabilities" in explanation:
        yield "drawn with probability:"
        for plan, probability in explanation["probabilities"].items():
            yield f"  {plan}: {probability:.1%}"
    if explanation["excluded"]:
        yield "may not be given:"
        for code, options in sorted(explanation["excluded"].items()):
            yield f"  {code}, {meaning(Reason(code))}: {', '.join(options)}"
    if explanation.get("prices"):
        yield "prices (value points of one more unit):"
        for account, price in explanation["prices"].items():
            unit = "dollar" if account.startswith("budget/") else "million tokens"
            yield f"  {account}: {price * (1 if unit == 'dollar' else 1e6):,.2f} a {unit}"


def _invalid(problem: Mapping[str, str]) -> str:
    return (
        f"not assigned: {problem['column']} of the task is {problem['value']}; allowed is {problem['allowed']}: "
        f"{problem['what_to_do']}"
    )


def _lacking(lacks: list[Mapping[str, Any]]) -> Iterator[str]:
    """The figures that prove that quota is lacking."""
    for lack in lacks:
        account = lack["account"]
        yield (
            f"  {account}: at least {_amount(account, lack['needed_at_least'])} needed, "
            f"{_amount(account, lack['available'])} available"
        )


def _amount(account: str, amount: float) -> str:
    return f"${amount:,.4f}" if account.startswith("budget/") else f"{amount:,.0f} tokens"


def _weighed(plan: Mapping[str, Any]) -> str:
    return (
        f"  {plan['plan']}: success {plan['success']:.1%}, ${plan['list_usd']:,.4f} at list price "
        f"(${plan['billed_usd']:,.4f} billed), {plan['seconds']:,.0f} s; "
        f"worth {plan['worth']:,.2f} - price {plan['worth'] - plan['net']:,.2f} = {plan['net']:,.2f}"
    )


def _value(explanation: Mapping[str, Any]) -> str:
    band = explanation["band"]
    upper = "100" if band["below"] is None else f"below {band['below']:g}"
    first = ", subscription first" if band["subscription_first"] else ""
    if explanation.get("tiers_either_side"):
        first += ", relaxed because the last attempt ran out of time"
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
