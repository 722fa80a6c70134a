"""What a gate found of a candidate, and which gates a promotion needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

REQUIRED: dict[str, str] = {
    "something_changed": "The candidate differs from what is in force.",
    "outcomes_are_complete": "Almost all decided tasks of the judged days have ended, and few attempts were cut off.",
    "sample_ratio": "Exploration and experiments gave their arms the shares of tasks that they were to get.",
    "enough_outcomes": "There are enough judged outcomes, weighed by age, to say anything.",
    "forward_holdout": "On later days than it learned from, the candidate predicts better than what is in force.",
    "selection_is_no_worse": "What the candidate would select is worth no less than what is selected now.",
    "intervals_cover": "The 80 % intervals of tokens hold about 80 % of what was used.",
    "guardrails": "In no domain do failures, cost or latency get worse than is allowed.",
    "change_caps": "No number moves by more than one night may move it.",
    "placebo": "The same pipeline on shuffled outcomes does clearly worse.",
}
"""Every gate by name, and what must hold. A promotion needs a stored pass of each, bound to the very hash."""


class Verdict(BaseModel):
    """One gate's finding.

    Attributes:
        against: content hash of what was in force when it was judged.
        says: the finding in a sentence for somebody who was not there.
        evidence: the figures behind it, as JSON values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: str
    has_passed: bool
    against: str
    says: str
    evidence: Mapping[str, Any] = {}


def missing(verdicts: Mapping[str, Verdict], in_force: str) -> list[str]:
    """The required gates that have not passed against what is in force, or were never asked, each in a sentence.

    Args:
        verdicts: latest of each gate, of one version.
        in_force: content hash of the configuration that the version would replace.
    """
    found = []
    for gate in REQUIRED:
        verdict = verdicts.get(gate)
        if verdict is None:
            found.append(f"{gate}: not judged")
        elif not verdict.has_passed:
            found.append(f"{gate}: {verdict.says}")
        elif verdict.against != in_force:
            found.append(f"{gate}: judged against {verdict.against[:12]}, which is not what is in force now")
    return found
