"""Tasks with all that the solver's strategies read, and short ways to decide them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

import pandas as pd
from hand_made import NOW, accounts, registry, task

from cp_core.assignment.calibration import Calibration
from cp_core.assignment.exploration import ExplorationPolicy
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.market import Catalogue
from cp_core.assignment.optimal import Round, assign_optimal
from cp_core.assignment.plans import PlanPolicy
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.predict import PredictionPolicy
from cp_core.assignment.strategies import ObjectivePolicy, Strategy

REGISTRY = registry()
NO_EXPLORATION = ExplorationPolicy(rate=0)
IDS = UUID("00000000-0000-5000-8000-000000000000")


def catalogue(models: Any = REGISTRY, **plans: Any) -> Catalogue:
    return Catalogue(models, PredictionPolicy(), PlanPolicy(**plans), ObjectivePolicy(), Calibration())


CATALOGUE = catalogue()
SINGLES = catalogue(most_stages=1)


def market_task(number: int = 1, value_score: float = 50.0, **other: object) -> dict[str, Any]:
    return {
        **task(number, value_score),
        "complexity": "moderate",
        "risk": "development",
        "workspace": "acme/web",
        "input_median": 20_000.0,
        "output_median": 2_000.0,
        "waiting_hours": 0.0,
        "decision_id": uuid5(IDS, str(number)),
        **other,
    }


def decide(
    *tasks: dict[str, Any],
    strategy: Strategy = Strategy.MAXIMIZE_VALUE,
    held: dict[str, float] | None = None,
    models: Catalogue = SINGLES,
    fairness: FairnessPolicy | None = None,
    exploration: ExplorationPolicy = NO_EXPLORATION,
    policy: AssignmentPolicy | None = None,
    seed: int = 1,
    compare: bool = False,
    **other: Any,
) -> Round:
    return assign_optimal(
        pd.DataFrame(list(tasks)),
        models,
        accounts(REGISTRY, **(held or {})),
        policy or AssignmentPolicy(),
        strategy,
        fairness=fairness or FairnessPolicy(),
        exploration=exploration,
        now=NOW,
        seed=seed,
        compare=compare,
        **other,
    )
