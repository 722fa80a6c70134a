"""Evidence that arrives after an attempt: what one report may say, and what stands once all have spoken.

Evidence has five parts: the tests, the bugs, the revisions, the review, and whether the answer has the form that
was asked for. Of each part the newest independent report counts (CI, a person), and only where there is none,
the newest that the worker made itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cp_core.execution.evidence import Count, Evidence, Source
from cp_core.execution.quality import quality_score
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import TaskState

NOTE_LIMIT = 2000
"""Most characters of a reviewer's note."""

PARTS: dict[str, tuple[str, ...]] = {
    "tests": ("tests_passed", "tests_failed"),
    "bugs": ("bugs_introduced",),
    "revisions": ("revisions_needed",),
    "review": ("review_score", "review_note"),
    "schema": ("schema_valid",),
}
"""The parts of evidence, each taken from one report as a whole. The first field of a part says if it is there."""


class Report(BaseModel):
    """What one source says of finished work. What is None was not looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: Source
    tests_passed: Count | None = None
    tests_failed: Count | None = None
    bugs_introduced: Count | None = None
    revisions_needed: Count | None = None
    review_score: Annotated[float, Field(ge=0, le=10)] | None = None
    review_note: Annotated[str, Field(max_length=NOTE_LIMIT)] | None = None
    schema_valid: bool | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.tests_passed is None) != (self.tests_failed is None):
            raise ValueError(
                "tests passed and tests failed belong together: give both, 0 where there are none"
            )
        if self.review_note is not None and self.review_score is None:
            raise ValueError("a review note explains a review score: give the score with it")
        if not any(self.says(part) for part in PARTS):
            raise ValueError(
                "nothing is reported: give tests passed and failed, bugs introduced, revisions needed, a "
                "review score, or whether the answer has the form that was asked for"
            )
        return self

    def says(self, part: str) -> bool:
        """Whether it has this part of the evidence."""
        return getattr(self, PARTS[part][0]) is not None

    @property
    def is_independent(self) -> bool:
        """Whether somebody other than the worker says so."""
        return self.source is not Source.WORKER


@dataclass(frozen=True, slots=True)
class Standing:
    """What all reports together come to.

    Attributes:
        quality: 0 to 10.
        record: what is stored beside it: the fields that stand, who said each part, and whose word is the
            weightiest (`source`).
    """

    quality: float
    record: Mapping[str, Any]


def worker_report(record: Mapping[str, Any] | None) -> Report | None:
    """The worker's own report out of the evidence that was stored with its attempt; None when it made none.

    An answer whose evidence could not be read says nothing about the work, good or bad.
    """
    if not record or not record.get("schema_valid"):
        return None
    fields = {name: record[name] for names in PARTS.values() for name in names if name in record}
    return Report(source=Source.WORKER, **fields)


def standing(reports: Sequence[Report]) -> Standing:
    """What stands after `reports`, oldest first, the worker's own among them."""
    chosen = {part: report for part in PARTS if (report := _newest(reports, part))}
    fields = {
        name: getattr(report, name)
        for part, report in chosen.items()
        for name in PARTS[part]
        if getattr(report, name) is not None
    }
    record = {
        "source": str(_weightiest(list(chosen.values()))),
        **fields,
        "sources": {part: str(report.source) for part, report in chosen.items()},
    }
    return Standing(quality_score(_evidence(fields)), record)


def verdict_after(
    state: TaskState, reason: str | None, quality: float, success_quality: float
) -> tuple[TaskState, Reason | None] | None:
    """Where later evidence moves a task that its work ended, and why; None when it stays.

    Args:
        state: of the task.
        reason: why its last attempt failed, None when that succeeded.
        quality: what the evidence now comes to.
        success_quality: the bar, 0 to 10.
    """
    is_good = quality >= success_quality
    if state is TaskState.SUCCEEDED and reason is None and not is_good:
        return TaskState.FAILED, Reason.LOW_QUALITY
    if state is TaskState.FAILED and reason == Reason.LOW_QUALITY and is_good:
        return TaskState.SUCCEEDED, None
    return None


def _newest(reports: Sequence[Report], part: str) -> Report | None:
    having = [report for report in reports if report.says(part)]
    independent = [report for report in having if report.is_independent]
    return next(reversed(independent or having), None)


def _weightiest(chosen: Sequence[Report]) -> Source:
    return next((report.source for report in chosen if report.is_independent), Source.WORKER)


def _evidence(fields: Mapping[str, Any]) -> Evidence | None:
    """Evidence for the formula; None when nothing shows that the work was done.

    Tests, a review or an answer in the right form show it. A count of bugs alone does not.
    """
    counts = {name: fields.get(name, 0) for names in list(PARTS.values())[:3] for name in names}
    has_tests = counts["tests_passed"] + counts["tests_failed"] > 0
    if not has_tests and "review_score" not in fields and "schema_valid" not in fields:
        return None
    return Evidence(
        **counts,
        review_score=fields.get("review_score"),
        schema_valid=fields.get("schema_valid", True),
    )
