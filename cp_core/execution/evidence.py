"""What an answer reports about itself: the JSON object in its last fenced `evidence` block."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]

FENCE = "```"
OPENING = FENCE + "evidence"
BLOCK_LIMIT = 10_000
"""Most characters of an evidence block; a longer one is not evidence."""


class Evidence(BaseModel):
    """Counts about finished work. Other keys are ignored: models like to add notes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tests_passed: Count
    tests_failed: Count
    bugs_introduced: Count
    revisions_needed: Count


def parse_evidence(answer: str) -> Evidence | None:
    """The evidence of an answer, or None when it has no block, or one that does not hold the four counts."""
    start = answer.rfind(OPENING)
    if start < 0:
        return None
    block = answer[start + len(OPENING) :].split(FENCE, 1)[0]
    if len(block) > BLOCK_LIMIT:
        return None
    try:
        return Evidence.model_validate(json.loads(block))
    except (ValueError, ValidationError, RecursionError):
        return None


def evidence_record(evidence: Evidence | None) -> dict[str, Any]:
    """What is stored beside the quality: the counts, whether they could be read, and who reported them."""
    counts = evidence.model_dump() if evidence else {}
    return {"source": "worker-reported", "schema_valid": evidence is not None, **counts}
