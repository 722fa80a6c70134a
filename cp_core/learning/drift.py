"""Is today like the days before: distributions that drift, tokens that spike, success that changes.

Each measure comes with the bound that chance alone seldom passes, so that an alarm means something however many tasks
a day has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Doubles = NDArray[np.float64]

NOTABLE_PSI = 0.2
"""Below this a population counts as unchanged or as moved a little (Siddiqi, Credit Risk Scorecards, 2006)."""

NOTABLE_KS = 0.1
"""Largest gap between two cumulative distributions that nobody needs to look at."""

CHANCE = 0.001
"""How often chance alone may raise an alarm about one feature on one day."""

SPIKE = 5.0
"""Robust z from which a number of tokens is a spike; 3.5 marks an outlier (Iglewicz and Hoaglin, 1993)."""

ODDS_RATIO = 0.6
"""Fall of the odds of success that a change point is looked for at: such as from 80 % to 71 %."""

_MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Drift:
    """How far a distribution has moved, and whether by more than chance and enough to look at."""

    statistic: float
    bound: float

    @property
    def is_notable(self) -> bool:
        """Whether the statistic is beyond its bound."""
        return self.statistic > self.bound


def population_stability(before: ArrayLike, now: ArrayLike) -> Drift:
    """The population stability index of k classes: sum of (q - p) ln(q / p).

    Args:
        before, now: how many there were of each class, (k,). Half a count is added to each, so that an empty class
            does not make the index infinite.

    Where nothing has moved the index is about (1/n + 1/m) times a chi-squared number with k - 1 degrees of freedom
    (Yurdakul and Naranjo, J. Risk Model Validation 14, 2020, 4); the bound is its quantile at `CHANCE`, and at least
    `NOTABLE_PSI`.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(now, dtype=np.float64)
    if not old.sum() or not new.sum() or old.size < 2:
        return Drift(0.0, NOTABLE_PSI)
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (old, new))
    scale = 1 / old.sum() + 1 / new.sum()
    chance = scale * float(stats.chi2.isf(CHANCE, old.size - 1))
    return Drift(float((q - p) @ np.log(q / p)), max(NOTABLE_PSI, chance))


def kolmogorov_smirnov(before: ArrayLike, now: ArrayLike) -> Drift:
    """The largest gap between two cumulative distributions over the same k values in order.

    Args:
        before, now: how often each value occurred, (k,).

    The bound is sqrt(-ln(c / 2) / 2 (1/n + 1/m)) at c = `CHANCE` (Smirnov, Ann. Math. Stat. 19, 1948, 279), which
    ties make stricter, and at least `NOTABLE_KS`.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(now, dtype=np.float64)
    if not old.sum() or not new.sum():
        return Drift(0.0, NOTABLE_KS)
    gap = np.abs(np.cumsum(old) / old.sum() - np.cumsum(new) / new.sum()).max()
    chance = math.sqrt(-math.log(CHANCE / 2) / 2 * (1 / old.sum() + 1 / new.sum()))
    return Drift(float(gap), max(NOTABLE_KS, chance))


def token_spikes(attempts: pd.DataFrame, is_today: NDArray[np.bool_], *, fewest: int = 30) -> pd.DataFrame:
    """Attempts of today that took far more tokens than their model did in their domain on the days before.

    Args:
        attempts: with model, domain and tokens (those without any are passed over).
        is_today: (n,).
        fewest: attempts before today from which a model and domain can be judged.

    Returns:
        The rows of today whose robust z = (ln tokens - median) / (1.4826 MAD) is above `SPIKE`, the largest first,
        with columns z and usual (the median of tokens).
    """
    judged = attempts.assign(today=is_today)[attempts["tokens"].to_numpy() > 0]
    keys = ["model", "domain"]
    logs = np.log(judged["tokens"].astype(float))
    before = judged.assign(log=logs)[~judged["today"]]
    centre = before.groupby(keys, observed=True)["log"].agg(["median", "size"])
    aside = (before["log"] - before.join(centre, on=keys)["median"]).abs()
    mad = aside.groupby([before[key] for key in keys], observed=True).median()
    usual = centre.assign(scale=_MAD_TO_SIGMA * mad)
    usual = usual[(usual["size"] >= fewest) & (usual["scale"] > 0)]
    today = judged.assign(log=logs)[judged["today"]].join(usual, on=keys, how="inner")
    scored = today.assign(z=(today["log"] - today["median"]) / today["scale"], usual=np.exp(today["median"]))
    found = scored[scored["z"] > SPIKE].sort_values("z", ascending=False)
    return found.drop(columns=["today", "log", "median", "size", "scale"])


@dataclass(frozen=True)
class Change:
    """A change point of a series of days.

    Attributes:
        began: place of the day from which success is likeliest to have been different.
        statistic: log-likelihood ratio against no change.
        before, since: success rates on both sides of it.
    """

    began: int
    statistic: float
    before: float
    since: float


def success_fell(
    succeeded: Sequence[int], attempts: Sequence[int], *, series: int = 1, chance: float = 0.01
) -> Change | None:
    """Whether success has fallen for good by the last of d days: Page's CUSUM (Biometrika 41, 1954, 100).

    The first half of the days says what is usual; of its rate two standard errors are taken off, for it is itself
    an estimate. Every later day adds its log-likelihood ratio of odds `ODDS_RATIO` times as large. The exponential of
    the CUSUM is at most the Shiryaev-Roberts sum of likelihood ratios over all days on which a change may begin,
    whose mean without a change is their number (Pollak, Ann. Stat. 13, 1985, 206): so it passes
    `series * days / chance` by chance with a probability of at most `chance` for all series together.

    Args:
        succeeded, attempts: of each day, (d,).
        series: how many models are watched together.
        chance: of a false alarm in any of them over the days.
    """
    won, made = np.asarray(succeeded, dtype=np.float64), np.asarray(attempts, dtype=np.float64)
    half = won.size // 2
    usual_won, usual_made = won[:half].sum(), made[:half].sum()
    watched = won.size - half
    if not usual_made or not made[half:].sum():
        return None
    rate = (usual_won + 0.5) / (usual_made + 1)
    rate = max(rate - 2 * math.sqrt(rate * (1 - rate) / usual_made), 1e-3)
    odds = ODDS_RATIO * rate / (1 - rate)
    fallen = odds / (1 + odds)
    days = won[half:] * math.log(fallen / rate) + (made - won)[half:] * math.log((1 - fallen) / (1 - rate))
    # The CUSUM at the last day is the largest sum of a run of days that ends with it.
    runs = np.cumsum(days[::-1])
    longest = int(np.argmax(runs))
    if runs[longest] <= math.log(series * watched / chance):
        return None
    began = won.size - 1 - longest
    return Change(
        began=began,
        statistic=float(runs[longest]),
        before=float(won[:began].sum() / max(made[:began].sum(), 1)),
        since=float(won[began:].sum() / max(made[began:].sum(), 1)),
    )
