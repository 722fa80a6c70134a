"""Success by model, domain and complexity as predictions read it, and how well such a table predicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from scipy.special import expit, logit

from cp_core.learning.ability import tells_of_model
from cp_core.learning.decay import is_of_newest_version
from cp_core.learning.estimates import estimate_performance
from cp_core.learning.performance import ALL
from cp_core.learning.prediction_quality import auc, brier, calibration_curve, expected_calibration_error
from cp_core.learning.texts import TextsFound
from cp_core.scoring.config import Complexity, Domain

Cells = Mapping[str, Mapping[Domain, Mapping[Complexity, float]]]

_HELD_OUT = 5  # one task in so many
_CERTAIN = 1e-3  # no probability is nearer to 0 or 1 than this


class Quality(BaseModel):
    """What predictions came to on tasks that they were not made from.

    Attributes:
        rows: attempts that were predicted.
        auc: missing when all of them ended alike.
        calibration_error: mean distance of prediction and outcome, over bins of equal size.
        predicted, observed: the calibration curve, a number a bin.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    auc: float | None
    brier: float
    calibration_error: float
    predicted: tuple[float, ...]
    observed: tuple[float, ...]


class SuccessFound(BaseModel):
    """Result of the success model on a day.

    Attributes:
        cells: probability of success by model, domain and complexity; no entry where a model was never seen in a
            domain, so that its prior stands.
        effective_n: attempts of each model that it rests on, each weighed by its age.
        quality: on tasks held out; missing when there are too few.
        texts: what texts say beside it; missing where nobody asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cells: Cells
    effective_n: Mapping[str, float]
    quality: Quality | None = None
    texts: TextsFound | None = None


def find_success(estimates: pd.DataFrame, observations: pd.DataFrame) -> SuccessFound:
    """The table, and its quality.

    Args:
        estimates: what `estimate_performance` gave for the observations.
        observations: rows as `Observations.window` gives them.
    """
    whole = estimates[(estimates["domain"] == ALL) & (estimates["complexity"] == ALL)]
    return SuccessFound(
        cells=cells_of(estimates),
        effective_n=dict(zip(whole["model"], whole["effective_n"], strict=True)),
        quality=_held_out_quality(observations),
    )


def cells_of(estimates: pd.DataFrame) -> Cells:
    """Success of each model in every domain that it was seen in, at every complexity.

    A complexity that was not seen there is moved from the domain's rate as far as the model's rate at that complexity
    lies from its rate as a whole, on the log-odds scale.
    """
    rates = {
        (model, domain, complexity): float(np.clip(rate, _CERTAIN, 1 - _CERTAIN))
        for model, domain, complexity, rate in estimates[
            ["model", "domain", "complexity", "success"]
        ].itertuples(index=False, name=None)
    }

    def rate(model: str, domain: Domain, complexity: Complexity) -> float:
        if seen := rates.get((model, domain.value, complexity.value)):
            return seen
        as_a_whole = rates[model, ALL, ALL]
        moved = logit(rates.get((model, ALL, complexity.value), as_a_whole)) - logit(as_a_whole)
        return float(np.clip(expit(logit(rates[model, domain.value, ALL]) + moved), _CERTAIN, 1 - _CERTAIN))

    return {
        model: {
            domain: {complexity: rate(model, domain, complexity) for complexity in Complexity}
            for domain in Domain
            if (model, domain.value, ALL) in rates
        }
        for model in sorted({model for model, _, _ in rates})
    }


def _held_out_quality(observations: pd.DataFrame) -> Quality | None:
    """Quality on every fifth task of a table that was made from the others."""
    tells = observations[is_of_newest_version(observations) & tells_of_model(observations["reason"])]
    held = tells["task"].to_numpy() % _HELD_OUT == 0
    if not held.any() or held.all():
        return None
    rows = tells[held]
    cells = cells_of(estimate_performance(tells[~held]))
    table = {
        (model, domain.value, complexity.value): rate
        for model, domains in cells.items()
        for domain, complexities in domains.items()
        for complexity, rate in complexities.items()
    }
    keys = pd.MultiIndex.from_frame(rows[["model", "domain", "complexity"]].astype("str"))
    predicted = keys.map(table).to_numpy(dtype=np.float64)
    known = ~np.isnan(predicted)
    if not known.any():
        return None
    predicted, came = predicted[known], rows["has_succeeded"].to_numpy(dtype=np.float64)[known]
    curve = calibration_curve(predicted, came)
    return Quality(
        rows=len(came),
        auc=auc(predicted, came),
        brier=brier(predicted, came),
        calibration_error=expected_calibration_error(predicted, came),
        predicted=tuple(curve.predicted.tolist()),
        observed=tuple(curve.observed.tolist()),
    )
