"""One call goes first with a prefix: the others wait for it, for as long as it is worth."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cp_core.execution.prompt_cache import TIME_TO_LIVE_SECONDS
from cp_resources.worker_kinds.priming import Primer


class Calls:
    """Calls that end when they are told to, each written down when it begins."""

    def __init__(self, primer: Primer) -> None:
        self.primer = primer
        self.begun: list[str] = []
        self.first: list[str] = []
        self.waited: dict[str, float] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def make(self, name: str, key: str = "prefix", *, answered: bool = True) -> None:
        self._ends[name] = asyncio.Event()
        async with self.primer.turn(key) as turn:
            self.begun.append(name)
            self.waited[name] = turn.waited_seconds
            if turn.is_first:
                self.first.append(name)
            await self._ends[name].wait()
            turn.answered = answered

    def end(self, name: str) -> None:
        self._ends[name].set()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def end_all(calls: Calls, going: list[asyncio.Task[None]]) -> None:
    while not all(task.done() for task in going):
        for name in list(calls.begun):
            calls.end(name)
        await settle()
    await asyncio.gather(*going)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


def begin(calls: Calls, *names: str, **options: Any) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(calls.make(name, **options)) for name in names]


def test_the_others_wait_for_the_first_and_then_go_all_at_once() -> None:
    async def scenario() -> None:
        calls = Calls(Primer(patience_seconds=60))
        going = begin(calls, "a", "b", "c")
        await settle()
        assert calls.begun == ["a"]
        calls.end("a")
        await settle()
        assert calls.begun == ["a", "b", "c"]
        assert calls.first == ["a"]
        assert calls.waited["a"] == 0
        await end_all(calls, going)

    run(scenario())


def test_other_prefixes_do_not_wait() -> None:
    async def scenario() -> None:
        calls = Calls(Primer(patience_seconds=60))
        going = [*begin(calls, "a"), *begin(calls, "b", key="another")]
        await settle()
        assert calls.first == ["a", "b"]
        await end_all(calls, going)

    run(scenario())


def test_when_the_first_fails_one_of_the_others_goes_first() -> None:
    async def scenario() -> None:
        calls = Calls(Primer(patience_seconds=60))
        going = [*begin(calls, "a", answered=False), *begin(calls, "b", "c")]
        await settle()
        calls.end("a")
        await settle()
        assert (calls.begun, calls.first) == (["a", "b"], ["a", "b"])
        await end_all(calls, going)
        assert calls.first == ["a", "b"]

    run(scenario())


def test_nobody_waits_longer_than_the_limit_from_when_the_first_went() -> None:
    async def scenario() -> None:
        calls = Calls(Primer(patience_seconds=0.05))
        going = begin(calls, "slow", "b")
        while "b" not in calls.begun:
            await asyncio.sleep(0.01)
        assert calls.waited["b"] > 0
        going += begin(calls, "c")
        await settle()
        assert calls.begun == ["slow", "b", "c"]
        assert calls.first == ["slow"]
        await end_all(calls, going)

    run(scenario())


def test_without_patience_nobody_waits() -> None:
    async def scenario() -> None:
        calls = Calls(Primer(patience_seconds=0))
        going = begin(calls, "a", "b")
        await settle()
        assert calls.begun == ["a", "b"]
        assert calls.waited == {"a": 0, "b": 0}
        await end_all(calls, going)

    run(scenario())


def test_a_cancelled_first_call_lets_another_go() -> None:
    async def scenario() -> None:
        calls = Calls(Primer(patience_seconds=60))
        [first] = begin(calls, "a")
        going = begin(calls, "b")
        await settle()
        first.cancel()
        await settle()
        assert calls.first == ["a", "b"]
        await end_all(calls, going)

    run(scenario())


def test_a_prefix_that_was_not_used_for_its_time_to_live_is_filled_anew() -> None:
    now = 1000.0

    async def scenario() -> None:
        nonlocal now
        calls = Calls(Primer(60, clock=lambda: now))
        for name, pause in (("a", TIME_TO_LIVE_SECONDS - 1), ("b", TIME_TO_LIVE_SECONDS - 1)):
            await end_all(calls, begin(calls, name))
            now += pause
        assert calls.first == ["a"]  # b's use kept it for as long again
        await end_all(calls, begin(calls, "c"))
        now += TIME_TO_LIVE_SECONDS
        await end_all(calls, begin(calls, "d"))
        assert calls.first == ["a", "d"]

    run(scenario())
