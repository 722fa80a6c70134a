"""One call goes first with a prefix, so that the provider's prompt cache holds it for those that follow.

Calls that are made at once all miss the cache, and where writing is charged all write it. Here the first one goes,
and the others wait until it is answered or a limit has passed. Per process, and by prefix.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cp_core.execution.prompt_cache import TIME_TO_LIVE_SECONDS


@dataclass
class Turn:
    """A call's turn. Whoever makes the call sets `answered`: the provider holds the prefix then."""

    is_first: bool
    waited_seconds: float
    answered: bool = False


class Primer:
    """Gives turns to the calls of one event loop.

    Args:
        patience_seconds: how long calls wait for one that went first, from when it went; 0 for no waiting.
        clock: seconds, monotonic.
    """

    def __init__(self, patience_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience_seconds
        self._clock = clock
        self._held_until: dict[str, float] = {}
        self._first: dict[str, tuple[asyncio.Event, float]] = {}

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[Turn]:
        """Wait for the turn of a call with the prefix `key`, and have it."""
        asked = self._clock()
        waited = await self._wait(key)
        is_first = self._is_cold(key) and key not in self._first
        if is_first:
            self._first[key] = (asyncio.Event(), self._clock())
        turn = Turn(is_first, self._clock() - asked if waited else 0.0)
        try:
            yield turn
        finally:
            if turn.answered:
                self._held_until[key] = self._clock() + TIME_TO_LIVE_SECONDS
            if is_first:
                self._first.pop(key)[0].set()

    async def _wait(self, key: str) -> bool:
        """Wait while another call is the first with this prefix; whether that was so.

        When the first one fails, one of those that waited goes first.
        """
        waited = False
        while self._is_cold(key) and key in self._first:
            ended, began = self._first[key]
            left = began + self._patience - self._clock()
            if left <= 0:
                return waited
            waited = True
            try:
                await asyncio.wait_for(ended.wait(), left)
            except TimeoutError:
                return waited
        return waited

    def _is_cold(self, key: str) -> bool:
        return self._held_until.get(key, float("-inf")) <= self._clock()
