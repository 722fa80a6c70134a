"""What is known of finished work; first of all what an answer reports about itself, in its last `evidence` block."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Source(StrEnum):
    """Who says so. Everybody but the worker is independent of it, and counts before it."""

    WORKER = "worker-reported"
    CI = "ci"
    PERSON = "person"


Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]

FENCE = "```"
OPENING = FENCE + "evidence"
BLOCK_LIMIT = 10_000
"""Most characters of an evidence block; a longer one is not evidence."""


COUNTS = ("tests_passed", "tests_failed", "bugs_introduced", "revisions_needed")
"""What a worker reports about its own work."""


class Evidence(BaseModel):
    """What is known of finished work.

    Attributes:
        review_score: a reviewer's, 0 to 10; None without a review.
        schema_valid: the answer has the form that was asked for, as far as anybody looked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tests_passed: Count
    tests_failed: Count
    bugs_introduced: Count
    revisions_needed: Count
    review_score: Annotated[float, Field(ge=0, le=10)] | None = None
    schema_valid: bool = True


def parse_evidence(answer: str) -> Evidence | None:
    """The evidence of an answer, or None when it has no block, or one that does not hold the four counts."""
    start = answer.rfind(OPENING)
    if start < 0:
        return None
    block = answer[start + len(OPENING) :].split(FENCE, 1)[0]
    if len(block) > BLOCK_LIMIT:
        return None
    try:
        said = json.loads(block)
        # Other keys are left out: models like to add notes, and none reviews itself.
        return Evidence.model_validate({name: said[name] for name in COUNTS if name in said})
    except (ValueError, TypeError, ValidationError, RecursionError):
        return None


def evidence_record(evidence: Evidence | None) -> dict[str, Any]:
    """What is stored beside the quality: the counts, whether they could be read, and who reported them."""
    counts = evidence.model_dump(include=set(COUNTS)) if evidence else {}
    return {"source": str(Source.WORKER), "schema_valid": evidence is not None, **counts}
