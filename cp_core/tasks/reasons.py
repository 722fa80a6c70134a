"""Why something did not happen: the reason codes of the whole platform, and what each means for a retry."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a pair of task and model was excluded, a task was not assigned, or an attempt failed."""

    # A pair of task and plan that cannot be.
    CONTEXT_TOO_SMALL = "CONTEXT_TOO_SMALL"
    TIER_NOT_ALLOWED = "TIER_NOT_ALLOWED"
    CAPABILITY_MISSING = "CAPABILITY_MISSING"
    BREAKER_OPEN = "BREAKER_OPEN"
    QUOTA_EXHAUSTED = "QUOTA_EXHAUSTED"
    QUOTA_KEPT_FOR_CRITICAL = "QUOTA_KEPT_FOR_CRITICAL"
    QUOTA_TOO_SMALL = "QUOTA_TOO_SMALL"  # even a full window is: waiting does not help
    DEADLINE_TOO_CLOSE = "DEADLINE_TOO_CLOSE"
    MODEL_DISABLED = "MODEL_DISABLED"
    FAILED_BEFORE = "FAILED_BEFORE"

    # A task that was not assigned, or could not be done at all.
    NO_ELIGIBLE_PLAN = "NO_ELIGIBLE_PLAN"
    VALUE_TOO_LOW = "VALUE_TOO_LOW"  # its band defers everything
    INSUFFICIENT_GLOBAL_CAPACITY = "INSUFFICIENT_GLOBAL_CAPACITY"
    INSUFFICIENT_TIER_CAPACITY = "INSUFFICIENT_TIER_CAPACITY"
    OUTBID = "OUTBID"  # what it needs is worth more to other tasks of the batch
    COST_ABOVE_VALUE = "COST_ABOVE_VALUE"  # every plan costs more money than the task is worth
    WORKSPACE_CAP = "WORKSPACE_CAP"  # its workspace has as many tasks assigned or running as it may
    DEADLINE_PASSED = "DEADLINE_PASSED"
    DEPENDENCY_FAILED = "DEPENDENCY_FAILED"
    DEPENDENCY_PENDING = "DEPENDENCY_PENDING"

    # An attempt that failed and may be tried again.
    TIMEOUT = "TIMEOUT"
    RATE_LIMITED = "RATE_LIMITED"
    OVERLOADED = "OVERLOADED"
    SERVER_ERROR = "SERVER_ERROR"
    CONNECTION = "CONNECTION"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    RETRIES_SPENT = "RETRIES_SPENT"  # the day's are used up: tomorrow

    # An attempt that the same model would fail again.
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    INVALID_REQUEST = "INVALID_REQUEST"
    AUTH_FAILED = "AUTH_FAILED"
    PROVIDER_QUOTA = "PROVIDER_QUOTA"
    REFUSED = "REFUSED"
    CONTENT_FILTERED = "CONTENT_FILTERED"
    TRUNCATED = "TRUNCATED"
    LOW_QUALITY = "LOW_QUALITY"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    CANCELLED = "CANCELLED"


TRANSIENT: frozenset[Reason] = frozenset(
    {
        Reason.TIMEOUT,
        Reason.RATE_LIMITED,
        Reason.OVERLOADED,
        Reason.SERVER_ERROR,
        Reason.CONNECTION,
        Reason.LEASE_EXPIRED,
    }
)
"""Reasons after which the same model may be tried again, later. Every other reason is deterministic."""

OF_THE_ACCOUNT: frozenset[Reason] = frozenset({Reason.AUTH_FAILED, Reason.PROVIDER_QUOTA})
"""Reasons that say nothing about the task: once the key or the credit is mended the same model may be given it again.
Until then its breaker keeps every task away."""
