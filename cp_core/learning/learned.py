"""What a night of learning may change, as one document: it is laid over the configuration that people wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cp_core.assignment.calibration import Calibration
from cp_core.scoring.config import ScoringConfig


class LearnedError(ValueError):
    """What was learned does not fit the configuration that it is laid over."""


class Learned(BaseModel):
    """Everything learned that decisions read.

    Attributes:
        calibration: of predictions.
        scoring: numbers of scoring.yaml by dotted key, such as `priority_points.P0`; they replace the file's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: Calibration = Calibration()
    scoring: Mapping[str, float] = {}

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


def _put(content: dict[str, Any], key: str, number: float) -> None:
    *sections, last = key.split(".")
    inner: Any = content
    for section in sections:
        inner = inner.get(section) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get(last), int | float):
        raise LearnedError(f"{key!r} was learned, but is not one of the numbers of scoring.yaml")
    inner[last] = number
