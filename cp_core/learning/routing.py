"""Measures of a router: how much accuracy it buys with what it spends. Curves and areas, nothing of how it decides.

A curve is a set of points (cost, accuracy), one a setting of the router, for instance one a budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]

_BINS = 10
_JITTER = 1e-9


def non_decreasing_hull(costs: ArrayLike, accuracies: ArrayLike) -> tuple[Doubles, Doubles]:
    """The best that can be had at each cost by mixing the points: concave, and never falling.

    It starts at the cheapest point and ends at the dearest one; where no dearer point is better it goes on level
    (Hu et al., RouterBench, 2024).

    Args:
        costs, accuracies: the points, (n,), n >= 1, in any order.

    Returns:
        Costs, rising, and accuracies of the hull's corners.

    Raises:
        ValueError: there is no point, or one is not finite.
    """
    cost, accuracy = _points(costs, accuracies)
    order = np.lexsort((-accuracy, cost))
    corners: list[tuple[float, float]] = []
    for point in zip(cost[order].tolist(), np.maximum.accumulate(accuracy[order]).tolist(), strict=True):
        if corners and corners[-1][0] == point[0]:
            continue  # as cheap, and no better
        while len(corners) > 1 and _is_below(corners[-1], corners[-2], point):
            corners.pop()
        corners.append(point)
    found = np.array(corners)
    return found[:, 0], found[:, 1]


def area_under_hull(
    costs: ArrayLike, accuracies: ArrayLike, *, between: tuple[float, float] | None = None
) -> float:
    """AIQ: the mean height of the non-decreasing hull, by trapezoids over cost (RouterBench, section 3).

    Args:
        between: the costs from which and to which; by default those of the cheapest and the dearest point. Give the
            same to compare curves of different extent: behind its dearest point a curve goes on level, before its
            cheapest one it has nothing to offer, which counts as 0.

    Raises:
        ValueError: there is no point, one is not finite, or `between` does not rise.
    """
    cost, accuracy = non_decreasing_hull(costs, accuracies)
    low, high = (float(cost[0]), float(cost[-1])) if between is None else between
    if high < low:
        raise ValueError(f"the costs from {low:g} to {high:g} do not rise")
    if high == low:
        return float(np.interp(low, cost, accuracy)) if low >= cost[0] else 0.0
    start = min(max(low, float(cost[0])), high)
    inner = cost[(cost > start) & (cost < high)]
    grid = np.concatenate([[start], inner, [high]])
    return float(np.trapezoid(np.interp(grid, cost, accuracy), grid) / (high - low))


def cost_at(costs: ArrayLike, accuracies: ArrayLike, accuracy: float) -> float | None:
    """The least cost at which the non-decreasing hull reaches `accuracy`; None where it never does."""
    cost, reached = non_decreasing_hull(costs, accuracies)
    if accuracy > reached[-1]:
        return None
    above = int(np.argmax(reached >= accuracy))
    if above == 0:
        return float(cost[0])
    share = (accuracy - reached[above - 1]) / (reached[above] - reached[above - 1])
    return float(cost[above - 1] + share * (cost[above] - cost[above - 1]))


@dataclass(frozen=True)
class PairMetrics:
    """RouteLLM's measures of a router between a strong and a weak model.

    Attributes:
        apgr: average performance gap recovered: 0 as good as the weak model, 1 as the strong one, chance about 0.5.
        cpt_50, cpt_80: per cent of calls to the strong model that recover 50 and 80 % of the gap.
        strong_percent, accuracy: the curve, rising in strong_percent, (11,).
    """

    apgr: float
    cpt_50: float
    cpt_80: float
    strong_percent: tuple[float, ...]
    accuracy: tuple[float, ...]


def pair_metrics(strong_win_rate: ArrayLike, strong: ArrayLike, weak: ArrayLike, *, seed: int) -> PairMetrics:
    """APGR and CPT as RouteLLM's evaluation computes them (Ong et al., 2024; its evals/evaluate.py).

    Thresholds are the borders of ten equally filled bins of the win rate. A task goes to the strong model from a
    threshold on, and only above the last one. Accuracy is over all tasks; areas over the strong share are trapezoids.

    Args:
        strong_win_rate: how likely the strong model is the better one, (n,); only the order matters.
        strong, weak: success of the two models, 0 to 1, (n,).
        seed: of a jitter of 1e-9 that makes the bins' borders unique.

    Raises:
        ValueError: the lengths differ, or both models are equally good, so that there is no gap to recover.
    """
    rate, best, least = (np.asarray(values, dtype=np.float64) for values in (strong_win_rate, strong, weak))
    if not len(rate) == len(best) == len(least) or len(rate) == 0:
        raise ValueError(
            f"equally many values of each are needed, not {len(rate)}, {len(best)}, {len(least)}"
        )
    strong_accuracy, weak_accuracy = float(best.mean()), float(least.mean())
    if strong_accuracy == weak_accuracy:
        raise ValueError(f"both models succeed at {strong_accuracy:.3f}: there is no gap to recover")
    rate = rate + _JITTER * np.random.default_rng(seed).random(len(rate))
    _, thresholds = pd.qcut(rate, _BINS, retbins=True)
    chosen = [rate >= threshold for threshold in thresholds[:-1]] + [rate > thresholds[-1]]
    percent = np.array([100 * selection.mean() for selection in chosen])
    accuracy = np.array([np.where(selection, best, least).mean() for selection in chosen])
    order = np.argsort(percent, kind="stable")
    percent, accuracy = percent[order], accuracy[order]

    def area(heights: Doubles) -> float:
        return float(np.trapezoid(heights, percent / 100))

    weak_area = area(np.full(len(percent), weak_accuracy))
    strong_area = area(np.full(len(percent), strong_accuracy))
    gap = strong_accuracy - weak_accuracy
    cpt_50, cpt_80 = (
        float(np.interp(weak_accuracy + share * gap, accuracy, percent)) for share in (0.5, 0.8)
    )
    return PairMetrics(
        apgr=(area(accuracy) - weak_area) / (strong_area - weak_area),
        cpt_50=cpt_50,
        cpt_80=cpt_80,
        strong_percent=tuple(percent.tolist()),
        accuracy=tuple(accuracy.tolist()),
    )


def _points(costs: ArrayLike, accuracies: ArrayLike) -> tuple[Doubles, Doubles]:
    cost, accuracy = np.asarray(costs, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if len(cost) == 0 or cost.shape != accuracy.shape or not np.isfinite([cost, accuracy]).all():
        raise ValueError(f"finite points are needed, not costs {cost} with accuracies {accuracy}")
    return cost, accuracy


def _is_below(point: tuple[float, float], before: tuple[float, float], behind: tuple[float, float]) -> bool:
    """Whether a point lies on or below the line between its neighbours."""
    rise = (behind[1] - before[1]) * (point[0] - before[0])
    return (point[1] - before[1]) * (behind[0] - before[0]) <= rise
