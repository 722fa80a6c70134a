"""Which tasks may be decided at all, and which options each of them may be given: every no has a reason code.

Tasks are columns: a DataFrame, or a mapping of arrays, which is much faster for a single task. What depends on balances
that fall while a batch is decided is not here but in `capacity`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.options import Options
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.predict import Columns
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

    def pruned(self) -> dict[str, int]:
        """How many pairs of task and option were ruled out, by reason."""
        counts = np.bincount(self.codes.ravel(), minlength=len(CODES)).tolist()
        return {str(CODES[code]): count for code, count in enumerate(counts) if count and code != ELIGIBLE}


def standing_reasons(tasks: Columns, policy: AssignmentPolicy, now: datetime) -> NDArray[np.object_]:
    """Why a task is not to be decided now, whatever the options: (n,) of `Reason` or None.

    DEPENDENCY_FAILED and DEADLINE_PASSED are for good; DEPENDENCY_PENDING may change.

    Args:
        tasks: n rows with deadline (UTC or NaT), dependencies_failed and dependencies_pending (lists or None).
    """
    reasons = np.full(len(tasks["deadline"]), None, dtype=object)
    reasons[_not_empty(tasks["dependencies_pending"])] = Reason.DEPENDENCY_PENDING
    if policy.enforce_deadlines:
        reasons[_instants(tasks["deadline"]) <= _instant(now)] = Reason.DEADLINE_PASSED
    reasons[_not_empty(tasks["dependencies_failed"])] = Reason.DEPENDENCY_FAILED
    return reasons


def eligibility(
    tasks: Columns,
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
    too_long = np.asarray(tasks["output_high"])[:, None] > options.max_output
    called_off = [option.model.name in open_breakers for option in options] if open_breakers else False
    rules: dict[Reason, NDArray[np.bool_]] = {
        Reason.CAPABILITY_MISSING: capability <= 0,
        Reason.CONTEXT_TOO_SMALL: (context_needed[:, None] > context_allowed) | too_long,
        Reason.QUOTA_TOO_SMALL: need > most,
        Reason.FAILED_BEFORE: _failed_before(tasks["failed_models"], options),
        Reason.DEADLINE_TOO_CLOSE: _deadline_too_close(tasks, policy, now)[:, None],
        Reason.BREAKER_OPEN: np.asarray(called_off),
    }
    codes = np.zeros(tier_allowed.shape, dtype=np.int8)
    for reason, holds in reversed(rules.items()):
        codes = _given(holds, reason, codes)
    return Eligibility(
        codes=_given(
            ~options.enabled, Reason.MODEL_DISABLED, _given(~tier_allowed, Reason.TIER_NOT_ALLOWED, codes)
        ),
        codes_in_any_tier=_given(~options.enabled, Reason.MODEL_DISABLED, codes),
    )


def context_needed(tasks: Columns) -> NDArray[np.float64]:
    """Tokens that a context window must hold: the upper ends of the estimates. Shape (n,)."""
    return np.asarray(tasks["input_high"] + tasks["output_high"], dtype=np.float64)


def context_allowed(options: Options, policy: AssignmentPolicy) -> NDArray[np.float64]:
    """Tokens of each option's context window that a task may fill. Shape (m,)."""
    return np.asarray(options.context_window * (1 - policy.context_margin), dtype=np.float64)


def _given(holds: NDArray[np.bool_], reason: Reason, codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """`codes`, with `reason` before them where it holds."""
    return np.where(holds, np.int8(_CODE[reason]), codes)


def _deadline_too_close(tasks: Columns, policy: AssignmentPolicy, now: datetime) -> NDArray[np.bool_]:
    if not policy.enforce_deadlines:
        return np.zeros(len(tasks["deadline"]), dtype=bool)
    margin = np.timedelta64(round(policy.deadline_margin_seconds * 1e6), "us")
    return np.asarray(_instants(tasks["deadline"]) < _instant(now) + margin)


def _instants(column: pd.Series | NDArray[np.datetime64]) -> NDArray[np.datetime64]:
    """UTC instants without their time zone, microseconds; NaT where there is none."""
    if isinstance(column, pd.Series):
        column = pd.to_datetime(column, utc=True).dt.tz_localize(None).to_numpy()
    return np.asarray(column, dtype="datetime64[us]")


def _instant(now: datetime) -> np.datetime64:
    return np.datetime64(now.astimezone(UTC).replace(tzinfo=None), "us")


def _failed_before(lists: Iterable[object], options: Options) -> NDArray[np.bool_]:
    names = [option.model.name for option in options]
    rows = list(lists)
    failed = np.zeros((len(rows), len(names)), dtype=bool)
    for row, models in enumerate(rows):
        if isinstance(models, list) and models:
            failed[row] = [name in models for name in names]
    return failed


def _not_empty(lists: Iterable[object]) -> NDArray[np.bool_]:
    """Which rows of a column of lists (or None) hold something."""
    return np.array([isinstance(row, list) and bool(row) for row in lists], dtype=bool)
