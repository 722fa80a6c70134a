"""The circuit breaker of a model: when it is left alone, when it is tried again, and when it is trusted again.

Pure: what attempts came to goes in, the breaker's next state comes out. An attempt speaks only about the state that it
began in, so that calls from before an outage, or from before a person mended it, change nothing afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cp_core.tasks.reasons import Reason

WHOLE_PROVIDER = "*"
"""In place of a model: the breaker of everything that a provider serves."""

_ANSWER, _FAILURE = ".", "x"


class BreakerState(StrEnum):
    """Closed: calls go through. Open: none does. Half-open: a few do, as trials."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


LEGAL_MOVES: dict[BreakerState, frozenset[BreakerState]] = {
    BreakerState.CLOSED: frozenset({BreakerState.OPEN}),
    BreakerState.OPEN: frozenset({BreakerState.HALF_OPEN, BreakerState.CLOSED}),  # closed: by a person
    BreakerState.HALF_OPEN: frozenset({BreakerState.CLOSED, BreakerState.OPEN}),
}
"""Every move there is; no other one is ever stored."""


class Signal(StrEnum):
    """What the end of an attempt says about the model, whatever it says about the task."""

    ANSWERED = "answered"
    FAILED = "failed"
    BARRED = "barred"  # until somebody tops up the account
    PROVIDER_BARRED = "provider barred"  # until somebody mends the key
    NOTHING = "nothing"


_SIGNALS: dict[Signal, tuple[Reason | None, ...]] = {
    Signal.ANSWERED: (
        None,
        Reason.LOW_QUALITY,
        Reason.TRUNCATED,
        Reason.REFUSED,
        Reason.CONTENT_FILTERED,
        Reason.CONTEXT_LENGTH_EXCEEDED,
    ),
    Signal.FAILED: (Reason.TIMEOUT, Reason.OVERLOADED, Reason.SERVER_ERROR, Reason.CONNECTION),
    Signal.BARRED: (Reason.PROVIDER_QUOTA,),
    Signal.PROVIDER_BARRED: (Reason.AUTH_FAILED,),
}
SIGNALS: dict[Reason | None, Signal] = {
    reason: signal for signal, reasons in _SIGNALS.items() for reason in reasons
}
"""By the reason of the attempt, None for good work. A rate limit is not here: the limiter slows down instead."""


class BreakerPolicy(BaseModel):
    """Section `breaker` of policies.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    of_last: int = Field(default=20, ge=1, le=200, description="How many attempts at a model are looked at.")
    failures: int = Field(default=12, ge=1, le=200, description="So many of them failed: the breaker opens.")
    forget_seconds: float = Field(
        default=600,
        gt=0,
        description="After so long without a word from the model all of them are forgotten.",
    )
    cool_down_seconds: float = Field(
        default=30,
        gt=0,
        description="How long the first opening lasts; each one after a failed trial is twice that.",
    )
    cool_down_cap_seconds: float = Field(default=600, gt=0, description="Longest opening after failures.")
    barred_seconds: float = Field(
        default=3600, gt=0, description="Opening after AUTH_FAILED (the whole provider) and PROVIDER_QUOTA."
    )
    trials: int = Field(default=2, ge=1, le=100, description="Most trials under way at once, of all workers.")
    answers_to_close: int = Field(
        default=2, ge=1, le=100, description="Answered trials that close the breaker."
    )
    patience_seconds: float = Field(
        default=10,
        ge=0,
        description="Tasks assigned to a model that is open for longer than this are decided anew.",
    )

    @model_validator(mode="after")
    def _can_open(self) -> BreakerPolicy:
        if self.failures > self.of_last:
            raise ValueError(
                f"failures is {self.failures} but at most of_last ({self.of_last}) is allowed, or it never opens"
            )
        return self


class Seen(NamedTuple):
    """An attempt that ended: its reason (None for good work), and when it began."""

    reason: Reason | None
    began: datetime


@dataclass(frozen=True, slots=True)
class Breaker:
    """Where a breaker stands.

    Attributes:
        since: when this state began; None for ever.
        retry_at: when an open one may be tried.
        openings: in a row, without closing between.
        recent: the last attempts of this state, oldest first: "." answered, "x" failed.
        heard_at: when the last of them ended.
        reason: of the failure that opened it last.
    """

    state: BreakerState = BreakerState.CLOSED
    since: datetime | None = None
    retry_at: datetime | None = None
    openings: int = 0
    recent: str = ""
    heard_at: datetime | None = None
    reason: Reason | None = None

    def is_troubled(self, policy: BreakerPolicy, now: datetime) -> bool:
        """Whether it matters what further attempts come to, answers included."""
        return self.state is not BreakerState.CLOSED or _FAILURE in _remembered(self, policy, now)

    def is_due(self, now: datetime) -> bool:
        """Whether it lets trials through."""
        is_over = self.retry_at is None or self.retry_at <= now
        return self.state is BreakerState.HALF_OPEN or (self.state is BreakerState.OPEN and is_over)


def signal_of(reason: Reason | None) -> Signal:
    """What an attempt that ended for `reason` says about the model."""
    return SIGNALS.get(reason, Signal.NOTHING)


def after(breaker: Breaker, seen: Iterable[Seen], policy: BreakerPolicy, now: datetime) -> Breaker:
    """The breaker after attempts that ended, in the order in which they did."""
    for one in seen:
        is_of_before = breaker.since is not None and one.began < breaker.since
        signal = signal_of(one.reason)
        if not is_of_before and signal is not Signal.NOTHING and breaker.state is not BreakerState.OPEN:
            breaker = _after_one(breaker, signal, one.reason, policy, now)
    return breaker


def half_opened(breaker: Breaker, now: datetime) -> Breaker:
    """An open breaker whose time has come, ready for trials. Any other one as it is."""
    if breaker.state is not BreakerState.OPEN or not breaker.is_due(now):
        return breaker
    return _moved(breaker, BreakerState.HALF_OPEN, now)


def permits(breaker: Breaker, under_way: int, policy: BreakerPolicy, now: datetime) -> int | None:
    """How many attempts may begin now; None for any number.

    Args:
        under_way: attempts that began in this state and have not ended.
    """
    if breaker.state is BreakerState.CLOSED:
        return None
    return max(0, policy.trials - under_way) if breaker.is_due(now) else 0


def reset(breaker: Breaker, now: datetime) -> Breaker:
    """Closed by a person, and everything forgotten."""
    if breaker.state is BreakerState.CLOSED:
        return Breaker(since=breaker.since)
    return _moved(breaker, BreakerState.CLOSED, now)


def _after_one(
    breaker: Breaker, signal: Signal, reason: Reason | None, policy: BreakerPolicy, now: datetime
) -> Breaker:
    if signal in (Signal.BARRED, Signal.PROVIDER_BARRED):
        return _opened(breaker, reason, policy.barred_seconds, now)
    mark = _FAILURE if signal is Signal.FAILED else _ANSWER
    recent = (_remembered(breaker, policy, now) + mark)[-policy.of_last :]
    heard = replace(breaker, recent=recent, heard_at=now)
    if breaker.state is BreakerState.HALF_OPEN:
        if signal is Signal.FAILED:
            return _opened(heard, reason, _cool_down(breaker.openings, policy), now)
        is_trusted = recent.count(_ANSWER) >= policy.answers_to_close
        return _moved(heard, BreakerState.CLOSED, now) if is_trusted else heard
    if recent.count(_FAILURE) >= policy.failures:
        return _opened(heard, reason, _cool_down(breaker.openings, policy), now)
    return heard


def _remembered(breaker: Breaker, policy: BreakerPolicy, now: datetime) -> str:
    """The last attempts; in a closed breaker those of long ago do not count any more."""
    is_old = breaker.heard_at is not None and now - breaker.heard_at > timedelta(
        seconds=policy.forget_seconds
    )
    return "" if is_old and breaker.state is BreakerState.CLOSED else breaker.recent


def _cool_down(openings: int, policy: BreakerPolicy) -> float:
    return float(min(policy.cool_down_cap_seconds, policy.cool_down_seconds * 2.0 ** min(openings, 30)))


def _opened(breaker: Breaker, reason: Reason | None, seconds: float, now: datetime) -> Breaker:
    moved = _moved(breaker, BreakerState.OPEN, now)
    retry_at = now + timedelta(seconds=seconds)
    return replace(moved, retry_at=retry_at, openings=breaker.openings + 1, reason=reason)


def _moved(breaker: Breaker, state: BreakerState, now: datetime) -> Breaker:
    if state not in LEGAL_MOVES[breaker.state]:
        raise ValueError(f"a breaker cannot go from {breaker.state} to {state}")
    if state is BreakerState.CLOSED:
        return Breaker(since=now)
    return replace(breaker, state=state, since=now, recent="", heard_at=None)
