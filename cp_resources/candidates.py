"""A night's candidate: reads what it is made from and judged by, and keeps it with its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import LiteralString

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from cp_core.assignment.calibration import ModelTokens
from cp_core.assignment.strategies import Strategy
from cp_core.learning.candidate import Change, Examples, Found, Ground, make_candidate
from cp_core.learning.corrections import learn_success
from cp_core.learning.decay import is_of_newest_version
from cp_core.learning.experiments.verdict import ExperimentResults
from cp_core.learning.gates.evidence import Evidence
from cp_core.learning.texts import TextsFound
from cp_core.learning.token_calibration import TokenCell, calibrate_tokens
from cp_core.learning.traits_seen import Seen, chosen_tasks
from cp_core.scoring.config import Domain, ScoringConfig
from cp_resources.champion import ConfigurationStore
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.learning_results import LearningResults
from cp_resources.logged_decisions import LoggedDecisions
from cp_resources.text_learning import MOST_TASKS, judged
from cp_resources.trait_models import TraitModels


class Candidates:
    """Makes candidates and their evidence, and keeps them in table config_candidates."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self, day: date, in_force: Configuration, rows: pd.DataFrame) -> Evidence:
        """The candidate of a day and what it is to be judged by.

        It learns from the days of the window before the latest `holdout_days`, and is judged by those: a candidate that
        knew the days it is judged by would prove nothing.

        Args:
            in_force: what it is made on.
            rows: outcomes of the window that ends with the day.
        """
        policy = in_force.policies.learning
        files = in_force.files
        ground = Ground(files.registry, files.policies.prediction, files.scoring, in_force.learned)
        rows = rows[is_of_newest_version(rows)]
        earlier = rows[rows["age_days"] >= policy.holdout_days]
        later = rows[rows["age_days"] < policy.holdout_days]
        told, judges = judged(earlier), judged(later)
        bases = ConfigurationStore(self._database).scoring_of(earlier["config_hash"].dropna().unique())
        found = _found(earlier, told, ground, policy.max_change, bases)
        values = LearningResults(self._database).read(day, "value_calibration") or {}
        found = found.model_copy(update={"scoring": {**values.get("scoring", {}), **found.scoring}})
        texts = self._texts(day)
        found = found.model_copy(update={"texts": texts})
        learned_from, judged_by = (chosen_tasks(part["task"], MOST_TASKS) for part in (told, judges))
        seen = self._seen(np.union1d(learned_from, judged_by), texts, in_force)
        examples = told[np.isin(told["task"], learned_from)].drop_duplicates("task")
        candidate = make_candidate(found, ground, policy.max_change, Examples(examples, seen))
        first = day - timedelta(days=policy.holdout_days - 1)
        decided, ended = self._ends(first, day)
        return Evidence(
            ground=ground,
            candidate=candidate,
            policy=policy,
            earlier=told,
            later=judges,
            decided=decided,
            ended=ended,
            selections=self._selections(first, day, in_force, files.with_learned(candidate.learned), seen),
            unbalanced=self._unbalanced(day),
            seed=day.toordinal(),
            seen=seen,
        )

    def _texts(self, day: date) -> TextsFound | None:
        """What the day's success model says of texts; None when it said nothing."""
        found = LearningResults(self._database).read(day, "success_model")
        texts = (found or {}).get("texts")
        return None if texts is None else TextsFound.model_validate(texts)

    def _seen(self, tasks: NDArray[np.int64], texts: TextsFound | None, in_force: Configuration) -> Seen:
        """What the trait models in force and of the candidate see in tasks, as production would have had it."""
        eyes = {in_force.learned.calibration.trait_model, texts.trait_model if texts else None}
        models = TraitModels(self._database)
        return {eye: models.look_at(tasks.tolist(), eye) for eye in eyes if eye is not None}

    def write(
        self, day: date, version: str, against: str, changes: Sequence[Change], run_id: str | None
    ) -> None:
        """Keep a day's candidate in place of an earlier one of the day."""
        with self._database.transaction() as connection:
            connection.execute(
                """
                INSERT INTO config_candidates (day, config_hash, champion_hash, changes, evidence, run_id)
                VALUES (%s, %s, %s, %s, %s, %s)
                ON CONFLICT (day) DO UPDATE SET config_hash = excluded.config_hash, champion_hash =
                    excluded.champion_hash, changes = excluded.changes, evidence = excluded.evidence,
                    run_id = excluded.run_id, made_at = now()
                """,
                [
                    day,
                    version,
                    against,
                    Jsonb([change.model_dump() for change in changes]),
                    Jsonb({"changes": len(changes)}),
                    run_id,
                ],
            )

    def read(self, day: date) -> tuple[str, str, list[Change]] | None:
        """Hash of a day's candidate, hash of what it was made on, and what it changes; None if there is none."""
        found = self._database.fetch(
            "SELECT config_hash, champion_hash, changes FROM config_candidates WHERE day = %s", [day]
        )
        if not found:
            return None
        version, against, changes = found[0]
        return version, against, [Change.model_validate(change) for change in changes]

    def later_than(self, day: date) -> date | None:
        """The latest day after this one that has a candidate."""
        [(latest,)] = self._database.fetch("SELECT max(day) FROM config_candidates WHERE day > %s", [day])
        found: date | None = latest
        return found

    def _unbalanced(self, day: date) -> dict[str, float]:
        """Experiments of the day whose arms did not get their shares: how unlikely that is."""
        found = LearningResults(self._database).read(day, "experiment_results") or {}
        results = ExperimentResults.model_validate(found).experiments if found else ()
        return {one.experiment: one.sample_ratio_p for one in results if not one.has_right_ratio}

    def _ends(self, first: date, last: date) -> tuple[int, int]:
        [(decided, ended)] = self._database.fetch(_ENDS, [first, last])
        return decided, ended

    def _selections(
        self, first: date, last: date, in_force: Configuration, candidate: Configuration, seen: Seen
    ) -> pd.DataFrame | None:
        """None where the written policy selects: it does not look at predictions."""
        if in_force.policies.assignment.strategy == Strategy.TIERED:
            return None
        return LoggedDecisions(self._database).made_again(first, last, in_force, candidate, seen)


def _found(
    earlier: pd.DataFrame,
    told: pd.DataFrame,
    ground: Ground,
    max_change: float,
    bases_of: Mapping[str, ScoringConfig],
) -> Found:
    """What the outcomes of the earlier days ask for; `told` are those that say something of the model."""
    if told.empty:
        return Found()
    in_force = ground.learned
    tokens = calibrate_tokens(
        earlier,
        in_force.calibration,
        in_force.apply_to(ground.scoring),
        max_change=max_change,
        bases_of=bases_of,
    )
    return Found(
        success=learn_success(told, ground.expectations()),
        tokens=_whole_cells(tokens.cells, ground),
        scoring=tokens.scoring,
    )


def _whole_cells(cells: Sequence[TokenCell], ground: Ground) -> dict[str, dict[Domain, ModelTokens]]:
    """Factors as they were learned, before any cap: an interval whose ends moved by steps would not cover."""
    found: dict[str, dict[Domain, ModelTokens]] = {}
    for cell in cells:
        by_domain = found.setdefault(cell.model, {})
        before = by_domain.get(cell.domain, ground.tokens_of(cell.model, cell.domain))
        by_domain[cell.domain] = before.model_copy(update={cell.kind: cell.factors})
    return found


_ENDS: LiteralString = """
    SELECT count(*), count(*) FILTER (WHERE t.state IN ('succeeded', 'failed', 'dead', 'cancelled'))
    FROM tasks t
    WHERE t.submission_day BETWEEN %s AND %s
      AND EXISTS (SELECT FROM assignments a WHERE a.task = t.id AND a.outcome = 'assigned')
"""
