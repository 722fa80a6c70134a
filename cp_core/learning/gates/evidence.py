"""What gates judge a candidate by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.calibration import Calibration
from cp_core.learning.candidate import Candidate, Ground
from cp_core.learning.policy import LearningPolicy
from cp_core.learning.traits_seen import Seen

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """Everything that is looked at; pure values.

    Attributes:
        ground: what the candidate was made on, and is held against.
        earlier: judged attempts of the days that it may have learned from: model, domain, complexity, age_days,
            has_succeeded.
        later: judged attempts of the latest days, of which it knows nothing; the same columns, and task, is_censored,
            input_tokens, output_tokens, expected_input_tokens, expected_output_tokens.
        decided, ended: tasks of the latest days that were assigned, and those of them that have ended.
        selections: decisions of the latest days that predictions settle, see `gates.selection`; None where selection
            does not look at predictions.
        unbalanced: experiments whose arms did not get their shares, by name: how unlikely that is.
        seed: of bootstrap and shuffles.
        seen: what trait models saw in the texts of tasks of either; not necessarily of all.
    """

    ground: Ground
    candidate: Candidate
    policy: LearningPolicy
    earlier: pd.DataFrame
    later: pd.DataFrame
    decided: int
    ended: int
    selections: pd.DataFrame | None = None
    unbalanced: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    seen: Seen = field(default_factory=dict)

    @property
    def calibration(self) -> Calibration:
        """The candidate's."""
        return self.candidate.learned.calibration

    @property
    def looks_at_texts(self) -> bool:
        """Whether a text says something to the candidate, or to what is in force."""
        return self.calibration.trait_model is not None or self.in_force.trait_model is not None

    @property
    def in_force(self) -> Calibration:
        """Of what the candidate is held against."""
        return self.ground.learned.calibration

    def whose_text_was_seen(self, rows: pd.DataFrame) -> NDArray[np.bool_]:
        """Rows of which either's predictions are known as production would make them, (n,)."""
        known = np.ones(len(rows), dtype=bool)
        for calibration in (self.in_force, self.calibration):
            if calibration.trait_model is not None:
                eye = self.seen.get(calibration.trait_model)
                known &= eye.known(rows["task"]) if eye is not None else False
        return known

    def moves(self, beginning: str) -> bool:
        """Whether the candidate moves a number whose key begins so."""
        return any(change.key.startswith(beginning) for change in self.candidate.changes)


@dataclass(frozen=True)
class Finding:
    """What one gate found; `figures` are JSON values."""

    has_passed: bool
    says: str
    figures: Mapping[str, Any] = field(default_factory=dict)
