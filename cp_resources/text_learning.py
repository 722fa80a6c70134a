"""Learning from texts at night: which tasks are looked at, with which trait model, and what their texts say."""

from __future__ import annotations

from datetime import date

import numpy as np
import pandas as pd

from cp_core.learning.ability import tells_of_model
from cp_core.learning.candidate import Ground
from cp_core.learning.decay import is_of_newest_version
from cp_core.learning.texts import TextsFound, learn_texts
from cp_core.learning.trait_model import TraitModel
from cp_core.learning.traits_seen import chosen_tasks
from cp_resources.artifacts import hash_of
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.trait_models import TraitModels, bytes_of

MOST_TASKS = 10_000
"""Tasks whose texts are looked at a night, of the days to learn from and of those to judge by; beyond it, by hash."""

_MOST_JUDGED = 5_000  # tasks that effects of texts are judged by before they are taken
_READ = ["task", "model", "domain", "complexity", "age_days", "has_succeeded"]
_FEWEST_TEXTS = 100  # different ones, below which no trait model is made


def learn_from_texts(
    database: Database, day: date, observations: pd.DataFrame, in_force: Configuration
) -> TextsFound:
    """What texts say, from the days of the window before the latest `holdout_days`, which judge a candidate.

    The trait model in force sees on. Where there is none, one is made of the texts of the days before those that the
    effects of texts are judged by, and is stored if texts are taken.

    Args:
        observations: as `Observations.window` gives them; days beyond the policy's window are left out.
        in_force: what the night's candidate is made on.
    """
    policy = in_force.policies.learning
    age = observations["age_days"].to_numpy()
    counts = is_of_newest_version(observations) & tells_of_model(observations["reason"])
    counts &= (age >= policy.holdout_days) & (age < policy.window_days)
    earlier = observations.loc[counts, _READ]
    is_judged = earlier["age_days"] < earlier["age_days"].min() + policy.holdout_days
    first, last = earlier.loc[~is_judged, "task"], earlier.loc[is_judged, "task"]
    models = TraitModels(database)
    eye, model = in_force.learned.calibration.trait_model, None
    if eye is None:
        texts, kinds = models.texts(chosen_tasks(first, MOST_TASKS).tolist())
        if len(set(texts)) < _FEWEST_TEXTS:
            return TextsFound(
                says=f"texts are left aside: {len(set(texts)):,} different ones are known, and {_FEWEST_TEXTS} are "
                "needed"
            )
        model = TraitModel.learn(texts, kinds, day=day, seed=day.toordinal())
        eye = hash_of(bytes_of(model))
    chosen = np.union1d(chosen_tasks(first, MOST_TASKS), chosen_tasks(last, _MOST_JUDGED))
    seen = models.look_at(chosen.tolist(), eye, model)
    ground = Ground(in_force.registry, in_force.policies.prediction, in_force.files.scoring, in_force.learned)
    found = learn_texts(
        earlier,
        ground.expectations(),
        eye,
        seen,
        policy,
        is_in_force=model is None,
        seed=day.toordinal(),
    )
    if model is not None and found.trait_model is not None:
        models.keep(model)
    return found


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Attempts that say something of the model: not those that the provider or the platform ended."""
    return rows[tells_of_model(rows["reason"])]
