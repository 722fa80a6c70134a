"""The configuration that each task is scored and decided under: its arms' laid over the one in force.

Tasks under one configuration are one part of a batch, solved by itself on its share of what is left: so no arm takes
from another. Who was given which arm is stored with what was decided, in the same transaction.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import LiteralString, NamedTuple

import psycopg
from pydantic import ValidationError

from cp_core.learning.experiments.allotment import Running
from cp_core.learning.experiments.definition import Arm, ExperimentDefinition, Unit
from cp_core.learning.experiments.overlay import OverlayError, overlaid
from cp_core.learning.learned import Learned
from cp_core.policy.policies import Policies
from cp_core.scoring.config import ScoringConfig
from cp_resources.configuration import Configuration, ConfigurationError
from cp_resources.database import Database

_REMEMBERED_SECONDS = 1.0  # for how long a task that comes alone may miss that an experiment has started


class Exposure(NamedTuple):
    """That a task was given an arm.

    Attributes:
        block: start of the switchback block; None for an arm of the task's own.
        since_scoring: whether the arm says how the task is scored, too.
    """

    experiment: str
    arm: str
    block: datetime | None
    since_scoring: bool


Exposures = Mapping[int, Sequence[Exposure]]
"""By `tasks.id`."""


@dataclass(frozen=True)
class Part:
    """Tasks of a batch that one configuration holds for, in the batch's order.

    Attributes:
        others: tasks of the parts after this one, which share what is left with it.
    """

    configuration: Configuration
    tasks: Sequence[int]
    others: int
    exposures: Exposures


class ArmsInForce:
    """Which configuration holds for which task.

    Args:
        configuration: in force for whoever takes part in no experiment.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        database: Database,
        configuration: Configuration,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._configuration = configuration
        self._clock = clock
        self._made: dict[tuple[tuple[str, str], ...], Configuration] = {}
        self._known: tuple[float, list[Running]] | None = None

    def parts(self, tasks: Sequence[int]) -> list[Part]:
        """Tasks by the configuration that holds for them; in an order that is drawn anew each time.

        The last part may use what the others left, so none is always the last.
        """
        with self._database.transaction() as connection:
            running = _running(connection)
            if not running or not tasks:
                return [Part(self._configuration, tasks, 0, {})]
            rows = connection.execute(_TASKS, [list(tasks)]).fetchall()
            facts = {task: (task_id, submitted_at, now) for task, task_id, submitted_at, now in rows}
            configurations: dict[str, Configuration] = {}
            members: dict[str, list[int]] = {}
            exposures: dict[int, Sequence[Exposure]] = {}
            for task in tasks:
                if task not in facts:
                    continue
                configuration, given = self._of(connection, running, *facts[task])
                configurations[configuration.content_hash] = configuration
                members.setdefault(configuration.content_hash, []).append(task)
                exposures[task] = given
        now = rows[0][3] if rows else None
        order = sorted(members, key=lambda name: hashlib.sha256(f"{name}{now}".encode()).digest())
        left = sum(map(len, members.values()))
        parts = []
        for name in order:
            left -= len(members[name])
            parts.append(Part(configurations[name], members[name], left, exposures))
        return parts

    def of(self, task_id: str, wait_seconds: float | None = None) -> tuple[Configuration, Sequence[Exposure]]:
        """The configuration of one task, and what it is exposed to by a decision.

        An experiment that started a second ago may be missed: the task is then decided as everybody else, and is not
        exposed.
        """
        now = self._clock()
        if self._known is not None and now - self._known[0] < _REMEMBERED_SECONDS and not self._known[1]:
            return self._configuration, ()
        with self._database.transaction(wait_seconds=wait_seconds) as connection:
            if self._known is None or now - self._known[0] >= _REMEMBERED_SECONDS:
                self._known = now, _running(connection)
            running = self._known[1]
            found = connection.execute(_TASK, [task_id]).fetchone() if running else None
            if found is None:
                return self._configuration, ()
            return self._of(connection, running, *found)

    def _of(
        self,
        connection: psycopg.Connection,
        running: Iterable[Running],
        task_id: str,
        submitted_at: datetime,
        now: datetime,
    ) -> tuple[Configuration, Sequence[Exposure]]:
        given = [(one, arm) for one in running if (arm := one.arm_of(task_id, submitted_at, now))]
        exposures = [_exposure(one, arm, now) for one, arm in given]
        key = tuple((one.definition.experiment, arm.name) for one, arm in given)
        if key not in self._made:
            arms = [arm for _, arm in given]
            made = configuration_of(self._configuration, arms, connection)
            if made is not self._configuration:
                made.remember(connection)
            self._made[key] = made
        return self._made[key], exposures


def configuration_of(
    configuration: Configuration, arms: Iterable[Arm], connection: psycopg.Connection
) -> Configuration:
    """`configuration` with what the arms change; itself where they change nothing.

    Raises:
        ConfigurationError: an arm overrides what is not there, what is not allowed, or names an unknown version.
    """
    for arm in arms:
        if arm.learned_from is not None:
            configuration = _with_learned_of(configuration, arm.learned_from, connection)
        if arm.overrides:
            configuration = _with_overrides(configuration, arm)
    return configuration


def expose(connection: psycopg.Connection, given: Iterable[tuple[str, Exposure]]) -> None:
    """Store which arm tasks (by `task_id`) were given; what stands already stays."""
    rows = sorted((task_id, one.experiment, one.arm, one.block) for task_id, one in given)
    if rows:
        connection.execute(_EXPOSE, [list(column) for column in zip(*rows, strict=True)])


def _exposure(running: Running, arm: Arm, now: datetime) -> Exposure:
    definition = running.definition
    block = running.block_of(now) if definition.unit is Unit.BLOCK else None
    since_scoring = any(key == "learned" or key.startswith("scoring.") for key in definition.keys)
    return Exposure(definition.experiment, arm.name, block, since_scoring)


def _running(connection: psycopg.Connection) -> list[Running]:
    return [
        Running(ExperimentDefinition.model_validate(definition), first_bucket, started_at)
        for definition, first_bucket, started_at in connection.execute(_RUNNING).fetchall()
    ]


def _with_overrides(configuration: Configuration, arm: Arm) -> Configuration:
    content = configuration.as_dict()
    try:
        laid = overlaid({name: content[name] for name in ("scoring", "policies")}, arm.overrides)
        return replace(
            configuration,
            scoring=ScoringConfig.model_validate(laid["scoring"]),
            policies=Policies.model_validate(laid["policies"]),
        )
    except (OverlayError, ValidationError) as error:
        raise ConfigurationError(f"arm {arm.name} does not fit the configuration: {error}") from error


def _with_learned_of(
    configuration: Configuration, version: str, connection: psycopg.Connection
) -> Configuration:
    found = connection.execute(_VERSION, [version]).fetchone()
    if found is None:
        raise ConfigurationError(f"no configuration version has the hash {version}")
    scoring, learned = found
    return replace(
        configuration,
        scoring=ScoringConfig.model_validate(scoring),
        learned=Learned.model_validate(learned or {}),
    )


_RUNNING: LiteralString = """
SELECT definition, first_bucket, started_at FROM cp.experiments WHERE state = 'running' ORDER BY experiment
"""
_TASKS: LiteralString = "SELECT id, task_id, submitted_at, now() FROM cp.tasks WHERE id = ANY(%s::bigint[])"
_TASK: LiteralString = "SELECT task_id, submitted_at, now() FROM cp.tasks WHERE task_id = %s"
_VERSION: LiteralString = (
    "SELECT content -> 'scoring', content -> 'learned' FROM cp.config_versions WHERE config_hash = %s"
)
_EXPOSE: LiteralString = """
INSERT INTO cp.exposures (unit, experiment, arm, block)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[]) ON CONFLICT DO NOTHING
"""
