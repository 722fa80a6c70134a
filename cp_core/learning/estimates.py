"""What to expect of each model by domain and complexity: windowed, decayed and shrunk estimates with intervals.

A cell (model, domain, complexity) is drawn toward its model and domain, that toward its model, and the model toward all
models; so is a model's complexity over all domains. `performance` holds the plain measures of a day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.learning.ability import tells_of_model
from cp_core.learning.decay import HALF_LIFE_DAYS, age_weights, is_of_newest_version
from cp_core.learning.performance import ALL, KEYS
from cp_core.learning.shrinkage import Means, Rates, shrink_means, shrink_rates, variance_within

Doubles = NDArray[np.float64]
Codes = NDArray[np.intp]

MEASURES = (
    "success",
    "cut_off",
    "quality",
    "input_ratio",
    "output_ratio",
    "cost_usd",
    "value_per_usd",
    "latency_p50_ms",
    "latency_p95_ms",
)
"""Each has a column of its name, and columns `_low` and `_high` with the ends of its 80 % interval."""

_LEVELS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("model",), -1),
    (("model", "domain"), 0),
    (("model", "complexity"), 0),
    (("model", "domain", "complexity"), 1),
)
"""Keys of each level of groups, and the level that its groups belong to."""


@dataclass(frozen=True)
class _Level:
    keys: pd.DataFrame
    of: Codes
    parent: Codes | None

    @property
    def size(self) -> int:
        return len(self.keys)


def estimate_performance(observations: pd.DataFrame, half_life: float = HALF_LIFE_DAYS) -> pd.DataFrame:
    """Estimate every measure of every group.

    Args:
        observations: rows as `Observations.window` gives them; those of a model's older versions are not counted.
        half_life: days after which an outcome counts half.

    Returns:
        One row a (model, domain, complexity) that occurs, and one for each of its margins, where `ALL` stands for the
        rest: `KEYS`, effective_n (attempts that say something of the model, each weighed by its age),
        success_strength (outcomes that the success estimate is worth, its prior's included), and `MEASURES` with the
        ends of their intervals. success is the chance that an attempt is good enough, cut_off that it is cut off, both
        without what is not the model's doing; quality 0..10; the ratios are typical (geometric mean) actual over
        expected tokens of attempts that were not cut off; cost_usd is the mean of an attempt; value_per_usd the
        score that successes bring over what all attempts cost; latencies are quantiles, in which a cut-off attempt
        counts with the time that it had. Missing where no attempt of any model tells.
    """
    if observations.empty:
        return pd.DataFrame(columns=[*KEYS, "effective_n", "success_strength", *_columns()])
    seen = observations[is_of_newest_version(observations)]
    weight = age_weights(seen["age_days"], half_life)
    tells = weight * tells_of_model(seen["reason"])
    levels = _levels(seen)
    won = seen["has_succeeded"].to_numpy(np.float64)
    cut_off = seen["is_censored"].to_numpy(np.float64)
    quality = seen["quality"].to_numpy(np.float64)
    latency = seen["latency_ms"].to_numpy(np.float64)
    ended = weight * (1 - cut_off)
    cost = _Sums.of(levels, seen["cost_usd"].to_numpy(np.float64), weight)
    value = _Sums.of(levels, seen["score"].to_numpy(np.float64) * won, weight)
    time = _Sums.of(levels, *_logarithms(latency, tells))
    typical = time.shrunk()

    found: dict[str, list[Doubles]] = {}
    _put(found, "success", rates := _rates(levels, won, tells))
    found["success_strength"] = [strength for *_, strength in rates]
    _put(found, "cut_off", _rates(levels, cut_off, tells))
    _put(found, "quality", _ends(_Sums.of(levels, quality, tells * ~np.isnan(quality)).shrunk()))
    for kind in ("input", "output"):
        used = seen[f"{kind}_tokens"].to_numpy(np.float64)
        expected = seen[f"expected_{kind}_tokens"].to_numpy(np.float64)
        ratio = np.divide(used, expected, out=np.zeros_like(used), where=expected > 0)
        _put(found, f"{kind}_ratio", _ends(_Sums.of(levels, *_logarithms(ratio, ended)).shrunk(), np.exp))
    _put(found, "cost_usd", _ends(cost.shrunk(), _positive))
    _put(found, "value_per_usd", _quotients(value.shrunk(), cost.shrunk()))
    for name, share in (("latency_p50_ms", 0.5), ("latency_p95_ms", 0.95)):
        beyond = _quantile_of_residuals(levels, latency, tells, share)
        moved = [
            Means(one.mean + beyond[_model_of(levels, place)], one.deviation)
            for place, one in enumerate(typical)
        ]
        _put(found, name, _ends(moved, np.exp))
    parts = [
        level.keys.assign(
            effective_n=np.bincount(level.of, tells, level.size),
            **{name: columns[place] for name, columns in found.items()},
        )
        for place, level in enumerate(levels)
    ]
    frame = pd.concat(parts, ignore_index=True)
    return frame.sort_values(KEYS, ignore_index=True)[[*KEYS, "effective_n", "success_strength", *_columns()]]


def _columns() -> list[str]:
    return [name for measure in MEASURES for name in (measure, f"{measure}_low", f"{measure}_high")]


def _levels(seen: pd.DataFrame) -> list[_Level]:
    """The groups of each level, and which of them each row is in."""
    codes, names = {}, {}
    for key in KEYS:
        codes[key], names[key] = pd.factorize(seen[key].astype("str"), sort=True)
    levels: list[_Level] = []
    for keys, above in _LEVELS:
        joined = np.zeros(len(seen), dtype=np.int64)
        for key in keys:
            joined = joined * len(names[key]) + codes[key]
        _, first, of = np.unique(joined, return_index=True, return_inverse=True)
        level = pd.DataFrame({key: names[key][codes[key][first]] if key in keys else ALL for key in KEYS})
        levels.append(_Level(level, of.astype(np.intp), levels[above].of[first] if above >= 0 else None))
    return levels


def _model_of(levels: Sequence[_Level], place: int) -> Codes:
    """Place of each group's model in the first level."""
    models = pd.Index(levels[0].keys["model"])
    return np.asarray(models.get_indexer(pd.Index(levels[place].keys["model"])), dtype=np.intp)


def _rates(levels: Sequence[_Level], outcomes: Doubles, weight: Doubles) -> list[tuple[Doubles, ...]]:
    """Value, ends and strength of each group's rate, by level."""
    shrunk: list[Rates] = []
    for place, level in enumerate(levels):
        won, tried = (np.bincount(level.of, one, level.size) for one in (weight * outcomes, weight))
        if level.parent is None:
            all_tried = tried.sum() + 2
            whole = (won.sum() + 1) / all_tried
            rates = shrink_rates(won, tried, np.full(level.size, whole), whole * (1 - whole) / all_tried)
        else:
            above = shrunk[_LEVELS[place][1]]
            rates = shrink_rates(won, tried, above.mean[level.parent], above.variance[level.parent])
        shrunk.append(rates)
    return [(rates.mean, *rates.interval, rates.strength) for rates in shrunk]


@dataclass(frozen=True)
class _Sums:
    """Counts, sums and sums of squares of a measure in every group, by level."""

    levels: Sequence[_Level]
    counts: list[Doubles]
    sums: list[Doubles]
    squares: list[Doubles]

    @classmethod
    def of(cls, levels: Sequence[_Level], measured: Doubles, weight: Doubles) -> _Sums:
        """Rows of weight 0 may hold anything."""
        clean = np.where(weight > 0, measured, 0.0)
        return cls(
            levels, *(_totals(levels, weight * power) for power in (np.ones_like(clean), clean, clean**2))
        )

    def shrunk(self) -> list[Means]:
        """Means of the groups, by level; missing where nothing was measured at all."""
        total = self.counts[0].sum()
        if total <= 0:
            return [Means(np.full(level.size, np.nan), np.full(level.size, np.nan)) for level in self.levels]
        variance = variance_within(self.squares[-1], self.sums[-1], self.counts[-1])
        found: list[Means] = []
        for place, level in enumerate(self.levels):
            count = self.counts[place]
            plain = np.divide(self.sums[place], count, out=np.zeros_like(count), where=count > 0)
            if level.parent is None:
                whole = np.full(level.size, self.sums[0].sum() / total)
                found.append(shrink_means(plain, count, variance, whole, variance / total))
            else:
                above = found[_LEVELS[place][1]]
                doubts = above.deviation[level.parent] ** 2
                found.append(shrink_means(plain, count, variance, above.mean[level.parent], doubts))
        return found


def _totals(levels: Sequence[_Level], measured: Doubles) -> list[Doubles]:
    return [np.bincount(level.of, measured, level.size).astype(np.float64) for level in levels]


def _logarithms(measured: Doubles, weight: Doubles) -> tuple[Doubles, Doubles]:
    """Logarithms of what is positive, and the weights of those rows."""
    some = measured > 0
    return np.log(np.where(some, measured, 1.0)), np.where(some, weight, 0.0)


def _ends(
    levels: Sequence[Means], shown_as: Callable[[Doubles], Doubles] = lambda one: one
) -> list[tuple[Doubles, ...]]:
    return [tuple(shown_as(one) for one in (means.mean, *means.interval)) for means in levels]


def _positive(measured: Doubles) -> Doubles:
    return np.maximum(measured, 0.0)


def _quotients(values: Sequence[Means], costs: Sequence[Means]) -> list[tuple[Doubles, ...]]:
    """Mean value over mean cost; the interval follows from their relative deviations (delta method)."""
    found: list[tuple[Doubles, ...]] = []
    for value, cost in zip(values, costs, strict=True):
        paid = np.where(cost.mean > 0, cost.mean, np.nan)
        gained = np.maximum(value.mean, 0.0)
        quotient = gained / paid
        deviation = np.hypot(value.deviation / paid, quotient * cost.deviation / paid)
        low, high = Means(quotient, deviation).interval
        found.append((quotient, np.maximum(low, 0.0), high))
    return found


def _quantile_of_residuals(
    levels: Sequence[_Level], latency: Doubles, weight: Doubles, share: float
) -> Doubles:
    """For each model: how far, in logarithms, the quantile of its attempts lies above the mean of their cell."""
    logs, counted = _logarithms(latency, weight)
    cells = levels[-1]
    count = np.bincount(cells.of, counted, cells.size)
    means = np.divide(
        np.bincount(cells.of, counted * logs, cells.size), count, out=np.zeros_like(count), where=count > 0
    )
    order = np.lexsort((apart := logs - means[cells.of], levels[0].of))
    order = order[counted[order] > 0]
    of, apart, counted = levels[0].of[order], apart[order], counted[order]
    found = np.zeros(levels[0].size)
    bounds = np.searchsorted(of, np.arange(levels[0].size + 1))
    for model, (first, last) in enumerate(pairwise(bounds)):
        if last > first:
            below = np.cumsum(counted[first:last]) - counted[first:last] / 2
            found[model] = np.interp(share * counted[first:last].sum(), below, apart[first:last])
    return found


def _put(found: dict[str, list[Doubles]], measure: str, by_level: Sequence[tuple[Doubles, ...]]) -> None:
    for place, name in enumerate((measure, f"{measure}_low", f"{measure}_high")):
        found[name] = [columns[place] for columns in by_level]
