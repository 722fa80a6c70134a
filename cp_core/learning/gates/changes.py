"""Gates on what a candidate changes: something, and nothing by more than a night may change it."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
import pandas as pd

from cp_core.assignment.predict import shift_log_odds
from cp_core.learning.expectations import cells_of
from cp_core.learning.gates.evidence import Evidence, Finding
from cp_core.learning.learned import number_of
from cp_core.learning.traits_seen import text_shifts
from cp_core.scoring.config import Domain

_ROUNDING = 1e-3
_STANDARD_ERRORS = 3.0
_EXTREME = 0.01  # share of texts that may move further: twice what a step allows of those it is measured on


def something_changed(evidence: Evidence) -> Finding:
    """A candidate that is what is in force needs no promotion."""
    changed = len(evidence.candidate.changes)
    return Finding(changed > 0, f"{changed} numbers move" if changed else "nothing moves")


def change_caps(evidence: Evidence) -> Finding:
    """Measured on what would be decided by, however the candidate was made."""
    moves = dict(_moves(evidence))
    key, most = max(moves.items(), key=lambda move: move[1], default=("nothing", 0.0))
    limit = evidence.policy.max_change
    return Finding(
        most <= limit * (1 + _ROUNDING),
        f"{key} moves most, by {most:.1%}; a night may move a number by {limit:.0%}",
        {"key": key, "share": most, "limit": limit},
    )


def _moves_of_texts(evidence: Evidence) -> Iterator[tuple[str, float]]:
    """By which share texts alone move the predicted success of later attempts, by model; all but the most extreme."""
    if not evidence.looks_at_texts:
        return
    now = evidence.ground.expectations()
    rows = evidence.later[evidence.whose_text_was_seen(evidence.later)]
    cells = cells_of(rows, now.models)
    rows, cells = rows[cells >= 0], cells[cells >= 0]
    chance = np.clip(now.success.ravel()[cells], 1e-3, 1 - 1e-3)
    before, after = (
        shift_log_odds(chance, text_shifts(rows, calibration, evidence.seen))
        for calibration in (evidence.in_force, evidence.calibration)
    )
    share = pd.Series(np.abs(after / before - 1), index=rows.index)
    for model, of_model in share.groupby(rows["model"].astype("str")):
        yield f"success of texts with {model}", float(of_model.quantile(1 - _may_be_beyond(len(of_model))))


def _may_be_beyond(tasks: int) -> float:
    """Share of so many tasks that may lie beyond the cap: what is allowed, and what chance adds."""
    return min(_EXTREME + _STANDARD_ERRORS * sqrt(_EXTREME * (1 - _EXTREME) / tasks), 0.5)


def _moves(evidence: Evidence) -> Iterator[tuple[str, float]]:
    """By which share each number moves, by key."""
    ground, learned = evidence.ground, evidence.candidate.learned
    now, then = ground.expectations(), ground.expectations(learned)
    for position, model in enumerate(now.models):
        for kind in ("success", "input", "output"):
            before, after = (getattr(table, kind)[position] for table in (now, then))
            yield f"{kind}.{model}", float(np.max(np.abs(after - before) / np.maximum(before, 1e-9)))
        for domain in Domain:
            for kind in ("input", "output"):
                old = getattr(ground.tokens_of(model, domain), kind)
                new = getattr(ground.tokens_of(model, domain, learned), kind)
                for which in ("mean", "median"):
                    share = abs(getattr(new, which) / getattr(old, which) - 1)
                    yield f"tokens.{model}.{domain}.{kind}.{which}", share
    yield from _moves_of_texts(evidence)
    for key in learned.scoring.keys() | ground.learned.scoring.keys():
        file = number_of(ground.scoring, key)
        old, new = (each.scoring.get(key, file) for each in (ground.learned, learned))
        yield f"scoring.{key}", abs(new / old - 1)
