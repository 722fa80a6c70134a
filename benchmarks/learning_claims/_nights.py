"""Simulated nights for the gates: outcomes learned from, capped and judged as every night, without a database.

A world has the six models of two tiers, each used for its share of tasks of every domain and complexity. What is in
force believes the registry's priors; the truth of each cell is that belief, moved as the claim says. Nine tasks in ten
go to the model of a pair that is believed to be the better one, the rest to the other. Every night brings new tasks;
the candidate is learned from all nights but the last two, and judged by those, as in production: the same functions,
policy and gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.learning.candidate import Candidate, Found, Ground, make_candidate
from cp_core.learning.corrections import learn_success
from cp_core.learning.expectations import KINDS
from cp_core.learning.gates.evidence import Evidence
from cp_core.learning.gates.judge import judge
from cp_core.learning.gates.verdict import Verdict
from cp_core.learning.learned import Learned
from cp_core.learning.policy import LearningPolicy
from cp_resources.configuration import load_configuration
from cp_resources.settings import PROJECT_ROOT

TASKS_A_NIGHT = 3_000
EXPLORED = 0.1
_VALUE = 50.0
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Pairs of models, what is believed of each kind of task with each model, and what is true: (models, kinds)."""

    ground: Ground
    pairs: tuple[tuple[int, int], ...]
    models: tuple[str, ...]
    believed: Doubles
    true: Doubles


def make_world(move: Callable[[Doubles, np.random.Generator], Doubles], seed: int) -> World:
    """A world whose truth is `move` of what is believed."""
    shipped = load_configuration(PROJECT_ROOT / "config")
    ground = Ground(shipped.registry, shipped.policies.prediction, shipped.scoring, Learned())
    expected = ground.expectations()
    capable = [at for at in range(len(expected.models)) if (expected.success[at] > 0).all()]
    chosen = capable[:6]
    pairs = tuple((chosen[at], chosen[at + 1]) for at in (0, 2, 4))
    truth = np.clip(move(expected.success, np.random.default_rng(seed)), 0.02, 0.98)
    return World(ground, pairs, expected.models, expected.success, truth)


def night(world: World, number: int, generator: np.random.Generator) -> pd.DataFrame:
    """The attempts of one night's tasks: as `Evidence` takes them, and what the decision was."""
    kind = generator.integers(0, len(KINDS), TASKS_A_NIGHT)
    pair = np.array(world.pairs)[generator.integers(0, len(world.pairs), TASKS_A_NIGHT)]
    first_is_better = world.believed[pair[:, 0], kind] >= world.believed[pair[:, 1], kind]
    kept = np.where(first_is_better, pair[:, 0], pair[:, 1])
    other = np.where(first_is_better, pair[:, 1], pair[:, 0])
    explored = generator.random(TASKS_A_NIGHT) < EXPLORED
    model = np.where(explored, other, kept)
    return pd.DataFrame(
        {
            "task": number * TASKS_A_NIGHT + np.arange(TASKS_A_NIGHT),
            "night": number,
            "model": np.array(world.models)[model],
            "domain": [KINDS[each][0].value for each in kind],
            "complexity": [KINDS[each][1].value for each in kind],
            "has_succeeded": generator.random(TASKS_A_NIGHT) < world.true[model, kind],
            "is_censored": False,
            "kind": kind,
            "kept": kept,
            "other": other,
            "explored": explored,
        }
    )


def judge_night(world: World, rows: pd.DataFrame, today: int, seed: int) -> tuple[Candidate, list[Verdict]]:
    """Learn from all nights but the latest, and judge by those."""
    policy = LearningPolicy()
    rows = rows.assign(age_days=today - rows["night"])
    earlier = rows[rows["age_days"] >= policy.holdout_days]
    later = rows[rows["age_days"] < policy.holdout_days]
    candidate = make_candidate(
        Found(success=learn_success(earlier, world.ground.expectations())), world.ground, policy.max_change
    )
    evidence = Evidence(
        ground=world.ground,
        candidate=candidate,
        policy=policy,
        earlier=earlier,
        later=later,
        decided=len(later),
        ended=len(later),
        selections=_selections(world, later, candidate),
        seed=seed,
    )
    return candidate, judge(evidence, "simulated")


def _selections(world: World, later: pd.DataFrame, candidate: Candidate) -> pd.DataFrame:
    """The same decisions with the candidate's predictions: the better of the pair. Costs and times are alike."""
    then = world.ground.expectations(candidate.learned).success
    kind, kept, other = (later[name].to_numpy() for name in ("kind", "kept", "other"))
    explored = later["explored"].to_numpy()
    decided = np.where(explored, other, kept)
    chosen = np.where(then[other, kind] > then[kept, kind], other, kept)
    return pd.DataFrame(
        {
            "domain": later["domain"].to_numpy(),
            "reward": _VALUE * later["has_succeeded"].to_numpy(),
            "propensity": np.where(explored, EXPLORED, 1 - EXPLORED),
            "target": (chosen == decided).astype(float),
            "predicted": _VALUE * world.believed[decided, kind],
            "predicted_target": _VALUE * world.believed[chosen, kind],
            "kept_probability": 1 - EXPLORED,
            "explored": explored,
            "success_before": then[kept, kind],
            "success_after": then[chosen, kind],
            **{f"{what}_{when}": 1.0 for what in ("usd", "seconds") for when in ("before", "after")},
        }
    )
