"""What models really take against a task's own estimate: factors by model and domain, and the bases of the estimate.

Sums need means and a single task a median, so both are learned, with the interval that holds 80 % of tasks. Attempts
that were cut off count as censored: they would have taken more. A cell with few attempts leans on its model, and a
model on the estimate. How much an attempt still counts is told by `decay`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cp_core.assignment.calibration import Calibration, ModelTokens, TokenFactors
from cp_core.learning.decay import still_counting
from cp_core.learning.limits import cap_in_order, room_beside
from cp_core.learning.survival import Survival
from cp_core.scoring.config import Complexity, Domain, ScoringConfig
from cp_core.scoring.estimate import INTERVAL
from cp_core.tasks.reasons import Reason

Doubles = NDArray[np.float64]

FEWEST = 20
"""Whole attempts, weighed by age, from which a cell has factors of its own, and a base may move."""

OWN_SPREAD = 100
"""Attempts, weighed by age, from which a cell's interval is told by its own attempts; below, by those of its model."""

KINDS = ("input", "output")
_COLUMNS = [
    *("task", "model", "domain", "complexity", "is_censored", "config_hash", "weight"),
    *(f"{kind}_tokens" for kind in KINDS),
    *(f"expected_{kind}_tokens" for kind in KINDS),
]
_PRIOR_ATTEMPTS = 10  # what the estimate weighs against a model's attempts
_FACTOR_RANGE = (0.001, 1000.0)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenCell(_Document):
    """What a model took in a domain.

    Attributes:
        attempts: that count, cut off or not.
        censored: that were cut off.
        factors: what was learned, before the cap.
        coverage: share of attempts inside an interval that other attempts told; None from too few.
    """

    model: str
    domain: Domain
    kind: str
    attempts: int
    censored: int
    factors: TokenFactors
    coverage: float | None


class Coverage(_Document):
    """How many tokens of a kind lay inside intervals that had not seen them.

    Attributes:
        domain: None: all of them.
        share: with what was cut off put where it would have ended (Kaplan-Meier).
    """

    domain: Domain | None
    kind: str
    attempts: int
    share: float


class TokenCalibration(_Document):
    """What token_calibration found on a day.

    Attributes:
        tokens: factors by model and domain, at most a share `max_change` from those in force.
        scoring: bases of the estimate by dotted key of scoring.yaml, at most as far from those in force.
        cells: what the factors come from.
        coverage: by kind, of all and of each domain.
        attempts, censored: how many there were.
    """

    tokens: Mapping[str, Mapping[Domain, ModelTokens]] = {}
    scoring: Mapping[str, float] = {}
    cells: tuple[TokenCell, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    attempts: int = 0
    censored: int = 0


def calibrate_tokens(
    observations: pd.DataFrame,
    in_force: Calibration,
    scoring: ScoringConfig,
    *,
    max_change: float,
    bases_of: Mapping[str, ScoringConfig] | None = None,
) -> TokenCalibration:
    """Learn factors and bases.

    Args:
        observations: one row an ended execution with execution, task, model, model_version, domain, complexity,
            age_days, reason, has_succeeded, is_censored, input_tokens, output_tokens, expected_input_tokens,
            expected_output_tokens (means of the estimate) and config_hash.
        in_force: whose factors the new ones may differ from by at most `max_change`.
        scoring: whose bases likewise.
        max_change: share, at most `limits.MAX_CHANGE`.
        bases_of: the scoring of earlier configurations by their hash, so that what they expected is put in terms of
            `scoring`; one that is missing is taken to have had the same bases.

    Attempts count less with age, and those of a model's older versions not at all. Attempts that failed without saying
    what the task takes (the provider was overloaded, refused, ...) do not count either.
    """
    told = _telling(still_counting(observations))
    cells: list[TokenCell] = []
    coverage: list[Coverage] = []
    learned: dict[str, dict[Domain, dict[str, TokenFactors]]] = {}
    bases: dict[str, float] = {}
    for kind in KINDS:
        attempts = _of_kind(told, kind, scoring, bases_of or {})
        moved = _moved_bases(attempts, kind, scoring, max_change)
        bases |= {f"estimate.mean_tokens.{level}.{kind}": base for level, base in moved.items()}
        growth = {level.value: base / _base(scoring, level, kind) for level, base in moved.items()}
        grown = attempts["complexity"].map(growth).astype(float).fillna(1.0)
        attempts["ratio"] = attempts["actual"] / (attempts["expected"] * grown)
        room = room_beside(growth.values(), max_change)
        found = _cells(attempts, kind)
        cells += found
        coverage += _coverage(found, kind)
        for cell in found:
            learned.setdefault(cell.model, {}).setdefault(cell.domain, {})[kind] = _capped(
                cell, in_force, scoring, room
            )
    return TokenCalibration(
        tokens={
            model: {
                domain: _model_tokens(model, domain, kinds, in_force, scoring)
                for domain, kinds in by_domain.items()
            }
            for model, by_domain in learned.items()
        },
        scoring=bases,
        cells=tuple(cells),
        coverage=tuple(coverage),
        attempts=len(told),
        censored=int(told["is_censored"].sum()),
    )


def as_estimated(kind: str, scoring: ScoringConfig) -> TokenFactors:
    """The factors that the estimate itself stands for: its spread is log-normal around a mean of 1."""
    sigma = getattr(scoring.estimate.sigma, kind)
    median, reach = math.exp(-(sigma**2) / 2), math.exp(sigma * _Z)
    return TokenFactors(mean=1.0, median=median, low=median / reach, high=median * reach)


_Z = 1.2815515655446004  # of the 90th percentile: 80 % lie within it on both sides


def _telling(observations: pd.DataFrame) -> pd.DataFrame:
    """Attempts whose tokens say what the task takes: whole ones, and lower bounds."""
    whole = observations["has_succeeded"] | (observations["reason"] == Reason.LOW_QUALITY.value)
    return observations.loc[whole | observations["is_censored"], _COLUMNS]


def _of_kind(
    told: pd.DataFrame, kind: str, scoring: ScoringConfig, bases_of: Mapping[str, ScoringConfig]
) -> pd.DataFrame:
    """model, domain, complexity, half (by task), is_censored, weight, actual, expected: of attempts that used any."""
    expected = told[f"expected_{kind}_tokens"].to_numpy(dtype=np.float64)
    if bases_of:
        expected = expected * _rebased(told, kind, scoring, bases_of)
    frame = pd.DataFrame(
        {
            "model": told["model"].astype("category"),
            "domain": told["domain"].astype("category"),
            "complexity": told["complexity"].astype("category"),
            "half": told["task"].to_numpy() % 2,
            "is_censored": told["is_censored"].to_numpy(dtype=bool),
            "weight": told["weight"].to_numpy(dtype=np.float64),
            "actual": told[f"{kind}_tokens"].to_numpy(dtype=np.float64),
            "expected": expected,
        }
    )
    return frame[(frame["actual"] > 0) & (frame["expected"] > 0)].reset_index(drop=True)


def _rebased(
    told: pd.DataFrame, kind: str, scoring: ScoringConfig, bases_of: Mapping[str, ScoringConfig]
) -> Doubles:
    """What an estimate of then is multiplied by to be one of now."""
    factors = {
        (config_hash, level.value): _base(scoring, level, kind) / _base(then, level, kind)
        for config_hash, then in bases_of.items()
        for level in Complexity
    }
    hashes, hash_names = pd.factorize(told["config_hash"])
    levels, level_names = pd.factorize(told["complexity"])
    grid = np.array([[factors.get((name, level), 1.0) for level in level_names] for name in hash_names])
    return np.asarray(grid[hashes, levels], dtype=np.float64)


def _base(scoring: ScoringConfig, level: Complexity, kind: str) -> float:
    return float(getattr(scoring.estimate.mean_tokens[level], kind))


def _moved_bases(
    attempts: pd.DataFrame, kind: str, scoring: ScoringConfig, max_change: float
) -> dict[Complexity, float]:
    """Bases moved toward what tasks of each complexity took, and rising as before; only those that move."""
    before = np.array([_base(scoring, level, kind) for level in Complexity])
    target, weights = before.copy(), np.full(len(before), float(_PRIOR_ATTEMPTS))
    for place, level in enumerate(Complexity):
        rows = attempts[attempts["complexity"] == level.value]
        whole = float(rows.loc[~rows["is_censored"], "weight"].sum())
        if whole < FEWEST:
            continue
        mean = _mean_ratio(rows)
        target[place] *= mean ** (whole / (whole + _PRIOR_ATTEMPTS))
        weights[place] += whole
    if (target == before).all():
        return {}
    after = cap_in_order(before.tolist(), target.tolist(), max_change, weights=weights.tolist())
    return {
        level: new
        for level, old, new in zip(Complexity, before, after, strict=True)
        if not math.isclose(new, old)
    }


def _mean_ratio(rows: pd.DataFrame) -> float:
    """Total tokens over total expected ones, with what was cut off at what is to be expected above it."""
    actual = (rows["actual"] / rows["expected"]).to_numpy(dtype=np.float64)
    cut, weight = rows["is_censored"].to_numpy(dtype=bool), rows["weight"].to_numpy(dtype=np.float64)
    if cut.any():
        whole = Survival.of(actual, cut, weight).with_log_normal_tail()
        actual = np.where(cut, whole.mean_above(actual), actual)
    total = weight * rows["expected"].to_numpy(dtype=np.float64)
    return float(actual @ total / total.sum())


@dataclass(frozen=True)
class _Sample:
    """Attempts of a model: their multiples of the estimate, which were cut off, weights, and halves of the tasks."""

    ratios: Doubles
    cut: NDArray[np.bool_]
    weights: Doubles
    half: NDArray[np.int64]

    def __getitem__(self, rows: Any) -> _Sample:
        return _Sample(self.ratios[rows], self.cut[rows], self.weights[rows], self.half[rows])

    @property
    def size(self) -> float:
        """How many attempts it is worth."""
        return float(self.weights.sum())

    @property
    def whole(self) -> float:
        """How many attempts that were not cut off it is worth."""
        return float(self.weights @ ~self.cut)

    def spread(self, mean: float = 1.0) -> Survival:
        """Its distribution, in multiples of `mean`."""
        return Survival.of(self.ratios / mean, self.cut, self.weights)


def _cells(attempts: pd.DataFrame, kind: str) -> list[TokenCell]:
    cells = []
    for model, of_model, domains in _samples(attempts):
        if of_model.whole < FEWEST:
            continue
        mean, _ = _mean_with_error(of_model)
        centre = mean ** (of_model.whole / (of_model.whole + _PRIOR_ATTEMPTS))
        by_domain = {domain: rows for domain, rows in domains.items() if rows.whole >= FEWEST}
        if not by_domain:
            continue  # enough of the model as a whole, in no domain
        means = _shrunk([_mean_with_error(rows) for rows in by_domain.values()], centre)
        pooled = _pooled(list(by_domain.values()), means)
        for (domain, rows), mean in zip(by_domain.items(), means, strict=True):
            is_own = rows.size >= OWN_SPREAD
            cells.append(
                TokenCell(
                    model=model,
                    domain=domain,
                    kind=kind,
                    attempts=len(rows.ratios),
                    censored=int(rows.cut.sum()),
                    factors=_factors(mean, *((rows.spread(mean), rows.size) if is_own else pooled)),
                    coverage=_unseen_coverage(rows) if is_own else None,
                )
            )
    return cells


def _samples(attempts: pd.DataFrame) -> Iterator[tuple[str, _Sample, dict[Domain, _Sample]]]:
    """Each model's attempts, and those in each domain, in order of their names."""
    keys = [attempts[name].cat for name in ("model", "domain")]
    models, domains = (key.codes.to_numpy() for key in keys)
    order = np.lexsort((domains, models))
    whole = _Sample(
        *(attempts[name].to_numpy()[order] for name in ("ratio", "is_censored", "weight", "half"))
    )
    models, domains = models[order], domains[order]
    for model, name in enumerate(keys[0].categories):
        first, last = np.searchsorted(models, [model, model + 1])
        if first == last:
            continue
        bounds = first + np.searchsorted(domains[first:last], np.arange(len(keys[1].categories) + 1))
        yield (
            str(name),
            whole[first:last],
            {
                Domain(str(domain)): whole[start:end]
                for domain, (start, end) in zip(keys[1].categories, pairwise(bounds), strict=True)
                if start < end
            },
        )


def _mean_with_error(sample: _Sample) -> tuple[float, float]:
    """Mean of a censored sample, and the variance of its logarithm (delta method)."""
    spread = sample.spread().with_log_normal_tail()
    mean = spread.mean
    variance = float(((spread.values - mean) ** 2) @ spread.masses) / max(sample.whole - 1, 1)
    return mean, variance / mean**2


def _shrunk(means: Sequence[tuple[float, float]], centre: float) -> list[float]:
    """Means drawn toward `centre` on the log scale, by how far they differ beyond their own errors.

    The variance between them is DerSimonian and Laird's (Controlled Clinical Trials 7, 1986, 177) around `centre`.
    """
    logs = np.log([mean for mean, _ in means])
    errors = np.array([max(variance, 1e-12) for _, variance in means])
    aside = logs - math.log(centre)
    weights = 1 / errors
    between = max(0.0, float((weights @ aside**2 - len(aside)) / weights.sum())) if len(aside) else 0.0
    return [float(each) for each in np.exp(math.log(centre) + aside * between / (between + errors))]


def _pooled(samples: Sequence[_Sample], means: Sequence[float]) -> tuple[Survival, float]:
    """Ratios over the mean of their cell, of several cells together, and how many attempts they are worth."""
    spread = Survival.of(
        np.concatenate([sample.ratios / mean for sample, mean in zip(samples, means, strict=True)]),
        np.concatenate([sample.cut for sample in samples]),
        np.concatenate([sample.weights for sample in samples]),
    )
    return spread, sum(sample.size for sample in samples)


def _factors(mean: float, spread: Survival, size: float) -> TokenFactors:
    """Factors of a cell; the interval leaves out a tenth at each end, with the conformal correction."""
    median = mean * spread.quantile(0.5)
    low, high = (mean * end for end in _interval(spread, size))
    return TokenFactors(
        mean=_bounded(mean),
        median=_bounded(median),
        low=_bounded(min(low, median)),
        high=_bounded(max(high, median)),
    )


def _interval(spread: Survival, size: float) -> tuple[float, float]:
    outer = min(1.0, (1 + INTERVAL) / 2 * (1 + 1 / size))
    return spread.quantile(1 - outer), spread.quantile(outer)


def _bounded(factor: float) -> float:
    return min(max(factor, _FACTOR_RANGE[0]), _FACTOR_RANGE[1])


def _unseen_coverage(sample: _Sample) -> float | None:
    """Share of attempts inside the interval that the other half of the tasks tells; None if there is one half only."""
    shares, sizes = [], []
    for half in (0, 1):
        seen, unseen = sample[sample.half != half], sample[sample.half == half]
        if not len(seen.ratios) or not len(unseen.ratios):
            continue
        low, high = _interval(seen.spread(), seen.size)
        truth = unseen.spread()
        inside = (truth.values >= low) & (truth.values <= high)
        shares.append(float(truth.masses[inside].sum()))
        sizes.append(unseen.size)
    return float(np.average(shares, weights=sizes)) if sizes else None


def _coverage(cells: Sequence[TokenCell], kind: str) -> list[Coverage]:
    """Coverage of Mondrian intervals (one a model and domain), of all domains and of each."""

    def over(domain: Domain | None) -> Coverage | None:
        parts = [
            (cell.attempts, cell.coverage)
            for cell in cells
            if domain in (None, cell.domain) and cell.coverage is not None
        ]
        if not parts:
            return None
        sizes, shares = zip(*parts, strict=True)
        share = float(np.average(shares, weights=sizes))
        return Coverage(domain=domain, kind=kind, attempts=sum(sizes), share=share)

    rows = [over(None), *map(over, Domain)]
    return [row for row in rows if row is not None]


def _capped(
    cell: TokenCell, in_force: Calibration, scoring: ScoringConfig, room: tuple[float, float]
) -> TokenFactors:
    before = _in_force(cell.model, cell.domain, cell.kind, in_force, scoring)
    least, most = room
    return TokenFactors(
        **{
            name: min(max(getattr(cell.factors, name), least * old), most * old)
            for name, old in before.model_dump().items()
        }
    )


def _model_tokens(
    model: str,
    domain: Domain,
    kinds: Mapping[str, TokenFactors],
    in_force: Calibration,
    scoring: ScoringConfig,
) -> ModelTokens:
    """Factors of both kinds; a kind that nothing was learned of stays as it is in force."""
    return ModelTokens(
        **{kind: kinds.get(kind) or _in_force(model, domain, kind, in_force, scoring) for kind in KINDS}
    )


def _in_force(
    model: str, domain: Domain, kind: str, in_force: Calibration, scoring: ScoringConfig
) -> TokenFactors:
    cell: Any = in_force.tokens.get(model, {}).get(domain)
    factors: TokenFactors = getattr(cell, kind) if cell else as_estimated(kind, scoring)
    return factors
