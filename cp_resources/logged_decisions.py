"""Decisions that were made and have come to something, read to be made again under another configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any, LiteralString
from uuid import UUID

import numpy as np
import pandas as pd
from psycopg.rows import dict_row

from cp_core.assignment.market import Catalogue
from cp_core.assignment.plans import Plan
from cp_core.assignment.replay import StoredRound
from cp_core.assignment.strategies import Strategy
from cp_core.learning.selections import Judge, Settled, selections_of
from cp_core.learning.traits_seen import Seen
from cp_resources.assignment_store import spelled_out
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.trait_models import TraitModels

MOST = 20_000
"""Decisions that are made again; beyond it, a choice by hash."""


class EvaluationError(UserError):
    """A configuration cannot be judged by decisions that were logged. The text says why."""


class LoggedDecisions:
    """Decisions by the prices of a round, with the probability that they were drawn with, and what became of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def made_again(
        self, first: date, last: date, now: Configuration, then: Configuration, seen: Seen | None = None
    ) -> pd.DataFrame:
        """What another configuration would have chosen, of the plans that could have been drawn.

        Args:
            first, last: submission days of the tasks, both included.
            now: in force; its predictions are the model of the outcome.
            then: what is to be judged: its predictions, objective and strategy.
            seen: what trait models see in tasks; left out, they look at all that were decided. Decisions about tasks
                whose text was not looked at are left out where texts have a say.

        Returns:
            A row a decision whose tasks have ended, with columns `cp_core.learning.gates.selection.COLUMNS`; without
            decisions of the written policy, and of one task alone, which have no propensity.

        Raises:
            EvaluationError: other models or ways to pay than in force, or the written policy, which has no prices.
        """
        _refuse_what_cannot_be_judged(now, then)
        decisions, rounds = self._read(first, last)
        eyes = [each.learned.calibration.trait_model for each in (now, then)]
        if seen is None:
            seen = self._seen([row["task"] for row in decisions], eyes)
        for eye in filter(None, eyes):
            known = seen[eye].known(pd.Series([row["task"] for row in decisions], dtype=np.int64))
            decisions = [row for row, is_known in zip(decisions, known, strict=True) if is_known]
        by_round = [(_round(rounds[batch]), settled) for batch, settled in _by_round(decisions, rounds)]
        plans = _plans(_catalogue(now), [settled for _, settled in by_round])
        ours, theirs = (
            Judge(
                _catalogue(each, among=plans),
                each.policies.assignment.strategy,
                None if eye is None else seen[eye],
            )
            for each, eye in zip((now, then), eyes, strict=True)
        )
        return selections_of(by_round, ours, theirs, now.policies.objective.points_per_usd)

    def last_day(self) -> date:
        """The newest submission day that has decisions.

        Raises:
            EvaluationError: nothing was decided yet.
        """
        [(day,)] = self._database.fetch("SELECT max(submission_day) FROM assignments")
        if day is None:
            raise EvaluationError("nothing was decided yet: there is no log to judge a configuration by")
        newest: date = day
        return newest

    def _read(self, first: date, last: date) -> tuple[list[dict[str, Any]], Mapping[UUID, Mapping[str, Any]]]:
        parameters = {"first": first, "last": last, "most": MOST}
        with self._database.transaction() as connection, connection.cursor(row_factory=dict_row) as cursor:
            decisions = cursor.execute(_DECISIONS, parameters).fetchall()
            batches = list({row["batch"] for row in decisions})
            rounds = {row["id"]: row for row in cursor.execute(_ROUNDS, [batches]).fetchall()}
        return decisions, rounds

    def _seen(self, tasks: Sequence[int], eyes: Iterable[str | None]) -> Seen:
        models = TraitModels(self._database)
        return {eye: models.look_at(tasks, eye) for eye in set(eyes) if eye is not None}


def _refuse_what_cannot_be_judged(now: Configuration, then: Configuration) -> None:
    if then.policies.assignment.strategy == Strategy.TIERED:
        raise EvaluationError(
            "its strategy is tiered: the written policy does not choose by predictions and prices, so decisions that "
            "were made by those say nothing of it. Give a configuration with another assignment.strategy"
        )
    ours, theirs = (
        [f"{option.model.name} ({option.funding.name})" for option in _catalogue(each).options]
        for each in (now, then)
    )
    if ours != theirs:
        other = ", ".join(sorted(set(ours) ^ set(theirs))) or "their order"
        raise EvaluationError(
            f"it has other models, or other ways to pay for them, than what is in force ({other}): what was never "
            "decided has no outcomes. Judge it by `control-panel backtest`, or let an experiment try it"
        )


def _plans(catalogue: Catalogue, decisions: Iterable[Sequence[Settled]]) -> list[Plan]:
    """Plans of a catalogue, and those that decisions name: another configuration had others that are best."""
    place = {
        f"{option.model.name} ({option.funding.name})": at for at, option in enumerate(catalogue.options)
    }
    named = {
        label
        for settled in decisions
        for one in settled
        for label in [*one.explanation.get("probabilities", {}), one.explanation["plan"]["plan"]]
    }
    stages = [label.split(" > ") for label in sorted(named)]
    known = [tuple(place[stage] for stage in each) for each in stages if place.keys() >= set(each)]
    return list(dict.fromkeys([*catalogue.book.plans, *known]))


def _catalogue(configuration: Configuration, among: Sequence[Plan] | None = None) -> Catalogue:
    policies = configuration.policies
    return Catalogue(
        configuration.registry,
        policies.prediction,
        policies.plans,
        policies.objective,
        configuration.learned.calibration,
        among=among,
    )


def _round(row: Mapping[str, Any]) -> StoredRound:
    return StoredRound(
        Strategy(row["strategy"]), row["seed"], row["prices"], {}, row["available"], row["lapsing"]
    )


def _by_round(
    decisions: Iterable[Mapping[str, Any]], rounds: Mapping[UUID, Mapping[str, Any]]
) -> list[tuple[UUID, list[Settled]]]:
    found: dict[UUID, list[Settled]] = {}
    for row in decisions:
        found.setdefault(row["batch"], []).append(
            Settled(
                task=row["task"],
                explanation=spelled_out(row["explanation"], row["figures"], rounds[row["batch"]]["legend"]),
                propensity=row["propensity"],
                delivered=row["effective_score"] if row["succeeded"] else 0.0,
                paid_usd=float(row["paid_usd"]),
            )
        )
    return list(found.items())


_DECISIONS: LiteralString = """
    SELECT a.batch, a.task, a.propensity, a.explanation, a.figures, s.effective_score, came.succeeded, came.paid_usd
    FROM assignments a
    JOIN assignment_batches b ON b.id = a.batch
    JOIN task_scores s ON s.task = a.task
    JOIN LATERAL (
        SELECT bool_or(e.state = 'succeeded') AS succeeded, sum(e.cost_usd) AS paid_usd,
               bool_or(e.state = 'running') AS is_open, count(*) AS attempts
        FROM executions e WHERE e.task = a.task AND e.assignment = a.id -- the index is the task's
    ) AS came ON came.attempts > 0 AND NOT came.is_open
    WHERE a.submission_day BETWEEN %(first)s AND %(last)s AND a.outcome = 'assigned' AND a.propensity IS NOT NULL
      AND a.path = 'batch' AND b.strategy <> 'tiered'
    ORDER BY md5(a.decision_id::text) LIMIT %(most)s
"""
_ROUNDS: LiteralString = """
    SELECT id, strategy, seed, prices, available, lapsing, legend FROM assignment_batches WHERE id = ANY(%s)
"""
