"""Why a decision is what it is: the explanation that is stored with it, and the same in words.

An explanation is JSON-ready and holds only what the registry does not say: of an excluded option the reason
and the figures that prove it, of an eligible one what it was ordered by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cp_core.assignment.batch import Batch
from cp_core.assignment.capacity import Capacity, Shortage
from cp_core.assignment.eligibility import CODES, ELIGIBLE, context_allowed, context_needed
from cp_core.assignment.options import Option, figure
from cp_core.quota.account import Unit
from cp_core.tasks.reasons import Reason


@dataclass(frozen=True, slots=True)
class Candidate:
    """An option that the policy allows (a column of the batch), and why nothing can pay for it now, if so."""

    column: int
    shortage: Shortage | None


def facts(batch: Batch, row: int) -> dict[str, Any]:
    """What the policy looked at: the task's value, its band, its domain and its tokens."""
    task, band = batch.records[row], batch.bands[row]
    higher = [other.at_least for other in batch.policy.bands if other.at_least > band.at_least]
    return {
        "value_score": task["value_score"],
        "band": {
            "at_least": band.at_least,
            "below": min(higher, default=None),
            "tiers": [tier.value for tier in band.tiers],
            "subscription_first": band.subscription_first,
        },
        "domain": task["domain"],
        "tokens": {
            name: round(task[name]) for name in ("input_mean", "input_high", "output_mean", "output_high")
        },
    }


def standing(batch: Batch, row: int) -> dict[str, Any]:
    """The facts, and what keeps the task from being decided now."""
    task, explanation = batch.records[row], facts(batch, row)
    match batch.standing[row]:
        case Reason.DEADLINE_PASSED:
            explanation["deadline"] = task["deadline"].isoformat()
        case Reason.DEPENDENCY_FAILED:
            explanation["dependencies"] = task["dependencies_failed"]
        case Reason.DEPENDENCY_PENDING:
            explanation["dependencies"] = task["dependencies_pending"]
    return explanation


def considered(batch: Batch, row: int, candidates: list[Candidate], capacity: Capacity) -> dict[str, Any]:
    """The facts, what the task may be given, what it may not and why, and the accounts beforehand."""
    options = batch.options
    touched = dict.fromkeys(account for c in candidates for account in options[c.column].funding.accounts)
    return {
        **facts(batch, row),
        "candidates": [_eligible(batch, row, c.column) for c in candidates if c.shortage is None],
        "excluded": [
            *(_short_of_quota(options[c.column], c.shortage) for c in candidates if c.shortage is not None),
            *_ruled_out(batch, row),
        ],
        "accounts": capacity.standing(touched),
    }


def label(option: Option) -> str:
    """An option in words."""
    return f"{option.model.name} ({option.funding.name})"


def _eligible(batch: Batch, row: int, column: int) -> dict[str, Any]:
    option = batch.options[column]
    return {
        "model": option.model.name,
        "funding": option.funding.name,
        "tier": option.model.tier.value,
        "capability": float(batch.capability[row, column]),
        "cost_usd": figure(int(batch.list_price[row, column]), Unit.USD),
    }


def _short_of_quota(option: Option, shortage: Shortage) -> dict[str, Any]:
    return {
        "model": option.model.name,
        "funding": option.funding.name,
        "reason": shortage.reason.value,
        "account": shortage.account,
        "needed": figure(shortage.needed, option.funding.unit),
        "remaining": figure(shortage.remaining, option.funding.unit),
    }


def _ruled_out(batch: Batch, row: int) -> Iterator[dict[str, Any]]:
    """The excluded models; one that two fundings could pay for is named once for each reason."""
    seen = set()
    for column, code in enumerate(batch.eligible.codes[row].tolist()):
        model = batch.options[column].model.name
        if code != ELIGIBLE and (model, code) not in seen:
            seen.add((model, code))
            reason = CODES[code]
            yield {"model": model, "reason": reason, **_figures(batch, row, column, reason)}


def _figures(batch: Batch, row: int, column: int, reason: Reason | None) -> dict[str, Any]:
    """The numbers that prove an exclusion, where there are any."""
    option = batch.options[column]
    match reason:
        case Reason.TIER_NOT_ALLOWED:
            return {"tier": option.model.tier.value}
        case Reason.CONTEXT_TOO_SMALL:
            needed = float(context_needed(batch.tasks)[row])
            allowed = float(context_allowed(batch.options, batch.policy)[column])
            if needed > allowed:
                return {"needed": round(needed), "allowed": round(allowed)}
            return {
                "output_needed": round(batch.records[row]["output_high"]),
                "output_allowed": option.model.max_output_tokens,
            }
        case Reason.QUOTA_TOO_SMALL:
            unit = option.funding.unit
            return {
                "funding": option.funding.name,
                "needed": figure(int(batch.need[row, column]), unit),
                "full_window": figure(int(batch.most[column]), unit),
            }
    return {}
