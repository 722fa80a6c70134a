"""The worker: executes the assigned tasks of one submission day until nothing is left that can move.

It claims in batches, keeps a limit per model and overall, records in batches, renews its leases, and sends
tasks that need another model back through assignment. What an attempt is made of is a `WorkerKind`'s matter;
what comes of it is decided in `cp_core.execution`; the rows are `ExecutionStore`'s.
"""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import islice
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
from structlog.contextvars import bind_contextvars
from structlog.stdlib import BoundLogger

from cp_core.execution.breaker import Signal, signal_of
from cp_core.execution.outcome import AttemptResult, NextStep
from cp_core.execution.prompt_cache import CacheSummary
from cp_core.execution.retry import retry_delay
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import FINAL_STATES, TaskState
from cp_resources import breakers
from cp_resources.configuration import Configuration
from cp_resources.database import Database, DatabaseUnavailableError
from cp_resources.executions import ClaimedTask, ExecutionStore, Finished, OpenTasks
from cp_resources.health import start_up
from cp_resources.ledger import Ledger
from cp_resources.limiter import Limiter
from cp_resources.log import logger
from cp_resources.progress import DrainLog
from cp_resources.providers.endpoint import require_keys
from cp_resources.request_log import kept_by, request_log
from cp_resources.settings import Settings
from cp_resources.worker_kinds import CutOffError, NotBegunError, WorkerKind
from cp_resources.worker_kinds.by_provider import WorkersByProvider

PREFETCH = 2
"""Tasks held per call in flight, so that a call that ends is followed by the next one at once."""
RECORD_AFTER_SECONDS = 0.05
"""How long a finished attempt waits for others to be recorded with it."""
SWITCH_SECONDS = 0.0005
"""How long the event loop may keep a thread waiting that comes back from the database. With Python's own 5 ms, once or
more a round trip, waiting is most of what a transaction takes."""
CLAIM_EVERY_SECONDS = 0.05
REASSIGN_EVERY_SECONDS = 0.5
SWEEP_EVERY_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 1.0
"""How often a worker that can claim nothing looks again."""
REPORT_EVERY_SECONDS = 1.0
SHARES_EVERY_SECONDS = 1.0
TELL_EVERY_SECONDS = 2.0
"""How often a drain says in table drains that it lives, and how far it is."""
COUNT_EVERY_SECONDS = 10.0
"""How often it counts what is left of its day."""
CALLED_OFF_EVERY_SECONDS = 1.0
"""How often a worker asks whether a task that it holds is to be cancelled."""
DATABASE_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses between tries when the database fails; every call here may be repeated safely."""

Result = TypeVar("Result")


class Ended(StrEnum):
    """Why a drain ended."""

    DRAINED = "drained"  # every task of the day is final
    WAITING = "waiting"  # what is left waits for quota, or for longer than the time budget
    TIME_BUDGET = "time budget"
    STOPPED = "stopped"  # by a signal


@dataclass
class DrainSummary:
    """What a drain did; it grows while the drain runs.

    Attributes:
        attempts: that ended, whatever came of them.
        moved_to: how many times a task went to each state after an attempt.
        failures: attempts by reason.
        escalated: attempts that led to the next stage of their plan.
        late: attempts whose lease had been lost by the time they ended.
        cache: what prompt caching came to.
        cost_usd: list price of all attempts; billed against budgets is only part of it.
        seconds: since it began.
        open: unfinished tasks of the day when they were last counted, by state.
    """

    attempts: int = 0
    moved_to: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    escalated: int = 0
    late: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cache: CacheSummary = field(default_factory=CacheSummary)
    cost_usd: Decimal = Decimal(0)
    seconds: float = 0.0
    ended: Ended | None = None
    open: dict[str, int] = field(default_factory=dict)

    @property
    def succeeded(self) -> int:
        """Tasks that this drain brought to success."""
        return self.moved_to[TaskState.SUCCEEDED]

    @property
    def eta_seconds(self) -> float | None:
        """Until the open tasks are over at the rate so far; None while none has ended."""
        over = sum(self.moved_to[state] for state in FINAL_STATES)
        return self.seconds / over * sum(self.open.values()) if over else None

    def figures(self) -> dict[str, int | Decimal]:
        """What table drains holds of it."""
        return {
            "attempts": self.attempts,
            "succeeded": self.succeeded,
            "failed": self.moved_to[TaskState.FAILED] + self.moved_to[TaskState.DEAD],
            "cancelled": self.moved_to[TaskState.CANCELLED],
            "late": self.late,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
        }

    def count(self, finished: Finished, step: NextStep | None) -> None:
        """Add one recorded attempt."""
        result = finished.result
        self.attempts += 1
        self.input_tokens += result.usage.input_tokens
        self.cached_tokens += result.usage.cached_tokens
        self.output_tokens += result.usage.output_tokens
        self.cost_usd += result.cost_usd
        if result.reason:
            self.failures[result.reason] += 1
        if step:
            self.moved_to[step.state] += 1
            self.escalated += step.stage > finished.claimed.stage
        else:
            self.late += 1


def drain(
    database: Database,
    ledger: Ledger,
    configuration: Configuration,
    settings: Settings,
    day: date,
    *,
    worker_name: str,
    time_budget: timedelta,
    run_id: str | None = None,
    on_progress: Callable[[DrainSummary], None] | None = None,
    assign_again: Callable[[], object] | None = None,
) -> DrainSummary:
    """Execute the tasks submitted on `day` until all are final, none can move, or the time budget ends.

    On SIGTERM or SIGINT nothing more is claimed, calls in flight have `execution.drain_seconds` to end,
    leases are given back, and then the signal goes on to whoever handled it before. A second signal cuts the
    calls off at once.

    Args:
        worker_name: beginning of the lease owner's name; it is made unique.
        on_progress: called about once a second with the summary so far.
        assign_again: assigns the day's queued tasks, and those deferred whose time has come.

    Raises:
        UnfitError: the database has not the tables that this code works with.
        ProviderKeyError: tasks are assigned to models whose provider has no key.
        DatabaseUnavailableError: the database stayed away.
    """
    store = ExecutionStore(database, ledger, configuration)

    async def work() -> tuple[DrainSummary, int | None]:
        bind_contextvars(day=str(day), run=run_id)
        log = logger(__name__)
        for finding in await _persistently(log, start_up, database, settings):
            log.warning("start-up check", check=finding.check, found=finding.found, todo=finding.todo)
        async with WorkersByProvider(configuration.registry, configuration.policies, settings) as kind:
            owner = f"{worker_name}-{uuid4().hex[:8]}"
            told = DrainLog(database, owner, day, run_id)
            worker = _Drain(store, kind, configuration, day, owner, run_id, on_progress, assign_again, told)
            with (
                kept_by(request_log(settings.home, configuration.policies.request_log)),
                worker.stopped_by_signals(),
            ):
                summary = await worker.run(time_budget.total_seconds())
            return summary, worker.stop_signal

    with _undisturbed():
        summary, stop_signal = asyncio.run(work())
    if stop_signal is not None:
        signal.raise_signal(stop_signal)
    return summary


_drains_lock = threading.Lock()
_switch_intervals: list[float] = []
"""What each drain under way in this process found when it began: the first one's is put back."""


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let threads that talk to the database have their turn soon, and keep the garbage collector from looking through
    all that was there before the drain again and again. Of several drains in one process the first one does so, and the
    last one puts both back.
    """
    with _drains_lock:
        if not _switch_intervals:
            gc.freeze()
        _switch_intervals.append(sys.getswitchinterval())
        sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        with _drains_lock:
            before = _switch_intervals.pop()
            if not _switch_intervals:
                gc.unfreeze()
                sys.setswitchinterval(before)


@dataclass(eq=False)
class _Held:
    """A task under this worker's lease.

    Attributes:
        claimed_at: monotonic time.
        leased_until: monotonic time before which the lease has certainly not run out.
        begun: a call was made, and may be billed.
        ended: the attempt has a result, which is recorded or about to be.
        called_off: who wants the task cancelled, and why.
        cut_off: what is known of an attempt that ended because this worker does.
    """

    claimed: ClaimedTask
    claimed_at: float
    leased_until: float
    begun: bool = False
    ended: bool = False
    called_off: str | None = None
    cut_off: AttemptResult | None = None
    attempt: asyncio.Task[None] | None = None


class _Drain:
    """One drain, on one event loop."""

    def __init__(
        self,
        store: ExecutionStore,
        kind: WorkerKind,
        configuration: Configuration,
        day: date,
        owner: str,
        run_id: str | None,
        on_progress: Callable[[DrainSummary], None] | None,
        assign_again: Callable[[], object] | None,
        told: DrainLog,
    ) -> None:
        self.stop_signal: int | None = None
        self._told = told
        self._hurry = asyncio.Event()  # told to stop twice
        self._store = store
        self._kind = kind
        self._registry = configuration.registry
        self._policy = configuration.policies.execution
        self._day = day
        self._owner = owner
        self._run_id = run_id
        self._on_progress = on_progress
        self._assign_again = assign_again
        self._log = logger(__name__, day=str(day), worker=owner, run=run_id)
        self._limits = {
            model.name: model.max_concurrency
            for model in self._registry.models.values()
            if model.enabled and model.provider in kind.providers
        }
        self._limiter = Limiter(
            self._registry, self._limits, self._policy.concurrency, self._policy.most_calls
        )
        self._has_room = True  # for another task, as far as limits and pauses go
        self._held: dict[int, _Held] = {}  # by execution
        self._shut: Counter[str] = (
            Counter()
        )  # unrecorded results, by model, after which it is not called again
        self._results: deque[tuple[_Held, Finished]] = deque()
        self._result_ready = asyncio.Event()
        self._changed = asyncio.Event()
        self._closing = False
        self._failure: BaseException | None = None
        self._may_assign = False  # something changed since the last assignment
        self._swept_at = self._assigned_at = self._reported_at = float("-inf")
        self._random = random.Random()  # noqa: S311  (jitter, not a secret)
        self._summary = DrainSummary()
        self._started = time.monotonic()

    async def run(self, seconds: float) -> DrainSummary:
        """Drain for at most `seconds`, then wind down."""
        self._started = started = time.monotonic()
        await self._tell()
        teller = self._in_background(self._keep_telling())
        recorder = self._in_background(self._record_results())
        heart = self._in_background(self._renew_leases())
        ear = self._in_background(self._follow_cancelling())
        shares = self._in_background(self._keep_shares())
        try:
            await self._renew_shares()
            self._summary.ended = await self._claim_until_done(started + seconds)
            await self._wind_down(recorder, self._policy.drain_seconds)
        except BaseException:
            await self._wind_down_after_failure(recorder)
            raise
        finally:
            heart.cancel()
            ear.cancel()
            teller.cancel()
            shares.cancel()
        await self._call(self._store.shares.give_up, self._owner)
        await self._count_open()
        self._tell_of_short_prefixes()
        self._report(at_once=True)
        await self._tell(self._summary.ended)
        return self._summary

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the drain in good order; only a process's main thread can hear them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _stop(self, number: int) -> None:
        self._log.info("stopping", signal=signal.Signals(number).name, held=len(self._held))
        if self.stop_signal is not None:
            self._hurry.set()
        self.stop_signal = number
        self._changed.set()

    async def _claim_until_done(self, ends_at: float) -> Ended:
        await self._require_keys()
        while self.stop_signal is None:
            left = ends_at - time.monotonic()
            if left <= 0:
                return Ended.TIME_BUDGET
            await self._sweep()
            await self._give_back_shut()
            await self._reassign()
            if claimed := await self._claim():
                seconds = 0.0 if claimed == self._policy.batch_size else CLAIM_EVERY_SECONDS
                await self._wait(min(seconds, left), wake=False)
            elif self._held:
                await self._wait(min(LOOK_AGAIN_SECONDS, left))
            else:
                open_tasks = await self._call(self._store.open_tasks, self._day)
                if not open_tasks:
                    return Ended.DRAINED
                await self._require_keys()  # what was assigned meanwhile may need another provider
                self._may_assign = self._may_assign or self._is_breaker_over(open_tasks)
                pause = self._pause(open_tasks)
                if pause is None or pause > left:
                    return Ended.WAITING
                await self._wait(pause)
        return Ended.STOPPED

    async def _require_keys(self) -> None:
        waiting = await self._call(self._store.assigned_models, self._day)
        require_keys(waiting, self._registry, self._kind.providers)

    def _pause(self, open_tasks: Mapping[TaskState, OpenTasks]) -> float | None:
        """Seconds after which an idle worker has something to do; None when that is not to be expected."""
        pauses = []
        if TaskState.ASSIGNED in open_tasks:
            pauses.append(open_tasks[TaskState.ASSIGNED].available_in)
        if TaskState.RUNNING in open_tasks:
            pauses.append(LOOK_AGAIN_SECONDS)
        if self._assign_again and self._may_assign:
            pauses += [
                open_tasks[state].available_in
                for state in (TaskState.QUEUED, TaskState.DEFERRED)
                if state in open_tasks
            ]
        if self._assign_again and TaskState.DEFERRED in open_tasks:
            pauses.append(open_tasks[TaskState.DEFERRED].breaker_in)
        known = [pause for pause in pauses if pause is not None]
        return (
            max(min(known), CLAIM_EVERY_SECONDS if self._has_room else LOOK_AGAIN_SECONDS) if known else None
        )

    def _is_breaker_over(self, open_tasks: Mapping[TaskState, OpenTasks]) -> bool:
        deferred = open_tasks.get(TaskState.DEFERRED)
        return deferred is not None and deferred.breaker_in is not None and deferred.breaker_in <= 0

    async def _sweep(self) -> None:
        """Take back expired leases, and move on what must not be executed."""
        if time.monotonic() - self._swept_at < min(SWEEP_EVERY_SECONDS, self._policy.lease_seconds):
            return
        self._swept_at = time.monotonic()
        expired = await self._call(self._store.requeue_expired)
        withdrawn = await self._call(self._store.withdraw, self._day)
        if expired or withdrawn:
            self._may_assign = True
            self._log.info("swept", leases_expired=expired, withdrawn=withdrawn)

    async def _give_back_shut(self) -> None:
        """Give back what has not begun of models that are to be left alone now."""
        await self._give_back(
            [
                held
                for held in self._held.values()
                if not held.begun and not held.called_off and self._is_shut(held.claimed.model)
            ]
        )

    async def _give_back(self, unbegun: Sequence[_Held]) -> None:
        if unbegun:
            await _cancel(unbegun)
            await self._call(self._store.release, self._owner, [held.claimed for held in unbegun])
            for held in unbegun:
                self._held.pop(held.claimed.execution, None)

    def _is_shut(self, model: str) -> bool:
        return self._shut[model] > 0 or self._store.breakers.is_open(model)

    async def _reassign(self) -> None:
        """Have the queued tasks assigned, and the deferred ones whose time has come, if anything changed."""
        if self._assign_again is None or not self._may_assign:
            return
        if time.monotonic() - self._assigned_at < REASSIGN_EVERY_SECONDS:
            return
        self._assigned_at = time.monotonic()
        open_tasks = await self._call(self._store.open_tasks, self._day)
        deferred = open_tasks.get(TaskState.DEFERRED)
        due = deferred is not None and deferred.available_in is not None and deferred.available_in <= 0
        due = due or self._is_breaker_over(open_tasks)
        if TaskState.QUEUED in open_tasks or due:
            self._may_assign = False
            await self._call(self._assign_again)

    async def _claim(self) -> int:
        """Claim what there is room for, and begin on it; return how many tasks."""
        held = Counter(held.claimed.model for held in self._held.values())
        room = {
            model: PREFETCH * self._limiter.share_of(model) - held[model]
            for model in self._limits
            if not self._shut[model] and not self._limiter.is_paused(model)
        }
        self._has_room = any(free > 0 for free in room.values())
        limit = min(self._policy.batch_size, PREFETCH * self._policy.concurrency - len(self._held))
        now = time.monotonic()
        claimed = await self._call(
            self._store.claim, self._day, self._owner, limit, room, run_id=self._run_id
        )
        for task in claimed:
            holding = _Held(task, now, now + self._policy.lease_seconds)
            self._held[task.execution] = holding
            holding.attempt = asyncio.create_task(self._attempt(holding))
        return len(claimed)

    async def _attempt(self, held: _Held) -> None:
        claimed = held.claimed
        bind_contextvars(**_ids(claimed))  # for all that is logged below; the context is this attempt's own
        try:
            async with self._limiter.turn(claimed):
                if time.monotonic() >= held.leased_until:
                    self._held.pop(claimed.execution, None)  # whoever took it back does it
                    return
                held.begun = not self._is_shut(claimed.model)
                if held.begun:
                    result = await self._result_of(held)
                    self._limiter.correct(claimed, result.usage.total)
                    self._limiter.pause(claimed.model, result.pause)
            if not held.begun:
                self._changed.set()
                await asyncio.Event().wait()  # until it is given back, or called off
        except asyncio.CancelledError as cut:
            if held.called_off is None:
                held.begun = held.begun and not isinstance(cut, NotBegunError)
                held.cut_off = cut.result if isinstance(cut, CutOffError) else None
                raise
            known = cut.result if isinstance(cut, CutOffError) else AttemptResult(Reason.CANCELLED)
            result = replace(known, error=held.called_off)
        delay = retry_delay(
            claimed.attempt, self._policy, jitter=self._random.random(), retry_after=result.retry_after
        )
        held.ended = True
        self._shut.update(self._shut_by(claimed, result))
        self._results.append((held, Finished(claimed, result, delay)))
        self._result_ready.set()

    def _shut_by(self, claimed: ClaimedTask, result: AttemptResult) -> list[str]:
        """Models that are not to be called again before this result is recorded."""
        match signal_of(result.reason):
            case Signal.PROVIDER_BARRED:
                models = self._registry.models.values()
                return [model.name for model in models if model.provider == claimed.provider]
            case Signal.BARRED:
                return [claimed.model]
            case _:
                return []

    async def _result_of(self, held: _Held) -> AttemptResult:
        seconds = float("inf")
        if held.claimed.deadline_in is not None:
            seconds = held.claimed.deadline_in - (time.monotonic() - held.claimed_at)
        if seconds <= 0:
            return AttemptResult(Reason.TIMEOUT, error="the deadline passed before the call was made")
        try:
            return await self._kind.attempt(held.claimed, seconds=seconds)
        except Exception as error:
            # One task that trips over our own mistake must not stop the others; it fails, and says where.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
            self._log.error("attempt broke", where=where, **_ids(held.claimed))
            return AttemptResult(Reason.INVALID_REQUEST, error=f"the worker itself failed: {where}")

    async def _record_results(self) -> None:
        while not self._closing:
            await self._result_ready.wait()
            if len(self._results) < self._policy.batch_size and not self._closing:
                await asyncio.sleep(RECORD_AFTER_SECONDS)
            await self._record_batch()
            if not self._results:
                self._result_ready.clear()

    async def _record_batch(self) -> None:
        batch = list(islice(self._results, self._policy.batch_size))
        steps = await self._call(self._store.complete, self._owner, [finished for _, finished in batch])
        await self._learn([finished for _, finished in batch])
        for (held, finished), step in zip(batch, steps, strict=True):
            self._results.popleft()
            self._shut.subtract(self._shut_by(finished.claimed, finished.result))
            self._held.pop(held.claimed.execution, None)
            self._summary.count(finished, step)
            model = self._registry.model(finished.claimed.model)
            self._summary.cache.count(model, finished.result.usage, finished.result.prefix_use)
            self._log_attempt(finished, step)
        self._may_assign = True
        self._changed.set()
        self._report()

    async def _learn(self, finished: Sequence[Finished]) -> None:
        """Tell the breakers what came of calls that were made."""
        ended = [
            breakers.Ended(one.claimed.model, one.result.reason, one.claimed.started_at)
            for one in finished
            if one.result.latency_ms is not None and one.claimed.started_at is not None
        ]
        for scope, breaker in await self._call(self._store.breakers.learn, ended):
            self._may_assign = True
            self._swept_at = float("-inf")  # tasks may have to go back
            self._log.warning(
                "breaker moved",
                of=str(scope),
                to=str(breaker.state),
                reason=breaker.reason and str(breaker.reason),
                retry_at=breaker.retry_at and breaker.retry_at.isoformat(),
            )

    async def _keep_shares(self) -> None:
        while True:
            await asyncio.sleep(SHARES_EVERY_SECONDS)
            await self._renew_shares()

    async def _renew_shares(self) -> None:
        """Ask for a share of every limit that there is work for."""
        busy = await self._call(self._store.waiting_models, self._day, list(self._limits))
        busy |= {held.claimed.model for held in self._held.values()}
        sent = time.monotonic()
        shares = await self._call(self._store.shares.renew, self._owner, self._limiter.wishes(busy))
        self._limiter.hold(shares, self._policy.lease_seconds - (time.monotonic() - sent))

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self._policy.heartbeat_seconds)
            held = list(self._held.values())
            if not held:
                continue
            sent = time.monotonic()
            ours = await self._call(self._store.heartbeat, self._owner, [one.claimed for one in held])
            for one in held:
                if one.claimed.execution in ours:
                    one.leased_until = sent + self._policy.lease_seconds
                elif not one.begun and one.attempt:
                    one.attempt.cancel()
                    self._held.pop(one.claimed.execution, None)

    async def _follow_cancelling(self) -> None:
        """Stop the attempts at tasks that somebody called off; each is then recorded like any other."""
        while True:
            await asyncio.sleep(CALLED_OFF_EVERY_SECONDS)
            if not self._held:
                continue
            called_off = await self._call(self._store.called_off, self._owner)
            held = list(self._held.values())
            await asyncio.sleep(
                0
            )  # an attempt that was cancelled before its first step would leave no result
            for one in held:
                why = called_off.get((one.claimed.task, one.claimed.attempt))
                if why and not one.called_off and not one.ended and one.attempt:
                    one.called_off = why
                    one.attempt.cancel()

    async def _wind_down(self, recorder: asyncio.Task[None], patience: float) -> None:
        """Give back what has not begun, let calls end for `patience` seconds, cut off the rest, record."""
        unbegun = [held for held in self._held.values() if not held.begun and not held.called_off]
        await self._give_back(unbegun)
        in_flight = [held.attempt for held in self._held.values() if held.attempt and not held.ended]
        if in_flight:
            await self._until_ended(in_flight, patience)
        cut_off = [held for held in self._held.values() if not held.ended]
        await _cancel(cut_off)
        self._closing = True
        self._result_ready.set()
        await asyncio.gather(recorder, return_exceptions=True)
        while self._results:  # the recorder failed, or was cancelled with everything else
            await self._record_batch()
        await self._give_up(cut_off)
        if unbegun or cut_off:
            self._log.info("leases given back", not_begun=len(unbegun), cut_off=len(cut_off))

    async def _give_up(self, cut_off: Sequence[_Held]) -> None:
        """Give back tasks whose attempt was cut off, and charge what is known of their use."""
        waiting = [held.claimed for held in cut_off if not held.begun]
        await self._call(self._store.release, self._owner, waiting)
        await self._call(self._store.abandon, self._owner, [held.claimed for held in cut_off if held.begun])
        known = [Finished(held.claimed, held.cut_off) for held in cut_off if held.cut_off]
        if known:
            await self._call(self._store.complete, self._owner, known)  # as with any answer that comes late

    async def _until_ended(self, attempts: Sequence[asyncio.Task[None]], patience: float) -> None:
        """Wait until all have ended, `patience` seconds at most, and no longer than until a second signal."""
        waits = [asyncio.create_task(asyncio.wait(attempts)), asyncio.create_task(self._hurry.wait())]
        await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _keep_telling(self) -> None:
        counted_at = float("-inf")
        while True:
            if time.monotonic() - counted_at >= COUNT_EVERY_SECONDS:
                await self._count_open()
                counted_at = time.monotonic()
            await asyncio.sleep(TELL_EVERY_SECONDS)
            await self._tell()

    async def _tell(self, ended: str | None = None) -> None:
        await self._call(self._told.tell, {**self._summary.figures(), "held": len(self._held)}, ended)

    async def _count_open(self) -> None:
        open_tasks = await self._call(self._store.open_tasks, self._day)
        self._summary.open = {str(state): tasks.count for state, tasks in open_tasks.items()}

    async def _wind_down_after_failure(self, recorder: asyncio.Task[None]) -> None:
        try:
            await self._wind_down(recorder, 0.0)
            await self._tell("failed")
        except (psycopg.Error, DatabaseUnavailableError) as error:
            self._log.warning("leases could not be given back; they will run out", error=type(error).__name__)

    async def _wait(self, seconds: float, *, wake: bool = True) -> None:
        """Wait for `seconds`, less when something changes and `wake` is set; raise what failed meanwhile."""
        if wake:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), seconds)
        else:
            await asyncio.sleep(seconds)
        self._changed.clear()
        if self._failure:
            raise self._failure

    async def _call(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return await _persistently(self._log, function, *args, **kwargs)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._note_failure)
        return task

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception():
            self._failure = task.exception()
            self._changed.set()

    def _tell_of_short_prefixes(self) -> None:
        """Say once, of each model, that its provider caches no prompt because what prompts share is too short."""
        for model, prefix in sorted(self._summary.cache.too_short.items()):
            self._log.info(
                "prompts are not cached: what they share is shorter than the provider's minimum",
                model=model,
                shared_tokens=prefix.tokens,
                minimum=prefix.minimum,
            )

    def _report(self, *, at_once: bool = False) -> None:
        self._summary.seconds = time.monotonic() - self._started
        if self._on_progress and (at_once or time.monotonic() - self._reported_at >= REPORT_EVERY_SECONDS):
            self._reported_at = time.monotonic()
            self._on_progress(self._summary)

    def _log_attempt(self, finished: Finished, step: NextStep | None) -> None:
        result = finished.result
        log = self._log.info if result.reason else self._log.debug
        log(
            "attempt recorded",
            reason=result.reason and str(result.reason),
            task_goes_to=str(step.state) if step else "nowhere: the lease was lost",
            quality=result.quality,
            **_ids(finished.claimed),
        )


def _ids(claimed: ClaimedTask) -> dict[str, Any]:
    return {
        "task": claimed.task_id,
        "execution": claimed.execution,
        "attempt": claimed.attempt,
        "stage": claimed.stage,
        "model": claimed.model,
    }


async def _persistently(
    log: BoundLogger, function: Callable[..., Result], *args: Any, **kwargs: Any
) -> Result:
    """Call the database in a thread; again when it fails, as everything called here may be repeated."""
    for pause in DATABASE_PAUSES_SECONDS:
        try:
            return await asyncio.to_thread(function, *args, **kwargs)
        except (psycopg.OperationalError, DatabaseUnavailableError) as error:
            log.warning("database failed", error=type(error).__name__, again_in_seconds=pause)
            await asyncio.sleep(pause)
    return await asyncio.to_thread(function, *args, **kwargs)


async def _cancel(held: Sequence[_Held]) -> None:
    attempts = [one.attempt for one in held if one.attempt]
    for attempt in attempts:
        attempt.cancel()
    await asyncio.gather(*attempts, return_exceptions=True)
