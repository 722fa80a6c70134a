"""What was learned about models, as the tables that predictions read. What it is learned from stands in `learning`.

An absent cell leaves the prior as it is, so an empty calibration changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cp_core.scoring.config import Complexity, Domain

Factor = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenFactors(_Section):
    """Actual tokens over those that a task's own estimate expects on average.

    `low` and `high` enclose 80 % of what is used; they, and the median, multiply the same expected number, the mean.
    """

    mean: Factor = 1.0
    median: Factor = 1.0
    low: Factor = 1.0
    high: Factor = 1.0

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError(f"low {self.low:g}, median {self.median:g} and high {self.high:g} must rise")
        return self


class ModelTokens(_Section):
    """What a model makes of a task's expected tokens."""

    input: TokenFactors = TokenFactors()
    output: TokenFactors = TokenFactors()


class TraitWeights(_Section):
    """How each trait of a task's text moves a model's predictions, beside what its cell says.

    Attributes:
        success: added to the log-odds of success, by model and trait.
        input: added to the logarithm of the expected input tokens, by model and trait.
        output: the same of output tokens.
    """

    success: Mapping[str, tuple[Weight, ...]] = {}
    input: Mapping[str, tuple[Weight, ...]] = {}
    output: Mapping[str, tuple[Weight, ...]] = {}

    @model_validator(mode="after")
    def _are_of_equal_length(self) -> Self:
        lengths = {
            len(weights) for kind in (self.success, self.input, self.output) for weights in kind.values()
        }
        if len(lengths) > 1:
            raise ValueError(
                f"every model needs a weight for each trait, but there are {sorted(lengths)} of them"
            )
        return self


class Calibration(_Section):
    """What was learned.

    Attributes:
        success: probability of success by model, domain and complexity.
        tokens: token factors by model and domain.
        trait_model: content hash of the artifact that makes a task's traits; None: texts are not looked at.
        traits: weights of its traits.
    """

    success: Mapping[str, Mapping[Domain, Mapping[Complexity, Annotated[float, Field(ge=0, le=1)]]]] = {}
    tokens: Mapping[str, Mapping[Domain, ModelTokens]] = {}
    trait_model: str | None = None
    traits: TraitWeights = TraitWeights()

    def success_of(self, model: str, domain: Domain, complexity: Complexity) -> float | None:
        """Learned probability of a cell; None where nothing was learned."""
        return self.success.get(model, {}).get(domain, {}).get(complexity)

    def tokens_of(self, model: str, domain: Domain) -> ModelTokens:
        """Token factors of a model in a domain; where nothing was learned, ones that leave the estimate as it is."""
        return self.tokens.get(model, {}).get(domain, _AS_ESTIMATED)


_AS_ESTIMATED = ModelTokens()
