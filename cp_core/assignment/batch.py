"""The tasks of one round against everything they may be given: the arrays that a strategy works on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.capacity import Capacity
from cp_core.assignment.eligibility import (
    Eligibility,
    context_allowed,
    context_needed,
    eligibility,
    standing_reasons,
)
from cp_core.assignment.options import Options
from cp_core.assignment.policy import AssignmentPolicy, Band, relaxed
from cp_core.assignment.predict import Columns
from cp_core.models.registry import Tier
from cp_core.tasks.reasons import Reason

NOT_ALLOWED = len(Tier)
"""The position of a tier that a band does not name: after all those it does."""


@dataclass(frozen=True, slots=True)
class Batch:
    """n tasks and m options.

    Attributes:
        tasks: the tasks by falling value score (ties: earlier deadline, then lower id), renumbered from 0: a DataFrame,
            or a mapping of arrays for a task that is decided alone.
        records: the same, a mapping of columns for each task.
        standing: why a task is not to be decided now: n of `Reason` or None.
        bands: n, the band of each task.
        tier_position: (n, m), where the option's tier stands among those of the task's band.
        capability: (n, m), 0 to 1.
        list_price: (n, m), nanodollars.
        need: (n, m), what the option reserves in each of its accounts, in smallest units.
        most: (m,), the most one task can ever draw on the option's funding, in smallest units.
        context_needed: n, tokens that a context window must hold.
        context_allowed: m, tokens of the option's context window that a task may fill.
        eligible: which pairs are ruled out, and why.
    """

    tasks: pd.DataFrame
    records: Sequence[dict[str, Any]]
    options: Options
    policy: AssignmentPolicy
    now: datetime
    standing: Sequence[Reason | None]
    bands: Sequence[Band]
    tier_position: NDArray[np.int64]
    capability: NDArray[np.float64]
    list_price: NDArray[np.int64]
    need: NDArray[np.int64]
    most: NDArray[np.int64]
    context_needed: NDArray[np.float64]
    context_allowed: NDArray[np.float64]
    eligible: Eligibility


def prepare(
    tasks: pd.DataFrame,
    options: Options,
    capacity: Capacity,
    policy: AssignmentPolicy,
    *,
    now: datetime,
    open_breakers: Collection[str] = (),
) -> Batch:
    """Set a round up. For the columns of `tasks` see `tiered.assign_tiered`.

    Raises:
        LookupError: an option names an account that `capacity` does not have.
    """
    tasks = _in_value_order(tasks)
    return lay_out(tasks, _records(tasks), options, capacity, policy, now=now, open_breakers=open_breakers)


def lay_out(
    tasks: Columns,
    records: Sequence[dict[str, Any]],
    options: Options,
    capacity: Capacity,
    policy: AssignmentPolicy,
    *,
    now: datetime,
    open_breakers: Collection[str] = (),
) -> Batch:
    """Set a round up whose tasks are in order already; a single task comes fastest as a mapping of arrays.

    Args:
        records: the same tasks, a mapping of columns for each.
    """
    bands, numbers = _bands(tasks, policy)
    if len(numbers) == 1:
        bands, numbers = [bands[numbers[0]]], np.zeros(1, dtype=np.intp)
    tier_position = _tier_positions(bands)[numbers][:, options.tier]
    capability = options.capability(tasks["domain"])
    list_price = options.list_price(tasks)
    need = options.need(tasks, list_price)
    fundings = {option.funding.name: option.funding for option in options}
    limits = {name: capacity.limit(funding) for name, funding in fundings.items()}
    most = np.array([limits[option.funding.name] for option in options], dtype=np.int64)
    needed, allowed = context_needed(tasks), context_allowed(options, policy)
    return Batch(
        tasks=cast("pd.DataFrame", tasks),
        records=records,
        options=options,
        policy=policy,
        now=now,
        standing=standing_reasons(tasks, policy, now).tolist(),
        bands=[bands[number] for number in numbers],
        tier_position=tier_position,
        capability=capability,
        list_price=list_price,
        need=need,
        most=most,
        context_needed=needed,
        context_allowed=allowed,
        eligible=eligibility(
            tasks,
            options,
            tier_position < NOT_ALLOWED,
            capability=capability,
            need=need,
            most=most,
            context_needed=needed,
            context_allowed=allowed,
            policy=policy,
            now=now,
            open_breakers=open_breakers,
        ),
    )


def _records(tasks: pd.DataFrame) -> list[dict[str, Any]]:
    """A mapping of columns for each row: what `DataFrame.to_dict` gives, several times faster."""
    names = [str(name) for name in tasks.columns]
    columns = [tasks[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _in_value_order(tasks: pd.DataFrame) -> pd.DataFrame:
    return tasks.assign(deadline=pd.to_datetime(tasks["deadline"], utc=True)).sort_values(
        ["value_score", "deadline", "task"],
        ascending=[False, True, True],
        na_position="last",
        ignore_index=True,
    )


def _bands(tasks: Columns, policy: AssignmentPolicy) -> tuple[Sequence[Band], NDArray[np.intp]]:
    """The bands of the policy, then of the policy relaxed as far as any task asks for, and each task's among them."""
    numbers = _band_numbers(tasks["value_score"], policy.bands)
    if "tiers_either_side" not in tasks:
        return policy.bands, numbers
    either_side = np.asarray(tasks["tiers_either_side"], dtype=np.intp)
    steps = range(1, int(either_side.max(initial=0)) + 1)
    every = [*policy.bands, *(band for step in steps for band in relaxed(policy, step).bands)]
    return every, numbers + either_side * len(policy.bands)


def _band_numbers(scores: pd.Series | NDArray[np.float64], bands: Sequence[Band]) -> NDArray[np.intp]:
    """Which band each score falls into: the first whose `at_least` it reaches."""
    rising = np.array([band.at_least for band in reversed(bands)])
    return len(bands) - np.searchsorted(rising, np.asarray(scores, dtype=np.float64), side="right")


def _tier_positions(bands: Sequence[Band]) -> NDArray[np.int64]:
    """Position of each tier (columns, by rank) in each band (rows)."""
    return np.array(
        [[band.tiers.index(tier) if tier in band.tiers else NOT_ALLOWED for tier in Tier] for band in bands],
        dtype=np.int64,
    )
