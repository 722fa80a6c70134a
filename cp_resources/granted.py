"""The assignments of a round stored in bulk: as columns from the solver to the database, no object a task.

Rows are the same as `AssignmentStore.store` makes of decisions one by one, and so are the tasks' moves. What is said of
every task in the same words is put together once for each plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import LiteralString

import numpy as np
import psycopg
from numpy.typing import NDArray

from cp_core.assignment.decision import Outcome
from cp_core.assignment.grants import Grants, Terms, split
from cp_core.quota.account import Unit
from cp_resources import arrays
from cp_resources.arms import expose
from cp_resources.assignment_store import Facts, Stamp, quoted


def store_granted(
    connection: psycopg.Connection, facts: Facts, grants: Grants, day: date, stamp: Stamp
) -> None:
    """Store the assignments of locked tasks of a submission day, and move the tasks.

    Raises:
        RuntimeError: a task was not where it was when its facts were read.
    """
    count = len(grants)
    numbers = np.array(connection.execute(_NUMBERS, [count]).fetchall(), dtype=np.int64).reshape(-1)
    with connection.cursor().copy(_COPY) as copy:
        copy.write(arrays.copied(_rows(facts, grants, numbers, day, stamp)))
    moved = connection.execute(
        _MOVE,
        {
            "tasks": arrays.int8s(grants.task),
            "assignments": arrays.int8s(numbers),
            "plans": arrays.int8s(grants.plan + 1),
            "values": arrays.float8s(grants.value),
            "models": [terms[0].model for terms in grants.plans],
        },
    ).rowcount
    if stamp.exposures:
        given = [(facts.rows[task].task_id, stamp.exposures.get(task, ())) for task in grants.task.tolist()]
        expose(connection, ((task_id, one) for task_id, exposures in given for one in exposures))
    if moved != count:
        raise RuntimeError(f"{count} locked tasks were decided, but {moved} could be moved")


def _rows(
    facts: Facts, grants: Grants, numbers: NDArray[np.int64], day: date, stamp: Stamp
) -> Iterator[bytes]:
    """The rows of `_COPY` in binary format, each in four pieces: head, propensity, what its plan says, plan."""
    heads = _heads(facts, grants, numbers, day)
    propensities = _propensities(grants)
    for plan, rows in grants.by_plan():
        terms = grants.plans[plan]
        same = _said_of_every_task(terms[0], stamp)
        template, amounts = _template(terms), _amounts(grants, rows, terms)
        for row, of_task in zip(rows.tolist(), amounts, strict=True):
            text = template % of_task
            yield heads[row]
            yield propensities[row]
            yield same
            yield (len(text) + 1).to_bytes(4, "big")
            yield b"\x01"
            yield text


def _heads(facts: Facts, grants: Grants, numbers: NDArray[np.int64], day: date) -> list[bytes]:
    """The fields of one length, in the order of `_COPY`."""
    tasks = grants.task.tolist()
    fields = {
        "id": numbers.astype(">i8"),
        "decision_id": np.frombuffer(b"".join([facts.ids[task].bytes for task in tasks]), dtype="V16"),
        "task": grants.task.astype(">i8"),
        "submission_day": arrays.day_values(day, len(tasks)),
        "expected_cost_usd": arrays.numeric_values(*split(grants.list_nanousd, Unit.USD)),
        "figures": arrays.double_rows(grants.figures),
    }
    return arrays.fields(fields, more=11)


def _propensities(grants: Grants) -> list[bytes]:
    made = np.empty(len(grants), dtype=np.dtype([("bytes", ">i4"), ("value", ">f8")]))
    made["bytes"], made["value"] = 8, grants.propensity
    is_known = (grants.propensity > 0).tolist()
    return [
        one if known else arrays.NO_FIELD for one, known in zip(arrays.pieces(made), is_known, strict=True)
    ]


def _said_of_every_task(first: Terms, stamp: Stamp) -> bytes:
    """The fields between propensity and plan, of the tasks that get a plan with this first stage."""
    texts = [stamp.strategy, Outcome.ASSIGNED.value, first.model, first.funding, stamp.config_hash]
    fields = [text.encode() for text in texts] + [
        b"\x01{}",
        None if stamp.run_id is None else stamp.run_id.encode(),
        stamp.path.encode(),
        None if stamp.batch is None else stamp.batch.bytes,
    ]
    return b"".join(map(arrays.field, fields))


def _template(plan: Sequence[Terms]) -> bytes:
    """The plan as `Stage.as_json` gives it, with a place for each amount of `_amounts`."""
    return f"[{','.join(_stage(terms, is_first=not number) for number, terms in enumerate(plan))}]".encode()


def _stage(terms: Terms, *, is_first: bool) -> str:
    amount = "%d" if terms.unit is Unit.TOKENS else "%d.%09d"
    places = ",".join(f'{_literal(account)}:"{amount}"' for account in terms.accounts)
    needs = "" if is_first else f',"needs":{{{places}}}'
    return (
        f'{{"model":{_literal(terms.model)},"funding":{_literal(terms.funding)},'
        f'"amounts":{{{places}}}{needs}}}'
    )


def _literal(name: str) -> str:
    return quoted(name).replace("%", "%%")


def _amounts(grants: Grants, rows: NDArray[np.intp], plan: Sequence[Terms]) -> Iterator[tuple[int, ...]]:
    """The numbers for the places of `_template`, a tuple a task."""
    columns: list[list[int]] = []
    for number, terms in enumerate(plan):
        for amounts in (grants.reserved, grants.needed)[: 1 if number == 0 else 2]:
            parts = split(amounts[rows, number], terms.unit)[: 1 if terms.unit is Unit.TOKENS else 2]
            columns += [part.tolist() for part in parts] * len(terms.accounts)
    return zip(*columns, strict=True)


_NUMBERS: LiteralString = "SELECT nextval('cp.assignments_id_seq') FROM generate_series(1, %s)"

_COPY: LiteralString = """
COPY cp.assignments (id, decision_id, task, submission_day, expected_cost_usd, figures, propensity, strategy, outcome,
    model, funding, config_hash, explanation, run_id, path, batch, plan)
FROM STDIN (FORMAT BINARY)
"""

# The task is locked as it was read, so its score is still what it was decided by. The tasks are named a second time,
# so that they are found by primary key whatever the planner makes of the arrays.
_MOVE: LiteralString = """
WITH granted AS MATERIALIZED (
    SELECT * FROM unnest(%(tasks)s, %(assignments)s, %(plans)s, %(values)s) AS g (task, assignment, plan, value)
)
UPDATE cp.tasks t
SET state = 'assigned', reason = NULL, model = (%(models)s::text[])[g.plan], value_score = g.value, stage = 0,
    assignment_attempts_left = 3, assignment = g.assignment, available_at = now(), state_changed_at = now()
FROM granted g
WHERE t.id = g.task AND t.state IN ('queued', 'deferred') AND t.id = ANY(%(tasks)s)
"""
