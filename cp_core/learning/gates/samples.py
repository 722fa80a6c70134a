"""Gates on what the evidence is made of: whether there is enough of it, all of it, and in the shares intended."""

from __future__ import annotations

import math

from cp_core.learning.corrections import weights_of
from cp_core.learning.gates.evidence import Evidence, Finding

_MOST_DEVIATIONS = 4.0  # of explored decisions from what chance gives; beyond is one in 16,000


def outcomes_are_complete(evidence: Evidence) -> Finding:
    """Late and cut-off work is not like the rest: with much of it missing, what is there misleads."""
    policy, later = evidence.policy, evidence.later
    open_share = 1 - evidence.ended / evidence.decided if evidence.decided else 0.0
    censored = float(later["is_censored"].mean()) if len(later) else 0.0
    passed = open_share <= policy.max_open_share and censored <= policy.max_censored_share
    return Finding(
        passed,
        f"{evidence.ended:,} of {evidence.decided:,} decided tasks have ended ({open_share:.1%} open, at most "
        f"{policy.max_open_share:.0%}); {censored:.1%} of attempts were cut off (at most "
        f"{policy.max_censored_share:.0%})",
        {"open_share": open_share, "censored_share": censored},
    )


def enough_outcomes(evidence: Evidence) -> Finding:
    """Kish's effective sample size of what was learned from, weighed by age, and the count it is judged by."""
    weights = weights_of(evidence.earlier)
    squares = float(weights @ weights)
    effective = float(weights.sum()) ** 2 / squares if squares else 0.0
    judged = len(evidence.later)
    least = evidence.policy.min_effective_n
    return Finding(
        min(effective, judged) >= least,
        f"learned from {effective:,.0f} outcomes, weighed by age, and judged by {judged:,}; {least:,.0f} of each are "
        "needed",
        {"effective_n": effective, "judged": judged},
    )


def sample_ratio(evidence: Evidence) -> Finding:
    """Exploration draws by known probabilities; when it drew otherwise, propensities mean nothing."""
    if evidence.unbalanced:
        names = ", ".join(sorted(evidence.unbalanced))
        return Finding(
            False,
            f"arms did not get the shares of tasks they were to get in {names}",
            {"p_values": dict(evidence.unbalanced)},
        )
    selections = evidence.selections
    if selections is None or selections.empty:
        return Finding(True, "no experiment is out of balance, and no decision was drawn")
    leaves = 1 - selections["kept_probability"].to_numpy(dtype=float)
    expected, drawn = float(leaves.sum()), int(selections["explored"].sum())
    deviation = math.sqrt(float((leaves * (1 - leaves)).sum()))
    off = abs(drawn - expected) / deviation if deviation else 0.0
    return Finding(
        off <= _MOST_DEVIATIONS,
        f"{drawn:,} of {len(selections):,} decisions explored, {expected:,.1f} were to be expected",
        {"explored": drawn, "expected": expected, "deviations": off},
    )
