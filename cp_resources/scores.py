"""Value scores and token estimates in the database: which tasks lack one, and storing them in bulk.

A task's score lives in task_scores. Its copy `tasks.value_score` is the order in which assigned tasks are claimed:
`AssignmentStore` writes it with the decision, because another update of every task would cost more than the scoring. A
score that changes, or that a person overrides, changes the copy at once; so a decision under way sees that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from itertools import repeat
from types import MappingProxyType
from typing import Any, LiteralString

import pandas as pd
import psycopg
from psycopg import sql
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row

from cp_core.scoring.columns import TASK_COLUMNS
from cp_core.scoring.score import SCORE_COLUMNS, score_tasks
from cp_core.tasks.states import FINAL_STATES
from cp_resources import arrays
from cp_resources.arms import ArmsInForce, Exposures, Part, expose
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.events import announce
from cp_resources.trait_models import Looks, TraitModels

CHUNK = 20_000
"""Tasks read, scored and stored at a time, so that memory does not grow with the day."""

_WRITERS = 2  # chunks stored at once, beside the one that is scored

_OPEN_STATES = "('queued', 'deferred')"


class ScoreError(UserError):
    """A score cannot be shown or overridden. The text says why, and what to do."""


class ScoreStore:
    """Reads tasks to be scored and stores what scoring gave."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def score_day(self, day: date, configuration: Configuration) -> int:
        """Score every task of a submission day that has no score yet; return how many that were.

        The next tasks are read and scored while the database stores the scores of those before.
        """
        arms = ArmsInForce(self._database, configuration)
        scored, after = 0, 0
        storing: deque[Future[None]] = deque()
        with ThreadPoolExecutor(_WRITERS) as writers:
            while len(tasks := self.unscored(day, after=after, limit=CHUNK)):
                for part in arms.parts(tasks.index.tolist()):
                    own = tasks.loc[list(part.tasks)]
                    scores = score_tasks(own, part.configuration.scoring)
                    looks = self._look_at(own, scores, part.configuration)
                    storing.append(writers.submit(self._add_scores, scores, day, part, looks))
                    if len(storing) > _WRITERS:
                        storing.popleft().result()
                scored, after = scored + len(tasks), int(tasks.index[-1])
            for stored in storing:
                stored.result()
        return scored

    def unscored(self, day: date, *, after: int = 0, limit: int = CHUNK) -> pd.DataFrame:
        """Tasks of a submission day that still have to be scored, lowest id first.

        That is a task without a score, whatever its state. A score that stands is never made again: a task
        keeps the configuration it was scored under, so that doing a past day again changes nothing.

        Args:
            day: submission day (UTC).
            after: only tasks with a higher `tasks.id`. With the last id of the portion before, a large day is
                read through once, and not from its start for every portion.
            limit: most tasks to return.

        Returns:
            One row a task with the columns that `score_tasks` reads; the index is `tasks.id`.
        """
        return self._tasks(_UNSCORED, {"day": day, "after": after, "limit": limit})

    def task(self, task_id: str) -> pd.DataFrame:
        """One task as a frame of one row, as `unscored` gives it.

        Raises:
            ScoreError: no task has this id.
        """
        frame = self._tasks(_ONE, {"task_id": task_id})
        if frame.empty:
            raise _unknown(task_id)
        return frame

    def score_now(self, task_id: str, configuration: Configuration) -> None:
        """Score one task, whether or not it has a score.

        Raises:
            ScoreError: no task has this id.
        """
        frame = self.task(task_id)
        [part] = ArmsInForce(self._database, configuration).parts(frame.index.tolist())
        scores = score_tasks(frame, part.configuration.scoring)
        looks = self._look_at(frame, scores, part.configuration)
        self.write_scores(scores, part.configuration.content_hash, part.exposures, looks)

    def write_scores(
        self,
        scores: pd.DataFrame,
        config_hash: str,
        exposures: Exposures = MappingProxyType({}),
        looks: Looks | None = None,
    ) -> None:
        """Store scores in one transaction; a task that has one gets the new one, and keeps a person's override.

        Args:
            scores: `SCORE_COLUMNS`, the index is `tasks.id`.
            config_hash: content hash of the configuration they were made under.
            exposures: the arms of experiments that the tasks have.
            looks: what the configuration's trait model saw in the texts, in the order of `scores`, if it has one.
        """
        if scores.empty:
            return
        with self._database.transaction() as connection:
            connection.execute(_STAGE)
            _copy(connection, _COPY_STAGED, _rows(scores, looks))
            connection.execute(_LOCK_STAGED)
            connection.execute(_UPSERT, {"config_hash": config_hash})
            connection.execute(_VALUE_OF_STAGED)
            _expose(connection, scores, exposures)

    def _look_at(
        self, tasks: pd.DataFrame, scores: pd.DataFrame, configuration: Configuration
    ) -> Looks | None:
        """What the trait model in force sees in tasks that have just been scored; None when there is none.

        Raises:
            ArtifactError: it cannot be read.
        """
        eye = configuration.learned.calibration.trait_model
        if eye is None:
            return None
        from cp_core.learning.trait_model import text_of

        texts = [text_of(*parts) for parts in zip(tasks["title"], tasks["description"], strict=True)]
        kinds = (scores["domain"] + "/" + scores["complexity"]).tolist()
        return Looks(eye, TraitModels(self._database).load(eye).traits_of(texts, kinds))

    def _add_scores(self, scores: pd.DataFrame, day: date, part: Part, looks: Looks | None) -> None:
        """Store the first scores of tasks of a day: as `write_scores`, faster. If another process scored one of them
        meanwhile, all go that way."""
        config_hash = part.configuration.content_hash
        with suppress(UniqueViolation), self._database.transaction() as connection:
            with connection.cursor().copy(_COPY_NEW) as copy:
                copy.write(arrays.copied(_binary_rows(scores, day, config_hash, looks)))
            _expose(connection, scores, part.exposures)
            return
        self.write_scores(scores, config_hash, part.exposures, looks)

    def score(self, task_id: str) -> dict[str, Any] | None:
        """Every stored column of a task's score, or None while it has none.

        Raises:
            ScoreError: no task has this id.
        """
        with self._database.transaction() as connection, connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(_STORED, {"task_id": task_id}).fetchone()
        if found is None:
            raise _unknown(task_id)
        return found if found["config_hash"] is not None else None

    def override_score(self, task_id: str, score: float, reason: str, by: str) -> None:
        """Put a person's score in the place of the computed one, which stays stored beside it.

        Raises:
            ScoreError: no such task, it has no score yet, it has ended, or score or reason are not allowed.
        """
        if not 0 <= score <= 100:
            raise ScoreError(f"a value score is 0 to 100, not {score:g}")
        if not reason.strip():
            raise ScoreError("an override needs a reason that tells others why: give --reason TEXT")
        self._override(task_id, {"score": score, "reason": reason.strip(), "by": by}, kind="score.overridden")

    def clear_override(self, task_id: str, by: str) -> None:
        """Let the computed score count again.

        Raises:
            ScoreError: no such task, it has no score yet, or it has ended.
        """
        self._override(
            task_id, {"score": None, "reason": None, "by": None}, kind="score.override_cleared", by=by
        )

    def _override(self, task_id: str, values: dict[str, Any], *, kind: str, by: str | None = None) -> None:
        with self._database.transaction() as connection:
            found = connection.execute(_LOCK, {"task_id": task_id}).fetchone()
            if found is None:
                raise _unknown(task_id)
            task, state, is_scored = found
            if state in FINAL_STATES:
                raise ScoreError(f"task {task_id} has ended ({state}): its score no longer decides anything")
            if not is_scored:
                raise ScoreError(
                    f"task {task_id} has no value score yet: run `control-panel score {task_id}` first"
                )
            connection.execute(_OVERRIDE, {**values, "task": task})
            announce(connection, kind, task_id, {**values, "by": by or values["by"]})

    def _tasks(self, query: LiteralString, parameters: dict[str, Any]) -> pd.DataFrame:
        with self._database.transaction() as connection:
            rows = connection.execute(query, parameters).fetchall()
        frame = pd.DataFrame(rows, columns=["task", *TASK_COLUMNS]).set_index("task")
        for column in ("deadline", "submitted_at"):
            frame[column] = pd.to_datetime(frame[column], utc=True)
        return frame


def _copy(connection: psycopg.Connection, query: sql.Composed, rows: Iterable[tuple[Any, ...]]) -> None:
    with connection.cursor().copy(query) as copy:
        for row in rows:
            copy.write_row(row)


def _expose(connection: psycopg.Connection, scores: pd.DataFrame, exposures: Exposures) -> None:
    """Store the arms that say how these tasks are scored."""
    given = {
        task: chosen
        for task in scores.index
        if (chosen := [one for one in exposures.get(task, ()) if one.since_scoring])
    }
    if given:
        names = connection.execute(_NAMES_OF, [list(given)]).fetchall()
        expose(connection, ((task_id, one) for task, task_id in names for one in given[task]))


def _rows(scores: pd.DataFrame, looks: Looks | None) -> Iterator[tuple[Any, ...]]:
    columns = [scores[name].tolist() for name in SCORE_COLUMNS]
    traits = looks.traits.tolist() if looks else repeat(None, len(scores))
    eye = repeat(looks.trait_model if looks else None, len(scores))
    return zip(scores.index.tolist(), *columns, traits, eye, strict=True)


def _binary_rows(scores: pd.DataFrame, day: date, config_hash: str, looks: Looks | None) -> Iterator[bytes]:
    """Rows of `_COPY_NEW`: numbers first, then the names, of which the tasks share few combinations."""
    heads = arrays.fields(
        {
            "task": scores.index.to_numpy(dtype=">i8"),
            **{name: scores[name].to_numpy(dtype=">i4") for name in _WHOLE},
            **{name: scores[name].to_numpy(dtype=">f8") for name in _REAL},
            "submission_day": arrays.day_values(day, len(scores)),
        },
        more=len(_NAMED) + 3,
    )
    of_all = arrays.field(config_hash.encode())
    of_all += arrays.field(looks.trait_model.encode() if looks else None)
    traits: Iterable[bytes] = repeat(arrays.NO_FIELD)
    if looks:
        traits = map(arrays.field, arrays.pieces(arrays.real_rows(looks.traits)))
    tails: dict[tuple[str, ...], bytes] = {}
    names = zip(*(scores[name].tolist() for name in _NAMED), strict=True)
    for head, named, seen in zip(heads, names, traits, strict=False):
        tail = tails.get(named)
        if tail is None:
            tail = tails[named] = b"".join([arrays.field(name.encode()) for name in named]) + of_all
        yield head
        yield tail
        yield seen


def _unknown(task_id: str) -> ScoreError:
    return ScoreError(f"no task has the id {task_id!r}: submit it first, or check the spelling")


_TASK: LiteralString = f"""
    SELECT t.id, p.title, p.description, t.priority, p.labels, t.workspace,
        p.estimated_files, p.estimated_lines, p.workspace_files, t.deadline, t.submitted_at,
        t.task_id IN (
            SELECT unnest(w.dependencies) FROM cp.tasks w
            WHERE w.dependencies IS NOT NULL AND w.state IN {_OPEN_STATES}
        ) AS blocks_others
    FROM cp.tasks t JOIN cp.task_payloads p ON p.task = t.id
"""
_UNSCORED: LiteralString = f"""
    {_TASK}
    WHERE t.submission_day = %(day)s AND t.id > %(after)s
        AND NOT EXISTS (SELECT FROM cp.task_scores s WHERE s.task = t.id AND s.task > %(after)s)
    ORDER BY t.id LIMIT %(limit)s
"""
_ONE: LiteralString = f"{_TASK} WHERE t.task_id = %(task_id)s"
_NAMES_OF: LiteralString = "SELECT id, task_id FROM cp.tasks WHERE id = ANY(%s::bigint[])"
_STORED: LiteralString = """
    SELECT t.task_id, t.state, t.priority, s.*
    FROM cp.tasks t LEFT JOIN cp.task_scores s ON s.task = t.id
    WHERE t.task_id = %(task_id)s
"""
_LOCK: LiteralString = """
    SELECT t.id, t.state, EXISTS (SELECT FROM cp.task_scores s WHERE s.task = t.id)
    FROM cp.tasks t WHERE t.task_id = %(task_id)s FOR NO KEY UPDATE
"""
_OVERRIDE: LiteralString = """
    WITH changed AS (
        UPDATE cp.task_scores
        SET override_score = %(score)s, override_reason = %(reason)s, override_by = %(by)s
        WHERE task = %(task)s
        RETURNING task, effective_score
    )
    UPDATE cp.tasks t SET value_score = changed.effective_score FROM changed WHERE t.id = changed.task
"""
_WRITTEN = (*SCORE_COLUMNS, "traits", "trait_model")
_NAMES = sql.SQL(", ").join(sql.Identifier(name) for name in _WRITTEN)
_STAGE = sql.SQL(
    "CREATE TEMP TABLE staged_scores ON COMMIT DROP AS SELECT task, {} FROM cp.task_scores WITH NO DATA"
).format(_NAMES)
_COPY_STAGED = sql.SQL("COPY staged_scores (task, {}) FROM STDIN").format(_NAMES)
_WHOLE = ("files", "lines")
_NAMED = ("size_source", "complexity", "time_bonus_reason", "domain", "domain_source", "risk")
_REAL = tuple(name for name in SCORE_COLUMNS if name not in (*_WHOLE, *_NAMED))
_COPY_NEW = sql.SQL(
    "COPY cp.task_scores (task, {}, submission_day, {}, config_hash, trait_model, traits) FROM STDIN "
    "(FORMAT BINARY)"
).format(*(sql.SQL(", ").join(map(sql.Identifier, names)) for names in ((*_WHOLE, *_REAL), _NAMED)))
_UPSERT = sql.SQL(
    """
    INSERT INTO cp.task_scores (task, submission_day, {names}, config_hash)
    SELECT s.task, t.submission_day, {staged}, %(config_hash)s
    FROM staged_scores s JOIN cp.tasks t ON t.id = s.task
    ON CONFLICT (task) DO UPDATE
    SET ({names}, config_hash, scored_at) = ROW ({excluded}, excluded.config_hash, now())
    """
).format(
    names=_NAMES,
    staged=sql.SQL(", ").join(sql.Identifier("s", name) for name in _WRITTEN),
    excluded=sql.SQL(", ").join(sql.Identifier("excluded", name) for name in _WRITTEN),
)
# In one order, so that two writers of the same tasks wait for each other instead of stopping each other.
_LOCK_STAGED: LiteralString = """
    SELECT FROM cp.tasks WHERE id IN (SELECT task FROM staged_scores) ORDER BY id FOR NO KEY UPDATE
"""
_VALUE_OF_STAGED: LiteralString = """
    UPDATE cp.tasks t SET value_score = s.effective_score
    FROM cp.task_scores s
    WHERE s.task = t.id AND t.id IN (SELECT task FROM staged_scores)
"""
