"""Evidence that arrives later: what one report may say, what stands once all have spoken, and the verdict."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cp_core.execution.evidence import Source, evidence_record, parse_evidence
from cp_core.execution.feedback import PARTS, Report, standing, verdict_after, worker_report
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import FINAL_STATES, VERDICT_MOVES, TaskState

OWN = Report(
    source=Source.WORKER,
    tests_passed=5,
    tests_failed=0,
    bugs_introduced=0,
    revisions_needed=0,
    schema_valid=True,
)


def ci(**said: Any) -> Report:
    return Report(source=Source.CI, **said)


def person(**said: Any) -> Report:
    return Report(source=Source.PERSON, **said)


@pytest.mark.parametrize(
    ("reports", "quality"),
    [
        ([OWN], 10.0),
        ([OWN, ci(tests_passed=3, tests_failed=1)], 5.625),  # 10 x 0.75^2
        ([OWN, ci(tests_passed=3, tests_failed=1), ci(tests_passed=4, tests_failed=0)], 10.0),
        ([OWN, person(review_score=4)], 4.0),  # the worse of 10 and 4
        ([OWN, person(review_score=9), ci(tests_passed=1, tests_failed=1)], 2.5),  # the worse of 2.5 and 9
        ([OWN, person(bugs_introduced=2)], 6.0),  # 10 - 2 x 2
        ([OWN, ci(schema_valid=False)], 0.0),
        ([OWN, ci(schema_valid=False), ci(schema_valid=True)], 10.0),
        # The worker's evidence could not be read: only what others found counts.
        ([ci(tests_passed=12, tests_failed=0)], 10.0),
        ([person(review_score=8, revisions_needed=1)], 7.0),
        ([ci(schema_valid=True)], 7.0),
        ([ci(bugs_introduced=0)], 0.0),  # shows no work
        ([ci(tests_passed=0, tests_failed=0)], 0.0),
    ],
)
def test_the_newest_independent_word_on_each_part_counts(reports: list[Report], quality: float) -> None:
    assert standing(reports).quality == pytest.approx(quality)


def test_the_worker_never_outweighs_what_others_found() -> None:
    again = OWN.model_copy(update={"tests_passed": 100})

    stands = standing([OWN, ci(tests_passed=1, tests_failed=1), again])

    assert stands.quality == 2.5
    assert stands.record["source"] == "ci"
    assert stands.record["sources"] == {
        "tests": "ci",
        "bugs": "worker-reported",
        "revisions": "worker-reported",
        "schema": "worker-reported",
    }
    assert (stands.record["tests_passed"], stands.record["tests_failed"]) == (1, 1)


def test_a_later_word_of_the_worker_counts_where_nobody_else_has_spoken() -> None:
    stands = standing([OWN, Report(source=Source.WORKER, tests_passed=1, tests_failed=1)])

    assert stands.quality == 2.5
    assert stands.record["source"] == "worker-reported"


def test_the_evidence_stored_with_an_attempt_is_the_worker_s_report() -> None:
    answer = '```evidence\n{"tests_passed": 5, "tests_failed": 0, "bugs_introduced": 0, "revisions_needed": 0}\n```'

    assert worker_report(evidence_record(parse_evidence(answer))) == OWN
    assert worker_report(evidence_record(parse_evidence("no evidence"))) is None
    assert worker_report({"late": True}) is None
    assert worker_report(None) is None


def test_a_model_cannot_review_itself() -> None:
    evidence = parse_evidence(
        '```evidence\n{"tests_passed": 0, "tests_failed": 0, "bugs_introduced": 0, "revisions_needed": 0,'
        ' "review_score": 10, "schema_valid": false}\n```'
    )

    assert evidence is not None
    assert evidence.review_score is None
    assert evidence.schema_valid


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "nothing is reported"),
        ({"tests_passed": 3}, "give both"),
        ({"tests_failed": 3}, "give both"),
        ({"review_note": "fine"}, "give the score with it"),
        ({"review_score": 10.5}, "less than or equal to 10"),
        ({"review_score": float("nan")}, "finite"),
        ({"bugs_introduced": -1}, "greater than or equal to 0"),
        ({"review_score": 5, "review_note": "x" * 2001}, "at most 2000"),
    ],
)
def test_a_report_that_says_nothing_or_half_of_it_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ci(**said)


counts = st.integers(0, 50)
optional = st.none() | counts


@st.composite
def reports(draw: st.DrawFn) -> Report:
    said: dict[str, Any] = {
        "bugs_introduced": draw(optional),
        "revisions_needed": draw(optional),
        "review_score": draw(st.none() | st.floats(0, 10)),
        "schema_valid": draw(st.none() | st.booleans()),
    }
    if draw(st.booleans()) or all(value is None for value in said.values()):
        said |= {"tests_passed": draw(counts), "tests_failed": draw(counts)}
    return Report(source=draw(st.sampled_from(Source)), **said)


@given(st.lists(reports(), min_size=1, max_size=6))
def test_quality_lies_between_0_and_10_whatever_is_reported(said: list[Report]) -> None:
    assert 0 <= standing(said).quality <= 10


@given(st.lists(reports(), min_size=1, max_size=6))
def test_saying_the_last_thing_twice_changes_nothing(said: list[Report]) -> None:
    assert standing([*said, said[-1]]) == standing(said)


@given(st.lists(reports(), min_size=1, max_size=6), reports())
def test_what_the_worker_adds_changes_no_part_that_others_reported(said: list[Report], more: Report) -> None:
    before = standing(said).record
    after = standing([*said, more.model_copy(update={"source": Source.WORKER})]).record

    for part, source in before["sources"].items():
        if source != Source.WORKER:
            assert after["sources"][part] == source
            assert all(after.get(name) == before.get(name) for name in PARTS[part])


@given(
    st.lists(reports(), max_size=4),
    st.sampled_from(
        [("tests_failed", 1), ("bugs_introduced", 1), ("revisions_needed", 1), ("review_score", -1)]
    ),
    st.integers(1, 9),
)
def test_a_worse_report_never_comes_to_a_better_quality(
    before: list[Report], worse: tuple[str, int], by: int
) -> None:
    name, direction = worse
    better = Report(
        source=Source.CI,
        tests_passed=9,
        tests_failed=1,
        bugs_introduced=1,
        revisions_needed=0,
        review_score=9,
    )
    report = better.model_copy(update={name: getattr(better, name) + direction * by})

    assert standing([*before, report]).quality <= standing([*before, better]).quality


@pytest.mark.parametrize(
    ("state", "reason", "quality", "moved"),
    [
        (TaskState.SUCCEEDED, None, 5.9, (TaskState.FAILED, Reason.LOW_QUALITY)),
        (TaskState.SUCCEEDED, None, 6.0, None),
        (TaskState.FAILED, "LOW_QUALITY", 6.0, (TaskState.SUCCEEDED, None)),
        (TaskState.FAILED, "LOW_QUALITY", 5.9, None),
        (TaskState.FAILED, "REFUSED", 9.0, None),
        (TaskState.QUEUED, "LOW_QUALITY", 9.0, None),
        (TaskState.CANCELLED, "LOW_QUALITY", 9.0, None),
        (TaskState.DEAD, "LOW_QUALITY", 9.0, None),
    ],
)
def test_the_verdict_follows_the_quality_of_the_work_that_ended_the_task(
    state: TaskState, reason: str | None, quality: float, moved: tuple[TaskState, Reason | None] | None
) -> None:
    assert verdict_after(state, reason, quality, 6.0) == moved


def test_a_verdict_moves_a_task_from_one_final_state_to_another() -> None:
    for source, targets in VERDICT_MOVES.items():
        assert {source, *targets} <= FINAL_STATES
