"""How tasks are given to models: section `assignment` of policies.yaml. By default the written policy."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cp_core.assignment.strategies import Strategy
from cp_core.models.registry import Tier
from cp_core.quota.account import AccountState
from cp_core.scoring.config import Domain
from cp_core.tasks.reasons import Reason


class Band(BaseModel):
    """What a range of value scores may be given. A band reaches up to the next one's `at_least`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_least: float = Field(ge=0, lt=100, description="Lowest value score of the band.")
    tiers: tuple[Tier, ...] = Field(min_length=1, description="Allowed tiers, most preferred first.")
    subscription_first: bool = Field(
        default=False, description="A prepaid model goes before a preferred tier that costs money."
    )
    required_success: float = Field(
        default=0.5, ge=0, le=1, description="Success asked of a plan by minimize_cost and fastest."
    )
    defer: bool = Field(default=False, description="Assign nothing: such tasks wait for another policy.")

    @model_validator(mode="after")
    def _tiers_are_distinct(self) -> Self:
        if len(set(self.tiers)) < len(self.tiers):
            raise ValueError(f"the tiers of band {self.at_least:g} name one twice: {', '.join(self.tiers)}")
        return self


class FamilyPreference(BaseModel):
    """A model family that is preferred, within what the band allows, for the valuable tasks of a domain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: Domain = Domain.INFRASTRUCTURE
    at_least: float = Field(default=60, ge=0, le=100)
    family: str = "claude"


class KeptQuota(BaseModel):
    """Account states in which only tasks of a high value score may still draw on the account."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_least: float = Field(default=90, ge=0, le=100, description="Lowest value score that may draw.")
    states: tuple[AccountState, ...] = (AccountState.LOW, AccountState.CRITICAL)


PACED = (Reason.DEPENDENCY_PENDING, Reason.BREAKER_OPEN)
"""Reasons to wait that pass by themselves, often soon."""


class AssignmentPolicy(BaseModel):
    """Which strategy decides, and the rules of strategy `tiered`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Strategy = Strategy.TIERED
    bands: tuple[Band, ...] = (
        Band(at_least=90, tiers=(Tier.PREMIUM,), required_success=0.85),
        Band(
            at_least=75,
            tiers=(Tier.PREMIUM, Tier.MID_PREMIUM),
            subscription_first=True,
            required_success=0.75,
        ),
        Band(at_least=60, tiers=(Tier.MID_PREMIUM, Tier.MID_RANGE), required_success=0.65),
        Band(at_least=40, tiers=(Tier.MID_RANGE, Tier.BUDGET)),
        Band(at_least=0, tiers=(Tier.BUDGET,), required_success=0.3),
    )
    family_preference: FamilyPreference | None = FamilyPreference()
    kept_quota: KeptQuota = KeptQuota()

    context_margin: float = Field(
        default=0.05, ge=0, lt=1, description="Share of a context window kept free for the prompt's frame."
    )
    enforce_deadlines: bool = Field(
        default=True, description="Whether a task whose deadline has passed is given up."
    )
    deadline_margin_seconds: float = Field(
        default=30, ge=0, description="Nothing is started that has less than this left before its deadline."
    )

    most_gap: float = Field(
        default=0.005,
        gt=0,
        lt=1,
        description="Largest fraction of its bound that a round of the solver may leave; a fifth from 10,000 tasks.",
    )
    batch_size: int = Field(default=1000, ge=1, le=10_000, description="Tasks decided in one transaction.")
    reservation_seconds: float = Field(
        default=21_600, gt=0, description="How long reserved quota waits for the task to be executed."
    )
    defer_seconds: float = Field(
        default=300, ge=1, description="When a task that could not be assigned is looked at again."
    )
    dependency_seconds: float = Field(
        default=2,
        ge=1,
        description="The same, at first, for a task that waits for another one or for a model.",
    )

    def wait_seconds(self, reason: Reason, waited_seconds: float) -> float:
        """When a deferred task is looked at again.

        One that waits for another task, or for a model that is left alone, is looked at soon, then less and less
        often: after as long as it has waited already, at most `defer_seconds`.
        """
        if reason not in PACED:
            return self.defer_seconds
        return min(max(waited_seconds, self.dependency_seconds), self.defer_seconds)

    @model_validator(mode="after")
    def _bands_cover_every_score(self) -> Self:
        thresholds = [band.at_least for band in self.bands]
        falling = all(upper > lower for upper, lower in pairwise(thresholds))
        if not falling or not thresholds or thresholds[-1] != 0:
            raise ValueError(
                f"bands must fall from the highest to 0, so that each score has one; at_least is {thresholds}"
            )
        return self


@lru_cache(maxsize=16)
def relaxed(policy: AssignmentPolicy, tiers_either_side: int) -> AssignmentPolicy:
    """The policy with every band's tiers widened: after its own come, nearest first, those above and below them."""
    if tiers_either_side <= 0:
        return policy
    bands = tuple(_widened(band, tiers_either_side) for band in policy.bands)
    return policy.model_copy(update={"bands": bands})


def _widened(band: Band, tiers_either_side: int) -> Band:
    every = list(Tier)
    ranks = [tier.rank for tier in band.tiers]
    beside = [
        rank
        for step in range(1, tiers_either_side + 1)
        for rank in (min(ranks) - step, max(ranks) + step)
        if 0 <= rank < len(every)
    ]
    return band.model_copy(update={"tiers": (*band.tiers, *(every[rank] for rank in beside))})
