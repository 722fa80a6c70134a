"""How far a night of learning may go, and what has to be proven before anything reaches production."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cp_core.scoring.config import Risk


class LearningPolicy(BaseModel):
    """Section `learning` of policies.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promote: bool = Field(
        default=True, description="Whether a candidate that passed every gate is put in force by itself."
    )
    max_change: float = Field(
        default=0.15, gt=0, le=0.2, description="Share by which one night may move a number."
    )
    approved_risk_factors: dict[Risk, Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]] = Field(
        default={},
        description="How far each risk's factor may be moved; risks that are not here stay as they are.",
    )
    window_days: int = Field(default=60, ge=2, le=400, description="Submission days that are looked back on.")
    holdout_days: int = Field(
        default=2,
        ge=1,
        le=30,
        description="Latest days, which a candidate is judged by and knows nothing of.",
    )
    confidence: float = Field(
        default=0.95, ge=0.9, lt=1, description="One-sided confidence of the bounds that decide."
    )
    min_effective_n: float = Field(default=200, ge=30, description="Least judged outcomes, weighed by age.")
    max_open_share: float = Field(
        default=0.1, ge=0, le=1, description="Most decided tasks of the holdout whose end is not known yet."
    )
    max_censored_share: float = Field(
        default=0.2, ge=0, le=1, description="Most attempts of the holdout that were cut off."
    )
    selection_margin: float = Field(
        default=0.02,
        ge=0,
        le=0.2,
        description="Share of today's worth that a new selection may seem to cost.",
    )
    coverage_tolerance: float = Field(
        default=0.03, gt=0, le=0.1, description="How far an 80 % interval may be off."
    )
    max_failure_rise: float = Field(
        default=0.03, ge=0, le=1, description="Most that a domain's failure rate may rise."
    )
    max_cost_rise: float = Field(
        default=0.10, ge=0, le=1, description="Share by which a domain may get dearer a task."
    )
    max_latency_rise: float = Field(
        default=0.20, ge=0, le=1, description="Share by which a domain may get slower."
    )
    placebos: int = Field(
        default=200, ge=50, le=2000, description="Shuffles of the outcomes that a candidate is set against."
    )
