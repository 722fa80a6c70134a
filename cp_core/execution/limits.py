"""How fast models may be called: what each worker gets of a shared limit, and the pace within a minute.

Pure: the time is an argument, in seconds of a clock that never goes back, or UTC where a provider names an instant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

MINUTE = 60.0
BURST = 0.1
"""Share of a minute's limit that may be used at once; the rest is spread over the minute."""
LONGEST_PAUSE_SECONDS = 3600.0
SCARCE = 0.05
"""When less than this share of the allowed requests remains, they are spread over what is left of the window."""

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_OPENAI_KINDS = ("requests", "tokens")
_ANTHROPIC_KINDS = ("requests", "tokens", "input-tokens", "output-tokens")


def share(
    limit: int, worker: str, wanted: Mapping[str, int], held: Mapping[str, int], in_use: int, *, turn: int = 0
) -> int:
    """What one worker may hold of a limit that all workers share.

    Everybody gets the same, nobody more than wanted, and what others do not want is shared out anew. A worker that
    holds more than that keeps only what is in use; one that should have more gets what the others have let go of. So
    the sum of what is held never exceeds the limit, whoever asks when, as long as nobody uses more than was held.

    Args:
        wanted: by worker, this one included.
        held: by worker, what the others hold now.
        in_use: what this worker cannot give back at this moment.
        turn: rotates who gets what cannot be divided.
    """
    free = limit - sum(amount for other, amount in held.items() if other != worker)
    return max(in_use, min(_fair(limit, wanted, turn).get(worker, 0), max(0, free)))


@dataclass(slots=True)
class Pace:
    """A leaky bucket for `limit` a minute: in no minute is more begun than that, and what the last one was too large.

    A fresh one is empty, so that a worker which takes over another's share does not use the same minute twice.

    Attributes:
        limit: a minute.
        level: what may be used at once; below 0 after something large.
        at: when `level` held.
    """

    limit: float
    level: float
    at: float

    def wait_seconds(self, now: float) -> float:
        """How long until something may begin; 0 for at once."""
        self._fill(now)
        if self.level > 0:
            return 0.0
        rate = self._rate()
        return (min(1.0, self._capacity()) - self.level) / rate if rate > 0 else MINUTE

    def take(self, amount: float, now: float) -> None:
        """Use `amount`, whatever the level; a negative amount gives back what was not used after all."""
        self._fill(now)
        self.level = min(self._capacity(), self.level - amount)

    def set_limit(self, limit: float, now: float) -> None:
        """Have another limit from now on."""
        self._fill(now)
        self.limit = limit
        self.level = min(self.level, self._capacity())

    def _fill(self, now: float) -> None:
        self.level = min(self._capacity(), self.level + max(0.0, now - self.at) * self._rate())
        self.at = max(self.at, now)

    def _capacity(self) -> float:
        return self.limit * BURST

    def _rate(self) -> float:
        return self.limit * (1 - BURST) / MINUTE


def pause_seconds(headers: Mapping[str, str], now: datetime) -> float:
    """How long the headers of an answer say that nothing more should be sent; 0 when there is room.

    OpenAI: https://platform.openai.com/docs/guides/rate-limits, Anthropic: https://docs.anthropic.com/en/api/rate-limits.

    Args:
        headers: of the response, names in lower case.
        now: UTC.
    """
    named = [(kind, f"x-ratelimit-{{}}-{kind}") for kind in _OPENAI_KINDS]
    named += [(kind, f"anthropic-ratelimit-{kind}-{{}}") for kind in _ANTHROPIC_KINDS]
    return min(max(_pause(kind, name, headers, now) for kind, name in named), LONGEST_PAUSE_SECONDS)


def _pause(kind: str, name: str, headers: Mapping[str, str], now: datetime) -> float:
    limit = headers.get(name.format("limit"))
    left = _number(headers.get(name.format("remaining")))
    until = _seconds_until(headers.get(name.format("reset")), now)
    if left is None or until is None:
        return 0.0
    if left <= 0:
        return until
    allowed = _number(limit)
    if kind == "requests" and allowed and left < SCARCE * allowed:
        return until / (left + 1)
    return 0.0


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seconds_until(reset: str | None, now: datetime) -> float | None:
    """Seconds of a span such as 6m0s or 620ms, or until an instant such as 2026-03-04T12:00:00Z."""
    if reset is None:
        return None
    spans = _SPAN.findall(reset)
    if spans and "".join(number + unit for number, unit in spans) == reset.strip():
        return sum(float(number) * _SECONDS[unit] for number, unit in spans)
    try:
        moment = datetime.fromisoformat(reset.strip())
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def _fair(limit: int, wanted: Mapping[str, int], turn: int) -> dict[str, int]:
    """The same for everybody, but nobody more than wanted."""
    waiting = sorted(worker for worker, amount in wanted.items() if amount > 0)
    fair = dict.fromkeys(wanted, 0)
    left = limit
    while waiting and left > 0:
        each = left // len(waiting)
        modest = [worker for worker in waiting if wanted[worker] <= each]
        if not modest:
            first = turn % len(waiting)
            rotated = waiting[first:] + waiting[:first]
            return fair | {
                worker: each + (number < left % len(waiting)) for number, worker in enumerate(rotated)
            }
        for worker in modest:
            fair[worker] = wanted[worker]
            left -= wanted[worker]
        waiting = [worker for worker in waiting if worker not in modest]
    return fair
