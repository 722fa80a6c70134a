"""What an experiment is: its arms, its metrics, its plan. Written once, and frozen when it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]

POLICIES_OF_DECISIONS = ("assignment", "prediction", "plans", "objective", "exploration")
"""Sections of policies.yaml that an arm may override: they are read when a task is decided, and only then."""

POLICIES_OF_BLOCKS = ("fairness",)
"""Sections that hold for all tasks at once: switchback arms may override these too."""

_READ_BY_WORKERS = frozenset(
    {"policies.assignment.enforce_deadlines", "policies.assignment.reservation_seconds"}
)


class Unit(StrEnum):
    """What is given an arm."""

    TASK = "task"
    BLOCK = "switchback"


class Measure(StrEnum):
    """What is compared of a task that has ended."""

    SUCCESS = "success"
    QUALITY = "quality"
    VALUE = "value"
    COST = "cost_usd"

    @property
    def is_better_lower(self) -> bool:
        """Whether less of it is better."""
        return self is Measure.COST


class Role(StrEnum):
    """What a metric is for."""

    GOAL = "goal"
    GUARDRAIL = "guardrail"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Arm(_Section):
    """One of the ways that are compared. The first arm of an experiment is the control."""

    name: Name
    weight: int = Field(default=1, ge=1, le=10_000, description="Its part of the units, beside the others'.")
    overrides: Mapping[str, Any] = Field(
        default={},
        description="Dotted keys such as policies.exploration.rate, and what they are in this arm.",
    )
    learned_from: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="Content hash of a configuration version: the arm has its scoring and what was learned.",
    )


class Metric(_Section):
    """What is looked at, and what for."""

    measure: Measure
    role: Role = Role.GOAL


class ExperimentDefinition(_Section):
    """An experiment as a file declares it."""

    experiment: Name
    hypothesis: str = Field(min_length=1, max_length=2_000, description="What should become better, and why.")
    layer: Name = Field(default="default", description="Experiments of one layer never share a unit.")
    salt: str | None = Field(default=None, min_length=1, max_length=100, description="Default: the name.")
    unit: Unit = Unit.TASK
    block_hours: int | None = Field(
        default=None, ge=1, le=168, description="Length of a block; for switchback only."
    )
    traffic: float = Field(default=1.0, gt=0, le=1, description="Share of the units that take part.")
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=10)
    metrics: tuple[Metric, ...] = Field(min_length=1, max_length=4)
    alpha: float = Field(
        default=0.05, ge=0.001, le=0.2, description="Chance of any false conclusion, at most."
    )
    planned_units_per_arm: int = Field(
        ge=10, description="For how many units the sequences are made narrowest."
    )
    least_units_per_arm: int = Field(default=100, ge=10, description="Nothing is concluded before.")
    least_days: int = Field(default=7, ge=1, le=365, description="Nothing is concluded before.")
    most_days: int = Field(default=30, ge=1, le=365, description="Then it ends, even inconclusive.")

    @property
    def salt_in_force(self) -> str:
        """What units are hashed with to give them an arm."""
        return self.salt or self.experiment

    @property
    def control(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def keys(self) -> frozenset[str]:
        """Everything that any arm changes."""
        learned = {"learned"} if any(arm.learned_from for arm in self.arms) else set()
        return frozenset(key for arm in self.arms for key in arm.overrides) | learned

    def conflicts_with(self, other: ExperimentDefinition) -> frozenset[str]:
        """Keys that both change, or of which one stands inside the other's. In one layer they never meet."""
        if self.layer == other.layer:
            return frozenset()
        return frozenset(
            mine
            for mine in self.keys
            for theirs in other.keys
            if _holds(mine, theirs) or _holds(theirs, mine)
        )

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            yield f"two arms have one name among {', '.join(names)}"
        measures = [metric.measure for metric in self.metrics]
        if len(set(measures)) < len(measures):
            yield "a measure stands here twice"
        if not any(metric.role is Role.GOAL for metric in self.metrics):
            yield "one metric must have role goal"
        if (self.unit is Unit.BLOCK) != (self.block_hours is not None):
            yield "block_hours is needed with unit: switchback, and only there"
        if self.unit is Unit.BLOCK and self.traffic < 1:
            yield "a switchback experiment takes all of the traffic: traffic must be 1"
        changes_scores = any(key == "learned" or key.startswith("scoring.") for key in self.keys)
        if changes_scores and Measure.VALUE in measures:
            yield "arms that score differently cannot be compared by value: each would be its own judge"
        if self.least_units_per_arm > self.planned_units_per_arm:
            yield "least_units_per_arm is more than planned_units_per_arm"
        if self.least_days > self.most_days:
            yield "least_days is more than most_days"
        yield from (_refusal(key, self.unit) for key in sorted(self.keys) if not _may_change(key, self.unit))


def _holds(outer: str, inner: str) -> bool:
    if outer == "learned":
        return inner == "learned" or inner.startswith("scoring.")
    return inner == outer or inner.startswith(f"{outer}.")


def _sections(unit: Unit) -> tuple[str, ...]:
    return POLICIES_OF_DECISIONS + (POLICIES_OF_BLOCKS if unit is Unit.BLOCK else ())


def _may_change(key: str, unit: Unit) -> bool:
    if key == "learned":
        return True
    file, _, rest = key.partition(".")
    if not rest or key in _READ_BY_WORKERS:
        return False
    section, _, inner = rest.partition(".")
    if file == "scoring":
        return unit is Unit.TASK
    return file == "policies" and bool(inner) and section in _sections(unit)


def _refusal(key: str, unit: Unit) -> str:
    scoring = "scoring., " if unit is Unit.TASK else ""
    sections = ", ".join(f"policies.{section}." for section in _sections(unit))
    return (
        f"an arm cannot override {key}: keys may begin with {scoring}{sections} and must not be one of "
        f"{', '.join(sorted(_READ_BY_WORKERS))}"
    )
