"""Decisions made again with a candidate's predictions, at the prices they were made at: evidence for gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cp_core.assignment.market import Catalogue
from cp_core.assignment.replay import StoredRound, plans_at_prices
from cp_core.assignment.strategies import Strategy
from cp_core.learning.gates.selection import COLUMNS
from cp_core.learning.traits_seen import TraitsSeen


@dataclass(frozen=True)
class Settled:
    """A decision that exploration could have drawn otherwise, and what came of it.

    Attributes:
        task: its id.
        explanation: as stored, with the probability of each plan that could have been drawn.
        delivered: value of the task if it ended well, else 0.
        paid_usd: list price of all its attempts.
    """

    task: int
    explanation: Mapping[str, Any]
    propensity: float
    delivered: float
    paid_usd: float


@dataclass(frozen=True)
class Judge:
    """A configuration that decisions are made again with.

    Attributes:
        strategy: that it selects by.
        seen: what its trait model sees in tasks; None where it does not look at texts.
    """

    catalogue: Catalogue
    strategy: Strategy
    seen: TraitsSeen | None = None

    def prices(self, stored: StoredRound) -> StoredRound:
        """A round as if it had selected by the same strategy."""
        return replace(stored, strategy=self.strategy)

    def facts(self, decisions: Sequence[Settled]) -> list[dict[str, Any]]:
        """What it would have known of each task: traits are its own trait model's, whatever was stored."""
        if self.seen is None:
            return [{**one.explanation, "traits": None} for one in decisions]
        places = self.seen.places(pd.Series([one.task for one in decisions], dtype=np.int64))
        return [
            {**one.explanation, "traits": None if place < 0 else self.seen.traits[place]}
            for one, place in zip(decisions, places.tolist(), strict=True)
        ]


def selections_of(
    rounds: Sequence[tuple[StoredRound, Sequence[Settled]]],
    now: Judge,
    then: Judge,
    points_per_usd: float,
) -> pd.DataFrame:
    """What the candidate would have selected of the plans that could have been drawn.

    Args:
        now, then: what is in force and the candidate, over the same plans: which plans are best, and so in a catalogue
            of its own, may differ between them.
        points_per_usd: weight of money in the reward.

    Returns:
        A row a decision, with columns `gates.selection.COLUMNS`; without decisions about options that no longer exist.
    """
    frames = [_of_round(stored, decisions, now, then, points_per_usd) for stored, decisions in rounds]
    return pd.concat([pd.DataFrame(columns=list(COLUMNS)), *frames], ignore_index=True)


def _of_round(
    stored: StoredRound, decisions: Sequence[Settled], now: Judge, then: Judge, points_per_usd: float
) -> pd.DataFrame:
    place = {label: row for row, label in enumerate(now.catalogue.labels)}
    known = [one for one in decisions if _is_known(one, place, now.catalogue)]
    if not known:
        return pd.DataFrame(columns=list(COLUMNS))
    (outlook_now, _), (outlook_then, net) = (
        plans_at_prices(judge.facts(known), judge.catalogue, judge.prices(stored)) for judge in (now, then)
    )
    rows = []
    for task, one in enumerate(known):
        drawable = {place[label]: float(p) for label, p in one.explanation["probabilities"].items()}
        kept = max(drawable, key=lambda plan: drawable[plan])
        decided = place[one.explanation["plan"]["plan"]]
        chosen = max(drawable, key=lambda plan: (net[plan, task], plan == kept))
        value = float(one.explanation["value_score"])
        reward = [
            value * float(outlook_now.success[plan, task])
            - points_per_usd * float(outlook_now.list_usd[plan, task])
            for plan in (decided, chosen)
        ]
        rows.append(
            {
                "domain": one.explanation["domain"],
                "reward": one.delivered - points_per_usd * one.paid_usd,
                "propensity": one.propensity,
                "target": float(chosen == decided),
                "predicted": reward[0],
                "predicted_target": reward[1],
                "kept_probability": drawable[kept],
                "explored": decided != kept,
                "success_before": outlook_then.success[kept, task],
                "success_after": outlook_then.success[chosen, task],
                "usd_before": outlook_then.list_usd[kept, task],
                "usd_after": outlook_then.list_usd[chosen, task],
                "seconds_before": outlook_then.seconds[kept, task],
                "seconds_after": outlook_then.seconds[chosen, task],
            }
        )
    return pd.DataFrame(rows).astype({"reward": np.float64, "target": np.float64})


def _is_known(one: Settled, place: Mapping[str, int], catalogue: Catalogue) -> bool:
    """Whether every plan and option that the decision speaks of still exists."""
    options = {f"{option.model.name} ({option.funding.name})" for option in catalogue.options}
    explanation = one.explanation
    plans = [*explanation.get("probabilities", {}), explanation.get("plan", {}).get("plan", "")]
    excluded = [label for labels in explanation.get("excluded", {}).values() for label in labels]
    return (
        bool(explanation.get("probabilities"))
        and all(plan in place for plan in plans)
        and options.issuperset(excluded)
    )
