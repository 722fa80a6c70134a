"""Which calls fail, in fair weather and in storms, and which are refused. Pure; by hash, like the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cp_resources.errors import UserError
from cp_resources.simulator.truth import Draws


class Failure(StrEnum):
    """How a call fails that would have been answered."""

    RATE_LIMITED = "rate-limited"
    SERVER_ERROR = "server-error"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"
    DISCONNECT = "disconnect"
    MID_STREAM = "mid-stream"
    OUT_OF_CREDIT = "out-of-credit"
    HANG = "hang"
    TRICKLE = "trickle"


MIXED = (
    *(Failure.RATE_LIMITED,) * 5,
    *(Failure.SERVER_ERROR,) * 4,
    *(Failure.UNAVAILABLE,) * 2,
    *(Failure.OVERLOADED,) * 4,
    *(Failure.DISCONNECT,) * 3,
    *(Failure.MID_STREAM,) * 2,
)
"""Kinds of a transient failure in proportion to how often they happen. What lasts happens only in a storm."""


class StormError(UserError):
    """The text of a storm that cannot be read."""


@dataclass(frozen=True, slots=True)
class Storm:
    """From `start` seconds after the simulator's own start, for `seconds`, this share of calls fails."""

    start: float
    seconds: float
    share: float
    kind: Failure | None = None

    @classmethod
    def parse(cls, text: str) -> Storm:
        """Read START:SECONDS:SHARE or START:SECONDS:SHARE:KIND."""
        numbers, kinds = text.split(":")[:3], text.split(":")[3:]
        try:
            start, seconds, share = map(float, numbers)
            storm = cls(start, seconds, share, *map(Failure, kinds))
        except (TypeError, ValueError):
            storm = None
        if storm is None or not (storm.start >= 0 and storm.seconds > 0 and 0 <= storm.share <= 1):
            raise StormError(
                f"--storm {text!r} is not START:SECONDS:SHARE[:KIND]; START is in seconds after the "
                f"simulator's start, SHARE is from 0 to 1, KIND is one of {', '.join(Failure)}; "
                "for example 10:30:0.7"
            )
        return storm

    def rages(self, elapsed: float) -> bool:
        """Whether it is on `elapsed` seconds after the start."""
        return self.start <= elapsed < self.start + self.seconds


def failure_of(
    seed: int, key: tuple[str, str, str], share: float, storms: Sequence[Storm], elapsed: float
) -> Failure | None:
    """Return how the call `key` (model, task, attempt) fails, or None.

    A call has one number that says from which share on it fails, so a storm adds failures and removes none.
    """
    draws = Draws(seed, "weather", *key)
    threshold, kind = draws.uniform(), MIXED[draws.below(len(MIXED))]
    for storm in storms:
        if storm.rages(elapsed) and threshold < storm.share:
            return storm.kind or kind
    return kind if threshold < share else None


def is_refused(seed: int, model: str, task: str, share: float) -> bool:
    """Whether this model declines this task; it does so on every attempt."""
    return Draws(seed, "refusal", model, task).uniform() < share


def is_filtered(seed: int, model: str, task: str) -> bool:
    """Whether a refusal comes from the provider's content filter: one in three."""
    return Draws(seed, "filter", model, task).uniform() < 1 / 3
