"""Claim: an experiment may be looked at every day, seldom raises a false alarm, and still sees a difference.

The experiments are those of the definition below, whose planned size is what 40 tasks an arm and day come to in 30
days. They are looked at on each of the days, from the first one on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import note, report
from cp_core.learning.experiments.sample_ratio import LEAST_P, sequential_p
from cp_core.learning.experiments.sequences import (
    always_valid_p,
    evidence,
    half_width,
    running_moments,
    standard_error,
)

SIMULATIONS = 2_000
DAYS = 30
TASKS = 40  # an arm and day
PLANNED = DAYS * TASKS
ALPHA = 0.05
SEED = 20_240_918

Doubles = NDArray[np.float64]


def measure() -> None:
    """Report false alarms, power, and how often a sequence ever leaves the truth out."""
    generator = np.random.default_rng(SEED)
    binary = "30 daily peeks, 40 tasks an arm and day"
    for rate in (0.1, 0.6, 0.95):
        alarms = _found(_successes(generator, rate), _successes(generator, rate)).mean()
        _report(f"A/A, {rate:.0%} success, {binary}", "false_alarm_rate", alarms, "<= 0.05")
    alarms = _found(_costs(generator), _costs(generator)).mean()
    _report(f"A/A, cost of long tail, {binary}", "false_alarm_rate", alarms, "<= 0.05")
    _report("A/A, sample ratio 1:1, 30 daily peeks", "false_alarm_rate", _ratio_alarms(generator), "<= 0.05")
    better = _successes(generator, 0.6), _successes(generator, 0.7)
    _report(f"60 -> 70 % success, {binary}", "power", _found(*better).mean(), ">= 0.95")
    _report("60 -> 70 % success, one of four comparisons", "power", _found(*better, 4).mean(), None)
    _report(f"60 -> 70 % success, {binary}", "coverage", _covered(*better, 0.1), ">= 0.95")
    once = _fixed_test(_successes(generator, 0.6), _successes(generator, 0.6))
    note(f"a z-test at 5 % that is looked at on each of the 30 days raises {once:.0%} of false alarms")


def _report(case: str, metric: str, value: float, goal: str | None) -> None:
    report("learning", case, metric, float(value), "share", goal)


def _successes(generator: np.random.Generator, rate: float) -> tuple[Doubles, Doubles]:
    """Running sums and sums of squares of outcomes, (simulations, days)."""
    won = generator.binomial(TASKS, rate, size=(SIMULATIONS, DAYS)).cumsum(axis=1).astype(np.float64)
    return won, won


def _costs(generator: np.random.Generator) -> tuple[Doubles, Doubles]:
    costs = generator.lognormal(sigma=1.2, size=(SIMULATIONS, DAYS, TASKS))
    return costs.sum(axis=2).cumsum(axis=1), (costs**2).sum(axis=2).cumsum(axis=1)


def _found(
    control: tuple[Doubles, Doubles], arm: tuple[Doubles, Doubles], comparisons: int = 1
) -> NDArray[np.bool_]:
    """Which simulated experiments ever found a difference, where Holm asks the most of it."""
    off, error, count = _difference(control, arm)
    alpha = ALPHA / comparisons
    p = always_valid_p(evidence(off, error, count, count, PLANNED, alpha))
    return np.asarray(p[:, -1] <= alpha)


def _covered(control: tuple[Doubles, Doubles], arm: tuple[Doubles, Doubles], truth: float) -> float:
    off, error, count = _difference(control, arm)
    half = half_width(error, count, count, PLANNED, ALPHA)
    return float((np.abs(off - truth) <= half).all(axis=1).mean())


def _fixed_test(control: tuple[Doubles, Doubles], arm: tuple[Doubles, Doubles]) -> float:
    off, error, _ = _difference(control, arm)
    return float((np.abs(off) > 1.96 * error).any(axis=1).mean())


def _difference(
    control: tuple[Doubles, Doubles], arm: tuple[Doubles, Doubles]
) -> tuple[Doubles, Doubles, Doubles]:
    count = np.broadcast_to(np.arange(1.0, DAYS + 1) * TASKS, (SIMULATIONS, DAYS))
    (mean0, var0), (mean1, var1) = (running_moments(count, *sums) for sums in (control, arm))
    off = mean1 - mean0
    return off, standard_error(count, var0, count, var1, off), count


def _ratio_alarms(generator: np.random.Generator) -> float:
    looks = generator.multinomial(2 * TASKS, [0.5, 0.5], size=(SIMULATIONS, DAYS)).cumsum(axis=1)
    return sum(sequential_p(one, [1, 1])[-1] < LEAST_P for one in looks) / SIMULATIONS
