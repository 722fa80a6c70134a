"""How good the work was: 0 to 10, from evidence."""

from __future__ import annotations

from cp_core.execution.evidence import Evidence

BEST = 10.0
UNTESTED = 7.0
"""Work that ran no test: accepted at the usual bar, never praised."""
BUG_POINTS = 2.0
REVISION_POINTS = 1.0


def quality_score(evidence: Evidence | None) -> float:
    """Quality of an answer, 0 to 10.

    Without readable evidence it is 0: nothing shows that the work was done. Otherwise

        10 x (passed / (passed + failed))^2  - 2 x bugs introduced  - 1 x revisions needed

    kept within 0 and 10, with 7 in place of the first term when no test ran. The share is squared so that a
    change that breaks a quarter of its tests (5.6) is not good enough at the usual bar of 6. A further failed
    test, bug or revision never raises the score; a further passed test never lowers it.
    """
    if evidence is None:
        return 0.0
    return min(BEST, max(0.0, _test_points(evidence) - _deductions(evidence)))


def _test_points(evidence: Evidence) -> float:
    ran = evidence.tests_passed + evidence.tests_failed
    return BEST * (evidence.tests_passed / ran) ** 2 if ran else UNTESTED


def _deductions(evidence: Evidence) -> float:
    return BUG_POINTS * evidence.bugs_introduced + REVISION_POINTS * evidence.revisions_needed
