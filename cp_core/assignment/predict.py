"""What is expected of every task with every model: success, tokens, price and time.

Until learning supplies better, a model's success is the registry's prior for the domain, moved by the task's
complexity on the log-odds scale, and tokens are the task's own estimate. A calibration replaces either where it
has cells, and moves it by the traits of the task's text where it has weights for them. Everything that does not
depend on the task is worked out once, when a `Predictor` is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cp_core.assignment.calibration import Calibration
from cp_core.models.registry import Model, Tier
from cp_core.scoring.config import Complexity, Domain

Doubles = NDArray[np.float64]
Codes = NDArray[np.intp]
_Any = TypeVar("_Any", bound=np.generic)

_DOMAINS = {domain.value: code for code, domain in enumerate(Domain)}
_COMPLEXITIES = {complexity.value: code for code, complexity in enumerate(Complexity)}
_CERTAIN = 1e-3  # no prediction of a capable model is nearer to 0 or 1 than this


class Columns(Protocol):
    """Tasks as columns of equal length: a DataFrame, or a mapping of arrays for a handful of tasks."""

    def __getitem__(self, name: str, /) -> Any: ...

    def __contains__(self, name: object, /) -> bool: ...


class PredictionPolicy(BaseModel):
    """Section `prediction` of policies.yaml: priors that hold until outcomes say better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    complexity_log_odds: dict[Complexity, float] = Field(
        default={
            Complexity.SIMPLE: 0.6,
            Complexity.MODERATE: 0.0,
            Complexity.COMPLEX: -0.6,
            Complexity.HIGHLY_COMPLEX: -1.2,
        },
        description="What each complexity adds to the log-odds of success; registry priors are for moderate tasks.",
    )
    start_seconds: float = Field(default=2.0, ge=0, description="Time until a model's first token.")
    tokens_per_second: dict[Tier, float] = Field(
        default={Tier.PREMIUM: 45.0, Tier.MID_PREMIUM: 70.0, Tier.MID_RANGE: 110.0, Tier.BUDGET: 160.0},
        description="Output tokens a second, by tier.",
    )


@dataclass(frozen=True)
class Predictions:
    """Expectations for n tasks with m models; every array has shape (m, n).

    Attributes:
        success: probability that the model's work is good enough.
        input_mean, input_median, output_mean, output_median: tokens.
        list_usd: price of the mean tokens, without cache, at list price.
        seconds: time the answer takes.
    """

    success: Doubles
    input_mean: Doubles
    input_median: Doubles
    output_mean: Doubles
    output_median: Doubles
    list_usd: Doubles
    seconds: Doubles

    @property
    def tokens(self) -> Doubles:
        """Mean input and output tokens: what the windows of a subscription are charged."""
        return self.input_mean + self.output_mean


class Predictor:
    """Predicts for some models.

    Args:
        models: the m models, in the order of the predictions' rows; a model may stand there twice.
    """

    def __init__(self, models: Sequence[Model], policy: PredictionPolicy, calibration: Calibration) -> None:
        self._success = np.array(
            [
                [[_success(model, domain, c, policy, calibration) for c in Complexity] for domain in Domain]
                for model in models
            ]
        ).reshape(len(models), len(Domain), len(Complexity))
        tokens = [[calibration.tokens_of(model.name, domain) for domain in Domain] for model in models]
        self._input_mean = _factors([[cell.input.mean for cell in row] for row in tokens])
        self._input_median = _factors([[cell.input.median for cell in row] for row in tokens])
        self._output_mean = _factors([[cell.output.mean for cell in row] for row in tokens])
        self._output_median = _factors([[cell.output.median for cell in row] for row in tokens])
        learned = [
            [domain in calibration.tokens.get(model.name, {}) for domain in Domain] for model in models
        ]
        self._learned = _factors(learned) > 0 if any(map(any, learned)) else None
        self._trait_weights = _trait_weights(models, calibration)
        self._input_usd = _column(_usd_per_token(model.input_usd_per_million) for model in models)
        self._output_usd = _column(_usd_per_token(model.output_usd_per_million) for model in models)
        self._seconds_per_token = _column(1 / policy.tokens_per_second[model.tier] for model in models)
        self._start_seconds = policy.start_seconds

    @property
    def traits(self) -> int:
        """How many traits of a text it weighs; 0 where it does not look at texts."""
        return 0 if self._trait_weights is None else self._trait_weights.shape[2]

    def predict(self, tasks: Columns) -> Predictions:
        """Predict every pair.

        Args:
            tasks: n rows with domain, complexity, input_mean, input_median, output_mean and output_median (tokens),
                and, where the calibration looks at texts, traits, see `trait_matrix`.

        Raises:
            KeyError: a domain or complexity that is not known.
        """
        domains = _codes(tasks["domain"], _DOMAINS)
        success = self._success[:, domains, _codes(tasks["complexity"], _COMPLEXITIES)]
        input_mean = _per_domain(self._input_mean, domains) * _row(tasks["input_mean"])
        input_median = _per_domain(self._input_median, domains) * self._median_base(tasks, "input", domains)
        output_mean = _per_domain(self._output_mean, domains) * _row(tasks["output_mean"])
        output_median = _per_domain(self._output_median, domains) * self._median_base(
            tasks, "output", domains
        )
        if self._trait_weights is not None and "traits" in tasks:
            traits = trait_matrix(tasks["traits"], self.traits)
            success = shift_log_odds(success, self._trait_weights[0] @ traits.T)
            if self._trait_weights[1:].any():
                input_factor, output_factor = np.exp(self._trait_weights[1:] @ traits.T)
                input_mean, input_median = input_mean * input_factor, input_median * input_factor
                output_mean, output_median = output_mean * output_factor, output_median * output_factor
        return Predictions(
            success=success,
            input_mean=input_mean,
            input_median=input_median,
            output_mean=output_mean,
            output_median=output_median,
            list_usd=input_mean * self._input_usd + output_mean * self._output_usd,
            seconds=self._start_seconds + output_mean * self._seconds_per_token,
        )

    def _median_base(self, tasks: Columns, kind: str, domains: Codes) -> Doubles:
        """What the factors of medians multiply: the estimate's mean where they are learned, else its median."""
        median = _row(tasks[f"{kind}_median"])
        if self._learned is None:
            return median
        return np.where(_per_domain(self._learned, domains), _row(tasks[f"{kind}_mean"]), median)


def trait_matrix(column: Iterable[Sequence[float] | None], traits: int) -> Doubles:
    """Traits of n tasks, (n, traits): 0, which moves nothing, for a task that has none, or has another trait model's.

    Args:
        column: of each task its traits, by the trait model of the calibration, or None.
    """
    if isinstance(column, np.ndarray) and column.ndim == 2 and column.shape[1] == traits:
        return np.asarray(column, dtype=np.float64)
    rows = list(column)
    told = [at for at, row in enumerate(rows) if row is not None and len(row) == traits]
    matrix = np.zeros((len(rows), traits))
    if told:
        matrix[told] = np.array([rows[at] for at in told], dtype=np.float64)
    return matrix


def shift_log_odds(probability: Doubles, shift: float | Doubles) -> Doubles:
    """Move probabilities by `shift` on the log-odds scale; 0 and 1 stay where they are."""
    odds = np.exp(shift)
    return np.asarray(probability * odds / (1 - probability + probability * odds), dtype=np.float64)


def _success(
    model: Model, domain: Domain, complexity: Complexity, policy: PredictionPolicy, calibration: Calibration
) -> float:
    learned = calibration.success_of(model.name, domain, complexity)
    if learned is not None:
        return float(np.clip(learned, _CERTAIN, 1 - _CERTAIN))
    prior = model.capability.get(domain, 0.0)
    if prior <= 0:
        return 0.0
    shift = policy.complexity_log_odds[complexity]
    return float(shift_log_odds(np.clip(np.array(prior), _CERTAIN, 1 - _CERTAIN), shift))


def _factors(by_model: Sequence[Sequence[float]]) -> Doubles:
    """Factors by model and domain; a single column where no domain has its own, which is quicker to multiply with."""
    factors = np.array(by_model, dtype=np.float64).reshape(len(by_model), len(Domain))
    return factors[:, :1] if (factors == factors[:, :1]).all() else factors


def _per_domain(factors: NDArray[_Any], domains: Codes) -> NDArray[_Any]:
    return factors if factors.shape[1] == 1 else factors[:, domains]


def _trait_weights(models: Sequence[Model], calibration: Calibration) -> Doubles | None:
    """Weights of success, input and output, by model and trait: (3, m, k); None where texts are not looked at."""
    by_kind = (calibration.traits.success, calibration.traits.input, calibration.traits.output)
    lengths = {len(weights) for kind in by_kind for weights in kind.values()}
    if calibration.trait_model is None or not lengths:
        return None
    (traits,) = lengths
    nothing = (0.0,) * traits
    return np.array([[kind.get(model.name, nothing) for model in models] for kind in by_kind]).reshape(
        len(by_kind), len(models), traits
    )


def _codes(names: Iterable[str], positions: Mapping[str, int]) -> Codes:
    return np.array([positions[name] for name in names], dtype=np.intp)


def _usd_per_token(usd_per_million: Decimal) -> float:
    return float(usd_per_million) / 1e6


def _column(values: Iterable[float]) -> Doubles:
    return np.array(list(values), dtype=np.float64)[:, None]


def _row(values: object) -> Doubles:
    return np.asarray(values, dtype=np.float64)[None, :]
