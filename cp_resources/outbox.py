"""The outbox: notices about tasks, stored with the change that they tell of, and delivered afterwards.

`Outbox.add` runs in the transaction that moves a task, so a notice exists exactly when its change does, and a
unique index on task and kind keeps it to one, whichever way got there first. Who is told, and over which wire,
is decided in `cp_resources.notifiers`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg.rows import dict_row

from cp_core.execution.retry import retry_delay
from cp_core.policy.notices import NoticePolicy
from cp_core.tasks.states import FINAL_STATES, TaskState
from cp_resources import arrays
from cp_resources.database import Database
from cp_resources.notifiers.message import Message, Notifier, Sent

BATCH = 100
"""Most notices that one transaction delivers."""


class NoticeKind(StrEnum):
    """What a notice tells. A task has at most one notice of each kind."""

    ASSIGNED = "assigned"
    COMPLETED = "completed"


class Notice(NamedTuple):
    """Something to tell about a task, known by its `tasks.id`."""

    task: int
    kind: NoticeKind


def notices_about(moved: Mapping[int, TaskState]) -> list[Notice]:
    """What there is to tell about tasks that were just moved to these states."""
    kinds = {TaskState.ASSIGNED: NoticeKind.ASSIGNED, **dict.fromkeys(FINAL_STATES, NoticeKind.COMPLETED)}
    return [Notice(task, kinds[state]) for task, state in moved.items() if state in kinds]


@dataclass(slots=True)
class Deliveries:
    """What one or several batches came to.

    Attributes:
        put_off: notices whose try failed and that are tried again later.
        failed: notices whose last try failed; they wait for a person.
        errors: how often each error occurred.
    """

    claimed: int = 0
    delivered: int = 0
    put_off: int = 0
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, other: Deliveries) -> None:
        """Count another batch in."""
        self.claimed += other.claimed
        self.delivered += other.delivered
        self.put_off += other.put_off
        self.failed += other.failed
        for error, times in other.errors.items():
            self.errors[error] = self.errors.get(error, 0) + times


@dataclass(frozen=True, slots=True)
class Undelivered:
    """Counts of the notices that are not delivered: those `due` are among the `waiting`."""

    waiting: int
    due: int
    failed: int
    oldest_at: datetime | None


@dataclass(frozen=True, slots=True)
class UndeliveredNotice:
    """One notice that is not delivered. `next_try_at` is None when its tries are used up."""

    task_id: str
    kind: str
    created_at: datetime
    tries: int
    next_try_at: datetime | None
    error: str | None


class Outbox:
    """Notices that wait, were delivered, or failed.

    Args:
        policy: how patiently notices are delivered.
        jitter: gives random numbers in [0, 1).
    """

    def __init__(
        self, database: Database, policy: NoticePolicy, *, jitter: Callable[[], float] = random.random
    ) -> None:
        self._database = database
        self._policy = policy
        self._jitter = jitter

    @staticmethod
    def add(connection: psycopg.Connection, notices: Sequence[Notice]) -> int:
        """Add notices in the caller's transaction, after it moved the tasks; return how many are new.

        A task that has a notice of the kind keeps that one. What a notice says is read from the tables here:
        ids, codes and figures, never a prompt, an answer or an error text.
        """
        if not notices:
            return 0
        tasks = {kind: sorted({one.task for one in notices if one.kind is kind}) for kind in NoticeKind}
        return sum(Outbox.add_all(connection, kind, tasks[kind]) for kind in NoticeKind)

    @staticmethod
    def add_all(connection: psycopg.Connection, kind: NoticeKind, tasks: Sequence[int]) -> int:
        """What `add` does, for many tasks and one kind."""
        if not tasks:
            return 0
        query = _ADD_ASSIGNED if kind is NoticeKind.ASSIGNED else _ADD_COMPLETED
        return connection.execute(query, {"tasks": arrays.numbers(tasks)}, prepare=True).rowcount

    def deliver(self, notifier: Notifier, limit: int = BATCH) -> Deliveries:
        """Send up to `limit` notices that are due, and mark what came of them, in one transaction.

        Two deliverers never hold the same notice. When this process dies before the transaction is committed,
        all of the batch is due again, under the same ids.

        Raises:
            NoticeSetupError: from the notifier; every notice waits on, with its tries as they were.
        """
        with self._database.transaction() as connection:
            connection.execute(_SILENT_WHILE_SENDING)
            with connection.cursor(row_factory=dict_row) as cursor:
                claimed = cursor.execute(_CLAIM, {"limit": limit}).fetchall()
            sent = notifier.send([_message(row) for row in claimed]) if claimed else {}
            tried = [(row, sent[row["payload"]["id"]]) for row in claimed if row["payload"]["id"] in sent]
            if tried:
                connection.execute(_MARK, self._marks(tried))
        return self._counted(len(claimed), tried)

    def deliver_due(
        self, notifier: Notifier, *, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> Deliveries:
        """Deliver batch after batch until nothing is due or `seconds` have passed."""
        until = clock() + seconds
        total = Deliveries()
        while clock() < until:
            batch = self.deliver(notifier)
            total.add(batch)
            if batch.claimed < BATCH:
                break
        return total

    def retry_failed(self) -> int:
        """Give every notice whose tries are used up its tries again, from now on; return how many."""
        with self._database.transaction() as connection:
            return connection.execute(_RETRY_FAILED).rowcount

    def undelivered(self) -> Undelivered:
        """How much is not delivered."""
        [row] = self._database.fetch(_COUNTS)
        return Undelivered(*row)

    def listed(self, limit: int) -> list[UndeliveredNotice]:
        """Up to `limit` notices that are not delivered, the failed ones first, then by age."""
        return [UndeliveredNotice(*row) for row in self._database.fetch(_LISTED, {"limit": limit})]

    def _marks(self, tried: Sequence[tuple[Mapping[str, Any], Sent]]) -> dict[str, Any]:
        """Parameters of `_MARK`: an array each, one element a notice."""
        return {
            "id": [row["id"] for row, _ in tried],
            "delivered": [sent.delivered for _, sent in tried],
            "error": [sent.error for _, sent in tried],
            "delay": [
                retry_delay(
                    row["tries"] + 1, self._policy, jitter=self._jitter(), retry_after=sent.retry_after
                )
                for row, sent in tried
            ],
            "max_tries": self._policy.max_tries,
        }

    def _counted(self, claimed: int, tried: Sequence[tuple[Mapping[str, Any], Sent]]) -> Deliveries:
        counted = Deliveries(claimed=claimed)
        for row, sent in tried:
            if sent.delivered:
                counted.delivered += 1
            elif row["tries"] + 1 >= self._policy.max_tries:
                counted.failed += 1
            else:
                counted.put_off += 1
            if sent.error:
                counted.errors[sent.error] = counted.errors.get(sent.error, 0) + 1
        return counted


def _message(row: Mapping[str, Any]) -> Message:
    return Message(
        id=row["payload"]["id"],
        created_at=row["created_at"],
        claimed_at=row["claimed_at"],
        payload=row["payload"],
    )


# Sorted by task, so that two transactions that add the same notices wait for each other in one order. What a task has
# in other tables is looked up task by task, which the fence (OFFSET 0) makes sure of: to join them, the planner would
# read these tables whole.
_ADD_ASSIGNED: LiteralString = """
INSERT INTO cp.outbox (task, kind, payload)
SELECT t.id, 'assigned', jsonb_build_object(
    'id', gen_random_uuid(),
    'kind', 'assigned',
    'at', clock_timestamp(),
    'task_id', t.task_id,
    'title', p.title,
    'state', t.state,
    'reason', t.reason,
    'value_score', t.value_score,
    'model', t.model,
    'funding', a.funding,
    'expected_cost_usd', trim_scale(a.expected_cost_usd),
    'attempts', t.attempts,
    'quality', NULL,
    'cost_usd', NULL
)
FROM (SELECT * FROM cp.tasks WHERE id = ANY(%(tasks)s::bigint[]) ORDER BY id) AS t
LEFT JOIN LATERAL (SELECT title FROM cp.task_payloads WHERE task = t.id OFFSET 0) AS p ON true
LEFT JOIN LATERAL (
    SELECT funding, expected_cost_usd FROM cp.assignments WHERE id = t.assignment OFFSET 0
) AS a ON true
ON CONFLICT (task, kind) DO NOTHING
"""

_COMPLETED: LiteralString = """
INSERT INTO cp.outbox (task, kind, payload)
SELECT t.id, 'completed', jsonb_build_object(
    'id', gen_random_uuid(),
    'kind', 'completed',
    'at', clock_timestamp(),
    'task_id', t.task_id,
    'title', {title},
    'state', t.state,
    'reason', t.reason,
    'value_score', coalesce(
        t.value_score, (SELECT s.effective_score FROM cp.task_scores s WHERE s.task = t.id)
    ),
    'model', coalesce(t.model, last.model),
    'funding', {funding},
    'expected_cost_usd', trim_scale({expected}),
    'attempts', t.attempts,
    'quality', last.quality,
    'cost_usd', trim_scale(CASE WHEN t.attempts > 1 THEN last.cost_usd + (
        SELECT coalesce(sum(e.cost_usd), 0) FROM cp.executions e WHERE e.task = t.id AND e.attempt < t.attempts
    ) ELSE last.cost_usd END)
)
FROM {over}
ON CONFLICT (task, kind) DO NOTHING
"""


def completed_notices(
    over: LiteralString, title: LiteralString, funding: LiteralString, expected: LiteralString
) -> LiteralString:
    """The statement that adds the notices of tasks that are over.

    Args:
        over: those tasks as `t`, in the order of their ids, and the last attempt of each as `last`.
        title: of a task.
        funding: what paid for it.
        expected: what it was expected to cost, in US dollars.
    """
    return _COMPLETED.format(over=over, title=title, funding=funding, expected=expected)


_ADD_COMPLETED: LiteralString = completed_notices(
    """(SELECT * FROM cp.tasks WHERE id = ANY(%(tasks)s::bigint[]) ORDER BY id) AS t
LEFT JOIN LATERAL (SELECT title FROM cp.task_payloads p WHERE p.task = t.id OFFSET 0) AS p ON true
LEFT JOIN LATERAL (
    SELECT plan, expected_cost_usd FROM cp.assignments a WHERE a.id = t.assignment OFFSET 0
) AS a ON true
LEFT JOIN LATERAL (
    SELECT * FROM cp.executions e WHERE e.task = t.id AND e.attempt = t.attempts OFFSET 0
) AS last ON true""",
    title="p.title",
    funding="coalesce(a.plan -> t.stage ->> 'funding', last.funding)",
    expected="a.expected_cost_usd",
)

# A batch takes as long as its receivers do; who else delivers leaves its rows out meanwhile.
_SILENT_WHILE_SENDING: LiteralString = "SET LOCAL idle_in_transaction_session_timeout = 0"

# The fence makes sure that the rows are locked once, and no more than `limit` of them.
_CLAIM: LiteralString = """
WITH claimed AS MATERIALIZED (
    SELECT id, payload, created_at, available_at, tries
    FROM cp.outbox
    WHERE delivered_at IS NULL AND available_at <= now()
    ORDER BY available_at, id
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id, payload, created_at, tries, now() AS claimed_at FROM claimed ORDER BY available_at, id
"""

# A notice whose tries are used up is due at no time, until a person asks for it.
_MARK: LiteralString = """
UPDATE cp.outbox o
SET tries = o.tries + 1, error = r.error,
    delivered_at = CASE WHEN r.delivered THEN clock_timestamp() END,
    available_at = CASE
        WHEN r.delivered THEN o.available_at
        WHEN o.tries + 1 >= %(max_tries)s THEN 'infinity'
        ELSE clock_timestamp() + make_interval(secs => r.delay)
    END
FROM unnest(%(id)s::bigint[], %(delivered)s::boolean[], %(error)s::text[], %(delay)s::float8[])
    AS r (id, delivered, error, delay)
WHERE o.id = r.id
"""

_RETRY_FAILED: LiteralString = """
UPDATE cp.outbox SET tries = 0, available_at = now()
WHERE delivered_at IS NULL AND available_at = 'infinity'
"""

_COUNTS: LiteralString = """
SELECT count(*) FILTER (WHERE available_at < 'infinity'),
    count(*) FILTER (WHERE available_at <= now()),
    count(*) FILTER (WHERE available_at = 'infinity'),
    min(created_at)
FROM cp.outbox WHERE delivered_at IS NULL
"""

_LISTED: LiteralString = """
SELECT t.task_id, o.kind, o.created_at, o.tries::int, nullif(o.available_at, 'infinity'), o.error
FROM cp.outbox o JOIN cp.tasks t ON t.id = o.task
WHERE o.delivered_at IS NULL
ORDER BY o.available_at = 'infinity' DESC, o.id
LIMIT %(limit)s
"""
