"""Gate: the same pipeline on shuffled outcomes does clearly worse.

Outcomes of the days that were learned from are shuffled among attempts, again and again; each time the pipeline learns,
the change is capped, and what it saves on the later days is measured as for the candidate itself. On a night whose
outcomes say nothing about models, the candidate is like the shuffled ones, and stands out by chance alone: it must lie
above all of them, and by four of their standard deviations, which chance does on one night in 30,000 if they are
normal. What every shuffle finds too, such as a change of the overall level, is no reason to promote.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.learning.corrections import Doubles, correct, sums, weights_of
from cp_core.learning.expectations import cells_of
from cp_core.learning.gates.evidence import Evidence, Finding

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
        [pipeline.saved(generator.permutation(pipeline.won)) for _ in range(evidence.policy.placebos)]
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
        expected = evidence.ground.expectations()
        limit = evidence.policy.max_change
        self._expected = expected.success
        self._least, self._most = self._expected * (1 - limit), np.minimum(self._expected * (1 + limit), 1.0)
        self._cells = cells_of(evidence.earlier, expected.models)
        self._weights = weights_of(evidence.earlier)
        self.won = evidence.earlier["has_succeeded"].to_numpy(dtype=np.float64)
        later = evidence.later
        cells, tasks = cells_of(later, expected.models), _share_of_task(later["task"])
        self._seen, self._seen_won = sums(
            cells, tasks, later["has_succeeded"].to_numpy(dtype=np.float64), self._expected.shape
        )

    def saved(self, won: Doubles) -> float:
        """What the pipeline saves a task on the later days when earlier outcomes are `won`."""
        learned = correct(self._expected, *sums(self._cells, self._weights, won, self._expected.shape))
        capped = np.clip(learned, self._least, self._most)
        return float((self._log_likelihood(capped) - self._log_likelihood(self._expected)).sum())

    def _log_likelihood(self, success: Doubles) -> Doubles:
        chance = np.clip(success, _CERTAIN, 1 - _CERTAIN)
        return np.asarray(
            self._seen_won * np.log(chance) + (self._seen - self._seen_won) * np.log(1 - chance)
        )


def _share_of_task(tasks: pd.Series[int]) -> NDArray[np.float64]:
    """Weight of each attempt, so that every task counts once and all of them sum to 1."""
    codes, names = pd.factorize(tasks)
    return 1.0 / (np.bincount(codes)[codes] * max(len(names), 1))
