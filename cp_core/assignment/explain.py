"""Why a decision is what it is: the explanation that is stored with it, and the same in words.

An explanation is JSON-ready and small, for it is stored with every decision: what an eligible option was
ordered by, and the reason of each exclusion with the figures that prove it, models that share them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cp_core.assignment.batch import Batch
from cp_core.assignment.capacity import Capacity, Shortage
from cp_core.assignment.eligibility import CODES
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
            "tiers": list(band.tiers),
            "subscription_first": band.subscription_first,
        },
        **({"tiers_either_side": relaxed} if (relaxed := task.get("tiers_either_side")) else {}),
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
        "excluded": _grouped([*_short_of_quota(batch, candidates), *_ruled_out(batch, row)]),
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
        "tier": option.model.tier,
        "capability": float(batch.capability[row, column]),
        "cost_usd": figure(int(batch.list_price[row, column]), Unit.USD),
    }


def _grouped(exclusions: list[tuple[str, Reason, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One entry for all models that are excluded for the same reason with the same figures."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for model, reason, figures in exclusions:
        key = (reason, *figures.values())
        models = groups.setdefault(key, {"reason": reason, **figures, "models": []})["models"]
        if model not in models:
            models.append(model)
    return list(groups.values())


def _short_of_quota(
    batch: Batch, candidates: list[Candidate]
) -> Iterator[tuple[str, Reason, dict[str, Any]]]:
    for candidate in candidates:
        option, shortage = batch.options[candidate.column], candidate.shortage
        if shortage is None:
            continue
        figures: dict[str, Any] = {"funding": option.funding.name, "account": shortage.account}
        if shortage.reason is Reason.QUOTA_EXHAUSTED:
            figures["needed"] = figure(shortage.needed, option.funding.unit)
        yield option.model.name, shortage.reason, figures


def _ruled_out(batch: Batch, row: int) -> Iterator[tuple[str, Reason, dict[str, Any]]]:
    for column, code in enumerate(batch.eligible.codes[row].tolist()):
        reason = CODES[code]
        if reason is not None:
            yield batch.options[column].model.name, reason, _figures(batch, row, column, reason)


def _figures(batch: Batch, row: int, column: int, reason: Reason) -> dict[str, Any]:
    """The numbers that prove an exclusion, where the registry does not say them."""
    option = batch.options[column]
    if reason is Reason.CONTEXT_TOO_SMALL:
        needed = float(batch.context_needed[row])
        allowed = float(batch.context_allowed[column])
        if needed > allowed:
            return {"needed": round(needed), "allowed": round(allowed)}
        return {
            "output_needed": round(batch.records[row]["output_high"]),
            "output_allowed": option.model.max_output_tokens,
        }
    if reason is Reason.QUOTA_TOO_SMALL:
        unit = option.funding.unit
        return {
            "funding": option.funding.name,
            "needed": figure(int(batch.need[row, column]), unit),
            "full_window": figure(int(batch.most[column]), unit),
        }
    return {}
