"""Gate: on later days than it learned from, the candidate predicts better than what is in force.

Both predict the same attempts, and their losses are subtracted attempt by attempt. Losses are proper: logarithmic for
success, and the gamma deviance for mean tokens, r / m + log m, with r the actual and m the expected multiple of the
estimate. A task's attempts count as one observation, because they are alike. The bound is a studentised bootstrap's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.predict import shift_log_odds
from cp_core.learning.candidate import TEXTS, Ground
from cp_core.learning.expectations import Expectations, cells_of
from cp_core.learning.gates.evidence import Evidence, Finding
from cp_core.learning.learned import Learned
from cp_core.learning.offpolicy import studentised_interval
from cp_core.learning.traits_seen import Seen, text_shifts

Doubles = NDArray[np.float64]

_CERTAIN = 1e-3


def forward_holdout(evidence: Evidence) -> Finding:
    """At least one kind of prediction gets better for certain, and none gets worse for certain."""
    gains = dict(_gains(evidence))
    if not gains:
        return Finding(False, "it changes nothing that could be held against outcomes")
    alpha = 2 * (1 - evidence.policy.confidence) / len(gains)
    bounds = {
        name: studentised_interval(gain, alpha, evidence.seed) if len(gain) > 1 else (0.0, 0.0)
        for name, gain in gains.items()
    }
    better = [name for name, (low, _) in bounds.items() if low > 0]
    worse = [name for name, (_, high) in bounds.items() if high < 0]
    told = "; ".join(
        f"{name}: {gains[name].mean() if len(gains[name]) else 0:+.4f} a task, {low:+.4f} to {high:+.4f}, over "
        f"{len(gains[name]):,} tasks"
        for name, (low, high) in bounds.items()
    )
    return Finding(
        bool(better) and not worse,
        f"loss saved on later days, which must be above 0 for certain: {told}",
        {
            name: {"gain": float(gains[name].mean()) if len(gains[name]) else 0.0, "low": low, "high": high}
            for name, (low, high) in bounds.items()
        },
    )


def success_gain(
    rows: pd.DataFrame, ground: Ground, learned: Learned, seen: Seen, instead_of: Learned | None = None
) -> Doubles:
    """Logarithmic loss that `learned` would have saved on each task, (tasks,).

    Args:
        seen: the traits that production would have had of the tasks.
        instead_of: what else would be in force; left out, it is what is.
    """
    before = ground.learned if instead_of is None else instead_of
    now, then = ground.expectations(before), ground.expectations(learned)
    cells = cells_of(rows, now.models)
    known = cells >= 0
    rows, cells = rows[known], cells[known]
    won = rows["has_succeeded"].to_numpy(dtype=bool)
    saved = _log_likelihood(then, cells, won, text_shifts(rows, learned.calibration, seen))
    saved = saved - _log_likelihood(now, cells, won, text_shifts(rows, before.calibration, seen))
    return _by_task(saved, rows["task"])


def token_gain(rows: pd.DataFrame, ground: Ground, learned: Learned, kind: str) -> Doubles:
    """Gamma deviance that `learned` would have saved on each task; `kind` is input or output, (tasks,)."""
    now, then = ground.expectations(), ground.expectations(learned)
    cells = cells_of(rows, now.models)
    actual = rows[f"{kind}_tokens"].to_numpy(dtype=float)
    estimate = rows[f"expected_{kind}_tokens"].to_numpy(dtype=float)
    known = (cells >= 0) & (actual > 0) & (estimate > 0) & ~rows["is_censored"].to_numpy(dtype=bool)
    ratio = actual[known] / estimate[known]
    before, after = (getattr(table, kind).ravel()[cells[known]] for table in (now, then))
    saved = (ratio / before + np.log(before)) - (ratio / after + np.log(after))
    return _by_task(saved, rows.loc[known, "task"])


def _gains(evidence: Evidence) -> Iterator[tuple[str, Doubles]]:
    ground, learned, later = evidence.ground, evidence.candidate.learned, evidence.later
    if evidence.moves("success."):
        rows = later[evidence.whose_text_was_seen(later)] if evidence.looks_at_texts else later
        yield "success", success_gain(rows, ground, learned, evidence.seen)
    if evidence.moves(TEXTS):
        texts = {name: getattr(ground.learned.calibration, name) for name in ("trait_model", "traits")}
        kinds_only = learned.model_copy(update={"calibration": learned.calibration.model_copy(update=texts)})
        yield "what texts say", success_gain(rows, ground, learned, evidence.seen, instead_of=kinds_only)
    if evidence.moves("tokens.") or evidence.moves("scoring.estimate."):
        for kind in ("input", "output"):
            yield f"{kind} tokens", token_gain(later, ground, learned, kind)


def _log_likelihood(
    expected: Expectations, cells: NDArray[np.intp], won: NDArray[np.bool_], shifts: Doubles
) -> Doubles:
    chance = shift_log_odds(np.clip(expected.success.ravel()[cells], _CERTAIN, 1 - _CERTAIN), shifts)
    return np.asarray(np.log(np.where(won, chance, 1 - chance)), dtype=np.float64)


def _by_task(values: Doubles, tasks: pd.Series[int]) -> Doubles:
    codes, names = pd.factorize(tasks)
    return np.bincount(codes, weights=values, minlength=len(names)) / np.maximum(
        np.bincount(codes, minlength=len(names)), 1
    )
