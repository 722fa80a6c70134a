"""Quality from evidence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.evidence import Evidence
from cp_core.execution.quality import quality_score

COUNTS = ("tests_passed", "tests_failed", "bugs_introduced", "revisions_needed")
counts = st.integers(0, 1000)
evidences = st.builds(
    Evidence,
    **dict.fromkeys(COUNTS, counts),
    review_score=st.none() | st.floats(0, 10),
    schema_valid=st.booleans(),
)


@pytest.mark.parametrize(
    ("passed", "failed", "bugs", "revisions", "quality"),
    [
        (12, 0, 0, 0, 10.0),
        (9, 1, 0, 0, 8.1),  # 10 x 0.9^2
        (3, 1, 0, 0, 5.625),  # 10 x 0.75^2: a quarter of the tests failing is below the bar of 6
        (0, 4, 0, 0, 0.0),
        (0, 0, 0, 0, 7.0),
        (12, 0, 1, 0, 8.0),
        (12, 0, 0, 3, 7.0),
        (9, 1, 1, 2, 4.1),  # 8.1 - 2 - 2
        (12, 0, 9, 0, 0.0),
    ],
)
def test_quality_follows_the_formula(
    passed: int, failed: int, bugs: int, revisions: int, quality: float
) -> None:
    evidence = Evidence(
        tests_passed=passed, tests_failed=failed, bugs_introduced=bugs, revisions_needed=revisions
    )

    assert quality_score(evidence) == pytest.approx(quality)


@pytest.mark.parametrize(
    ("passed", "failed", "bugs", "review", "quality"),
    [
        (12, 0, 0, 7.5, 7.5),  # the worse of 10 and 7.5
        (3, 1, 0, 9.0, 5.625),  # the worse of 5.625 and 9
        (0, 0, 0, 9.0, 9.0),  # in place of the 7 of work that nobody looked at
        (0, 0, 0, 3.0, 3.0),
        (12, 0, 1, 9.0, 7.0),  # 9 - 2
    ],
)
def test_of_tests_and_review_the_worse_one_counts(
    passed: int, failed: int, bugs: int, review: float, quality: float
) -> None:
    evidence = Evidence(
        tests_passed=passed,
        tests_failed=failed,
        bugs_introduced=bugs,
        revisions_needed=0,
        review_score=review,
    )

    assert quality_score(evidence) == pytest.approx(quality)


@given(evidences)
def test_an_answer_in_the_wrong_form_is_worth_nothing(evidence: Evidence) -> None:
    assert quality_score(evidence.model_copy(update={"schema_valid": False})) == 0.0


def test_an_answer_without_evidence_is_worth_nothing() -> None:
    assert quality_score(None) == 0.0


@given(evidences)
def test_quality_lies_between_0_and_10(evidence: Evidence) -> None:
    assert 0 <= quality_score(evidence) <= 10


@given(
    evidences,
    st.sampled_from(["tests_failed", "bugs_introduced", "revisions_needed"]),
    st.integers(1, 1000),
)
def test_more_of_what_is_bad_never_raises_quality(evidence: Evidence, what: str, more: int) -> None:
    worse = evidence.model_copy(update={what: getattr(evidence, what) + more})

    assert quality_score(worse) <= quality_score(evidence)


@given(evidences, st.integers(1, 1000))
def test_more_passed_tests_never_lower_quality(evidence: Evidence, more: int) -> None:
    better = evidence.model_copy(update={"tests_passed": evidence.tests_passed + more})

    assert quality_score(better) >= quality_score(evidence)


@given(evidences, st.floats(0, 10), st.floats(0, 10))
def test_a_higher_review_score_never_lowers_quality(evidence: Evidence, one: float, other: float) -> None:
    low, high = (evidence.model_copy(update={"review_score": score}) for score in sorted((one, other)))

    assert quality_score(low) <= quality_score(high)
