"""Retry policy v2 of assignment itself: which reasons may pass, how long to wait for that, and when to stop.

A task has a few attempts (`tasks.assignment_attempts_left`). A passing reason takes one and backs off with full jitter;
a lasting one ends it at once. Whoever stops says so once, in an event: after a stop no attempts are left, and a task
that is looked at again in the ordinary course of the batches is not stopped a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from cp_core.execution.retry import retry_delay
from cp_core.tasks.reasons import Reason

STOP_EVENT = "assign.stop"
"""Kind of the event that every stop emits."""


class Kind(StrEnum):
    """Whether trying again can help while everything that people configure stays as it is."""

    TRANSIENT = "transient"
    DETERMINISTIC = "deterministic"


class Stop(StrEnum):
    """Why an assignment is not tried again: too late, too often, done already, or in vain."""

    CUTOFF = "cutoff"
    EXHAUSTED = "exhausted"
    ALREADY_ASSIGNED = "already_assigned"
    DETERMINISTIC = "deterministic"


_PASSING = (
    Reason.BREAKER_OPEN,
    Reason.QUOTA_EXHAUSTED,
    Reason.QUOTA_KEPT_FOR_CRITICAL,
    Reason.INSUFFICIENT_GLOBAL_CAPACITY,
    Reason.INSUFFICIENT_TIER_CAPACITY,
    Reason.OUTBID,
    Reason.WORKSPACE_CAP,
    Reason.DEPENDENCY_PENDING,
    Reason.TIMEOUT,
    Reason.RATE_LIMITED,
    Reason.OVERLOADED,
    Reason.SERVER_ERROR,
    Reason.CONNECTION,
    Reason.LEASE_EXPIRED,
    Reason.RETRIES_SPENT,
)
_LASTING = (
    Reason.CONTEXT_TOO_SMALL,
    Reason.TIER_NOT_ALLOWED,
    Reason.CAPABILITY_MISSING,
    Reason.QUOTA_TOO_SMALL,
    Reason.DEADLINE_TOO_CLOSE,
    Reason.MODEL_DISABLED,
    Reason.FAILED_BEFORE,
    Reason.NO_ELIGIBLE_PLAN,
    Reason.VALUE_TOO_LOW,
    Reason.COST_ABOVE_VALUE,
    Reason.DEADLINE_PASSED,
    Reason.DEPENDENCY_FAILED,
    Reason.CONTEXT_LENGTH_EXCEEDED,
    Reason.INVALID_REQUEST,
    Reason.AUTH_FAILED,
    Reason.PROVIDER_QUOTA,
    Reason.REFUSED,
    Reason.CONTENT_FILTERED,
    Reason.TRUNCATED,
    Reason.LOW_QUALITY,
    Reason.ATTEMPTS_EXHAUSTED,
    Reason.CANCELLED,
)
KINDS: dict[Reason, Kind] = {
    **dict.fromkeys(_PASSING, Kind.TRANSIENT),
    **dict.fromkeys(_LASTING, Kind.DETERMINISTIC),
}
"""Every reason for which an assignment may come to nothing."""


class AssignmentRetryPolicy(BaseModel):
    """Section `assignment_retry` of policies.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    most_attempts: int = Field(default=3, ge=1, le=3, description="How often one task is tried in a row.")
    backoff_base_seconds: float = Field(default=1.0, ge=0, description="Ceiling of the first wait.")
    backoff_cap_seconds: float = Field(default=60.0, ge=0, description="Ceiling of any wait.")


@dataclass(frozen=True, slots=True)
class Step:
    """What follows an attempt that assigned nothing.

    Attributes:
        reason: why it did not.
        attempts_left: after it.
        after_seconds: when to try again; None: not as a retry, only when the batches come to it.
        stop: why not, when this attempt was the one that stopped; None otherwise.
    """

    reason: Reason
    attempts_left: int
    after_seconds: float | None = None
    stop: Stop | None = None


def next_step(
    reason: Reason,
    attempts_left: int,
    policy: AssignmentRetryPolicy,
    *,
    jitter: float,
    now: datetime,
    deadline: datetime | None,
) -> Step:
    """What to do after an attempt came to nothing for `reason`.

    Args:
        attempts_left: of the task, before this attempt; 0 when an earlier one stopped.
        jitter: a random number in [0, 1), the share of the backoff's ceiling that is waited.
        deadline: of the task; a retry that could not begin before it is not made.
    """
    attempts_left = min(attempts_left, policy.most_attempts)
    if attempts_left <= 0:
        return Step(reason, 0)
    if KINDS[reason] is Kind.DETERMINISTIC:
        return Step(reason, 0, stop=Stop.DETERMINISTIC)
    if attempts_left == 1:
        return Step(reason, 0, stop=Stop.EXHAUSTED)
    failed = policy.most_attempts - attempts_left + 1
    wait = retry_delay(failed, policy, jitter=jitter, retry_after=None)
    if deadline is not None and now + timedelta(seconds=wait) >= deadline:
        return Step(reason, 0, stop=Stop.CUTOFF)
    return Step(reason, attempts_left - 1, after_seconds=wait)
