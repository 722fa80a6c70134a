"""Which tasks may be decided at all, and which options each of them may be given: every no has a reason code.

What depends on balances that fall while a batch is decided is not here but in `capacity`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.options import Options
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.tasks.reasons import Reason

CODES: tuple[Reason | None, ...] = (
    None,
    Reason.MODEL_DISABLED,
    Reason.TIER_NOT_ALLOWED,
    Reason.CAPABILITY_MISSING,
    Reason.CONTEXT_TOO_SMALL,
    Reason.QUOTA_TOO_SMALL,
    Reason.FAILED_BEFORE,
    Reason.DEADLINE_TOO_CLOSE,
    Reason.BREAKER_OPEN,
)
"""Reasons by their code in a matrix, 0 for eligible. Where several hold, the first of them is given."""

ELIGIBLE = 0
_CODE = {reason: code for code, reason in enumerate(CODES)}


@dataclass(frozen=True, slots=True)
class Eligibility:
    """What n tasks may be given, of m options.

    Attributes:
        codes: (n, m) int8, positions in `CODES`.
        codes_in_any_tier: the same without regard to tiers: what a task could use if the policy let it.
    """

    codes: NDArray[np.int8]
    codes_in_any_tier: NDArray[np.int8]


def standing_reasons(tasks: pd.DataFrame, policy: AssignmentPolicy, now: datetime) -> NDArray[np.object_]:
    """Why a task is not to be decided now, whatever the options: (n,) of `Reason` or None.

    DEPENDENCY_FAILED and DEADLINE_PASSED are for good; DEPENDENCY_PENDING may change.
    """
    reasons = np.full(len(tasks), None, dtype=object)
    reasons[_not_empty(tasks["dependencies_pending"])] = Reason.DEPENDENCY_PENDING
    if policy.enforce_deadlines:
        reasons[(tasks["deadline"] <= now).to_numpy(dtype=bool)] = Reason.DEADLINE_PASSED
    reasons[_not_empty(tasks["dependencies_failed"])] = Reason.DEPENDENCY_FAILED
    return reasons


def eligibility(
    tasks: pd.DataFrame,
    options: Options,
    tier_allowed: NDArray[np.bool_],
    *,
    capability: NDArray[np.float64],
    need: NDArray[np.int64],
    most: NDArray[np.int64],
    context_needed: NDArray[np.float64],
    context_allowed: NDArray[np.float64],
    policy: AssignmentPolicy,
    now: datetime,
    open_breakers: Collection[str],
) -> Eligibility:
    """Rule out pairs of task and option.

    Args:
        tasks: n rows with output_high, deadline and failed_models.
        options: m options.
        tier_allowed: (n, m), whether the policy lets the task have the option's tier.
        capability: (n, m), see `Options.capability`.
        need: (n, m), what the option would reserve, in smallest units.
        most: (m,), what a full window of the option's funding grants, in smallest units.
        context_needed: (n,), see `context_needed`.
        context_allowed: (m,), see `context_allowed`.
        open_breakers: names of models that are not to be called now.
    """
    too_small = (context_needed[:, None] > context_allowed) | (
        tasks["output_high"].to_numpy()[:, None] > options.max_output
    )
    rules: dict[Reason, NDArray[np.bool_]] = {
        Reason.MODEL_DISABLED: np.broadcast_to(~options.enabled, tier_allowed.shape),
        Reason.TIER_NOT_ALLOWED: ~tier_allowed,
        Reason.CAPABILITY_MISSING: capability <= 0,
        Reason.CONTEXT_TOO_SMALL: too_small,
        Reason.QUOTA_TOO_SMALL: need > most,
        Reason.FAILED_BEFORE: _failed_before(tasks, options),
        Reason.DEADLINE_TOO_CLOSE: np.broadcast_to(
            _deadline_too_close(tasks, policy, now)[:, None], tier_allowed.shape
        ),
        Reason.BREAKER_OPEN: np.broadcast_to(
            np.array([option.model.name in open_breakers for option in options], dtype=bool),
            tier_allowed.shape,
        ),
    }
    any_tier = rules | {Reason.TIER_NOT_ALLOWED: np.zeros_like(tier_allowed)}
    return Eligibility(_first_that_holds(rules), _first_that_holds(any_tier))


def context_needed(tasks: pd.DataFrame) -> NDArray[np.float64]:
    """Tokens that a context window must hold: the upper ends of the estimates. Shape (n,)."""
    return (tasks["input_high"] + tasks["output_high"]).to_numpy(dtype=np.float64)


def context_allowed(options: Options, policy: AssignmentPolicy) -> NDArray[np.float64]:
    """Tokens of each option's context window that a task may fill. Shape (m,)."""
    return np.asarray(options.context_window * (1 - policy.context_margin), dtype=np.float64)


def _first_that_holds(rules: dict[Reason, NDArray[np.bool_]]) -> NDArray[np.int8]:
    return np.select(
        list(rules.values()), [np.int8(_CODE[reason]) for reason in rules], default=np.int8(ELIGIBLE)
    )


def _deadline_too_close(tasks: pd.DataFrame, policy: AssignmentPolicy, now: datetime) -> NDArray[np.bool_]:
    if not policy.enforce_deadlines:
        return np.zeros(len(tasks), dtype=bool)
    earliest = pd.Timestamp(now) + pd.Timedelta(seconds=policy.deadline_margin_seconds)
    return (tasks["deadline"] < earliest).to_numpy(dtype=bool)


def _failed_before(tasks: pd.DataFrame, options: Options) -> NDArray[np.bool_]:
    names = [option.model.name for option in options]
    failed = np.zeros((len(tasks), len(names)), dtype=bool)
    for row, models in enumerate(tasks["failed_models"]):
        if isinstance(models, list) and models:
            failed[row] = [name in models for name in names]
    return failed


def _not_empty(lists: pd.Series) -> NDArray[np.bool_]:
    """Which rows of a column of lists (or None) hold something."""
    return np.fromiter((isinstance(row, list) and bool(row) for row in lists), dtype=bool, count=len(lists))
