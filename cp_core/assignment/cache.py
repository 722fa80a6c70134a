"""What a process remembers of its decisions: equal tasks at equal capacity get the equal decision at once.

A decision, or that none was possible, is kept under a key that holds everything it depends on (see `inline.Desk`), so
a remembered answer is the one that would be found again. It counts for nothing until the ledger has reserved for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class PlannerCache(Generic[Answer]):
    """Answers by key, for a while, the least recently used forgotten first. Safe to share between threads.

    Args:
        ttl_seconds: how long an answer is remembered.
        most_entries: how many are remembered at once.

    Attributes:
        hits, misses: look-ups that found an answer, and those that did not.
    """

    def __init__(self, ttl_seconds: float, most_entries: int) -> None:
        self._ttl_seconds = ttl_seconds
        self._most_entries = most_entries
        self._answers: OrderedDict[Hashable, tuple[float, Answer]] = OrderedDict()
        self._lock = Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def hit_rate(self) -> float | None:
        """Share of look-ups that found an answer; None without look-ups."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else None

    def get(self, key: Hashable, now: float) -> Answer | None:
        """The answer under `key`, unless there is none or it is too old.

        Args:
            now: seconds of a clock that never goes back. An answer from its future is forgotten, not trusted.
        """
        with self._lock:
            stored, answer = self._answers.get(key, (now, None))
            if answer is not None and not 0 <= now - stored < self._ttl_seconds:
                del self._answers[key]
                answer = None
            if answer is None:
                self.misses += 1
                return None
            self._answers.move_to_end(key)
            self.hits += 1
            return answer

    def put(self, key: Hashable, answer: Answer, now: float) -> None:
        """Remember `answer` under `key` from `now` on."""
        with self._lock:
            self._answers[key] = (now, answer)
            self._answers.move_to_end(key)
            while len(self._answers) > self._most_entries:
                self._answers.popitem(last=False)

    def clear(self) -> None:
        """Forget every answer."""
        with self._lock:
            self._answers.clear()
