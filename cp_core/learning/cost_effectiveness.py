"""What money and quota bought: value per dollar, what lapsed, what escalation saved, what more quota is worth."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

SAME_SUCCESS = 0.01
"""A single model whose success is at most this much lower counts as as good as a plan."""

FEWEST_TASKS = 20
"""First attempts from which a model can stand as the alternative to a plan."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bought(_Document):
    """What the attempts of a model at the tasks of a band came to.

    Attributes:
        band: lowest value score of the band.
        value: scores of the tasks done.
        usd: list price of all attempts, failures too.
        value_per_usd: None where nothing was paid.
    """

    model: str
    band: float
    attempts: int
    succeeded: int
    value: float
    usd: float
    value_per_usd: float | None


class Utilisation(_Document):
    """What became of an account's quota; in its unit, tokens or USD.

    Attributes:
        unused: share of what was granted that lapsed; None where no window was granted.
    """

    account: str
    unit: str
    granted: float
    used: float
    lapsed: float
    unused: float | None


class Escalation(_Document):
    """Plans of several stages against the best single model, at tasks of one complexity.

    Attributes:
        success, usd_per_task: of the plans, all of their attempts together.
        alternative: the cheapest model that succeeds as often on its first attempt, or, where none does, the most
            successful one, whose success is then `alternative_success`.
        saved_usd: what the plans' tasks cost less than they would have with it; negative where they cost more.
    """

    complexity: str
    tasks: int
    success: float
    usd_per_task: float
    alternative: str
    alternative_success: float
    alternative_usd_per_task: float
    saved_usd: float


class Price(_Document):
    """What one more dollar, or a million more tokens, of an account was worth on a day: value points."""

    account: str
    day: date
    value: float


class CostEffectiveness(_Document):
    """What cost_effectiveness found on a day."""

    bought: tuple[Bought, ...] = ()
    utilisation: tuple[Utilisation, ...] = ()
    escalation: tuple[Escalation, ...] = ()
    prices: tuple[Price, ...] = ()

    @property
    def saved_usd(self) -> float:
        """What escalation saved over all complexities."""
        return sum(each.saved_usd for each in self.escalation)


def bought_by_band(attempts: pd.DataFrame, bands: Sequence[float]) -> tuple[Bought, ...]:
    """Value per dollar by model and band.

    Args:
        attempts: one row an attempt with model, score (0..100), has_succeeded and cost_usd.
        bands: lowest scores of the bands, one of them 0.
    """
    edges = np.sort(np.asarray(bands, dtype=np.float64))
    place = np.searchsorted(edges, attempts["score"].to_numpy(dtype=np.float64), side="right") - 1
    frame = pd.DataFrame(
        {
            "model": attempts["model"].to_numpy(),
            "band": edges[place],
            "succeeded": attempts["has_succeeded"].to_numpy(dtype=np.int64),
            "value": attempts["score"].where(attempts["has_succeeded"], 0.0).to_numpy(dtype=np.float64),
            "usd": attempts["cost_usd"].to_numpy(dtype=np.float64),
        }
    )
    summed = frame.groupby(["model", "band"], sort=True).agg(
        attempts=("usd", "size"), succeeded=("succeeded", "sum"), value=("value", "sum"), usd=("usd", "sum")
    )
    ratio = summed["value"] / summed["usd"].where(summed["usd"] > 0)
    rows = summed.assign(value_per_usd=ratio.astype(object).where(ratio.notna(), None)).reset_index()
    return tuple(Bought.model_validate(row) for row in rows.to_dict("records"))


def utilisation(account: str, unit: str, *, granted: float, used: float, lapsed: float) -> Utilisation:
    """What became of the quota of one account."""
    return Utilisation(
        account=account,
        unit=unit,
        granted=granted,
        used=used,
        lapsed=lapsed,
        unused=lapsed / granted if granted > 0 else None,
    )


def escalation_savings(attempts: pd.DataFrame) -> tuple[Escalation, ...]:
    """What plans of several stages cost against the best single model, complexity by complexity.

    Args:
        attempts: one row an attempt with task, model, complexity, stage (from 0), plan_stages (of its decision),
            has_succeeded and cost_usd.

    A single model is judged by its attempts as first stage of any plan, which are made before anything is known of
    how the task goes.
    """
    found = []
    for complexity, rows in attempts.groupby("complexity", observed=True, sort=True):
        planned = rows[rows["plan_stages"] > 1]
        first = rows[rows["stage"] == 0]
        alone = first.groupby("model", observed=True).agg(
            tasks=("task", "size"), success=("has_succeeded", "mean"), usd=("cost_usd", "mean")
        )
        alone = alone[alone["tasks"] >= FEWEST_TASKS]
        if planned.empty or alone.empty:
            continue
        tasks = planned.groupby("task").agg(won=("has_succeeded", "any"), usd=("cost_usd", "sum"))
        success, usd = float(tasks["won"].mean()), float(tasks["usd"].mean())
        as_good = alone[alone["success"] >= success - SAME_SUCCESS]
        best = str((as_good["usd"] if len(as_good) else -alone["success"]).idxmin())
        other = float(alone["usd"][best])
        found.append(
            Escalation(
                complexity=str(complexity),
                tasks=len(tasks),
                success=success,
                usd_per_task=usd,
                alternative=best,
                alternative_success=float(alone["success"][best]),
                alternative_usd_per_task=other,
                saved_usd=(other - usd) * len(tasks),
            )
        )
    return tuple(found)


def price_of(account: str, day: date, price: float) -> Price:
    """A solver's price of one unit as that of a dollar, or of a million tokens."""
    return Price(account=account, day=day, value=price if account.startswith("budget/") else price * 1e6)
