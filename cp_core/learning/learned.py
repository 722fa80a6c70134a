"""What a night of learning may change, as one document: it is laid over the configuration that people wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cp_core.assignment.calibration import Calibration, TraitWeights
from cp_core.models.registry import ModelRegistry
from cp_core.scoring.config import ScoringConfig


class LearnedError(ValueError):
    """What was learned does not fit the configuration that it is laid over."""


class Learned(BaseModel):
    """Everything learned that decisions read.

    Attributes:
        calibration: of predictions.
        scoring: numbers of scoring.yaml by dotted key, such as `priority_points.P0`; they replace the file's.
        written: what the file said of those keys when they were learned. A person who changes one of them since then
            has the last word: what was learned of it is left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: Calibration = Calibration()
    scoring: Mapping[str, float] = {}
    written: Mapping[str, float] = {}

    def apply_to(self, scoring: ScoringConfig) -> ScoringConfig:
        """The scoring rules with the learned numbers in their places.

        Raises:
            LearnedError: a key names no number, or the rules refuse the number.
        """
        if not self.scoring:
            return scoring
        content = scoring.model_dump()
        for key, number in self.scoring.items():
            _put(content, key, number)
        try:
            return ScoringConfig.model_validate(content)
        except ValidationError as error:
            raise LearnedError(f"scoring.yaml does not allow what was learned: {error}") from error

    def fitting(self, registry: ModelRegistry, scoring: ScoringConfig) -> tuple[Learned, list[str]]:
        """What of this still fits what people wrote, and, in words, what had to be left out.

        Args:
            registry: models that there are.
            scoring: scoring.yaml, without anything learned.
        """
        left_out: list[str] = []
        calibration = self.calibration
        vanished = sorted(_models_of(calibration) - registry.models.keys())
        if vanished:
            left_out.append(f"models that are no longer configured: {', '.join(vanished)}")
            calibration = _without(calibration, vanished)
        kept: dict[str, float] = {}
        for key, number in sorted(self.scoring.items()):
            problem = self._problem_of(key, number, scoring)
            if problem is None:
                kept[key] = number
            else:
                left_out.append(problem)
        written = {key: number for key, number in self.written.items() if key in kept}
        fit = Learned(calibration=calibration, scoring=kept, written=written)
        try:
            fit.apply_to(scoring)
        except LearnedError as error:
            left_out.append(f"every number of scoring.yaml: {error}")
            fit = Learned(calibration=calibration)
        return fit, left_out

    def without_texts(self) -> Learned:
        """The same, with nothing that is said by texts."""
        calibration = self.calibration.model_copy(update={"trait_model": None, "traits": TraitWeights()})
        return self.model_copy(update={"calibration": calibration})

    def _problem_of(self, key: str, number: float, scoring: ScoringConfig) -> str | None:
        """Why a learned number of scoring.yaml does not fit the file; None when it does."""
        try:
            now = number_of(scoring, key)
        except LearnedError as error:
            return str(error)
        before = self.written.get(key, now)
        if not math.isclose(before, now):
            return f"{key} = {number:g} of scoring.yaml: a person changed it from {before:g} to {now:g} since"
        return None


def number_of(scoring: ScoringConfig, key: str) -> float:
    """The number that stands at a dotted key of scoring.yaml.

    Raises:
        LearnedError: none does.
    """
    inner: Any = scoring.model_dump()
    for section in key.split("."):
        inner = inner.get(section) if isinstance(inner, dict) else None
    if not isinstance(inner, int | float) or isinstance(inner, bool):
        raise LearnedError(f"{key!r} was learned, but is not one of the numbers of scoring.yaml")
    return float(inner)


def _models_of(calibration: Calibration) -> set[str]:
    traits = calibration.traits
    return {*calibration.success, *calibration.tokens, *traits.success, *traits.input, *traits.output}


def _without(calibration: Calibration, models: list[str]) -> Calibration:
    def kept(by_model: Mapping[str, Any]) -> dict[str, Any]:
        return {model: value for model, value in by_model.items() if model not in models}

    traits = calibration.traits
    return calibration.model_copy(
        update={
            "success": kept(calibration.success),
            "tokens": kept(calibration.tokens),
            "traits": traits.model_copy(
                update={name: kept(getattr(traits, name)) for name in ("success", "input", "output")}
            ),
        }
    )


def _put(content: dict[str, Any], key: str, number: float) -> None:
    *sections, last = key.split(".")
    inner: Any = content
    for section in sections:
        inner = inner.get(section) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get(last), int | float):
        raise LearnedError(f"{key!r} was learned, but is not one of the numbers of scoring.yaml")
    inner[last] = number
