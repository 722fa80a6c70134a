"""What another policy would have earned, told from decisions that were made under this one.

Rewards are weighted by how much likelier the other policy is to have decided the same (inverse propensity). The doubly
robust form adds a model of the outcome and weights only what the model got wrong: it is right on average if either the
propensities or the model are. Where few decisions speak for the other policy, nothing is said.

References: Horvitz and Thompson (1952) for IPS; Swaminathan and Joachims (2015) for SNIPS; Dudik, Langford and Li
(2011) for the doubly robust form; Kish (1965) for the effective sample size; Hall (1992) for the studentised bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]

LEAST_ESS = 100.0
"""Effective decisions below which no estimate is given."""

_REPLICATES = 1_000
_MOST_GROUPS = 5_000  # values beyond these are averaged in random groups before they are drawn from
_DRAWN_AT_ONCE = 100  # replicates whose draws are in memory together


@dataclass(frozen=True)
class Estimate:
    """The mean reward of a policy that did not decide.

    Attributes:
        value, low, high: the estimate and the ends of its interval; None where it is refused.
        n: decisions that were looked at.
        ess: effective sample size of their weights, (sum w)^2 / sum w^2.
        largest_weight: of a single decision.
        refused: why nothing is said, for a person; None where something is.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    ess: float
    largest_weight: float
    refused: str | None = None


def importance_weighted(
    rewards: ArrayLike,
    propensities: ArrayLike,
    target_probabilities: ArrayLike,
    *,
    alpha: float = 0.05,
    seed: int = 0,
) -> Estimate:
    """Inverse propensity scoring: mean of w r with w = target / propensity.

    Args:
        rewards: of what was decided, (n,).
        propensities: probability with which it was decided, (n,), above 0.
        target_probabilities: probability with which the other policy would have decided the same, (n,).
        alpha: one less the interval's confidence.
        seed: of the bootstrap.

    Raises:
        ValueError: arrays of unequal length, or probabilities that are none.
    """
    reward, weight = _checked(rewards, propensities, target_probabilities)
    return _estimate(weight * reward, weight, alpha, seed)


def self_normalised(
    rewards: ArrayLike,
    propensities: ArrayLike,
    target_probabilities: ArrayLike,
    *,
    alpha: float = 0.05,
    seed: int = 0,
) -> Estimate:
    """SNIPS: sum of w r over sum of w; a little biased, and steadier. Arguments as of `importance_weighted`."""
    reward, weight = _checked(rewards, propensities, target_probabilities)
    total = weight.sum()
    if total == 0:
        return _estimate(weight, weight, alpha, seed)
    value = float(weight @ reward / total)
    return _estimate(value + weight * (reward - value) * len(weight) / total, weight, alpha, seed)


def doubly_robust(
    rewards: ArrayLike,
    propensities: ArrayLike,
    target_probabilities: ArrayLike,
    predicted: ArrayLike,
    predicted_target: ArrayLike,
    *,
    alpha: float = 0.05,
    seed: int = 0,
) -> Estimate:
    """Mean of q(x, target) + w (r - q(x, decided)).

    The model of the outcome must not have learned from these rewards, or the interval is too narrow: give predictions
    made across folds, or from earlier days.

    Args:
        predicted: the reward that the model expects of what was decided, q(x, decided), (n,).
        predicted_target: the reward that it expects of the other policy, sum over plans of target(k) q(x, k), (n,).

    Other arguments and errors as of `importance_weighted`.
    """
    reward, weight = _checked(rewards, propensities, target_probabilities)
    of_decided = np.asarray(predicted, dtype=np.float64)
    of_target = np.asarray(predicted_target, dtype=np.float64)
    if of_decided.shape != reward.shape or of_target.shape != reward.shape:
        raise ValueError(
            f"predictions of shapes {of_decided.shape} and {of_target.shape} for {reward.shape} rewards"
        )
    return _estimate(of_target + weight * (reward - of_decided), weight, alpha, seed)


def effective_sample_size(weights: Doubles) -> float:
    """Decisions of equal weight that would tell as much, (sum w)^2 / sum w^2; 0 where all weights are."""
    largest = float(weights.max(initial=0.0))
    if not largest:
        return 0.0
    shares = weights / largest  # their squares do not vanish, however small the weights
    return float(shares.sum()) ** 2 / float(shares @ shares)


def studentised_interval(values: Doubles, alpha: float, seed: int) -> tuple[float, float]:
    """Bootstrap-t interval of the mean of independent values, (n,); unlike a percentile one it follows skew.

    Of many values the means of `_MOST_GROUPS` random groups stand for them, which leaves the distribution of the whole
    mean as it is.
    """
    generator = np.random.default_rng(seed)
    mean = float(values.mean())
    parts = _grouped(values, generator)
    error = float(parts.std(ddof=1)) / np.sqrt(len(parts))
    if error == 0:
        return mean, mean
    studentised = np.concatenate(
        [
            _studentised(parts, generator, min(_DRAWN_AT_ONCE, _REPLICATES - done))
            for done in range(0, _REPLICATES, _DRAWN_AT_ONCE)
        ]
    )
    low, high = np.quantile(studentised, [alpha / 2, 1 - alpha / 2])
    return mean - float(high) * error, mean - float(low) * error


def _checked(
    rewards: ArrayLike, propensities: ArrayLike, target_probabilities: ArrayLike
) -> tuple[Doubles, Doubles]:
    reward, propensity, target = (
        np.asarray(values, dtype=np.float64) for values in (rewards, propensities, target_probabilities)
    )
    if reward.ndim != 1 or not reward.shape == propensity.shape == target.shape:
        raise ValueError(
            f"rewards, propensities and target probabilities must be three arrays of one length, not of shapes "
            f"{reward.shape}, {propensity.shape} and {target.shape}"
        )
    if not np.isfinite(reward).all():
        raise ValueError("every reward must be a number")
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise ValueError("every propensity must be above 0 and at most 1: what was decided was possible")
    if not ((target >= 0) & (target <= 1)).all():
        raise ValueError("every target probability must be between 0 and 1")
    return reward, target / propensity


def _estimate(values: Doubles, weights: Doubles, alpha: float, seed: int) -> Estimate:
    ess = effective_sample_size(weights)
    largest = float(weights.max(initial=0.0))
    if ess < LEAST_ESS:
        return Estimate(
            None,
            None,
            None,
            len(weights),
            ess,
            largest,
            refused=f"{len(weights):,} decisions say as much about this policy as {ess:.1f} of its own; "
            f"at least {LEAST_ESS:.0f} are needed",
        )
    low, high = studentised_interval(values, alpha, seed)
    return Estimate(float(values.mean()), low, high, len(weights), ess, largest)


def _grouped(values: Doubles, generator: np.random.Generator) -> Doubles:
    if len(values) <= _MOST_GROUPS:
        return values
    size = len(values) // _MOST_GROUPS
    whole = generator.permutation(values)[: size * _MOST_GROUPS]
    return np.asarray(whole.reshape(_MOST_GROUPS, size).mean(axis=1))


def _studentised(values: Doubles, generator: np.random.Generator, replicates: int) -> Doubles:
    drawn = values[generator.integers(0, len(values), size=(replicates, len(values)))]
    spread = drawn.std(axis=1, ddof=1)
    off = drawn.mean(axis=1) - values.mean()
    return np.asarray(np.divide(off, spread / np.sqrt(len(values)), out=np.zeros_like(off), where=spread > 0))
