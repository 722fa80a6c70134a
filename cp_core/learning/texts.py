"""Whether texts say more of success than kinds do, and what: fitted on earlier days, and judged on the days after them.

Texts are taken only where predictions from kind and text together were better on later days than those of the kind
alone, for certain; with little data, or without proof, the table by model, domain and complexity stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import expit, logit

from cp_core.learning.corrections import correct, sums, weights_of
from cp_core.learning.expectations import Expectations, cells_of
from cp_core.learning.offpolicy import studentised_interval
from cp_core.learning.policy import LearningPolicy
from cp_core.learning.prediction_quality import auc, brier
from cp_core.learning.text_effects import TextRows, fit_effects_of_texts, shifts
from cp_core.learning.traits_seen import TraitsSeen

Doubles = NDArray[np.float64]

_CERTAIN = 1e-3
_DIGITS = 6


class TextsFound(BaseModel):
    """What texts say of success.

    Attributes:
        trait_model: hash of the artifact that sees the traits; None where texts are left aside.
        success: what each trait adds to the log-odds, by model; what is in force stays as it is for others.
        says: why they are taken, or left aside.
        learned_from, judged_by: attempts.
        saved: logarithmic loss that texts save a task on the later days, with its certain bounds.
        auc, brier: on the later days, of the kind alone, and of kind and text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trait_model: str | None = None
    success: Mapping[str, tuple[float, ...]] = {}
    says: str
    learned_from: int = 0
    judged_by: int = 0
    saved: tuple[float, float, float] | None = None
    auc: tuple[float | None, float | None] | None = None
    brier: tuple[float, float] | None = None


def learn_texts(
    earlier: pd.DataFrame,
    expected: Expectations,
    eye: str,
    seen: TraitsSeen,
    policy: LearningPolicy,
    *,
    is_in_force: bool = False,
    seed: int,
) -> TextsFound:
    """What the texts of attempts say, judged on the latest of these days by what is fitted on those before.

    Args:
        earlier: judged attempts of the days that may be learned from: task, model, domain, complexity, age_days and
            has_succeeded.
        expected: what is in force.
        eye: hash of the trait model that saw `seen`, which need not have all tasks.
        is_in_force: whether texts have proven themselves before: then they have to go on saving something, but not for
            certain each night anew.
        seed: of folds and bootstrap.
    """
    if earlier.empty:
        return _too_few(eye if is_in_force else None, {}, "there are no outcomes")
    rows = _Attempts.of(earlier, expected, seen)
    newest = float(earlier["age_days"].min())
    is_later = rows.age_days < newest + policy.holdout_days
    before, after = rows.where(~is_later), rows.where(is_later)
    told, judged = before.with_text(), after.with_text()
    least = policy.min_effective_n
    figures: dict[str, Any] = {"learned_from": len(told), "judged_by": len(judged)}
    if min(len(told), len(judged)) < least:
        return _too_few(
            eye if is_in_force else None,
            figures,
            f"there are {len(told):,} attempts to learn from and {len(judged):,} later ones to judge by, and "
            f"{least:,.0f} of each are needed",
        )
    base = before.log_odds(expected)
    effects = told.effects(base, seed)
    kind = base[judged.cells]
    text = kind + shifts(effects, judged.rows(base))
    saved = _by_task(_loss(kind, judged.won) - _loss(text, judged.won), judged.task)
    low, high = studentised_interval(saved, 2 * (1 - policy.confidence), seed)
    figures |= {
        "saved": (float(saved.mean()), low, high),
        "auc": (auc(kind, judged.won), auc(text, judged.won)),
        "brier": (brier(expit(kind), judged.won), brier(expit(text), judged.won)),
    }
    measured = (
        f"they save {saved.mean():+.4f} of logarithmic loss on {len(saved):,} later tasks, for certain between "
        f"{low:+.4f} and {high:+.4f}"
    )
    if not (saved.mean() if is_in_force else low) > 0:
        lacking = "so that what is in force fades" if is_in_force else "and must save something for certain"
        return TextsFound(says=f"texts are left aside: {measured}, {lacking}", **figures)
    told = rows.with_text()
    whole = told.effects(rows.log_odds(expected), seed)
    return TextsFound(
        trait_model=eye,
        success={
            expected.models[model]: tuple(round(float(one), _DIGITS) for one in whole[model])
            for model in np.unique(told.model).tolist()
        },
        says=f"texts are taken: {measured}",
        **figures,
    )


def _too_few(in_force: str | None, figures: dict[str, Any], why: str) -> TextsFound:
    """Too little to say anything: what is in force stays as it is."""
    if in_force is None:
        return TextsFound(says=f"texts are left aside: {why}", **figures)
    return TextsFound(trait_model=in_force, says=f"what texts say stays as it is: {why}", **figures)


@dataclass(frozen=True)
class _Attempts:
    """Attempts as columns; `place` is where their task's traits stand, -1 for none."""

    seen: TraitsSeen
    models: int
    kinds: int
    task: NDArray[np.int64]
    age_days: Doubles
    weight: Doubles
    cells: NDArray[np.intp]
    won: Doubles
    place: NDArray[np.intp]

    @classmethod
    def of(cls, frame: pd.DataFrame, expected: Expectations, seen: TraitsSeen) -> _Attempts:
        cells = cells_of(frame, expected.models)
        able = (cells >= 0) & (expected.success.ravel()[cells] > 0)
        frame, cells = frame[able], cells[able]
        return cls(
            seen,
            len(expected.models),
            expected.success.shape[1],
            frame["task"].to_numpy(dtype=np.int64),
            frame["age_days"].to_numpy(dtype=np.float64),
            weights_of(frame),
            cells,
            frame["has_succeeded"].to_numpy(dtype=np.float64),
            seen.places(frame["task"]),
        )

    def __len__(self) -> int:
        return len(self.task)

    @property
    def model(self) -> NDArray[np.intp]:
        return self.cells // self.kinds

    def where(self, chosen: NDArray[np.bool_]) -> _Attempts:
        return replace(
            self,
            task=self.task[chosen],
            age_days=self.age_days[chosen],
            weight=self.weight[chosen],
            cells=self.cells[chosen],
            won=self.won[chosen],
            place=self.place[chosen],
        )

    def with_text(self) -> _Attempts:
        """Those whose text was looked at."""
        return self.where(self.place >= 0)

    def log_odds(self, expected: Expectations) -> Doubles:
        """The table of kinds as these outcomes correct it, flat, on the log-odds scale."""
        table = correct(expected.success, *sums(self.cells, self.weight, self.won, expected.success.shape))
        return np.asarray(logit(np.clip(table.ravel(), _CERTAIN, 1 - _CERTAIN)), dtype=np.float64)

    def rows(self, base: Doubles) -> TextRows:
        return TextRows(self.seen.traits[self.place], self.model, base[self.cells], self.weight, self.models)

    def effects(self, base: Doubles, seed: int) -> Doubles:
        return fit_effects_of_texts(self.rows(base), self.won, self.task, seed=seed)


def _loss(log_odds: Doubles, won: Doubles) -> Doubles:
    """Logarithmic loss of each attempt."""
    return np.asarray(np.logaddexp(0.0, np.where(won > 0.5, -log_odds, log_odds)), dtype=np.float64)


def _by_task(values: Doubles, tasks: NDArray[np.int64]) -> Doubles:
    """Mean of each task's attempts."""
    names, codes = np.unique(tasks, return_inverse=True)
    return np.bincount(codes, values, len(names)) / np.bincount(codes, minlength=len(names))
