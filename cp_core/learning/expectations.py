"""What a configuration expects of each model in each kind of task, as tables that outcomes can be held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.predict import PredictionPolicy, Predictor
from cp_core.learning.learned import Learned
from cp_core.models.registry import ModelRegistry
from cp_core.scoring.config import Complexity, Domain, ScoringConfig

Doubles = NDArray[np.float64]
Codes = NDArray[np.intp]
Cells = Mapping[str, Mapping[Domain, Mapping[Complexity, float]]]
"""Success by model, domain and complexity."""

KINDS: tuple[tuple[Domain, Complexity], ...] = tuple((d, c) for d in Domain for c in Complexity)
"""Kinds of task: every domain with every complexity, in the order of the tables' columns."""

_KIND = {kind: position for position, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Expectations:
    """Tables of m models and the `KINDS`, (m, k) each.

    Attributes:
        models: names of the m models.
        success: probability that the work is good enough.
        input, output: mean tokens, as a multiple of what the estimate in force says.
    """

    models: tuple[str, ...]
    success: Doubles
    input: Doubles
    output: Doubles

    @classmethod
    def of(
        cls,
        registry: ModelRegistry,
        prediction: PredictionPolicy,
        learned: Learned,
        *,
        scoring: ScoringConfig,
        in_force: ScoringConfig,
    ) -> Expectations:
        """What is expected when `learned` lies over a scoring.yaml, and estimates are still those in force."""
        names = tuple(sorted(registry.models))
        predictor = Predictor([registry.models[name] for name in names], prediction, learned.calibration)
        written, moved = in_force.estimate.mean_tokens, learned.apply_to(scoring).estimate.mean_tokens
        base = {
            "input": [moved[c].input / written[c].input for _, c in KINDS],
            "output": [moved[c].output / written[c].output for _, c in KINDS],
        }
        found = predictor.predict(
            {
                "domain": [domain for domain, _ in KINDS],
                "complexity": [complexity for _, complexity in KINDS],
                **{f"{kind}_{which}": base[kind] for kind in base for which in ("mean", "median")},
            }
        )
        shape = (len(names), len(KINDS))
        return cls(
            names,
            found.success,
            np.broadcast_to(found.input_mean, shape),
            np.broadcast_to(found.output_mean, shape),
        )


def cells_of(rows: pd.DataFrame, models: tuple[str, ...]) -> Codes:
    """Place of each row's model and kind in a flattened table of `Expectations`; -1 where the model is not in it.

    Args:
        rows: model, domain and complexity.
    """
    model = pd.Index(models).get_indexer(pd.Index(rows["model"].astype(str)))
    return np.where(model < 0, -1, model * len(KINDS) + kinds_of(rows)).astype(np.intp)


def kinds_of(rows: pd.DataFrame) -> Codes:
    """Place among the `KINDS` of each row's domain and complexity."""
    domain = _codes_of(rows["domain"], {d.value: i for i, d in enumerate(Domain)})
    return domain * len(Complexity) + _codes_of(
        rows["complexity"], {c.value: i for i, c in enumerate(Complexity)}
    )


def _codes_of(column: pd.Series[str], places: Mapping[str, int]) -> Codes:
    codes, names = pd.factorize(column)
    return np.array([places[str(name)] for name in names], dtype=np.intp)[codes]
