"""How good the work was: 0 to 10, from evidence."""

from __future__ import annotations

from cp_core.execution.evidence import Evidence

BEST = 10.0
UNTESTED = 7.0
"""Work that ran no test and that nobody reviewed: accepted at the usual bar, never praised."""
BUG_POINTS = 2.0
REVISION_POINTS = 1.0


def quality_score(evidence: Evidence | None) -> float:
    """Quality of an answer, 0 to 10.

    Without evidence it is 0: nothing shows that the work was done. So it is when the answer has not the form
    that was asked for: nobody can use it. Otherwise

        min(10 x (passed / (passed + failed))^2, review score)  - 2 x bugs introduced  - 1 x revisions needed

    kept within 0 and 10. Without a review the first term is that of the tests alone; when no test ran it is
    the review score, or 7 without one. The share is squared so that a change that breaks a quarter of its
    tests (5.6) is not good enough at the usual bar of 6. Of tests and review the worse one counts: no
    reviewer's praise makes up for tests that fail, and no passing test for work that a reviewer turns down.

    A further failed test, bug or revision never raises the score; a further passed test, or a higher review
    score, never lowers it.
    """
    if evidence is None or not evidence.schema_valid:
        return 0.0
    return min(BEST, max(0.0, _points(evidence) - _deductions(evidence)))


def _points(evidence: Evidence) -> float:
    ran = evidence.tests_passed + evidence.tests_failed
    judged = [] if evidence.review_score is None else [evidence.review_score]
    if ran:
        judged.append(BEST * (evidence.tests_passed / ran) ** 2)
    return min(judged, default=UNTESTED)


def _deductions(evidence: Evidence) -> float:
    return BUG_POINTS * evidence.bugs_introduced + REVISION_POINTS * evidence.revisions_needed
