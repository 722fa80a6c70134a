"""Cancelling in PostgreSQL: open tasks end at once, running ones when their worker has stopped.

A request stands in the running task's own row (`tasks.cancellation`), so that whoever moves the task on from there
reads it under the same lock: a request is never lost, and a task that was done first stays done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from cp_core.execution.scrubbing import strike_secrets
from cp_core.tasks.cancellation import Cancelling, cancelling
from cp_core.tasks.states import FINAL_STATES, TaskState
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.ledger import Ledger, Settlement
from cp_resources.outbox import Outbox, notices_about
from cp_resources.secrets import known_secrets

PORTION = 1_000
"""Most tasks of one transaction, so that none is long."""


class UnknownTasksError(UserError):
    """Some of the tasks that were named do not exist."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tasks are meant: those named, or the unfinished ones that all of the other fields fit.

    Attributes:
        task_ids: as submitted; the other fields are then not looked at.
        batch: row of assignment_batches that made the task's latest decision.
        run_id: Dagster run that made the task's latest decision, or that executes it now.
        model: that the task is assigned to, or running with.
    """

    task_ids: tuple[str, ...] = ()
    day: date | None = None
    batch: UUID | None = None
    run_id: str | None = None
    model: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What was chosen by; empty for everything."""
        chosen = {
            "tasks": list(self.task_ids) or None,
            "day": self.day and self.day.isoformat(),
            "batch": self.batch and str(self.batch),
            "run": self.run_id,
            "model": self.model,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def parameters(self) -> dict[str, Any]:
        """Parameters of `_CHOSEN`."""
        return {
            "task_ids": list(self.task_ids) or None,
            "states": [str(state) for state in TaskState if state not in FINAL_STATES],
            "day": self.day,
            "batch": self.batch,
            "run": self.run_id,
            "model": self.model,
        }


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What a call to cancel came to, in tasks.

    Attributes:
        at_once: that are cancelled now.
        requested: whose worker is told to stop.
        requested_before: running, and told to stop already.
        too_late: that were over, by state.
    """

    at_once: int = 0
    requested: int = 0
    requested_before: int = 0
    too_late: Counter[str] = field(default_factory=Counter)


class CancellationStore:
    """Cancels tasks, and keeps who asked for it and why."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger

    def preview(self, selection: Selection) -> dict[TaskState, int]:
        """How many of the selected tasks stand in each state now.

        Raises:
            UnknownTasksError: a task that is named does not exist.
        """
        self._require_known(selection)
        rows = self._database.fetch(
            f"SELECT t.state, count(*) FROM cp.tasks t WHERE {_CHOSEN} GROUP BY t.state",
            selection.parameters(),
        )
        counts = {TaskState(state): count for state, count in rows}
        return {state: counts[state] for state in TaskState if state in counts}

    def cancel(self, selection: Selection, *, by: str, reason: str) -> Cancelled:
        """Cancel the selected tasks, in transactions of `PORTION` tasks. A repeat changes nothing.

        Args:
            by: who asks for it.
            reason: why.

        Raises:
            UnknownTasksError: a task that is named does not exist; nothing is changed.
        """
        self._require_known(selection)
        secrets = known_secrets()
        with self._database.transaction() as connection:
            [cancellation] = _column(
                connection,
                _BEGIN,
                {
                    "by": strike_secrets(by, secrets),
                    "reason": strike_secrets(reason, secrets),
                    "selection": Jsonb(selection.as_json()),
                },
            )
        counts: Counter[str] = Counter()
        too_late: Counter[str] = Counter()
        for portion in self._portions(selection):
            with self._database.transaction() as connection:
                self._cancel_portion(connection, selection, portion, cancellation, counts, too_late)
        return Cancelled(**counts, too_late=too_late)

    def _require_known(self, selection: Selection) -> None:
        if not selection.task_ids:
            return
        rows = self._database.fetch(
            "SELECT task_id FROM tasks WHERE task_id = ANY(%s)", [list(selection.task_ids)]
        )
        unknown = sorted(set(selection.task_ids) - {task_id for (task_id,) in rows})
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise UnknownTasksError(
                f"no task has the id {', '.join(map(repr, unknown[:5]))}{more}; nothing was cancelled"
            )

    def _portions(self, selection: Selection) -> Iterator[list[int]]:
        after = 0
        while True:
            with self._database.transaction() as connection:
                tasks = _column(
                    connection, _LIST, {**selection.parameters(), "after": after, "limit": PORTION}
                )
            if not tasks:
                return
            yield tasks
            after = tasks[-1]

    def _cancel_portion(
        self,
        connection: psycopg.Connection,
        selection: Selection,
        portion: Sequence[int],
        cancellation: int,
        counts: Counter[str],
        too_late: Counter[str],
    ) -> None:
        with connection.cursor(row_factory=dict_row) as cursor:
            # Named ones are told of in whatever state they are; the others are those that still fit.
            rows = cursor.execute(_LOCK, {**selection.parameters(), "tasks": portion}).fetchall()
        effects = {row["id"]: cancelling(TaskState(row["state"])) for row in rows}
        now = [task for task, effect in effects.items() if effect is Cancelling.AT_ONCE]
        running = [row for row in rows if effects[row["id"]] is Cancelling.REQUESTED]
        asked = [row["id"] for row in running if not row["is_requested"]]
        self._end(connection, now, cancellation)
        connection.execute(_REQUEST, {"tasks": asked, "cancellation": cancellation})
        connection.execute(ANNOUNCE_REQUESTED, {"tasks": asked})
        counts["at_once"] += len(now)
        counts["requested"] += len(asked)
        counts["requested_before"] += len(running) - len(asked)
        too_late.update(row["state"] for row in rows if effects[row["id"]] is Cancelling.TOO_LATE)

    def _end(self, connection: psycopg.Connection, tasks: Sequence[int], cancellation: int) -> None:
        """Cancel locked tasks that nobody works on, and give back whatever is reserved for them."""
        if not tasks:
            return
        reserved = _column(connection, _RESERVED, {"tasks": tasks})
        self._ledger.settle(connection, [Settlement(key, {}) for key in reserved])
        connection.execute(_END, {"tasks": tasks, "cancellation": cancellation})
        Outbox.add(connection, notices_about(dict.fromkeys(tasks, TaskState.CANCELLED)))
        connection.execute(ANNOUNCE_CANCELLED, {"tasks": tasks})


def _column(connection: psycopg.Connection, query: LiteralString, parameters: dict[str, Any]) -> list[Any]:
    return [value for (value,) in connection.execute(query, parameters).fetchall()]


_CHOSEN: LiteralString = """
CASE WHEN %(task_ids)s::text[] IS NOT NULL THEN t.task_id = ANY(%(task_ids)s::text[])
ELSE t.state = ANY(%(states)s::text[])
    AND (%(day)s::date IS NULL OR t.submission_day = %(day)s::date)
    AND (%(model)s::text IS NULL OR (t.state IN ('assigned', 'running') AND t.model = %(model)s::text))
    AND (%(batch)s::uuid IS NULL OR %(batch)s::uuid = (
        SELECT a.batch FROM cp.assignments a WHERE a.task = t.id ORDER BY a.id DESC LIMIT 1
    ))
    AND (%(run)s::text IS NULL
        OR %(run)s::text = (
            SELECT a.run_id FROM cp.assignments a WHERE a.task = t.id ORDER BY a.id DESC LIMIT 1
        )
        OR EXISTS (
            SELECT FROM cp.executions e
            WHERE e.task = t.id AND e.state = 'running' AND e.run_id = %(run)s::text
        ))
END
"""

_LIST: LiteralString = f"""
SELECT t.id FROM cp.tasks t WHERE t.id > %(after)s AND {_CHOSEN} ORDER BY t.id LIMIT %(limit)s
"""

# In the order in which workers lock tasks.
_LOCK: LiteralString = f"""
SELECT t.id, t.state, t.cancellation IS NOT NULL AS is_requested
FROM cp.tasks t WHERE t.id = ANY(%(tasks)s::bigint[]) AND {_CHOSEN}
ORDER BY t.id
FOR NO KEY UPDATE
"""

_BEGIN: LiteralString = """
INSERT INTO cp.cancellations (requested_by, reason, selection) VALUES (%(by)s, %(reason)s, %(selection)s)
RETURNING id
"""

_RESERVED: LiteralString = """
SELECT DISTINCT pending.reservation
FROM cp.quota_transfers pending
WHERE pending.task = ANY(%(tasks)s::bigint[]) AND pending.phase = 'pending'
    AND NOT EXISTS (SELECT FROM cp.quota_transfers r WHERE r.pending_id = pending.transfer_id)
"""

_END: LiteralString = """
UPDATE cp.tasks
SET state = 'cancelled', reason = 'CANCELLED', cancellation = %(cancellation)s,
    state_changed_at = clock_timestamp()
WHERE id = ANY(%(tasks)s::bigint[]) AND state IN ('queued', 'deferred', 'assigned')
"""

_REQUEST: LiteralString = """
UPDATE cp.tasks SET cancellation = %(cancellation)s
WHERE id = ANY(%(tasks)s::bigint[]) AND lease_owner IS NOT NULL AND cancellation IS NULL
"""

_ANNOUNCE: LiteralString = """
INSERT INTO cp.events (kind, subject, payload)
SELECT '{kind}', t.task_id, jsonb_build_object(
    'cancellation', c.id, 'by', c.requested_by, 'reason', c.reason, 'model', t.model, 'attempts', t.attempts
)
FROM cp.tasks t JOIN cp.cancellations c ON c.id = t.cancellation
WHERE t.id = ANY(%(tasks)s::bigint[])
ORDER BY t.id
"""
ANNOUNCE_REQUESTED: LiteralString = _ANNOUNCE.replace("{kind}", "task.cancel_requested")
ANNOUNCE_CANCELLED: LiteralString = _ANNOUNCE.replace("{kind}", "task.cancelled")
