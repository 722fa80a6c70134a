"""What came of an attempt, and where its task goes from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from cp_core.execution.cost import NO_USAGE, Usage
from cp_core.execution.evidence import evidence_record, parse_evidence
from cp_core.execution.prompt_cache import PrefixUse
from cp_core.execution.quality import quality_score
from cp_core.tasks.reasons import TRANSIENT, Reason
from cp_core.tasks.states import TaskState


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """One finished attempt, whatever the kind of worker that made it.

    Attributes:
        reason: why it failed; None when the work is good enough.
        cost_usd: list price of the usage, whoever pays.
        evidence: what is stored beside the quality; None when there was no answer to judge.
        error: what the provider said, scrubbed.
        retry_after: seconds the provider asked to wait.
        prefix_use: how it used the provider's prompt cache; None where that was not tried.
        pause: seconds that the provider wants no further call of the model, by what remains of its rate limits.
    """

    reason: Reason | None
    usage: Usage = NO_USAGE
    cost_usd: Decimal = Decimal(0)
    quality: float | None = None
    evidence: Mapping[str, Any] | None = None
    output: str | None = None
    error: str | None = None
    http_status: int | None = None
    request_id: str | None = None
    latency_ms: float | None = None
    retry_after: float | None = None
    prefix_use: PrefixUse | None = None
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer is worth: LOW_QUALITY below the bar, no reason at or above it."""

    reason: Reason | None
    quality: float
    evidence: Mapping[str, Any]


def judge(answer: str, success_quality: float) -> Verdict:
    """Judge a finished answer by the evidence in it.

    Args:
        success_quality: the bar, 0 to 10.
    """
    evidence = parse_evidence(answer)
    quality = quality_score(evidence)
    reason = None if quality >= success_quality else Reason.LOW_QUALITY
    return Verdict(reason, quality, evidence_record(evidence))


@dataclass(frozen=True, slots=True)
class NextStep:
    """Where a running task goes: a state, why, and after how many seconds it may be claimed again.

    Attributes:
        stage: of its plan, from 0; what is tried next where the state is assigned.
    """

    state: TaskState
    reason: Reason | None
    delay_seconds: float = 0.0
    stage: int = 0


DONE = NextStep(TaskState.SUCCEEDED, None)
"""Where a task goes whose attempt succeeded, whatever else is true of it."""


def next_step(
    reason: Reason | None,
    *,
    attempts: int,
    max_attempts: int,
    delay: float,
    deadline_in: float | None,
    stage: int = 0,
    following: int | None = None,
    retries_in: float | None = None,
) -> NextStep:
    """Where a task goes after an attempt.

    A stage whose work is not good enough, or whose model would fail again, is followed by the plan's next, at once
    and however many attempts were made: an escalation is no retry, and uses none of the task's attempts.

    Args:
        reason: why the attempt failed, None when it succeeded.
        attempts: attempts made so far, this one included.
        delay: seconds before a retry.
        deadline_in: seconds to the task's deadline; None when it has none that counts.
        stage: of the plan that the attempt was made at, from 0.
        following: the stage to escalate to; None when there is none, see `stages.following_stage`.
        retries_in: seconds until there may be retries again; None while the day's are not used up.
    """
    if reason is None:
        return DONE
    if reason is Reason.CANCELLED:
        return NextStep(TaskState.CANCELLED, reason)
    if reason not in TRANSIENT and following is not None:
        return _in_time(NextStep(TaskState.ASSIGNED, reason, 0.0, following), deadline_in)
    if attempts - stage >= max_attempts:
        return _given_up(reason)
    if reason not in TRANSIENT:
        return NextStep(TaskState.QUEUED, reason)
    if retries_in is not None:
        return _in_time(NextStep(TaskState.QUEUED, Reason.RETRIES_SPENT, max(delay, retries_in)), deadline_in)
    return _in_time(NextStep(TaskState.ASSIGNED, reason, delay, stage), deadline_in)


def _in_time(step: NextStep, deadline_in: float | None) -> NextStep:
    """The step, unless the task's deadline comes before it."""
    if deadline_in is not None and step.delay_seconds >= deadline_in:
        return NextStep(TaskState.DEAD, Reason.DEADLINE_PASSED)
    return step


def _given_up(reason: Reason) -> NextStep:
    if reason is Reason.LOW_QUALITY:
        return NextStep(TaskState.FAILED, reason)
    return NextStep(TaskState.DEAD, Reason.ATTEMPTS_EXHAUSTED)
