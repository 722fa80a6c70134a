"""Do values say what they should: whether better values go with better outcomes, and what people correct in them.

What a task is worth cannot be seen in how well a model does it: urgent work may be the hardest. It is seen where a
person overrides a score. So outcomes are only described here, and weights follow people's corrections: a task that
nobody corrected counts as one whose score is right. Modifiers of risk are proposed and wait for a person's word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import stats

from cp_core.learning.ability import tells_of_model
from cp_core.learning.decay import still_counting
from cp_core.learning.limits import cap, cap_in_order
from cp_core.scoring.config import PRIORITIES, Domain, Risk, ScoringConfig

Doubles = NDArray[np.float64]

FEWEST_CORRECTIONS = 20
"""Overridden scores from which weights move at all."""

FEWEST_IN_A_DECILE = 30
"""Attempts, weighed by age, from which a decile is held against the next."""

_PRIOR = 0.2  # standard deviation of how far a weight is off, on the log scale, before anything is known
_SURE = 0.9  # two-sided confidence of the intervals that are shown


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Decile(_Document):
    """Attempts at a tenth of the tasks, in order of score; `success` and `quality` (0..10) are means."""

    low: float
    high: float
    attempts: int
    success: float
    quality: float | None


class RankCorrelation(_Document):
    """Spearman's correlation of the score with a measure of the outcome, and its interval."""

    measure: str
    attempts: int
    value: float
    low: float
    high: float


class Proposal(_Document):
    """A number of scoring.yaml that people's corrections speak against.

    Attributes:
        in_force: the number now.
        proposed: what the corrections say it should be, without any cap; `low` and `high` enclose it.
        tasks: that it took part in.
        needs_approval: it is not applied before a person has allowed it.
    """

    key: str
    in_force: float
    proposed: float
    low: float
    high: float
    tasks: int
    needs_approval: bool


class ValueCalibration(_Document):
    """What value_calibration found on a day.

    Attributes:
        deciles: outcomes by score.
        falls: measures that fall, beyond chance, from one decile to the next.
        correlations: of scores with success and with quality.
        corrections: overridden scores among `tasks`.
        proposals: what they say of each weight.
        scoring: numbers of scoring.yaml to put in force, by dotted key: each within its cap, priorities in order, and
            of risks only what was approved.
    """

    deciles: tuple[Decile, ...] = ()
    falls: tuple[str, ...] = ()
    correlations: tuple[RankCorrelation, ...] = ()
    corrections: int = 0
    tasks: int = 0
    proposals: tuple[Proposal, ...] = ()
    scoring: Mapping[str, float] = {}


def calibrate_values(
    outcomes: pd.DataFrame,
    scored: pd.DataFrame,
    scoring: ScoringConfig,
    *,
    max_change: float,
    approved_risks: Mapping[Risk, float],
) -> ValueCalibration:
    """Describe outcomes by score, and learn weights from corrections.

    Args:
        outcomes: one row an ended attempt with execution, model, model_version, age_days, reason, score, has_succeeded
            and quality (0..10 or missing). Those of older versions, and what is not the model's doing, do not count.
        scored: tasks with equal factors together, one row each: priority (0..4), domain, risk, base (priority points
            times complexity), time_bonus, tasks (how many), corrections (how many of them were overridden), weight
            (of the tasks, each by its age) and log_ratio (sum over corrections of ln(override / score), each by its
            task's age); `squares` likewise of its square.
        scoring: in force.
        max_change: share by which a number may move.
        approved_risks: factors that a person allows risks to move to; none is moved beyond them, nor without one.
    """
    proposals = _proposals(scored, scoring)
    outcomes = still_counting(outcomes)
    outcomes = outcomes[tells_of_model(outcomes["reason"])]
    return ValueCalibration(
        deciles=tuple(_deciles(outcomes)),
        falls=tuple(_falls(outcomes)),
        correlations=tuple(_correlations(outcomes)),
        corrections=int(scored["corrections"].sum()),
        tasks=int(scored["tasks"].sum()),
        proposals=tuple(proposals),
        scoring=_moves(proposals, scoring, max_change, approved_risks),
    )


def _deciles(outcomes: pd.DataFrame) -> list[Decile]:
    return [
        Decile(
            low=float(rows["score"].min()),
            high=float(rows["score"].max()),
            attempts=len(rows),
            success=_weighed(rows, "has_succeeded")[0],
            quality=_weighed(rows, "quality")[0] if rows["quality"].notna().any() else None,
        )
        for rows in _by_decile(outcomes)
    ]


def _weighed(rows: pd.DataFrame, measure: str) -> tuple[float, float, float]:
    """Mean of a measure where it is known, the mean's variance, and the attempts that it is worth."""
    known = rows[[measure, "weight"]].dropna().to_numpy(dtype=np.float64)
    numbers, weights = known[:, 0], known[:, 1]
    n = float(weights.sum())
    if not n:
        return math.nan, math.nan, 0.0
    mean = float(numbers @ weights / n)
    return mean, float((numbers - mean) ** 2 @ weights / n / max(n - 1, 1)), n


def _by_decile(outcomes: pd.DataFrame) -> list[pd.DataFrame]:
    if outcomes.empty:
        return []
    bins = pd.qcut(outcomes["score"], 10, labels=False, duplicates="drop")
    return [rows for _, rows in outcomes.groupby(bins.fillna(0), sort=True)]


def _falls(outcomes: pd.DataFrame) -> list[str]:
    """Measures of which some decile is below the one before it by more than chance gives any of the nine steps."""
    deciles = _by_decile(outcomes)
    found = []
    for measure in ("has_succeeded", "quality"):
        told = [_weighed(rows, measure) for rows in deciles]
        moments = [(mean, variance) for mean, variance, n in told if n >= FEWEST_IN_A_DECILE]
        z = stats.norm.isf(0.05 / max(len(moments) - 1, 1))
        steps = pairwise(moments)
        if any(after - before < -z * math.sqrt(a + b) for (before, a), (after, b) in steps):
            found.append(_NAMES[measure])
    return found


_NAMES = {"has_succeeded": "success", "quality": "quality"}


def _correlations(outcomes: pd.DataFrame) -> list[RankCorrelation]:
    """Intervals by Fisher's z with the variance (1 + r^2 / 2) / (n - 3) (Bonett, Wright, Psychometrika, 2000, 23).

    n is what the attempts are worth, each weighed by its age.
    """
    found = []
    for measure, name in _NAMES.items():
        known = outcomes[["score", measure, "weight"]].dropna().astype(float)
        numbers, n = known[["score", measure]], float(known["weight"].sum())
        if n < 10 or (numbers.nunique() < 2).any():
            continue
        spread = np.cov(numbers.rank().to_numpy().T, aweights=known["weight"])
        r = float(spread[0, 1] / math.sqrt(spread[0, 0] * spread[1, 1]))
        reach = stats.norm.isf((1 - _SURE) / 2) * math.sqrt((1 + r**2 / 2) / (n - 3))
        z = math.atanh(min(max(r, -0.999999), 0.999999))
        found.append(
            RankCorrelation(
                measure=name,
                attempts=len(known),
                value=r,
                low=math.tanh(z - reach),
                high=math.tanh(z + reach),
            )
        )
    return found


def _proposals(scored: pd.DataFrame, scoring: ScoringConfig) -> list[Proposal]:
    """Each weight by ridge regression of the corrections' logarithm: score = (base + bonus) x domain x risk.

    A weight of the sum moves the score by its share of the sum; the bonus has an effect of its own, so that it is not
    laid to the priority. The ridge is the prior that a weight is off by about `_PRIOR`; what the corrections cannot
    tell apart, such as all priorities being too low and all domains, it shares out evenly.
    """
    corrections = float(scored["corrections"].sum())
    if corrections < FEWEST_CORRECTIONS:
        return []
    keys = _weights(scoring)
    effects = _effects(scored, keys)
    tasks, weight = (scored[name].to_numpy(dtype=np.float64) for name in ("tasks", "weight"))
    pull = scored["log_ratio"].to_numpy(dtype=np.float64)
    squares = float(scored["squares"].sum())
    noise = max(squares / weight.sum(), 1e-6)
    precision = effects.T @ (effects * weight[:, None]) / noise + np.eye(effects.shape[1]) / _PRIOR**2
    covariance = np.linalg.inv(precision)
    shift = covariance @ (effects.T @ pull) / noise
    reach = stats.norm.isf((1 - _SURE) / 2) * np.sqrt(np.diag(covariance))
    took_part = (effects != 0).T.astype(float) @ tasks
    return [
        Proposal(
            key=key,
            in_force=before,
            proposed=before * math.exp(shift[place]),
            low=before * math.exp(shift[place] - reach[place]),
            high=before * math.exp(shift[place] + reach[place]),
            tasks=int(took_part[place]),
            needs_approval=key.startswith("risks."),
        )
        for place, (key, before) in enumerate(keys.items())
        if took_part[place]
    ]


def _weights(scoring: ScoringConfig) -> dict[str, float]:
    """Every weight that corrections can speak of, by dotted key."""
    return {
        **{_priority(name): scoring.priority_points[name] for name in PRIORITIES},
        **{_domain(domain): scoring.domains.rules[domain].factor for domain in Domain},
        **{_risk(risk): scoring.risks.rules[risk].factor for risk in Risk},
    }


def _priority(name: str) -> str:
    return f"priority_points.{name}"


def _domain(domain: Domain) -> str:
    return f"domains.rules.{domain.value}.factor"


def _risk(risk: Risk) -> str:
    return f"risks.rules.{risk.value}.factor"


def _effects(scored: pd.DataFrame, keys: Mapping[str, float]) -> Doubles:
    """How much the logarithm of a score moves with that of each weight, and last with that of its bonus."""
    base, bonus = (scored[name].to_numpy(dtype=np.float64) for name in ("base", "time_bonus"))
    of_base = base / np.maximum(base + bonus, 1e-9)
    columns = {
        **{
            _priority(name): (scored["priority"].to_numpy() == place) * of_base
            for place, name in enumerate(PRIORITIES)
        },
        **{_domain(domain): scored["domain"].to_numpy() == domain.value for domain in Domain},
        **{_risk(risk): scored["risk"].to_numpy() == risk.value for risk in Risk},
    }
    return np.column_stack([*(columns[key] for key in keys), 1 - of_base]).astype(np.float64)


def _moves(
    proposals: Sequence[Proposal],
    scoring: ScoringConfig,
    max_change: float,
    approved_risks: Mapping[Risk, float],
) -> dict[str, float]:
    """What may be put in force; numbers that stay are left out."""
    by_key = {proposal.key: proposal for proposal in proposals}
    before = _weights(scoring)
    moved = {
        **_priorities(by_key, before, max_change),
        **{
            key: cap(before[key], by_key[key].proposed, max_change)
            for key in map(_domain, Domain)
            if key in by_key
        },
        **_approved(by_key, before, max_change, approved_risks),
    }
    return {
        key: number for key, number in moved.items() if not math.isclose(number, before[key], rel_tol=1e-6)
    }


def _priorities(
    by_key: Mapping[str, Proposal], before: Mapping[str, float], max_change: float
) -> dict[str, float]:
    keys = [_priority(name) for name in reversed(PRIORITIES)]
    if not by_key.keys() & set(keys):
        return {}
    after = [by_key[key].proposed if key in by_key else before[key] for key in keys]
    weights = [float(by_key[key].tasks) if key in by_key else 1.0 for key in keys]
    return dict(
        zip(
            keys, cap_in_order([before[key] for key in keys], after, max_change, weights=weights), strict=True
        )
    )


def _approved(
    by_key: Mapping[str, Proposal],
    before: Mapping[str, float],
    max_change: float,
    approved_risks: Mapping[Risk, float],
) -> dict[str, float]:
    """Risk factors on their way to what corrections say, as far as a person allowed; none if they lost their order."""
    after = {_risk(risk): before[_risk(risk)] for risk in Risk}
    for risk, allowed in approved_risks.items():
        key = _risk(risk)
        if key in by_key:
            low, high = sorted((before[key], allowed))
            after[key] = cap(before[key], min(max(by_key[key].proposed, low), high), max_change)
    falling = list(after.values())
    return after if all(higher > lower for higher, lower in pairwise(falling)) else {}
