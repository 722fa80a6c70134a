"""Time bonus: points for work that is due soon, or that production or other tasks wait for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import BlockingProduction, TimeBonusRules
from cp_core.scoring.distinct import Distinct
from cp_core.scoring.text import TextReading

NO_BONUS = "none"


@dataclass(frozen=True)
class TimeBonus:
    """Points of each row, and why: `reasons[reason]`."""

    points: NDArray[np.float64]
    reasons: list[str]
    reason: NDArray[np.intp]


def time_bonus_of(
    hours_left: NDArray[np.float64],
    labels: Distinct[frozenset[str]],
    text: TextReading,
    blocks_others: NDArray[np.bool_],
    rules: TimeBonusRules,
) -> TimeBonus:
    """The largest bonus that applies to each row; of equal ones the first in the order below.

    Args:
        hours_left: hours from submission to deadline, NaN without a deadline. A deadline that had passed
        already is
            as urgent as the nearest one.
        labels: label sets of the rows.
        text: what the text says.
        blocks_others: whether another open task depends on this one.
        rules: section `time_bonus` of the configuration.
    """
    reasons = [NO_BONUS, *(f"deadline within {_duration(step.within_hours)}" for step in rules.deadlines)]
    points = [0.0, *(step.points for step in rules.deadlines)]

    def add(reason: str, worth: float) -> int:
        reasons.append(reason)
        points.append(worth)
        return len(points) - 1

    production = add("blocks production", rules.blocking_production.points)
    by_label = {label: add(f"label {label}", worth) for label, worth in rules.labels.items()}
    others = add("blocks other tasks", rules.blocks_other_tasks)

    step = np.searchsorted([step.within_hours for step in rules.deadlines], hours_left)
    blocks_production = text.mentions(rules.blocking_production.phrases) | labels.map(
        lambda own: _labels_block_production(own, rules.blocking_production), np.bool_
    )

    def best_label(own: frozenset[str]) -> int:
        known = sorted(by_label[key] for key in own if key in by_label)
        return max(known, key=points.__getitem__, default=0)

    candidates = np.stack(
        [
            np.where(step < len(rules.deadlines), step + 1, 0),
            np.where(blocks_production, production, 0),
            labels.map(best_label, np.intp),
            np.where(blocks_others, others, 0),
        ]
    )
    worth = np.array(points)
    best = np.argmax(worth[candidates], axis=0)
    reason = np.take_along_axis(candidates, best[np.newaxis], axis=0)[0]
    return TimeBonus(points=worth[reason], reasons=reasons, reason=np.where(worth[reason] > 0, reason, 0))


def _labels_block_production(labels: frozenset[str], rules: BlockingProduction) -> bool:
    return not (labels.isdisjoint(rules.blocking_labels) or labels.isdisjoint(rules.production_labels))


def _duration(hours: float) -> str:
    if hours % 24 == 0 and hours > 24:
        return f"{hours / 24:g} days"
    return f"{hours:g} hours"
