"""Decisions made real: reads the tasks to decide, has the strategy decide, reserves quota and stores it all.

Reservation, decision and the task's new state are one transaction, a batch at a time. Tasks are locked while they are
decided by the written policy; what the solver decided counts only for tasks that are then locked as they were read. So
two assigners never decide the same one; quota is only what the ledger grants, so they never promise the same tokens
twice. Time is the database's.
"""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import NamedTuple, cast
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray

from cp_core.assignment.batch import prepare
from cp_core.assignment.capacity import Capacity
from cp_core.assignment.decision import Decision, Outcome, reservation_key
from cp_core.assignment.grants import Grants
from cp_core.assignment.market import Catalogue
from cp_core.assignment.optimal import Round, assign_optimal, compare_policy, compared_tasks
from cp_core.assignment.policy import PACED
from cp_core.assignment.quotes import quotes_after
from cp_core.assignment.retry import Step
from cp_core.assignment.strategies import Strategy
from cp_core.assignment.summary import AssignmentSummary
from cp_core.assignment.telemetry import SUMMARY_EVENT, AssignmentTelemetry
from cp_core.assignment.tiered import serve
from cp_core.assignment.verdicts import Verdicts
from cp_core.quota.account import Account
from cp_core.tasks.reasons import Reason
from cp_resources.arms import ArmsInForce, Part
from cp_resources.assignment_attempts import follow, steps_after
from cp_resources.assignment_batches import AssignmentBatches, Prices, seed_of
from cp_resources.assignment_store import AssignmentStore, Facts, Stamp
from cp_resources.breakers import BreakerStore
from cp_resources.configuration import Configuration
from cp_resources.database import Database, statements
from cp_resources.granted import store_granted
from cp_resources.ledger import Ledger, Reservation
from cp_resources.outbox import NoticeKind, Outbox, notices_about

MOST_RACES = 3
"""How often one run tries to reserve for a task whose quota others take first; then the task is deferred."""

_MOST_AT_ONCE = 100_000
"""Tasks that one round of the solver decides; a larger day is decided in portions of so many."""

_CHUNK = 5_000  # decisions of the solver that are stored in one transaction, at least
_WRITERS = 3  # transactions at once: more of them only wait for this process
_MOST_THREADS = 4


class _Stored(NamedTuple):
    """What became of a chunk: assignments as columns, decisions one by one, tasks that came too late; statements."""

    granted: Grants | None
    held: Sequence[Decision]
    outrun: set[int]
    queries: int


class Assigner:
    """Assigns tasks by the configured strategy."""

    def __init__(self, database: Database, ledger: Ledger, configuration: Configuration) -> None:
        self._database = database
        self._ledger = ledger
        self._configuration = configuration
        self._registry = configuration.registry
        self._policies = configuration.policies
        self._policy = configuration.policies.assignment
        self._store = AssignmentStore(database, self._policy, configuration.learned.calibration.trait_model)
        self._batches = AssignmentBatches(database)
        self._breakers = BreakerStore(database, configuration)
        self._arms = ArmsInForce(database, configuration)
        self._of_arms: dict[str, Assigner] = {}

    def assign_day(
        self, day: date, *, run_id: str | None = None, limit: int | None = None
    ) -> AssignmentSummary:
        """Decide the scored tasks of a submission day that are due, the most valuable first.

        Due is what is queued, what was deferred until now, and what waited for tasks that have ended since;
        so what depends on a task that is given up here is given up too. A repeat decides what is due by then.

        Args:
            day: UTC day of submission.
            run_id: stored with each decision.
            limit: most tasks to decide.
        """
        began = time.monotonic()
        summary = AssignmentSummary()
        started = self._prepare()
        races: Counter[int] = Counter()
        while due := self._store.due(day, started, _portion(limit, summary.decided)):
            progress = summary.decided, summary.races_lost
            for part in self._arms.parts(due):
                with _no_collection():
                    summary.add(self._under(part.configuration)._assign(part, day, started, races, run_id))
            if (summary.decided, summary.races_lost) == progress:
                break  # what is left is locked: another assigner is deciding it
        summary.seconds = time.monotonic() - began
        return summary

    def _under(self, configuration: Configuration) -> Assigner:
        """Who decides under another configuration, such as an experiment's arm has."""
        if configuration.content_hash == self._configuration.content_hash:
            return self
        made = Assigner(self._database, self._ledger, configuration)
        return self._of_arms.setdefault(configuration.content_hash, made)

    def _assign(
        self, part: Part, day: date, started: datetime, races: Counter[int], run_id: str | None
    ) -> AssignmentSummary:
        assign = self._assign_in_order if self._policy.strategy is Strategy.TIERED else self._assign_at_once
        return assign(part, day, started, races, run_id)

    @cached_property
    def _catalogue(self) -> Catalogue:
        policies = self._policies
        return Catalogue(
            self._registry,
            policies.prediction,
            policies.plans,
            policies.objective,
            self._configuration.learned.calibration,
        )

    def _prepare(self) -> datetime:
        """Open the accounts, free what expired, keep the configuration; return the database's time."""
        self._ledger.open_accounts(self._registry)
        self._ledger.expire_pending()
        with self._database.transaction() as connection:
            self._configuration.remember(connection)
            [(now,)] = connection.execute("SELECT now()").fetchall()
        return now  # type: ignore[no-any-return]

    def _stamp(self, part: Part, run_id: str | None = None, batch: UUID | None = None) -> Stamp:
        config_hash = self._configuration.content_hash
        return Stamp(self._policy.strategy, config_hash, "batch", run_id, batch, part.exposures)

    def _assign_in_order(
        self, part: Part, day: date, started: datetime, races: Counter[int], run_id: str | None
    ) -> AssignmentSummary:
        """Decide by the written policy, a batch after the other, each task locked while it is decided.

        What the other strategies would have given is worked out from the balances before.
        """
        began = time.monotonic()
        summary = AssignmentSummary()
        seed = seed_of(day, self._store.decisions_of(day))
        due = part.tasks
        compared = self._compare(part, started, seed)
        stamp = self._stamp(part, run_id)
        before = self._ledger.accounts() if part.others else None
        for first in range(0, len(due), self._policy.batch_size):
            batch = due[first : first + self._policy.batch_size]
            accounts = self._accounts(part, before)
            summary.add(self._assign_locked(batch, accounts, started, races, stamp))
        if compared is not None and summary.decided:
            with self._database.transaction() as connection:
                self._batches.add(
                    connection,
                    compared,
                    tasks=summary.decided,
                    assigned=summary.outcomes[Outcome.ASSIGNED],
                    day=day,
                    strategy=self._policy.strategy,
                    seed=seed,
                    start=Prices({}),
                    quotes={},
                    config_hash=self._configuration.content_hash,
                    run_id=run_id,
                    seconds=time.monotonic() - began,
                )
        return summary

    def _compare(self, part: Part, started: datetime, seed: int) -> Round | None:
        """What the written policy and every other strategy are expected to come to; None when nothing is due now."""
        due = part.tasks
        chosen = [due[position] for position in compared_tasks(len(due), seed).tolist()]
        with self._database.transaction() as connection:
            facts = self._store.read(connection, chosen, started, self._configuration.content_hash)
            left_alone = self._breakers.unavailable(connection)
        if not len(facts):
            return None
        return compare_policy(
            facts.frame(),
            round(len(due) * len(facts) / len(chosen)),
            self._catalogue,
            self._accounts(part),
            self._policy,
            fairness=self._policies.fairness,
            now=facts.now,
            seed=seed,
            open_breakers=left_alone,
            threads=min(_MOST_THREADS, os.cpu_count() or 1),
        )

    def _accounts(self, part: Part, before: Sequence[Account] | None = None) -> list[Account]:
        """What is left of each account but for the share of tasks of other arms.

        Args:
            before: what was left when the part's first batch was decided: the others' share is of that.
        """
        now = self._ledger.accounts()
        if not part.others:
            return now
        share = Decimal(part.others) / (len(part.tasks) + part.others)
        kept = {account.account: account.available * share for account in before or now}
        return [
            replace(
                account,
                limit=account.limit * (1 - share),
                available=max(account.available - kept.get(account.account, Decimal(0)), Decimal(0)),
            )
            for account in now
        ]

    def _assign_at_once(
        self, part: Part, day: date, started: datetime, races: Counter[int], run_id: str | None
    ) -> AssignmentSummary:
        """Have the solver decide all that is due, then make it real a chunk at a time.

        A task that changed since it was read, that another process holds, or whose quota others took, stays as it is,
        to be decided in the next round.
        """
        telemetry = self._telemetry("batch")
        with telemetry.step("read", time.monotonic), self._database.transaction() as connection:
            facts = self._store.read(connection, part.tasks, started, self._configuration.content_hash)
            busy = self._store.busy(connection, self._policies.fairness.workspace_caps)
            left_alone = self._breakers.unavailable(connection)
            telemetry.queries += statements(connection)
        if not facts:
            return telemetry.summary
        strategy, config_hash = self._policy.strategy, self._configuration.content_hash
        start = self._batches.latest(strategy, config_hash)
        seed = seed_of(day, self._store.decisions_of(day))
        accounts = self._accounts(part)
        with telemetry.step("decide", time.monotonic):
            found = self._solve(facts, accounts, seed, start, busy, left_alone)
        telemetry.queries += 3  # the latest prices, the decisions before, the accounts
        telemetry.considered, telemetry.pruned = found.considered, Counter(found.pruned)
        telemetry.objective, telemetry.bound = found.objective, found.bound
        telemetry.profile(
            solver_passes=found.evaluations, accounts_priced=sum(price > 0 for price in found.prices.values())
        )
        with self._database.transaction() as connection:
            batch = self._batches.add(
                connection,
                found,
                tasks=len(found.decisions),
                assigned=found.assigned,
                day=day,
                strategy=strategy,
                seed=seed,
                start=start,
                quotes=quotes_after(found.prices, len(facts), accounts, start.quotes, facts.now),
                config_hash=config_hash,
                run_id=run_id,
                seconds=sum(telemetry.seconds.values()),
            )
            telemetry.queries += statements(connection)
        stamp = self._stamp(part, run_id, batch)
        try:
            with telemetry.step("store", time.monotonic):
                self._make_real(facts, cast("Verdicts", found.decisions), day, races, stamp, telemetry)
        finally:
            with self._database.transaction() as connection:
                self._announce(connection, telemetry, facts, run_id)
        return telemetry.summary

    def _solve(
        self,
        facts: Facts,
        accounts: Sequence[Account],
        seed: int,
        start: Prices,
        busy: Mapping[str, int],
        left_alone: Collection[str],
    ) -> Round:
        return assign_optimal(
            facts.frame(),
            self._catalogue,
            accounts,
            self._policy,
            self._policy.strategy,
            fairness=self._policies.fairness,
            exploration=self._policies.exploration,
            now=facts.now,
            seed=seed,
            start=start.by_account,
            busy=busy,
            open_breakers=left_alone,
            threads=min(_MOST_THREADS, os.cpu_count() or 1),
        )

    def _make_real(
        self,
        facts: Facts,
        decisions: Verdicts,
        day: date,
        races: Counter[int],
        stamp: Stamp,
        telemetry: AssignmentTelemetry,
    ) -> None:
        """Store decisions a chunk at a time; a few chunks at once, because the database works beside this process."""
        size = max(self._policy.batch_size, _CHUNK)
        grants, given, others = decisions.in_columns()

        def store(chunk: slice) -> _Stored:
            return self._store_granted(facts, grants.at(chunk), decisions, given[chunk], day, races, stamp)

        def store_others(chunk: slice) -> _Stored:
            return self._store_decided(facts, [decisions[int(at)] for at in others[chunk]], races, stamp)

        with ThreadPoolExecutor(_WRITERS) as writers:
            stored = [writers.submit(store, chunk) for chunk in _slices(len(given), size)]
            stored += [writers.submit(store_others, chunk) for chunk in _slices(len(others), size)]
            for chunk in stored:
                granted, held, outrun, queries = chunk.result()
                telemetry.queries += queries
                telemetry.tasks += len(held) + len(outrun)
                telemetry.summary.races_lost += len(outrun)
                telemetry.count(held, self._registry)
                if granted is not None:
                    telemetry.tasks += len(granted)
                    telemetry.summary.count_granted(granted, self._registry)

    def _store_granted(
        self,
        facts: Facts,
        grants: Grants,
        decisions: Sequence[Decision],
        positions: NDArray[np.intp],
        day: date,
        races: Counter[int],
        stamp: Stamp,
    ) -> _Stored:
        """Store assignments in one transaction: as columns, or one by one where others took some of the quota, or may
        have filled a workspace.

        Args:
            positions: which of `decisions` they are.
        """
        with self._database.transaction() as connection:
            rows = [facts.rows[task] for task in grants.task.tolist()]
            unchanged = self._store.lock_unchanged(connection, rows)
            if len(unchanged) < len(rows):
                is_unchanged = np.isin(grants.task, list(unchanged))
                grants, positions = grants.at(is_unchanged), positions[is_unchanged]
            caps = self._policies.fairness.workspace_caps
            if any(row.workspace in caps for row in rows) or not self._grant(
                connection, facts, grants, day, stamp
            ):
                chosen = [decisions[int(position)] for position in positions]
                held, outrun = self._commit(connection, facts, chosen, races, stamp)
                return _Stored(None, held, outrun, statements(connection))
            return _Stored(grants, [], set(), statements(connection))

    def _grant(
        self, connection: psycopg.Connection, facts: Facts, grants: Grants, day: date, stamp: Stamp
    ) -> bool:
        """Store assignments and reserve for all of them; False, and nothing done, where some do not fit any more."""
        tasks = grants.task.tolist()
        holds = grants.holds([reservation_key(facts.ids[task], 1).bytes for task in tasks])
        with connection.transaction() as attempt:
            store_granted(connection, facts, grants, day, stamp)
            Outbox.add_all(connection, NoticeKind.ASSIGNED, sorted(tasks))
            within = timedelta(seconds=self._policy.reservation_seconds)
            if self._ledger.hold_all(connection, holds, expires_in=within):
                return True
            raise psycopg.Rollback(attempt)
        return False

    def _store_decided(
        self, facts: Facts, decisions: Sequence[Decision], races: Counter[int], stamp: Stamp
    ) -> _Stored:
        """Store decisions that give no plan, in one transaction."""
        with self._database.transaction() as connection:
            rows = [facts.rows[decision.task] for decision in decisions]
            unchanged = self._store.lock_unchanged(connection, rows)
            kept = [decision for decision in decisions if decision.task in unchanged]
            held, outrun = self._commit(connection, facts, kept, races, stamp)
            return _Stored(None, held, outrun, statements(connection))

    def _assign_locked(
        self,
        tasks: Sequence[int],
        accounts: Sequence[Account],
        due: datetime,
        races: Counter[int],
        stamp: Stamp,
    ) -> AssignmentSummary:
        """Decide by the written policy, reserve for and store those of `tasks` that are due at `due`.

        A task whose quota others took first stays as it is, to be decided anew with the balances of then, and
        is counted in `races`; at MOST_RACES it is deferred.
        """
        telemetry = self._telemetry(stamp.path)
        with self._database.transaction() as connection:
            with telemetry.step("read", time.monotonic):
                facts = self._store.read(connection, tasks, due, stamp.config_hash, lock=True)
                busy = self._store.busy(connection, self._policies.fairness.workspace_caps)
                left_alone = self._breakers.unavailable(connection)
            with telemetry.step("decide", time.monotonic):
                decisions = self._decide(facts, accounts, busy, left_alone, telemetry)
            with telemetry.step("store", time.monotonic):
                held, outrun = self._commit(connection, facts, decisions, races, stamp)
            telemetry.queries += 1 + statements(connection)  # the accounts were read before
            telemetry.tasks = len(facts)
            telemetry.summary.races_lost = len(outrun)
            telemetry.count(held, self._registry)
            if len(facts):
                self._announce(connection, telemetry, facts, stamp.run_id)
        telemetry.summary.seconds = sum(telemetry.seconds.values())
        return telemetry.summary

    def _decide(
        self,
        facts: Facts,
        accounts: Sequence[Account],
        busy: Mapping[str, int],
        left_alone: Collection[str],
        telemetry: AssignmentTelemetry,
    ) -> list[Decision]:
        if not len(facts):
            return []
        capacity = Capacity(accounts)
        batch = prepare(
            facts.frame(),
            self._catalogue.options,
            capacity,
            self._policy,
            now=facts.now,
            open_breakers=left_alone,
        )
        telemetry.considered += batch.eligible.codes.size
        telemetry.pruned.update(batch.eligible.pruned())
        return serve(batch, capacity, self._policies.fairness.rooms(busy))

    def _commit(
        self,
        connection: psycopg.Connection,
        facts: Facts,
        decisions: Sequence[Decision],
        races: Counter[int],
        stamp: Stamp,
    ) -> tuple[list[Decision], set[int]]:
        """Store decisions about locked tasks and reserve for them, in the caller's transaction.

        Quota is reserved last: the ledger's lock is held from then until the end, and others wait for it. What others
        were faster to reserve is undone and done again without the tasks that lost.

        Returns:
            What was stored, and the tasks that came too late.
        """
        held = self._within_caps(connection, facts, decisions)
        late: set[int] = set()
        while True:
            with connection.transaction() as attempt:
                steps = self._steps_after(held, facts)
                waits = {
                    task: step.after_seconds for task, step in steps.items() if step.after_seconds is not None
                }
                moved = self._store.store(connection, facts, held, stamp, waits)
                follow(connection, steps, stamp.path)
                Outbox.add(connection, notices_about(moved))
                outrun = self._reserve(connection, facts, held)
                if not outrun:
                    return held, late
                raise psycopg.Rollback(attempt)
            late |= outrun
            races.update(outrun)
            held = [
                decision.outrun() if decision.task in outrun else decision
                for decision in held
                if decision.task not in outrun or races[decision.task] >= MOST_RACES
            ]

    def _steps_after(self, decisions: Sequence[Decision], facts: Facts) -> dict[int, Step]:
        """What follows for the tasks that get nothing. Waiting for another task, or for a model, is no attempt: it has
        its own pace."""
        if not self._policies.flags.retry_policy_v2 or not len(facts):
            return {}
        tried = [decision for decision in decisions if decision.reason not in PACED]
        return steps_after(tried, facts.rows, self._policies.assignment_retry, now=facts.now)

    def _within_caps(
        self, connection: psycopg.Connection, facts: Facts, decisions: Sequence[Decision]
    ) -> list[Decision]:
        """Take back what would fill a workspace beyond its cap because others assigned to it meanwhile."""
        caps = self._policies.fairness.workspace_caps
        given = {
            facts.rows[decision.task].workspace
            for decision in decisions
            if caps and decision.outcome is Outcome.ASSIGNED
        }
        if not given & caps.keys():
            return list(decisions)
        busy = self._store.busy(connection, given & caps.keys(), lock=True)
        rooms = self._policies.fairness.rooms(busy)
        kept = []
        for decision in decisions:
            workspace = facts.rows[decision.task].workspace
            if decision.outcome is Outcome.ASSIGNED and workspace in rooms:
                if rooms[workspace] <= 0:
                    decision = decision.outrun(Reason.WORKSPACE_CAP)
                rooms[workspace] -= 1
            kept.append(decision)
        return kept

    def _reserve(
        self, connection: psycopg.Connection, facts: Facts, decisions: Sequence[Decision]
    ) -> set[int]:
        """Reserve what was assigned, in the order of the decisions; return the tasks that came too late."""
        assigned = [decision for decision in decisions if decision.outcome is Outcome.ASSIGNED]
        granted = self._ledger.reserve(
            connection,
            [
                Reservation(reservation_key(facts.ids[decision.task], 1), decision.amounts, decision.task)
                for decision in assigned
            ],
            expires_in=timedelta(seconds=self._policy.reservation_seconds),
        )
        return {decision.task for decision, made in zip(assigned, granted, strict=True) if not made}

    def _announce(
        self,
        connection: psycopg.Connection,
        telemetry: AssignmentTelemetry,
        facts: Facts,
        run_id: str | None,
    ) -> None:
        """Say in the events what a batch came to."""
        telemetry.inline = facts.last_attempts
        days = sorted({row.submission_day.isoformat() for row in facts.rows.values()})
        self._store.announce(connection, SUMMARY_EVENT, run_id, {"days": days, **telemetry.to_event()})

    def _telemetry(self, path: str) -> AssignmentTelemetry:
        return AssignmentTelemetry(
            path,
            self._policy.strategy.value,
            self._configuration.content_hash,
            debug=Counter() if self._policies.flags.debug_capacity_profiling else None,
        )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold Python's cyclic garbage collector off: a round makes millions of objects and no cycles among them, and the
    collector would walk over all of them again and again, for a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _slices(count: int, size: int) -> list[slice]:
    return [slice(first, first + size) for first in range(0, count, size)]


def _portion(limit: int | None, decided: int) -> int:
    """How many tasks to look at in one round."""
    return _MOST_AT_ONCE if limit is None else min(_MOST_AT_ONCE, limit - decided)
