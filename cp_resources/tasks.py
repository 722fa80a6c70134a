"""Submitted tasks on their way into the database: the rows of `tasks` and `task_payloads`, in bulk.

Scores, assignments and executions of a task have stores of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime
from typing import LiteralString, NamedTuple

import psycopg

from cp_core.tasks.submission import TaskSubmission
from cp_resources.database import Database

INSERT_ATTEMPTS = 5
"""Writers of the same tasks in another order may stop each other; those who lose try again, one by one."""
_RETRY_LOCK = 0x6370_7461  # any number that only retries of an insert take


class NewTask(NamedTuple):
    """One task as it goes into the database; the fields are the columns, in the order of `_COPY`."""

    task_id: str
    idempotency_key: str | None
    submitted_at: datetime
    priority: int
    workspace: str
    deadline: datetime | None
    dependencies: list[str] | None
    max_attempts: int
    title: str
    description: str
    labels: list[str]
    estimated_files: int | None
    estimated_lines: int | None
    workspace_files: int | None
    extra: str | None

    @classmethod
    def of(cls, submission: TaskSubmission, task_id: str, extra: str | None) -> NewTask:
        """The row of a validated submission; `extra` is JSON."""
        return cls(
            task_id,
            submission.idempotency_key,
            submission.submitted_at,
            submission.priority,
            submission.workspace,
            submission.deadline,
            list(submission.dependencies) or None,
            submission.max_attempts,
            submission.title,
            submission.description,
            list(submission.labels),
            submission.estimated_files,
            submission.estimated_lines,
            submission.workspace_files,
            extra,
        )


class Inserted(NamedTuple):
    """What came of an insert.

    Attributes:
        stored: tasks stored.
        duplicates: rows that changed nothing.
        differing: task_ids of those duplicates that say something else than the stored task.
    """

    stored: int
    duplicates: int
    differing: tuple[str, ...]


class TaskStore:
    """Tasks in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def insert(self, rows: Sequence[NewTask]) -> Inserted:
        """Store tasks in one transaction.

        A row whose task_id or idempotency_key is taken, by a task or an earlier row, changes nothing.
        """
        try:
            return self._insert(rows)
        except psycopg.errors.DeadlockDetected:
            for _ in range(INSERT_ATTEMPTS - 2):
                with suppress(psycopg.errors.DeadlockDetected):
                    return self._insert(rows, in_turn=True)
            return self._insert(rows, in_turn=True)

    def known_ids(self, task_ids: Collection[str]) -> set[str]:
        """Those of `task_ids` that are stored."""
        return self._known("SELECT task_id FROM tasks WHERE task_id = ANY(%s)", task_ids)

    def known_keys(self, idempotency_keys: Collection[str]) -> set[str]:
        """Those of `idempotency_keys` that a stored task has."""
        return self._known(
            "SELECT idempotency_key FROM tasks WHERE idempotency_key = ANY(%s)", idempotency_keys
        )

    def _insert(self, rows: Sequence[NewTask], *, in_turn: bool = False) -> Inserted:
        with self._database.transaction() as connection:
            if in_turn:
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [_RETRY_LOCK])
            connection.execute(_INCOMING)
            with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                for row in rows:
                    copy.write_row(row)
            stored = connection.execute(_INSERT).rowcount
            differing = connection.execute(_DIFFERING).fetchall() if stored < len(rows) else []
        return Inserted(stored, len(rows) - stored, tuple(task_id for (task_id,) in differing))

    def _known(self, query: LiteralString, values: Collection[str]) -> set[str]:
        return {value for (value,) in self._database.fetch(query, [list(values)])} if values else set()


# The id is drawn on the way in, so that a row of `incoming` is found again once it is in `tasks`.
_INCOMING: LiteralString = """
CREATE TEMPORARY TABLE incoming (
    id bigint DEFAULT nextval('cp.tasks_id_seq'),
    task_id text, idempotency_key text, submitted_at timestamptz, priority smallint, workspace text,
    deadline timestamptz, dependencies text[], max_attempts smallint,
    title text, description text, labels text[],
    estimated_files integer, estimated_lines integer, workspace_files integer, extra jsonb
) ON COMMIT DROP
"""

_COPY: LiteralString = """
COPY incoming (
    task_id, idempotency_key, submitted_at, priority, workspace, deadline, dependencies, max_attempts, title,
    description, labels, estimated_files, estimated_lines, workspace_files, extra
) FROM STDIN
"""

_INSERT: LiteralString = """
WITH stored AS (
    INSERT INTO tasks (
        id, task_id, idempotency_key, submitted_at, priority, workspace, deadline, dependencies, max_attempts
    )
    SELECT
        id, task_id, idempotency_key, submitted_at, priority, workspace, deadline, dependencies, max_attempts
    FROM incoming ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING id
)
INSERT INTO task_payloads (
    task, title, description, labels, estimated_files, estimated_lines, workspace_files, extra
)
SELECT id, title, description, labels, estimated_files, estimated_lines, workspace_files, extra
FROM incoming JOIN stored USING (id)
"""

# OFFSET 0 keeps the planner from reading the whole of `tasks` to find some thousands of ids in it.
_DIFFERING: LiteralString = """
SELECT incoming.task_id
FROM incoming
CROSS JOIN LATERAL (
    SELECT * FROM tasks WHERE tasks.task_id = incoming.task_id AND tasks.id <> incoming.id OFFSET 0
) AS before
JOIN task_payloads AS payload ON payload.task = before.id
WHERE (
    incoming.title, incoming.description, incoming.labels, incoming.priority, incoming.workspace,
    incoming.deadline, incoming.dependencies, incoming.max_attempts, incoming.estimated_files,
    incoming.estimated_lines, incoming.workspace_files
) IS DISTINCT FROM (
    payload.title, payload.description, payload.labels, before.priority, before.workspace,
    before.deadline, before.dependencies, before.max_attempts, payload.estimated_files,
    payload.estimated_lines, payload.workspace_files
)
ORDER BY incoming.id
"""
