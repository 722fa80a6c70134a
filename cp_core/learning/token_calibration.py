"""What models really take against a task's own estimate: factors by model and domain, and the bases of the estimate.

Sums need means and a single task a median, so both are learned, with the interval that holds 80 % of tasks. Attempts
that were cut off count as censored: they would have taken more. A cell with few attempts leans on its model, and a
model on the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cp_core.assignment.calibration import Calibration, ModelTokens, TokenFactors
from cp_core.learning.limits import cap, cap_in_order
from cp_core.learning.survival import Survival
from cp_core.scoring.config import Complexity, Domain, ScoringConfig
from cp_core.scoring.estimate import INTERVAL
from cp_core.tasks.reasons import Reason

Doubles = NDArray[np.float64]

FEWEST = 20
"""Whole attempts from which a cell has factors of its own, and a base may move."""

OWN_SPREAD = 100
"""Attempts from which a cell's interval is told by its own attempts; below, by those of its model."""

KINDS = ("input", "output")
_COLUMNS = [
    *("task", "model", "domain", "complexity", "is_censored", "config_hash"),
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
        observations: one row an ended execution with task, model, domain, complexity, reason, has_succeeded,
            is_censored, input_tokens, output_tokens, expected_input_tokens, expected_output_tokens (means of the
            estimate) and config_hash.
        in_force: whose factors the new ones may differ from by at most `max_change`.
        scoring: whose bases likewise.
        max_change: share, at most `limits.MAX_CHANGE`.
        bases_of: the scoring of earlier configurations by their hash, so that what they expected is put in terms of
            `scoring`; one that is missing is taken to have had the same bases.

    Attempts that failed without saying what the task takes (the provider was overloaded, refused, ...) do not count.
    """
    told = _telling(observations)
    cells: list[TokenCell] = []
    coverage: list[Coverage] = []
    learned: dict[str, dict[Domain, dict[str, TokenFactors]]] = {}
    bases: dict[str, float] = {}
    for kind in KINDS:
        attempts = _of_kind(told, kind, scoring, bases_of or {})
        moved = _moved_bases(attempts, kind, scoring, max_change)
        bases |= {f"estimate.mean_tokens.{level}.{kind}": base for level, base in moved.items()}
        growth = attempts["complexity"].map(
            {level.value: base / _base(scoring, level, kind) for level, base in moved.items()}
        )
        attempts["ratio"] = attempts["actual"] / (attempts["expected"] * growth.astype(float).fillna(1.0))
        found = _cells(attempts, kind)
        cells += found
        coverage += _coverage(attempts, kind)
        for cell in found:
            learned.setdefault(cell.model, {}).setdefault(cell.domain, {})[kind] = _capped(
                cell, in_force, scoring, max_change
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
    """model, domain, complexity (text), half (by task), is_censored, actual and expected: of attempts that used any."""
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
        whole = int((~rows["is_censored"]).sum())
        if whole < FEWEST:
            continue
        mean = _mean_ratio(rows["actual"] / rows["expected"], rows["is_censored"], rows["expected"])
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


def _mean_ratio(ratios: pd.Series[float], is_censored: pd.Series[bool], expected: pd.Series[float]) -> float:
    """Total tokens over total expected ones, with what was cut off at what is to be expected above it."""
    actual = ratios.to_numpy(dtype=np.float64)
    cut = is_censored.to_numpy(dtype=bool)
    if cut.any():
        actual = np.where(cut, Survival.of(actual, cut).with_log_normal_tail().mean_above(actual), actual)
    weights = expected.to_numpy(dtype=np.float64)
    return float(actual @ weights / weights.sum())


def _cells(attempts: pd.DataFrame, kind: str) -> list[TokenCell]:
    cells = []
    for model, of_model in attempts.groupby("model", observed=True, sort=True):
        ratios, cut = _arrays(of_model)
        if (~cut).sum() < FEWEST:
            continue
        whole = _mean_with_error(ratios, cut)
        centre = whole[0] ** ((~cut).sum() / ((~cut).sum() + _PRIOR_ATTEMPTS))
        by_domain = {
            Domain(str(domain)): rows
            for domain, rows in of_model.groupby("domain", observed=True, sort=True)
            if (~rows["is_censored"]).sum() >= FEWEST
        }
        if not by_domain:
            continue  # enough of the model as a whole, in no domain
        means = _shrunk([_mean_with_error(*_arrays(rows)) for rows in by_domain.values()], centre)
        pooled = _spread(
            [(*_arrays(rows), mean) for rows, mean in zip(by_domain.values(), means, strict=True)]
        )
        for (domain, rows), mean in zip(by_domain.items(), means, strict=True):
            of_cell, cut_of_cell = _arrays(rows)
            spread = _spread([(of_cell, cut_of_cell, mean)]) if len(rows) >= OWN_SPREAD else pooled
            cells.append(
                TokenCell(
                    model=str(model),
                    domain=domain,
                    kind=kind,
                    attempts=len(rows),
                    censored=int(cut_of_cell.sum()),
                    factors=_factors(mean, spread),
                    coverage=_unseen_coverage(rows) if len(rows) >= OWN_SPREAD else None,
                )
            )
    return cells


def _arrays(rows: pd.DataFrame) -> tuple[Doubles, NDArray[np.bool_]]:
    return rows["ratio"].to_numpy(dtype=np.float64), rows["is_censored"].to_numpy(dtype=bool)


def _mean_with_error(ratios: Doubles, cut: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean of a censored sample, and the variance of its logarithm (delta method)."""
    spread = Survival.of(ratios, cut).with_log_normal_tail()
    mean = spread.mean
    variance = float(((spread.values - mean) ** 2) @ spread.masses) / max(int((~cut).sum()) - 1, 1)
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


def _spread(parts: Sequence[tuple[Doubles, NDArray[np.bool_], float]]) -> Survival:
    """Ratios over the mean of their cell, of one cell or of several together."""
    return Survival.of(
        np.concatenate([ratios / mean for ratios, _, mean in parts]),
        np.concatenate([cut for _, cut, _ in parts]),
    )


def _factors(mean: float, spread: Survival) -> TokenFactors:
    """Factors of a cell; the interval leaves out a tenth at each end, with the conformal correction."""
    median = mean * spread.quantile(0.5)
    low, high = (mean * end for end in _interval(spread))
    return TokenFactors(
        mean=_bounded(mean),
        median=_bounded(median),
        low=_bounded(min(low, median)),
        high=_bounded(max(high, median)),
    )


def _interval(spread: Survival) -> tuple[float, float]:
    outer = min(1.0, (1 + INTERVAL) / 2 * (1 + 1 / spread.values.size))
    return spread.quantile(1 - outer), spread.quantile(outer)


def _bounded(factor: float) -> float:
    return min(max(factor, _FACTOR_RANGE[0]), _FACTOR_RANGE[1])


def _unseen_coverage(rows: pd.DataFrame) -> float:
    """Share of a cell's attempts inside the interval that the other half of its tasks tells."""
    shares, sizes = [], []
    for half in (0, 1):
        seen, unseen = rows[rows["half"] != half], rows[rows["half"] == half]
        if seen.empty or unseen.empty:
            continue
        low, high = _interval(Survival.of(*_arrays(seen)))
        truth = Survival.of(*_arrays(unseen))
        inside = (truth.values >= low) & (truth.values <= high)
        shares.append(float(truth.masses[inside].sum()))
        sizes.append(len(unseen))
    return float(np.average(shares, weights=sizes)) if sizes else math.nan


def _coverage(attempts: pd.DataFrame, kind: str) -> list[Coverage]:
    """Coverage of Mondrian intervals (one a model and domain), each half of the tasks held against the other."""
    enough = attempts.groupby(["model", "domain"], observed=True)["actual"].transform("size") >= OWN_SPREAD
    judged = attempts[enough]
    found: list[tuple[Domain, int, float]] = [
        (Domain(str(domain)), len(rows), _unseen_coverage(rows))
        for (_, domain), rows in judged.groupby(["model", "domain"], observed=True, sort=True)
    ]

    def over(domain: Domain | None, chosen: Callable[[Domain], bool]) -> Coverage | None:
        parts = [(size, share) for each, size, share in found if chosen(each) and not math.isnan(share)]
        if not parts:
            return None
        sizes, shares = zip(*parts, strict=True)
        share = float(np.average(shares, weights=sizes))
        return Coverage(domain=domain, kind=kind, attempts=sum(sizes), share=share)

    rows = [over(None, lambda _: True), *(over(domain, domain.__eq__) for domain in Domain)]
    return [row for row in rows if row is not None]


def _capped(
    cell: TokenCell, in_force: Calibration, scoring: ScoringConfig, max_change: float
) -> TokenFactors:
    before = _in_force(cell.model, cell.domain, cell.kind, in_force, scoring)
    return TokenFactors(
        **{
            name: cap(getattr(before, name), getattr(cell.factors, name), max_change)
            for name in ("mean", "median", "low", "high")
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
