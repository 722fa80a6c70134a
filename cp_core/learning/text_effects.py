"""How texts move success: for each model, what each trait of a task's text adds to the log-odds of its kind.

Traits are differences from what is usual for the kind (`trait_model`), so that they come on top of the table by model,
domain and complexity without changing what it means. Effects are a sum of what is common to all models and of each
model's own, each shrunk as much as outcomes call for: the variance of a block of effects is the one at which the
score's square would be expected (a moment estimate, as in the global test of Goeman et al., JRSS B 68, 2006). How much
of either holds is then found on tasks that the fit had not seen (Platt scaling, cross-fitted).

It is a few matrix products, so that it can be repeated on shuffled outcomes hundreds of times a night.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

Doubles = NDArray[np.float64]
Codes = NDArray[np.intp]

_FOLDS = 5
_STEPS = 4
_LEAST_VARIANCE = 1e-9
_OF_WHICH_ONE_MAY = 200  # tasks of which one may move further than the cap
_CERTAIN = 1e-3


@dataclass(frozen=True)
class TextRows:
    """Attempts at n tasks, or more than one at each.

    Attributes:
        traits: (n, k).
        of: place of each attempt's model, (n,).
        offset: log-odds of its kind with that model, (n,).
        weight: how much it counts, (n,).
        models: how many there are.
    """

    traits: Doubles
    of: Codes
    offset: Doubles
    weight: Doubles
    models: int

    def where(self, chosen: NDArray[np.bool_]) -> TextRows:
        """Some of them."""
        return TextRows(
            self.traits[chosen], self.of[chosen], self.offset[chosen], self.weight[chosen], self.models
        )


class TextFit:
    """Learns effects from the same attempts, whatever came of them. What does not depend on that is worked out once."""

    def __init__(self, rows: TextRows) -> None:
        self._order = np.argsort(
            rows.of, kind="stable"
        )  # so that a model's attempts are a slice, and no copy
        self._traits, self._weight = rows.traits[self._order], rows.weight[self._order]
        self._offset = rows.offset[self._order]
        ends = np.cumsum(np.bincount(rows.of, minlength=rows.models)).tolist()
        self._members = [slice(first, last) for first, last in zip([0, *ends[:-1]], ends, strict=True)]
        chance = expit(self._offset)
        curved = self._traits * (self._weight * chance * (1 - chance))[:, None]
        self._curves = np.array([curved[own].T @ self._traits[own] for own in self._members])

    def effects(self, won: Doubles, offset: Doubles | None = None) -> tuple[Doubles, Doubles]:
        """Effects common to all models, (k,), and each model's own on top, (models, k).

        Args:
            won: what came of each attempt, 0 to 1.
            offset: log-odds without texts, where they are not those of the rows.
        """
        won = won[self._order]
        base = self._offset if offset is None else offset[self._order]
        (common,) = self._level(won, base, [slice(None)], self._curves.sum(axis=0)[None])
        own = self._level(won, base + self._traits @ common, self._members, self._curves)
        return common, own

    def _level(self, won: Doubles, base: Doubles, groups: Sequence[slice], curves: Doubles) -> Doubles:
        """Shrunk effects of each group of attempts, (groups, k), by steps of Newton with the curve they began with."""
        k = self._traits.shape[1]
        scores = np.array([self._score(own, won, base[own]) for own in groups])
        variance = _variance(scores, curves)
        effects = np.zeros((len(groups), k))
        if variance < _LEAST_VARIANCE:
            return effects
        precision = 1 / variance
        for place, (own, curve) in enumerate(zip(groups, curves, strict=True)):
            step = np.linalg.inv(curve + precision * np.eye(k))
            effects[place] = step @ scores[place]
            for _ in range(_STEPS - 1):
                score = self._score(own, won, base[own] + self._traits[own] @ effects[place])
                effects[place] += step @ (score - precision * effects[place])
        return effects

    def _score(self, own: slice, won: Doubles, log_odds: Doubles) -> Doubles:
        residual = self._weight[own] * (won[own] - expit(log_odds))
        return np.asarray(residual @ self._traits[own], dtype=np.float64)


def fit_effects_of_texts(rows: TextRows, won: Doubles, tasks: NDArray[np.int64], *, seed: int) -> Doubles:
    """What each trait adds to the log-odds of success with each model, (models, k).

    Args:
        won: what came of each attempt, 0 to 1.
        tasks: the task of each attempt: attempts at one task are held out together.
        seed: of the folds.
    """
    common, own = TextFit(rows).effects(won)
    slopes = _slopes(rows, won, tasks, seed)
    return np.asarray(slopes[0] * common + slopes[1] * own)


def shifts(effects: Doubles, rows: TextRows) -> Doubles:
    """What the texts of attempts add to their log-odds, (n,)."""
    return np.asarray(np.einsum("nk,nk->n", rows.traits, effects[rows.of]), dtype=np.float64)


def largest_step(chance: Doubles, now: Doubles, then: Doubles, limit: float) -> float:
    """Which part of the way from shifts `now` to shifts `then` moves no success by more than a share `limit` of itself.

    Of 200 tasks one may move further: the most extreme texts of all would hold up what holds for the rest.

    Args:
        chance: success without texts, (n,); shifts are log-odds, (n,).
        limit: as for `limits.cap`.

    Returns:
        0 to 1.
    """
    start = logit(np.clip(chance, _CERTAIN, 1 - _CERTAIN)) + now
    today = expit(start)
    least, most = logit(today * (1 - limit)), logit(np.minimum(today * (1 + limit), 1 - 1e-12))
    way = then - now
    room = np.where(way > 0, most - start, start - least)
    steps = np.divide(room, np.abs(way), out=np.full_like(room, np.inf), where=way != 0)
    if not len(steps):
        return 1.0
    beyond = len(steps) // _OF_WHICH_ONE_MAY
    return float(min(np.partition(steps, beyond)[beyond], 1.0))


def _slopes(rows: TextRows, won: Doubles, tasks: NDArray[np.int64], seed: int) -> Doubles:
    """How much of the common and of the own effects holds on tasks that were not seen: 0 to 1 each."""
    names, codes = np.unique(tasks, return_inverse=True)
    folds = (np.random.default_rng(seed).permutation(len(names)) % _FOLDS)[codes]
    parts = np.zeros((len(won), 2))
    for fold in range(_FOLDS):
        held = folds == fold
        if held.all() or not held.any():
            continue
        common, own = TextFit(rows.where(~held)).effects(won[~held])
        parts[held, 0] = rows.traits[held] @ common
        parts[held, 1] = shifts(own, rows.where(held))
    slopes = np.ones(2)
    for _ in range(6):
        chance = expit(rows.offset + parts @ slopes)
        gain = parts.T @ (rows.weight * (won - chance))
        curve = (parts * (rows.weight * chance * (1 - chance))[:, None]).T @ parts
        slopes = np.clip(slopes + np.linalg.solve(curve + 1e-6 * np.eye(2), gain), 0.0, 1.0)
    return slopes


def _variance(scores: Doubles, curves: Doubles) -> float:
    """Variance between effects: by how much the scores exceed what chance makes of them."""
    surplus = float((scores**2).sum()) - float(np.trace(curves, axis1=1, axis2=2).sum())
    return max(surplus / max(float((curves**2).sum()), 1e-12), 0.0)
