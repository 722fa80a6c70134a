"""What assignment reads and writes: the facts of tasks to be decided, and the decisions, in bulk.

Everything here works in the caller's transaction where it is given a connection. Time is the database's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import numpy as np
import pandas as pd
import psycopg
from numpy.typing import NDArray
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

from cp_core.assignment.decision import Decision, Outcome, Stage, decision_id
from cp_core.assignment.packed import Legend, Packed
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.tasks.reasons import OF_THE_ACCOUNT, TRANSIENT, Reason
from cp_core.tasks.states import TaskState, require_legal
from cp_resources import arrays
from cp_resources.arms import Exposure, Exposures, expose
from cp_resources.assignment_attempts import relaxation
from cp_resources.assignment_batches import QUOTED
from cp_resources.database import Database

Row = Any
"""A named tuple with the columns of `_FACTS`."""

_OF_NO_MODEL = sorted(TRANSIENT | OF_THE_ACCOUNT)
_CAPS_LOCK = 0x6370_7763  # any number that only those who fill capped workspaces take
_STATES = {state.value: state for state in TaskState}
_to_json = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the decisions of one go have in common.

    Attributes:
        path: which way decided, see `assignments.path`.
        batch: row of assignment_batches that they were decided in, or took prices of.
        exposures: the arms of experiments that the tasks have.
    """

    strategy: str
    config_hash: str
    path: str
    run_id: str | None = None
    batch: UUID | None = None
    exposures: Exposures = field(default_factory=dict)


class Standing(NamedTuple):
    """A task's state and its newest decision; `explanation` holds the prices that decided, where there were any."""

    state: TaskState
    outcome: Outcome
    reason: Reason | None
    plan: list[dict[str, Any]]
    expected_cost_usd: Decimal | None
    explanation: dict[str, Any]
    config_hash: str
    stage: int


class Moved(NamedTuple):
    """A task's move that is on its way to the server.

    Attributes:
        states: the new state of the task if it gets another one, by task.
    """

    states: dict[int, TaskState]
    update: psycopg.Cursor[Any]

    def check(self) -> None:
        """Make sure, when the pipeline has ended, that the task was where its decision left it.

        Raises:
            RuntimeError: it was not.
        """
        if self.update.rowcount != 1:
            raise RuntimeError("a locked task was decided, but could not be moved")


class Facts:
    """What is known of some tasks, and the ids that decisions about them get."""

    def __init__(self, rows: Iterable[Row], config_hash: str) -> None:
        self.rows: dict[int, Row] = {row.task: row for row in rows}
        self.traits = _traits(self.rows.values())
        self.ids: dict[int, UUID] = {
            task: decision_id(row.task_id, row.decisions, config_hash) for task, row in self.rows.items()
        }

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def now(self) -> datetime:
        """The database's time at which they were read; there must be some."""
        return next(iter(self.rows.values())).now  # type: ignore[no-any-return]

    @property
    def last_attempts(self) -> dict[str, int] | None:
        """How the last inline attempts at them ended, by outcome; None when there was none."""
        return dict(Counter(row.last_attempt for row in self.rows.values() if row.last_attempt)) or None

    def traits_of(self, task: int) -> tuple[float, ...] | None:
        """Traits of one task; None where the trait model in force has not seen it."""
        found = self.traits.get(task)
        return None if found is None else tuple(found.tolist())

    def frame(self) -> pd.DataFrame:
        """One row a task, as strategies read it."""
        return pd.DataFrame(list(self.rows.values())).assign(
            traits=pd.Series([self.traits.get(task) for task in self.rows], dtype=object),
            decision_id=pd.Series(list(self.ids.values()), dtype=object),
            tiers_either_side=[relaxation(row.last_attempt) for row in self.rows.values()],
        )


def _traits(rows: Collection[Row]) -> dict[int, NDArray[np.float32]]:
    """Traits of the tasks that have any, by task."""
    told = [row for row in rows if row.traits is not None]
    if not told:
        return {}
    seen = arrays.reals_of([row.traits for row in told])
    return {row.task: traits for row, traits in zip(told, seen, strict=True)}


def spelled_out(
    explanation: dict[str, Any], figures: Sequence[float] | None, legend: Mapping[str, Any] | None
) -> dict[str, Any]:
    """An explanation in full, from `assignments.explanation`, `assignments.figures` and its batch's legend."""
    if figures is None or legend is None:
        return explanation
    return dict(Packed(figures, Legend(**legend), explanation))


class AssignmentStore:
    """Tasks to be decided, and decisions.

    Args:
        trait_model: whose traits predictions weigh; those of another one are not read.
    """

    def __init__(self, database: Database, policy: AssignmentPolicy, trait_model: str | None = None) -> None:
        self._database = database
        self._policy = policy
        self._asked = {"of_no_model": _OF_NO_MODEL, "trait_model": trait_model}

    def due(self, day: date, due: datetime, limit: int | None) -> list[int]:
        """Scored tasks of a day that were due at `due`, the most valuable first."""
        rows = self._database.fetch(_DUE, {"day": day, "due": due, "limit": limit})
        return [task for (task,) in rows]

    def decisions_of(self, day: date) -> int:
        """How many decisions are stored about the tasks of a day."""
        [(count,)] = self._database.fetch(
            "SELECT count(*) FROM cp.assignments WHERE submission_day = %s", [day]
        )
        return int(count)

    def read(
        self,
        connection: psycopg.Connection,
        tasks: Sequence[int],
        due: datetime,
        config_hash: str,
        *,
        lock: bool = False,
    ) -> Facts:
        """The facts of those of `tasks` that are due at `due`.

        Args:
            lock: keep the rows until the transaction ends, and leave out those that another one keeps.
        """
        parameters = {"tasks": arrays.int8s(tasks), "due": due, **self._asked}
        with connection.cursor(row_factory=namedtuple_row) as cursor:
            query = _LOCKED_TASKS if lock else _TASKS
            return Facts(cursor.execute(query, parameters).fetchall(), config_hash)

    def ask(self, connection: psycopg.Connection, task_id: str) -> psycopg.Cursor[Row]:
        """Ask for the facts of one task, empty unless it is open; read them from the cursor, after a pipeline's end."""
        cursor = connection.cursor(row_factory=namedtuple_row)
        return cursor.execute(_ONE_TASK, {"task_id": task_id, **self._asked}, prepare=True)

    def lock_unchanged(self, connection: psycopg.Connection, rows: Sequence[Row]) -> set[int]:
        """Lock the tasks that are as they were when their facts were read, and that nobody else has locked."""
        listed = {
            "tasks": arrays.int8s([row.task for row in rows]),
            "versions": arrays.int8s([row.version for row in rows]),
        }
        [(locked, changed)] = connection.execute(_LOCK, listed).fetchall()
        tasks = {row.task for row in rows}
        return tasks if locked == len(rows) else tasks - set(changed)

    def busy(
        self, connection: psycopg.Connection, workspaces: Iterable[str], *, lock: bool = False
    ) -> dict[str, int]:
        """Tasks assigned or running, by workspace, of some workspaces.

        Args:
            lock: let nobody else who asks so fill them until the transaction ends.
        """
        names = sorted(workspaces)
        if not names:
            return {}
        if lock:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CAPS_LOCK,))
        return dict(connection.execute(_BUSY, (names,)).fetchall())

    def store(
        self,
        connection: psycopg.Connection,
        facts: Facts,
        decisions: Sequence[Decision],
        stamp: Stamp,
        waits: Mapping[int, float] | None = None,
    ) -> dict[int, TaskState]:
        """Store decisions about locked tasks, move the tasks, and return the states of those that moved.

        A deferral for the same reason as before is no new decision: the task waits on, and the old row stands.

        Args:
            waits: seconds until some tasks that are deferred are looked at again; the policy says it for the others.
        """
        if not decisions:
            return {}
        waits = waits or {}
        moves = [_moved(decision, facts.rows[decision.task], self._policy) for decision in decisions]
        new = [decision for decision, move in zip(decisions, moves, strict=True) if not move.is_repeated]
        numbers = connection.execute(_NUMBERS, (len(new),)).fetchall()
        assignment_of = {decision.task: number for decision, (number,) in zip(new, numbers, strict=True)}
        with connection.cursor().copy(_COPY) as copy:
            copy.set_types(_COPY_TYPES)
            for decision, figures in zip(new, _packed(new), strict=True):
                copy.write_row(_stored(assignment_of[decision.task], decision, figures, facts, stamp, _jsonb))
        expose(connection, _exposed(decisions, stamp.exposures))
        moved = _move(connection, moves, assignment_of, waits).rowcount
        if moved != len(moves):
            raise RuntimeError(f"{len(moves)} locked tasks were decided, but {moved} could be moved")
        return {move.task: move.state for move in moves if move.state is not move.before}

    def store_one(
        self,
        connection: psycopg.Connection,
        facts: Facts,
        decision: Decision,
        stamp: Stamp,
        number: int,
        wait_seconds: float | None,
    ) -> Moved:
        """What `store` does, for one task and under a given number, without waiting for the server."""
        task = decision.task
        move = _moved(decision, facts.rows[task], self._policy)
        if not move.is_repeated:
            row = _stored(number, decision, None, facts, stamp, str)
            connection.execute(_INSERT, row, prepare=True)
        expose(connection, _exposed([decision], stamp.exposures))
        waits = {} if wait_seconds is None else {task: wait_seconds}
        update = _move(connection, [move], {} if move.is_repeated else {task: number}, waits)
        return Moved({} if move.state is move.before else {task: move.state}, update)

    def announce(
        self, connection: psycopg.Connection, kind: str, subject: str | None, payload: Mapping[str, Any]
    ) -> None:
        """Add an event."""
        connection.execute(
            "INSERT INTO cp.events (kind, subject, payload) VALUES (%s, %s, %s)",
            (kind, subject, Jsonb(dict(payload))),
        )

    def standing(self, task_id: str) -> Standing | None:
        """What stands for a task; None for one without any decision."""
        found = self._database.fetch(_STANDING, [task_id])
        if not found:
            return None
        [(state, outcome, reason, plan, cost, explanation, figures, config_hash, stage, legend, prices)] = (
            found
        )
        explanation = spelled_out(explanation, figures, legend)
        return Standing(
            TaskState(state),
            Outcome(outcome),
            reason and Reason(reason),
            plan or [],
            cost,
            explanation | ({} if prices is None else {"prices": prices}),
            config_hash,
            stage,
        )


class _Move(NamedTuple):
    """Where a decision takes its task."""

    task: int
    before: TaskState
    state: TaskState
    reason: Reason | None
    wait_seconds: float
    is_repeated: bool


def _exposed(decisions: Iterable[Decision], exposures: Exposures) -> Iterator[tuple[str, Exposure]]:
    """What decisions expose their tasks to. A block has only what is assigned in it: what waits may be another's."""
    if not exposures:
        return
    for decision in decisions:
        for one in exposures.get(decision.task, ()):
            if one.block is None or decision.outcome is Outcome.ASSIGNED:
                yield decision.task_id, one


def _moved(decision: Decision, row: Row, policy: AssignmentPolicy) -> _Move:
    before = _STATES[row.state]
    state, reason = _next_state(decision, row)
    if state is not before:
        require_legal(before, state)
    is_deferred = decision.outcome is Outcome.DEFERRED and decision.reason is not None
    return _Move(
        decision.task,
        before,
        state,
        reason,
        policy.wait_seconds(decision.reason, row.waited_seconds)
        if is_deferred and decision.reason is not None
        else 0.0,
        state is before and reason == row.reason,
    )


def _move(
    connection: psycopg.Connection,
    moves: Sequence[_Move],
    assignment_of: Mapping[int, int],
    waits: Mapping[int, float],
) -> psycopg.Cursor[Any]:
    """Move tasks to where their decisions take them."""
    return connection.execute(
        _MOVE,
        {
            "tasks": arrays.numbers(move.task for move in moves),
            "before": arrays.codes(move.before for move in moves),
            "states": arrays.codes(move.state for move in moves),
            "reasons": arrays.codes(move.reason for move in moves),
            "assignments": arrays.numbers(assignment_of.get(move.task) for move in moves),
            "waits": arrays.numbers(float(waits.get(move.task, move.wait_seconds)) for move in moves),
        },
    )


def _next_state(decision: Decision, row: Row) -> tuple[TaskState, Reason | None]:
    """Where a decision takes its task, and the reason that the task then shows.

    A task that was done, not well enough, and that no other model may be given has failed; one that nobody
    could do is dead.
    """
    if decision.outcome is Outcome.ASSIGNED:
        return TaskState.ASSIGNED, None
    if decision.outcome is Outcome.DEFERRED:
        return TaskState.DEFERRED, decision.reason
    if decision.reason is Reason.NO_ELIGIBLE_PLAN and row.was_done_poorly:
        return TaskState.FAILED, Reason.LOW_QUALITY
    return TaskState.DEAD, decision.reason


def _packed(decisions: Sequence[Decision]) -> list[bytes | None]:
    """The figures of explanations that are packed, as `assignments.figures` takes them."""
    explanations = [decision.explanation for decision in decisions]
    figures = [one.figures for one in explanations if isinstance(one, Packed)]
    made = iter(arrays.doubles(figures) if figures else ())
    return [next(made) if isinstance(one, Packed) else None for one in explanations]


def _stored(
    number: int,
    decision: Decision,
    figures: bytes | None,
    facts: Facts,
    stamp: Stamp,
    as_json: Callable[[str], str | bytes],
) -> tuple[Any, ...]:
    """The `_COLUMNS`. JSON as text, or what `as_json` makes of it: adapting it takes longer than all the rest."""
    identity, explanation = facts.ids[decision.task], decision.explanation
    return (
        number,
        identity,
        decision.task,
        facts.rows[decision.task].submission_day,
        stamp.strategy,
        decision.outcome.value,
        decision.reason and decision.reason.value,
        decision.model,
        decision.funding,
        as_json(_plan(decision.plan)) if decision.plan else None,
        decision.expected_cost_usd,
        as_json(_to_json(explanation.own if isinstance(explanation, Packed) else explanation)),
        figures,
        stamp.config_hash,
        stamp.run_id,
        stamp.path,
        stamp.batch,
        decision.propensity,
    )


def _plan(plan: Iterable[Stage]) -> str:
    """The stages as `Stage.as_json` gives them; a day has few names and many amounts."""
    return f"[{','.join([_stage(stage) for stage in plan])}]"


def _stage(stage: Stage) -> str:
    needs = "" if stage.needs is None else f',"needs":{_amounts(stage.needs)}'
    return (
        f'{{"model":{quoted(stage.model)},"funding":{quoted(stage.funding)},'
        f'"amounts":{_amounts(stage.amounts)}{needs}}}'
    )


def _amounts(amounts: Mapping[str, Decimal]) -> str:
    return "{" + ",".join([f'{quoted(account)}:"{amount!s}"' for account, amount in amounts.items()]) + "}"


@lru_cache(maxsize=1_000)
def quoted(name: str) -> str:
    """A name as JSON."""
    return _to_json(name)


def _jsonb(text: str) -> bytes:
    return b"\x01" + text.encode()


# A task that waits for others is due as soon as they have all succeeded, or one of them cannot any more.
_IS_DUE: LiteralString = """
t.state IN ('queued', 'deferred') AND (
    t.available_at <= %(due)s::timestamptz
    OR t.reason = 'DEPENDENCY_PENDING' AND (
        EXISTS (
            SELECT FROM cp.tasks d
            WHERE d.task_id = ANY(t.dependencies) AND d.state IN ('failed', 'dead', 'cancelled')
        )
        OR NOT EXISTS (
            SELECT FROM unnest(t.dependencies) AS wanted (task_id)
            LEFT JOIN cp.tasks d USING (task_id)
            WHERE d.state IS DISTINCT FROM 'succeeded'
        )
    )
)
"""

_DUE: LiteralString = f"""
SELECT t.id
FROM cp.tasks t JOIN cp.task_scores s ON s.task = t.id
WHERE t.submission_day = %(day)s AND {_IS_DUE}
ORDER BY s.effective_score DESC, t.deadline, t.id
LIMIT %(limit)s
"""

# xmin names the transaction that wrote the row last: the row is as it was read while that is the same.
_TASK_COLUMNS: LiteralString = """
    SELECT id, task_id, submission_day, state, reason, workspace, deadline, dependencies, available_at, submitted_at,
        state_changed_at, assignment_attempts_left, xmin::text::bigint AS version
    FROM cp.tasks
"""
_LISTED: LiteralString = f"{_TASK_COLUMNS} WHERE id = ANY(%(tasks)s::bigint[])"

# A listed task may be due no longer: another assigner may have decided it. That is asked outside the fence,
# so that the rows are found by primary key.
_FACTS: LiteralString = """
SELECT t.id AS task, t.task_id, t.submission_day, t.state, t.reason, t.deadline, t.workspace, t.version, now() AS now,
    t.assignment_attempts_left AS attempts_left,
    (SELECT a.outcome FROM cp.assignment_attempts a WHERE a.task = t.id ORDER BY a.id DESC LIMIT 1) AS last_attempt,
    extract(epoch FROM now() - t.state_changed_at)::float8 AS waited_seconds,
    extract(epoch FROM now() - t.submitted_at)::float8 / 3600 AS waiting_hours,
    s.effective_score AS value_score, s.domain, s.complexity, s.risk,
    s.input_mean, s.input_median, s.input_high, s.output_mean, s.output_median, s.output_high,
    CASE WHEN s.trait_model = %(trait_model)s::text THEN array_send(s.traits) END AS traits,
    dependency.failed AS dependencies_failed, dependency.pending AS dependencies_pending,
    failure.models AS failed_models, coalesce(failure.is_poor, false) AS was_done_poorly,
    (SELECT count(*) FROM cp.assignments a WHERE a.task = t.id) AS decisions
FROM chosen t
JOIN cp.task_scores s ON s.task = t.id
CROSS JOIN LATERAL (
    SELECT array_agg(wanted.task_id) FILTER (WHERE d.state IN ('failed', 'dead', 'cancelled')) AS failed,
        array_agg(wanted.task_id) FILTER (
            WHERE d.state IS NULL OR d.state NOT IN ('succeeded', 'failed', 'dead', 'cancelled')
        ) AS pending
    FROM unnest(t.dependencies) AS wanted (task_id)
    LEFT JOIN cp.tasks d USING (task_id)
) AS dependency
CROSS JOIN LATERAL (
    SELECT array_agg(DISTINCT e.model) AS models, bool_or(e.reason = 'LOW_QUALITY') AS is_poor
    FROM cp.executions e
    WHERE e.task = t.id AND e.state = 'failed' AND e.reason <> ALL(%(of_no_model)s::text[])
) AS failure
"""

_TASKS: LiteralString = f"WITH chosen AS MATERIALIZED ({_LISTED}) {_FACTS} WHERE {_IS_DUE}"
_LOCKED_TASKS: LiteralString = (
    f"WITH chosen AS MATERIALIZED ({_LISTED} FOR NO KEY UPDATE SKIP LOCKED) {_FACTS} WHERE {_IS_DUE}"
)
_ONE_TASK: LiteralString = f"""
WITH chosen AS MATERIALIZED ({_TASK_COLUMNS} WHERE task_id = %(task_id)s AND state IN ('queued', 'deferred')) {_FACTS}
"""
_LOCK: LiteralString = """
WITH locked AS MATERIALIZED (
    SELECT id, xmin::text::bigint AS version FROM cp.tasks
    WHERE id = ANY(%(tasks)s::bigint[]) FOR NO KEY UPDATE SKIP LOCKED
)
SELECT count(locked.id), array_agg(listed.task) FILTER (WHERE locked.id IS NULL)
FROM unnest(%(tasks)s::bigint[], %(versions)s::bigint[]) AS listed (task, version)
LEFT JOIN locked ON locked.id = listed.task AND locked.version = listed.version
"""

_BUSY: LiteralString = """
SELECT workspace, count(*) FROM cp.tasks
WHERE state IN ('assigned', 'running') AND workspace = ANY(%s::text[])
GROUP BY workspace
"""

_NUMBERS: LiteralString = "SELECT nextval('cp.assignments_id_seq') FROM generate_series(1, %s)"

_COLUMNS: LiteralString = """
cp.assignments (id, decision_id, task, submission_day, strategy, outcome, reason, model, funding, plan,
    expected_cost_usd, explanation, figures, config_hash, run_id, path, batch, propensity)
"""
_COPY: LiteralString = f"COPY {_COLUMNS} FROM STDIN (FORMAT BINARY)"
_INSERT: LiteralString = f"INSERT INTO {_COLUMNS} VALUES ({', '.join(['%s'] * 18)})"

# What is in binary format already passes as bytea.
_COPY_TYPES = [
    *("int8", "uuid", "int8", "date", "text", "text", "text", "text", "text", "bytea"),
    *("numeric", "bytea", "bytea", "text", "text", "text", "uuid", "float8"),
]

# The queue is claimed by value, so an assigned task carries its score; see `ScoreStore` for overrides. The tasks are
# named a second time, so that they are found by primary key whatever the planner makes of the arrays.
_MOVE: LiteralString = """
WITH decided AS MATERIALIZED (
    SELECT * FROM unnest(%(tasks)s::bigint[], %(before)s::text[], %(states)s::text[], %(reasons)s::text[],
        %(assignments)s::bigint[], %(waits)s::float8[])
        AS r (task, state_before, state, reason, assignment, wait_seconds)
)
UPDATE cp.tasks t
SET state = r.state, reason = r.reason, model = a.model, value_score = s.effective_score, stage = 0,
    assignment_attempts_left = CASE WHEN r.state = 'assigned' THEN 3 ELSE t.assignment_attempts_left END,
    assignment = coalesce(r.assignment, t.assignment),
    available_at = now() + make_interval(secs => r.wait_seconds),
    state_changed_at = CASE WHEN r.state = t.state THEN t.state_changed_at ELSE now() END
FROM decided r
LEFT JOIN cp.assignments a ON a.id = r.assignment
LEFT JOIN cp.task_scores s ON s.task = r.task
WHERE t.id = r.task AND t.state = r.state_before AND t.id = ANY(%(tasks)s::bigint[])
"""

# The prices of a batch are stored with the batch, and are part of what explains its decisions.
_STANDING: LiteralString = f"""
SELECT t.state, a.outcome, a.reason, a.plan, a.expected_cost_usd, a.explanation, a.figures, a.config_hash,
    t.stage::int, b.legend, CASE WHEN a.path = 'batch' THEN b.prices ELSE {QUOTED} END AS prices
FROM cp.tasks t
JOIN cp.assignments a ON a.task = t.id
LEFT JOIN cp.assignment_batches b ON b.id = a.batch
WHERE t.task_id = %s
ORDER BY a.id DESC LIMIT 1
"""
