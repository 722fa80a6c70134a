"""The outbox: notices about tasks, stored with the change that they tell of, and delivered afterwards.

`Outbox.add` runs in the transaction that moves a task, so a notice exists exactly when its change does, and a
unique index on task and kind keeps it to one, whichever way got there first. Who is told, and over which wire,
is decided in `cp_resources.notifiers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import LiteralString, NamedTuple

import psycopg

from cp_core.tasks.states import FINAL_STATES, TaskState
from cp_resources.database import Database


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


class Outbox:
    """Notices that wait, were delivered, or failed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @staticmethod
    def add(connection: psycopg.Connection, notices: Sequence[Notice]) -> int:
        """Add notices in the caller's transaction, after it moved the tasks; return how many are new.

        A task that has a notice of the kind keeps that one. What a notice says is read from the tables here:
        ids, codes and figures, never a prompt, an answer or an error text.
        """
        if not notices:
            return 0
        tasks, kinds = zip(*sorted(set(notices)), strict=True)
        return connection.execute(_ADD, {"tasks": list(tasks), "kinds": list(kinds)}).rowcount


# Sorted by task, so that two transactions that add the same notices wait for each other in one order.
_ADD: LiteralString = """
INSERT INTO cp.outbox (task, kind, payload)
SELECT t.id, n.kind, jsonb_build_object(
    'id', gen_random_uuid(),
    'kind', n.kind,
    'at', clock_timestamp(),
    'task_id', t.task_id,
    'title', p.title,
    'state', t.state,
    'reason', t.reason,
    'value_score', t.value_score,
    'model', coalesce(t.model, done.model),
    'funding', coalesce(a.funding, done.funding),
    'expected_cost_usd', trim_scale(a.expected_cost_usd),
    'attempts', t.attempts,
    'quality', done.quality,
    'cost_usd', trim_scale(done.cost_usd)
)
FROM unnest(%(tasks)s::bigint[], %(kinds)s::text[]) AS n (task, kind)
JOIN cp.tasks t ON t.id = n.task
LEFT JOIN cp.task_payloads p ON p.task = t.id
LEFT JOIN cp.assignments a ON a.id = t.assignment
LEFT JOIN LATERAL (
    SELECT sum(e.cost_usd) AS cost_usd,
        (array_agg(e.quality ORDER BY e.attempt DESC))[1] AS quality,
        (array_agg(e.model ORDER BY e.attempt DESC))[1] AS model,
        (array_agg(e.funding ORDER BY e.attempt DESC))[1] AS funding
    FROM cp.executions e WHERE e.task = t.id
) AS done ON n.kind = 'completed'
ORDER BY n.task, n.kind
ON CONFLICT (task, kind) DO NOTHING
"""
