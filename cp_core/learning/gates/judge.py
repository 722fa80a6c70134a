"""All gates together: the table of them, and a candidate judged by each."""

from __future__ import annotations

from collections.abc import Callable

from cp_core.learning.gates.changes import change_caps, something_changed
from cp_core.learning.gates.coverage import intervals_cover
from cp_core.learning.gates.evidence import Evidence, Finding
from cp_core.learning.gates.holdout import forward_holdout
from cp_core.learning.gates.placebo import placebo
from cp_core.learning.gates.samples import enough_outcomes, outcomes_are_complete, sample_ratio
from cp_core.learning.gates.selection import guardrails, selection_is_no_worse
from cp_core.learning.gates.verdict import Verdict

GATES: dict[str, Callable[[Evidence], Finding]] = {
    "something_changed": something_changed,
    "outcomes_are_complete": outcomes_are_complete,
    "sample_ratio": sample_ratio,
    "enough_outcomes": enough_outcomes,
    "forward_holdout": forward_holdout,
    "selection_is_no_worse": selection_is_no_worse,
    "intervals_cover": intervals_cover,
    "guardrails": guardrails,
    "change_caps": change_caps,
    "placebo": placebo,
}


def judge(evidence: Evidence, against: str) -> list[Verdict]:
    """Judge a candidate by every gate.

    Args:
        against: content hash of what is in force.
    """
    found = ((gate, ask(evidence)) for gate, ask in GATES.items())
    return [
        Verdict(gate=gate, has_passed=each.has_passed, against=against, says=each.says, evidence=each.figures)
        for gate, each in found
    ]
