"""Gate: the same pipeline on shuffled outcomes does clearly worse.

Outcomes of the days that were learned from are shuffled among attempts, again and again (drawn at once for attempts
that are alike); each time the pipeline learns, the change is capped, and what it saves on the later days is measured as
for the candidate itself. On a night whose outcomes say nothing about models, the candidate is like the shuffled ones,
and stands out by chance alone: it must lie above all of them, and by four of their standard deviations, which chance
does on one night in 30,000 if they are normal. What every shuffle finds too, such as a change of the overall level, is
no reason to promote.

Where the candidate looks at texts, so does the pipeline: from every shuffle it learns effects of texts too, on top of
the table that it corrected, and moves those in force toward them within the cap.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from cp_core.learning.corrections import Doubles, correct, sums, weights_of
from cp_core.learning.expectations import Expectations, cells_of
from cp_core.learning.gates.evidence import Evidence, Finding
from cp_core.learning.text_effects import TextFit, TextRows, largest_step, shifts
from cp_core.learning.traits_seen import weights_of_models

Counts = NDArray[np.int64]

_DEVIATIONS = 4.0
_CERTAIN = 1e-3


def placebo(evidence: Evidence) -> Finding:
    """Set the candidate against shuffles of what it learned from."""
    if not evidence.moves("success."):
        return Finding(
            True, "success is expected as before, so there is nothing that shuffling could imitate"
        )
    if evidence.earlier.empty or evidence.later.empty:
        return Finding(False, "there are no outcomes to shuffle")
    pipeline = _Pipeline(evidence)
    generator = np.random.default_rng(evidence.seed)
    own = pipeline.saved(pipeline.won)
    shuffled = np.array(
        [pipeline.saved(pipeline.shuffled(generator)) for _ in range(evidence.policy.placebos)]
    )
    bar = float(max(shuffled.max(), shuffled.mean() + _DEVIATIONS * shuffled.std(ddof=1)))
    return Finding(
        own > bar,
        f"what was learned saves {own:+.4f} of loss a task; on shuffled outcomes the same pipeline saves "
        f"{shuffled.mean():+.4f} on average, and {bar:+.4f} is what it must exceed",
        {"saved": own, "shuffled_mean": float(shuffled.mean()), "bar": bar, "shuffles": len(shuffled)},
    )


class _Pipeline:
    """Learning, capping and judging, with everything prepared that does not depend on the outcomes learned from."""

    def __init__(self, evidence: Evidence) -> None:
        self._texts = _Texts(evidence) if evidence.looks_at_texts else None
        expected = evidence.ground.expectations()
        limit = evidence.policy.max_change
        self._expected = expected.success
        self._least, self._most = self._expected * (1 - limit), np.minimum(self._expected * (1 + limit), 1.0)
        earlier, later = evidence.earlier, evidence.later
        cells = cells_of(earlier, expected.models)
        ages, days = pd.factorize(earlier["age_days"])
        alike = cells * len(days) + ages
        if self._texts is not None:  # each with a text of its own; they come last, in order
            alike = np.where(self._texts.learned_from, alike.max() + 1 + np.arange(len(alike)), alike)
        _, first, of = np.unique(alike, return_index=True, return_inverse=True)
        self._tried = np.bincount(of)
        self._cells, self._weights = cells[first], weights_of(earlier)[first] * self._tried
        self.won = np.bincount(of, earlier["has_succeeded"].to_numpy(dtype=np.float64)).astype(np.int64)
        cells, tasks = cells_of(later, expected.models), _share_of_task(later["task"])
        self._seen, self._seen_won = sums(
            cells, tasks, later["has_succeeded"].to_numpy(dtype=np.float64), self._expected.shape
        )

    def shuffled(self, generator: np.random.Generator) -> Counts:
        """Successes among the attempts that are alike, when outcomes are shuffled: multivariate hypergeometric."""
        return generator.multivariate_hypergeometric(self._tried, int(self.won.sum()), method="marginals")

    def saved(self, won: Counts) -> float:
        """What the pipeline saves a task on the later days when `won` of the attempts that are alike are good."""
        shares = won / self._tried
        learned = correct(self._expected, *sums(self._cells, self._weights, shares, self._expected.shape))
        capped = np.clip(learned, self._least, self._most)
        if self._texts is not None:
            return self._texts.saved(won, learned, capped)
        return float((self._log_likelihood(capped) - self._log_likelihood(self._expected)).sum())

    def _log_likelihood(self, success: Doubles) -> Doubles:
        chance = np.clip(success, _CERTAIN, 1 - _CERTAIN)
        return np.asarray(
            self._seen_won * np.log(chance) + (self._seen - self._seen_won) * np.log(1 - chance)
        )


class _Texts:
    """The part of the pipeline that looks at texts, attempt by attempt."""

    def __init__(self, evidence: Evidence) -> None:
        expected = evidence.ground.expectations()
        self._limit = evidence.policy.max_change
        self._models = list(expected.models)
        self._eye = evidence.seen[evidence.calibration.trait_model or evidence.in_force.trait_model or ""]
        self._weights = weights_of_models(self._models, evidence.in_force, self._eye.traits.shape[1])
        earlier = evidence.earlier
        self.learned_from = self._usable(earlier, expected)
        rows, cells, places = self._usable_of(earlier, expected, self.learned_from)
        self._cells, traits = cells, self._eye.traits[places]
        chance = np.clip(expected.success.ravel(), _CERTAIN, 1 - _CERTAIN)
        self._chance, self._of = chance[cells], cells // expected.success.shape[1]
        self._rows = TextRows(traits, self._of, logit(self._chance), weights_of(rows), len(self._models))
        self._fit = TextFit(self._rows)
        self._before = shifts(self._weights, self._rows)
        self._members = [(model, np.flatnonzero(self._of == model)) for model in np.unique(self._of).tolist()]
        later = evidence.later
        rows, self._later_cells, places = self._usable_of(later, expected, self._usable(later, expected))
        self._later = TextRows(
            self._eye.traits[places],
            self._later_cells // expected.success.shape[1],
            logit(chance[self._later_cells]),
            _share_of_task(rows["task"]),
            len(self._models),
        )
        self._won = rows["has_succeeded"].to_numpy(dtype=bool)
        self._loss_before = self._loss(self._later.offset + shifts(self._weights, self._later))

    def saved(self, won: Counts, learned: Doubles, capped: Doubles) -> float:
        """What it saves a task on the later days.

        Args:
            won: successes of earlier attempts; the last of them are those that it learns from.
            learned, capped: the table of kinds, before and after the cap.
        """
        base = logit(np.clip(learned.ravel(), _CERTAIN, 1 - _CERTAIN))[self._cells]
        common, own = self._fit.effects(won[len(won) - len(base) :].astype(np.float64), base)
        weights = self._moved(common + own)
        table = logit(np.clip(capped.ravel(), _CERTAIN, 1 - _CERTAIN))[self._later_cells]
        return float((self._loss_before - self._loss(table + shifts(weights, self._later))).sum())

    def _moved(self, found: Doubles) -> Doubles:
        """Effects in force, moved toward those found as far as the cap lets them."""
        after = shifts(found, self._rows)
        moved = self._weights.copy()
        for model, own in self._members:
            step = largest_step(self._chance[own], self._before[own], after[own], self._limit)
            moved[model] += step * (found[model] - self._weights[model])
        return moved

    def _loss(self, log_odds: Doubles) -> Doubles:
        """Of each later attempt, so that every task counts once and all of them sum to 1."""
        return np.asarray(self._later.weight * np.logaddexp(0.0, np.where(self._won, -log_odds, log_odds)))

    def _usable(self, rows: pd.DataFrame, expected: Expectations) -> NDArray[np.bool_]:
        """Attempts that are predicted, and whose text was looked at."""
        cells = cells_of(rows, expected.models)
        return (self._eye.places(rows["task"]) >= 0) & (cells >= 0) & (expected.success.ravel()[cells] > 0)

    def _usable_of(
        self, rows: pd.DataFrame, expected: Expectations, usable: NDArray[np.bool_]
    ) -> tuple[pd.DataFrame, NDArray[np.intp], NDArray[np.intp]]:
        chosen = rows[usable]
        return chosen, cells_of(chosen, expected.models), self._eye.places(chosen["task"])


def _share_of_task(tasks: pd.Series[int]) -> NDArray[np.float64]:
    """Weight of each attempt, so that every task counts once and all of them sum to 1."""
    codes, names = pd.factorize(tasks)
    return 1.0 / (np.bincount(codes)[codes] * max(len(names), 1))
