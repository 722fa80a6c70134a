"""When a claimed task's call may begin: within this worker's shares, at the pace that is allowed, and after any pause.

In one event loop; `cp_resources.shares` says what this worker holds. Tasks of a model begin in the order in which they
came. aiolimiter is not used: it can change neither its rate nor pause, and lets a whole minute's calls go at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager

from cp_core.execution.limits import Pace
from cp_core.models.registry import Limits, ModelRegistry
from cp_resources.executions import ClaimedTask
from cp_resources.shares import Share, Wish

EVERYTHING = "all"
"""The scope of the whole platform."""


class Limiter:
    """Lets calls begin.

    Args:
        models: those that this worker serves.
        concurrency: most calls of this worker at a time.
        most_calls: most calls of all workers at a time; None for no limit.
    """

    def __init__(
        self, registry: ModelRegistry, models: Iterable[str], concurrency: int, most_calls: int | None
    ) -> None:
        self._registry = registry
        self._models = list(models)
        self._concurrency = concurrency
        self._slots = dict(self._slot_limits(most_calls))
        self._rates = dict(self._rate_limits())
        self._scopes: dict[tuple[str, str | None], list[str]] = {}
        self._usable: Counter[str] = Counter()
        self._in_use: Counter[str] = Counter()
        self._under_way = 0
        self._paces: dict[str, Pace] = {}
        self._paused_until: dict[str, float] = {}
        self._valid_until = float("-inf")
        self._waiting: dict[str, deque[tuple[ClaimedTask, asyncio.Future[None]]]] = defaultdict(deque)
        self._timer: asyncio.TimerHandle | None = None

    def share_of(self, model: str) -> int:
        """How many calls of a model this worker may have under way now."""
        provider = f"provider:{self._registry.model(model).provider}"
        scopes = [scope for scope in (f"model:{model}", provider, EVERYTHING) if scope in self._slots]
        return min(self._usable[scope] for scope in scopes)

    def is_paused(self, model: str) -> bool:
        """Whether the provider asked to wait."""
        return self._paused_until.get(f"model:{model}", 0.0) > time.monotonic()

    def wishes(self, busy: Iterable[str]) -> dict[str, Wish]:
        """What to ask for, when there is work for the models in `busy`."""
        wanting = {scope for model in busy for scope in self._scopes_of(model)}
        now = time.monotonic()
        slots = {
            scope: Wish(
                limit,
                limit if scope in wanting else 0,
                max(self._in_use[scope], self._usable[scope]),
                max(0.0, self._paused_until.get(scope, now) - now),
            )
            for scope, limit in self._slots.items()
        }
        rates = {scope: Wish(limit, limit if scope in wanting else 0) for scope, limit in self._rates.items()}
        return slots | rates

    def hold(self, shares: Mapping[str, Share], seconds: float) -> None:
        """Go by these shares from now on, for at most `seconds`."""
        now = time.monotonic()
        self._valid_until = now + seconds
        for scope, one in shares.items():
            self._usable[scope] = one.usable
            if scope in self._rates:
                self._paces.setdefault(scope, Pace(one.usable, 0.0, now)).set_limit(one.usable, now)
            if one.paused_seconds:
                self._pause_scope(scope, one.paused_seconds)
        self._wake()

    def pause(self, model: str, seconds: float) -> None:
        """Begin nothing of a model for a while, because its provider said so."""
        if seconds > 0:
            self._pause_scope(f"model:{model}", seconds)

    @asynccontextmanager
    async def turn(self, claimed: ClaimedTask) -> AsyncIterator[None]:
        """Wait until the call may begin; inside, it counts as under way."""
        waiting = self._waiting[claimed.model]
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append((claimed, turn))
        self._wake_model(claimed.model)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end(claimed)
            else:
                waiting.remove((claimed, turn))
            raise
        try:
            yield
        finally:
            self._end(claimed)

    def correct(self, claimed: ClaimedTask, tokens: int) -> None:
        """Count what an attempt really used instead of what was expected."""
        now = time.monotonic()
        for scope in self._scopes_of(claimed.model):
            if scope.startswith("tokens:") and scope in self._paces:
                self._paces[scope].take(tokens - claimed.tokens_expected, now)

    def _slot_limits(self, most_calls: int | None) -> Iterator[tuple[str, int]]:
        for name in self._models:
            yield f"model:{name}", self._registry.model(name).max_concurrency
        for provider in self._registry.providers.values():
            if provider.limits.max_concurrency:
                yield f"provider:{provider.name}", provider.limits.max_concurrency
        for funding, most in self._registry.funding_concurrency().items():
            yield f"funding:{funding}", most
        if most_calls:
            yield EVERYTHING, most_calls

    def _rate_limits(self) -> Iterator[tuple[str, int]]:
        models = [self._registry.model(name) for name in self._models]
        named: list[tuple[str, Limits]] = [(f"model:{model.name}", model.limits) for model in models]
        named += [(f"provider:{one.name}", one.limits) for one in self._registry.providers.values()]
        for name, limits in named:
            if limits.requests_per_minute:
                yield f"requests:{name}", limits.requests_per_minute
            if limits.tokens_per_minute:
                yield f"tokens:{name}", limits.tokens_per_minute

    def _scopes_of(self, model: str, funding: str | None = None) -> list[str]:
        """What limits a call of `model`, by whatever pays for it or by `funding`; asked several times a call."""
        known = self._scopes.get((model, funding))
        if known is None:
            known = self._scopes[model, funding] = self._find_scopes(model, funding)
        return known

    def _find_scopes(self, model: str, funding: str | None) -> list[str]:
        names = [f"model:{model}", f"provider:{self._registry.model(model).provider}"]
        fundings = [funding] if funding else [one.name for one in self._registry.fundings(model)]
        slots = [*names, *(f"funding:{one}" for one in fundings), EVERYTHING]
        rates = [f"{kind}:{name}" for kind in ("requests", "tokens") for name in names]
        return [scope for scope in slots if scope in self._slots] + [
            scope for scope in rates if scope in self._rates
        ]

    def _wait_seconds(self, claimed: ClaimedTask, now: float) -> float | None:
        """0 when the call may begin, the seconds until it may be asked again, None when something must end first."""
        if self._under_way >= self._concurrency or now >= self._valid_until:
            return None
        scopes = self._scopes_of(claimed.model, claimed.funding)
        if any(scope in self._slots and self._in_use[scope] >= self._usable[scope] for scope in scopes):
            return None
        paused = self._paused_until.get(f"model:{claimed.model}", now) - now
        paces = [self._paces[scope].wait_seconds(now) for scope in scopes if scope in self._paces]
        return max([0.0, paused, *paces])

    def _begin(self, claimed: ClaimedTask, now: float) -> None:
        self._under_way += 1
        for scope in self._scopes_of(claimed.model, claimed.funding):
            if scope in self._slots:
                self._in_use[scope] += 1
            elif scope in self._paces:
                amount = 1.0 if scope.startswith("requests:") else claimed.tokens_expected
                self._paces[scope].take(amount, now)

    def _end(self, claimed: ClaimedTask) -> None:
        self._under_way -= 1
        for scope in self._scopes_of(claimed.model, claimed.funding):
            if scope in self._slots:
                self._in_use[scope] -= 1
        self._wake_model(claimed.model)
        self._wake()

    def _wake(self) -> None:
        for model in [model for model, waiting in self._waiting.items() if waiting]:
            self._wake_model(model)

    def _wake_model(self, model: str) -> None:
        waiting = self._waiting[model]
        while waiting:
            now = time.monotonic()
            claimed, turn = waiting[0]
            seconds = self._wait_seconds(claimed, now)
            if seconds is None:
                return
            if seconds > 0:
                self._look_again(seconds)
                return
            waiting.popleft()
            self._begin(claimed, now)
            turn.set_result(None)

    def _look_again(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if (
            self._timer
            and not self._timer.cancelled()
            and loop.time() < self._timer.when() <= loop.time() + seconds
        ):
            return
        if self._timer:
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._wake)

    def _pause_scope(self, scope: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._paused_until[scope] = max(until, self._paused_until.get(scope, until))
