"""Experiments in PostgreSQL: their definitions and states, and what came of the units that were given an arm.

Which arm a task gets is told by `cp_core.learning.experiments.allotment`; what that does to a decision, by
`cp_resources.arms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, LiteralString

import pandas as pd
import psycopg
from psycopg.types.json import Jsonb

from cp_core.learning.experiments.allotment import BUCKETS, Running, buckets_of, room_for
from cp_core.learning.experiments.definition import ExperimentDefinition, Unit
from cp_core.learning.experiments.verdict import ExperimentResult, ExperimentResults, judge
from cp_resources.arms import configuration_of
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.events import announce

_LAYERS_LOCK = 0x6370_6C79  # any number that only those who start experiments take


class ExperimentError(UserError):
    """What was asked of an experiment cannot be. The text says why, and what to do."""


@dataclass(frozen=True)
class StoredExperiment:
    """A row of table experiments."""

    definition: ExperimentDefinition
    state: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    conclusion: str | None
    first_bucket: int | None

    @property
    def running(self) -> Running | None:
        """How it shares out units; None before its start."""
        if self.started_at is None or self.first_bucket is None:
            return None
        return Running(self.definition, self.first_bucket, self.started_at)


class Experiments:
    """Tables experiments and exposures."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, definition: ExperimentDefinition, by: str) -> bool:
        """Store a draft; return whether it is new. The same definition again changes nothing.

        Raises:
            ExperimentError: another experiment has this name.
        """
        content = definition.model_dump(mode="json")
        with self._database.transaction() as connection:
            made = connection.execute(
                """
                INSERT INTO experiments (experiment, layer, state, salt, definition)
                VALUES (%s, %s, 'draft', %s, %s) ON CONFLICT DO NOTHING
                """,
                [definition.experiment, definition.layer, definition.salt_in_force, Jsonb(content)],
            ).rowcount
            if not made and self._one(connection, definition.experiment).definition != definition:
                raise ExperimentError(
                    f"there is another experiment {definition.experiment!r}, and a definition never changes: "
                    "give this one another name"
                )
            if made:
                announce(connection, "experiment.created", definition.experiment, {"by": by, **content})
        return bool(made)

    def start(self, name: str, configuration: Configuration, by: str) -> StoredExperiment:
        """Begin to share out units.

        Args:
            configuration: in force; every arm must fit it.

        Raises:
            ExperimentError: it is no draft, its layer has no room, or another layer changes the same keys.
            ConfigurationError: an arm does not fit the configuration.
        """
        with self._database.transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LAYERS_LOCK])
            found = self._one(connection, name, lock=True)
            if found.state != "draft":
                raise ExperimentError(f"experiment {name} is {found.state}: only a draft can be started")
            definition = found.definition
            for arm in definition.arms:
                configuration_of(configuration, [arm], connection).remember(connection)
            others = [one for one in self._read(connection, _RUNNING) if one.running]
            self._refuse_conflicts(definition, others)
            room = room_for(
                buckets_of(definition),
                [
                    (one.first_bucket or 0, buckets_of(one.definition))
                    for one in others
                    if one.definition.layer == definition.layer
                ],
            )
            if room is None:
                neighbours = ", ".join(
                    f"{one.definition.experiment} ({one.definition.traffic:.0%})"
                    for one in others
                    if one.definition.layer == definition.layer
                )
                raise ExperimentError(
                    f"layer {definition.layer} has no room for {definition.traffic:.0%} of the units beside "
                    f"{neighbours}: stop one of them, or define it with less traffic or in another layer"
                )
            connection.execute(
                "UPDATE experiments SET state = 'running', started_at = now(), first_bucket = %s WHERE experiment = %s",
                [room, name],
            )
            units = [room / BUCKETS, (room + buckets_of(definition)) / BUCKETS]
            detail = {"by": by, "config_hash": configuration.content_hash, "units_of_layer": units}
            announce(connection, "experiment.started", name, detail)
            return self._one(connection, name)

    def stop(self, name: str, reason: str, by: str) -> StoredExperiment:
        """End an experiment, or a draft; whoever comes next is decided as everybody else.

        Raises:
            ExperimentError: there is none, it has ended, or no reason is given.
        """
        return self._end(name, "stopped", ("draft", "running"), reason, {"by": by})

    def graduate(self, name: str, arm: str, reason: str, by: str) -> StoredExperiment:
        """End a running experiment with an arm that is to be everybody's.

        The configuration is not changed by this: what the arm overrides goes into the files, or through the gates.

        Raises:
            ExperimentError: it is not running, has no such arm, or no reason is given.
        """
        definition = self.get(name).definition
        names = [one.name for one in definition.arms]
        if arm not in names:
            raise ExperimentError(f"experiment {name} has no arm {arm!r}: there are {', '.join(names)}")
        return self._end(name, "graduated", ("running",), reason, {"by": by, "arm": arm})

    def get(self, name: str) -> StoredExperiment:
        """One experiment.

        Raises:
            ExperimentError: there is none of this name.
        """
        with self._database.transaction() as connection:
            return self._one(connection, name)

    def all(self) -> list[StoredExperiment]:
        """Every experiment, the newest first."""
        with self._database.transaction() as connection:
            return self._read(connection, f"{_SELECT} ORDER BY created_at DESC, experiment")

    def look(self, name: str, day: date) -> ExperimentResult:
        """What an experiment has come to by the end of `day`.

        Raises:
            ExperimentError: there is none of this name, or it had not started by then.
        """
        return self._look(self.get(name), day)

    def results(self, day: date) -> ExperimentResults:
        """Every experiment that was under way on `day`, as it stood at the day's end."""
        with self._database.transaction() as connection:
            found = self._read(connection, _OF_DAY, {"day": day, "next": day + timedelta(days=1)})
        return ExperimentResults(day=day, experiments=tuple(self._look(one, day) for one in found))

    def _look(self, stored: StoredExperiment, day: date) -> ExperimentResult:
        definition, running = stored.definition, stored.running
        started = None if running is None else running.started_at.astimezone(UTC).date()
        if started is None or started > day:
            raise ExperimentError(f"experiment {definition.experiment} had not started by {day}")
        end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
        parameters = {"experiment": definition.experiment, "end": end, "until": stored.ended_at or end}
        exposed = _frame(self._database.fetch(_EXPOSED, parameters), ["arm", "block", "day"])
        measures = [metric.measure.value for metric in definition.metrics]
        ended = _frame(self._database.fetch(_ENDED, parameters), ["arm", "block", "day", *_MEASURES])
        if definition.unit is Unit.BLOCK:
            length = timedelta(hours=definition.block_hours or 1)
            exposed = exposed.drop_duplicates(["arm", "block"])
            exposed["day"] = [block.date() for block in exposed["block"]]
            ended = _by_block(ended, length, end)
        return judge(definition, started, day, exposed[["arm", "day"]], ended[["arm", "day", *measures]])

    def _end(
        self, name: str, state: str, before: tuple[str, ...], reason: str, detail: dict[str, Any]
    ) -> StoredExperiment:
        if not reason.strip():
            raise ExperimentError("say why with --reason TEXT: it is kept with the experiment")
        with self._database.transaction() as connection:
            found = self._one(connection, name, lock=True)
            if found.state not in before:
                raise ExperimentError(
                    f"experiment {name} is {found.state}: it must be {' or '.join(before)} to be {state}"
                )
            connection.execute(
                "UPDATE experiments SET state = %s, ended_at = now(), conclusion = %s WHERE experiment = %s",
                [state, reason.strip(), name],
            )
            announce(connection, f"experiment.{state}", name, {**detail, "reason": reason.strip()})
            return self._one(connection, name)

    def _one(self, connection: psycopg.Connection, name: str, *, lock: bool = False) -> StoredExperiment:
        query = f"{_SELECT} WHERE experiment = %(name)s"
        found = self._read(connection, f"{query} FOR UPDATE" if lock else query, {"name": name})
        if not found:
            raise ExperimentError(
                f"there is no experiment {name!r}: `control-panel experiment list` shows them all"
            )
        return found[0]

    @staticmethod
    def _read(
        connection: psycopg.Connection, query: LiteralString, parameters: dict[str, Any] | None = None
    ) -> list[StoredExperiment]:
        return [
            StoredExperiment(ExperimentDefinition.model_validate(definition), *rest)
            for definition, *rest in connection.execute(query, parameters).fetchall()
        ]

    @staticmethod
    def _refuse_conflicts(definition: ExperimentDefinition, others: list[StoredExperiment]) -> None:
        for other in others:
            shared = definition.conflicts_with(other.definition)
            if shared:
                raise ExperimentError(
                    f"experiment {other.definition.experiment} of layer {other.definition.layer} changes "
                    f"{', '.join(sorted(shared))} too, for units that this one would have: put both in one layer"
                )


_MEASURES = ("success", "quality", "value", "cost_usd")


def _frame(rows: list[tuple[Any, ...]], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=columns)
    numbers = [name for name in columns if name in _MEASURES]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def _by_block(ended: pd.DataFrame, length: timedelta, end: datetime) -> pd.DataFrame:
    """Blocks that are over as units: the mean of their tasks that have ended."""
    over = ended[[block + length <= end for block in ended["block"]]]
    means = over.groupby(["arm", "block"], as_index=False)[list(_MEASURES)].mean()
    days = [(block + length - timedelta(microseconds=1)).date() for block in means["block"]]
    return means.assign(day=pd.Series(days, dtype=object, index=means.index))


_SELECT: LiteralString = """
SELECT definition, state, created_at, started_at, ended_at, conclusion, first_bucket FROM experiments
"""
_RUNNING: LiteralString = f"{_SELECT} WHERE state = 'running' ORDER BY experiment"
_OF_DAY: LiteralString = f"""
{_SELECT} WHERE started_at < %(next)s AND (ended_at IS NULL OR ended_at >= %(day)s) ORDER BY experiment
"""

_EXPOSED: LiteralString = """
SELECT arm, block, exposed_at::date FROM exposures
WHERE experiment = %(experiment)s AND exposed_at < least(%(end)s, %(until)s::timestamptz)
"""

# Cancelled tasks say nothing of an arm. All attempts count as cost, those that failed too.
_ENDED: LiteralString = """
SELECT x.arm, x.block, t.state_changed_at::date, (t.state = 'succeeded')::int, made.quality,
    CASE WHEN t.state = 'succeeded' THEN s.effective_score ELSE 0 END, coalesce(made.cost_usd, 0)
FROM exposures x
JOIN tasks t ON t.task_id = x.unit
JOIN task_scores s ON s.task = t.id
CROSS JOIN LATERAL (
    SELECT sum(e.cost_usd) AS cost_usd, (array_agg(e.quality ORDER BY e.id DESC))[1] AS quality
    FROM executions e WHERE e.task = t.id AND e.state <> 'running'
) AS made
WHERE x.experiment = %(experiment)s AND x.exposed_at < least(%(end)s, %(until)s::timestamptz)
  AND t.state IN ('succeeded', 'failed', 'dead') AND t.state_changed_at < %(end)s
"""
