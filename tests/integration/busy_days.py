"""More days like the one that was worked through: its tasks many times over, with outcomes as told."""

from __future__ import annotations

from datetime import date

from worked_day import DAY

from cp_resources.database import Database


def add_day(
    database: Database,
    day: date,
    first: int,
    *,
    copies: int = 60,
    most: float = 0.25,
    others: float = 0.97,
) -> None:
    """Copies of the tasks of `DAY` that were submitted on `day`, with one attempt each that used no tokens.

    Args:
        first: ids begin after it; days apart by a million do not meet.
        copies: of each of the 16 tasks.
        most, others: share of good work of the busiest model, and of all others.
    """
    with database.transaction() as connection:
        connection.execute("SET LOCAL session_replication_role = replica")  # foreign keys: rows come by table
        shift = {"first": first, "copies": copies, "day": day, "of": DAY}
        for table, statement in (("tasks", _TASKS), ("task_scores", _SCORES), ("assignments", _ASSIGNMENTS)):
            [(columns,)] = connection.execute(_COLUMNS, [table]).fetchall()
            connection.execute(statement.format(columns=columns), shift)
        connection.execute(
            _EXECUTIONS, {**shift, "busiest": busiest_model(database), "most": most, "rest": others}
        )


def busiest_model(database: Database) -> str:
    """The model that ended most tasks of `DAY`: whatever was tried again, and however many copies there are."""
    [(model,)] = database.fetch(
        """
        SELECT model FROM executions AS ended
        WHERE submission_day = %s AND state IN ('succeeded', 'failed')
          AND attempt = (SELECT max(attempt) FROM executions AS last WHERE last.task = ended.task)
        GROUP BY model ORDER BY count(*) DESC, model LIMIT 1
        """,
        [DAY],
    )
    found: str = model
    return found


_COPIED = """
    CROSS JOIN generate_series(1, %(copies)s) AS copy
    WHERE original.submission_day = %(of)s
"""
_COLUMNS = """
    SELECT string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position) FROM information_schema.columns
    WHERE table_schema = 'cp' AND table_name = %s AND is_generated = 'NEVER'
"""
_SHIFT = "%(first)s + copy * 1000"
_TASKS = f"""
    INSERT INTO tasks ({{columns}}) OVERRIDING SYSTEM VALUE
    SELECT {{columns}} FROM (
        SELECT (jsonb_populate_record(original, jsonb_build_object(
            'id', original.id + {_SHIFT}, 'task_id', original.task_id || '/' || %(day)s::date || '/' || copy,
            'submitted_at', original.submitted_at + (%(day)s::date - %(of)s::date) * interval '1 day',
            'state', 'succeeded'))).*
        FROM tasks AS original {_COPIED}
    ) AS copied
"""
_SCORES = f"""
    INSERT INTO task_scores ({{columns}})
    SELECT {{columns}} FROM (
        SELECT (jsonb_populate_record(original, jsonb_build_object(
            'task', original.task + {_SHIFT}, 'submission_day', %(day)s::date))).*
        FROM task_scores AS original {_COPIED}
    ) AS copied
"""
_ASSIGNMENTS = f"""
    INSERT INTO assignments OVERRIDING SYSTEM VALUE
    SELECT (jsonb_populate_record(original, jsonb_build_object(
        'id', original.id + {_SHIFT}, 'task', original.task + {_SHIFT}, 'submission_day', %(day)s::date,
        'decision_id', gen_random_uuid()))).*
    FROM assignments AS original {_COPIED} AND original.outcome = 'assigned'
"""
_EXECUTIONS = f"""
    INSERT INTO executions OVERRIDING SYSTEM VALUE
    SELECT (jsonb_populate_record(original, jsonb_build_object(
        'id', original.id + {_SHIFT}, 'task', original.task + {_SHIFT},
        'assignment', original.assignment + {_SHIFT}, 'submission_day', %(day)s::date,
        'state', CASE WHEN good THEN 'succeeded' ELSE 'failed' END,
        'reason', CASE WHEN good THEN NULL ELSE 'LOW_QUALITY' END,
        'input_tokens', 0, 'cached_tokens', 0, 'cache_write_tokens', 0, 'output_tokens', 0))).*
    FROM executions AS original
    CROSS JOIN generate_series(1, %(copies)s) AS copy
    CROSS JOIN LATERAL (
        SELECT (('x' || substr(md5(original.id || '/' || copy || '/' || %(day)s::date), 1, 7))::bit(28)::int
                / 268435456.0) < CASE WHEN original.model = %(busiest)s THEN %(most)s ELSE %(rest)s END AS good
    ) AS outcome
    WHERE original.submission_day = %(of)s AND original.state IN ('succeeded', 'failed')
      AND original.attempt = (SELECT max(attempt) FROM executions AS last WHERE last.task = original.task)
"""
