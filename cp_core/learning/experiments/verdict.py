"""What an experiment has come to by a day: every comparison with its sequence, and what follows from them."""

from __future__ import annotations

from datetime import date
from enum import StrEnum

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cp_core.learning.experiments import sample_ratio, sequences
from cp_core.learning.experiments.definition import ExperimentDefinition, Measure, Metric, Role
from cp_core.learning.experiments.holm import rejected

Doubles = NDArray[np.float64]


class Verdict(StrEnum):
    """What to do with an experiment."""

    CONTINUE = "continue"
    GRADUATE = "graduate"
    STOP = "stop"
    INCONCLUSIVE = "inconclusive"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Document):
    """The difference as it stood at the end of a day; low and high are None while nothing can be said."""

    day: date
    difference: float
    low: float | None
    high: float | None


class Comparison(_Document):
    """An arm beside the control, in one metric.

    Attributes:
        units, control_units: that have ended; `mean`, `control_mean`: of them.
        difference: of the arm over the control, in the measure's unit; `low`, `high`: of its confidence sequence, which
            holds for all comparisons of the experiment and all days at once.
        p_value: always valid, before Holm.
        is_proven: whether it falls by Holm: there is a difference.
        is_better: whether the difference is to the arm's favour.
    """

    arm: str
    measure: Measure
    role: Role
    units: int
    control_units: int
    mean: float
    control_mean: float
    difference: float
    low: float | None
    high: float | None
    p_value: float
    is_proven: bool
    is_better: bool
    sequence: tuple[Point, ...]


class ExperimentResult(_Document):
    """An experiment at the end of a day.

    Attributes:
        days: since the start, the day included.
        exposed: units that were given each arm.
        sample_ratio_p: always valid; `chi_square_p`: of this look alone.
        arm: which one to graduate.
    """

    experiment: str
    hypothesis: str
    verdict: Verdict
    reason: str
    arm: str | None = None
    days: int
    exposed: dict[str, int]
    sample_ratio_p: float
    chi_square_p: float
    has_right_ratio: bool
    comparisons: tuple[Comparison, ...]


class ExperimentResults(_Document):
    """The document of asset experiment_results: every experiment that ran on the day."""

    day: date
    experiments: tuple[ExperimentResult, ...] = ()


def judge(
    definition: ExperimentDefinition, started: date, day: date, exposed: pd.DataFrame, ended: pd.DataFrame
) -> ExperimentResult:
    """Look at an experiment at the end of `day`.

    Looking more often, or again, costs nothing: what is concluded holds at every time.

    Args:
        exposed: one row a unit that was given an arm until then: arm, day (date).
        ended: one row a unit that has ended until then: arm, day (date), and a column of numbers for each measure that
            the experiment has a metric of; NaN where it was not measured.
    """
    days = [moment.date() for moment in pd.date_range(started, day)]
    names = [arm.name for arm in definition.arms]
    counts = np.column_stack([_by_day(exposed[exposed["arm"] == name], days)[0] for name in names])
    weights = [arm.weight for arm in definition.arms]
    ratio = float(sample_ratio.sequential_p(counts, weights)[-1])
    comparisons = _compared(definition, days, ended)
    verdict, reason, arm = _verdict(definition, len(days), ratio >= sample_ratio.LEAST_P, comparisons)
    return ExperimentResult(
        experiment=definition.experiment,
        hypothesis=definition.hypothesis,
        verdict=verdict,
        reason=reason,
        arm=arm,
        days=len(days),
        exposed=dict(zip(names, counts[-1].astype(int).tolist(), strict=True)),
        sample_ratio_p=ratio,
        chi_square_p=sample_ratio.chi_square_p(counts[-1], weights),
        has_right_ratio=ratio >= sample_ratio.LEAST_P,
        comparisons=comparisons,
    )


def _compared(
    definition: ExperimentDefinition, days: list[date], ended: pd.DataFrame
) -> tuple[Comparison, ...]:
    pairs = [(arm.name, metric) for arm in definition.arms[1:] for metric in definition.metrics]
    found = [_compare(definition, arm, metric, days, ended, len(pairs)) for arm, metric in pairs]
    fallen = rejected({number: one.p_value for number, one in enumerate(found)}, definition.alpha)
    return tuple(one.model_copy(update={"is_proven": number in fallen}) for number, one in enumerate(found))


def _compare(
    definition: ExperimentDefinition,
    arm: str,
    metric: Metric,
    days: list[date],
    ended: pd.DataFrame,
    comparisons: int,
) -> Comparison:
    measured = ended.dropna(subset=[metric.measure.value])
    moments = [
        _by_day(measured[measured["arm"] == name], days, metric.measure.value)
        for name in (definition.control.name, arm)
    ]
    (n0, mean0, var0), (n1, mean1, var1) = [
        (count, *sequences.running_moments(count, total, squares)) for count, total, squares in moments
    ]
    off = mean1 - mean0
    enough = (n0 >= definition.least_units_per_arm) & (n1 >= definition.least_units_per_arm)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(enough, sequences.standard_error(n0, var0, n1, var1, off), np.nan)
        planned, alpha = definition.planned_units_per_arm, definition.alpha
        half = sequences.half_width(error, n0, n1, planned, alpha / comparisons)
        found = sequences.evidence(off, error, n0, n1, planned, alpha / comparisons)
    half = np.where(error > 0, half, np.nan)
    found = np.where(error > 0, found, np.nan)
    points = tuple(
        Point(day=day, difference=one, low=_known(one - width), high=_known(one + width))
        for day, one, width in zip(days, off.tolist(), half.tolist(), strict=True)
        if np.isfinite(one)
    )
    last = float(off[-1])
    return Comparison(
        arm=arm,
        measure=metric.measure,
        role=metric.role,
        units=int(n1[-1]),
        control_units=int(n0[-1]),
        mean=_or_zero(mean1[-1]),
        control_mean=_or_zero(mean0[-1]),
        difference=_or_zero(last),
        low=points[-1].low if points else None,
        high=points[-1].high if points else None,
        p_value=float(sequences.always_valid_p(found)[-1]),
        is_proven=False,
        is_better=bool(last < 0 if metric.measure.is_better_lower else last > 0),
        sequence=points,
    )


def _verdict(
    definition: ExperimentDefinition, days: int, has_right_ratio: bool, comparisons: tuple[Comparison, ...]
) -> tuple[Verdict, str, str | None]:
    if not has_right_ratio:
        return (
            Verdict.STOP,
            "the arms did not get the units that their weights promise: find out why, and start anew",
            None,
        )
    fewest = min(min(one.units, one.control_units) for one in comparisons)
    is_over = days >= definition.most_days
    if not is_over and (days < definition.least_days or fewest < definition.least_units_per_arm):
        return (
            Verdict.CONTINUE,
            f"day {days} of at least {definition.least_days}, {fewest:,} units of at least "
            f"{definition.least_units_per_arm:,} have ended in every arm",
            None,
        )
    harmed = {one.arm: one for one in comparisons if one.is_proven and not one.is_better}
    won = [
        one
        for one in comparisons
        if one.is_proven and one.is_better and one.role is Role.GOAL and one.arm not in harmed
    ]
    if won:
        best = max(won, key=lambda one: abs(one.difference) / (abs(one.control_mean) or 1.0))
        return Verdict.GRADUATE, f"{best.arm} is better in {_in_words(best)}", best.arm
    if len(harmed) == len(definition.arms) - 1:
        worst = "; ".join(f"{arm} is worse in {_in_words(one)}" for arm, one in harmed.items())
        return Verdict.STOP, worst, None
    if is_over:
        return Verdict.INCONCLUSIVE, f"nothing was proven within {definition.most_days} days", None
    return Verdict.CONTINUE, "nothing is proven yet", None


def _in_words(one: Comparison) -> str:
    return f"{one.measure}: {one.mean:.4g} against {one.control_mean:.4g}"


def _by_day(rows: pd.DataFrame, days: list[date], measure: str | None = None) -> tuple[Doubles, ...]:
    """Units until the end of each day; with a measure also their sum and sum of squares."""
    at = pd.Index(days).get_indexer(pd.Index(rows["day"]))
    inside = at >= 0
    parts = [np.ones(len(rows))]
    if measure is not None:
        values = rows[measure].to_numpy(dtype=np.float64)
        parts += [values, values**2]
    return tuple(
        np.cumsum(np.bincount(at[inside], weights=part[inside], minlength=len(days)), dtype=np.float64)
        for part in parts
    )


def _known(number: float) -> float | None:
    return number if np.isfinite(number) else None


def _or_zero(number: float) -> float:
    return float(number) if np.isfinite(number) else 0.0
