"""Gates on what the candidate would select: that it is worth no less, and in no domain fails, costs or takes more.

Evidence is one row a decision that prices settled, made again at the same prices with the candidate's predictions,
among the plans that exploration could have drawn: of other plans the log says nothing.
"""

from __future__ import annotations

import numpy as np

from cp_core.learning.gates.evidence import Evidence, Finding
from cp_core.learning.offpolicy import doubly_robust, studentised_interval

COLUMNS = (
    "domain",
    "reward",
    "propensity",
    "target",
    "predicted",
    "predicted_target",
    "kept_probability",
    "explored",
    "success_before",
    "success_after",
    "usd_before",
    "usd_after",
    "seconds_before",
    "seconds_after",
)
"""Of a frame of decisions: the task's domain; value delivered less the weight of money; probability of the decided
plan; whether the candidate would have decided it; the reward that what is in force expects of it, and of the
candidate's choice; the probability of not exploring, and whether it did; and, of the plan chosen without exploration
and of the candidate's, the chance of success, list price and time that the candidate expects."""

_FEWEST = 30  # decisions of a domain below which its figures are left to the others


def selection_is_no_worse(evidence: Evidence) -> Finding:
    """Doubly robust, and paired: the lower bound of the difference to what was earned, less a margin."""
    decisions, policy = evidence.selections, evidence.policy
    if decisions is None or not _touches_selection(evidence):
        return Finding(True, "what is selected does not follow from what changes")
    names = ("reward", "propensity", "target", "predicted", "predicted_target")
    reward, propensity, target, predicted, of_target = (
        decisions[name].to_numpy(dtype=np.float64) for name in names
    )
    alpha = 2 * (1 - policy.confidence)
    estimate = doubly_robust(
        reward, propensity, target, predicted, of_target, alpha=alpha, seed=evidence.seed
    )
    if estimate.refused is not None:
        return Finding(False, f"cannot tell: {estimate.refused}", {"ess": estimate.ess})
    gain = of_target + target / propensity * (reward - predicted) - reward
    low, high = studentised_interval(gain, alpha, evidence.seed)
    earned = float(reward.mean())
    margin = policy.selection_margin * abs(earned)
    return Finding(
        low >= -margin,
        f"its selection is worth {gain.mean():+.3f} a decision against {earned:.3f} earned, for certain between "
        f"{low:+.3f} and {high:+.3f}; {-margin:+.3f} is allowed",
        {"gain": float(gain.mean()), "low": low, "high": high, "earned": earned, "ess": estimate.ess},
    )


def guardrails(evidence: Evidence) -> Finding:
    """By domain, what the candidate expects of its own choices against what it expects of today's."""
    decisions, policy = evidence.selections, evidence.policy
    if decisions is None or decisions.empty:
        return Finding(True, "no choice that follows from predictions is there to change")
    broken, figures = [], {}
    for domain, rows in decisions.groupby("domain", observed=True):
        if len(rows) < _FEWEST:
            continue
        mean = rows[
            [f"{what}_{when}" for what in ("success", "usd", "seconds") for when in ("before", "after")]
        ].mean()
        rises = {
            "failure": (mean["success_before"] - mean["success_after"], policy.max_failure_rise),
            "cost": (mean["usd_after"] / max(mean["usd_before"], 1e-12) - 1, policy.max_cost_rise),
            "latency": (
                mean["seconds_after"] / max(mean["seconds_before"], 1e-12) - 1,
                policy.max_latency_rise,
            ),
        }
        figures[str(domain)] = {name: float(rise) for name, (rise, _) in rises.items()}
        broken += [
            f"{name} of {domain} would rise by {rise:.1%}, {most:.0%} is allowed"
            for name, (rise, most) in rises.items()
            if rise > most
        ]
    return Finding(not broken, "; ".join(broken) or "no domain gets worse than is allowed", figures)


def _touches_selection(evidence: Evidence) -> bool:
    return evidence.moves("success.") or evidence.moves("tokens.") or evidence.moves("scoring.")
