"""What a row may hold, at the edges of every limit, and what is said when it holds something else."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.tasks.submission import FIELDS, Problem, SubmissionError, TaskSubmission, extra_json, validate

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def problems_of(**fields: Any) -> dict[str | None, Problem]:
    with pytest.raises(SubmissionError) as caught:
        validate({"title": "Fix it", **fields}, now=NOW)
    return {problem.field: problem for problem in caught.value.problems}


def test_a_title_is_enough_and_the_rest_has_defaults():
    task = validate({"title": "Fix it"}, now=NOW)
    assert (task.title, task.description, task.priority, task.workspace) == ("Fix it", "", 3, "default")
    assert (task.labels, task.dependencies, task.max_attempts) == ((), (), 3)
    assert (task.id, task.idempotency_key, task.deadline, task.estimated_files) == (None, None, None, None)
    assert task.submitted_at == NOW


def test_null_means_absent_for_every_field():
    nothing = dict.fromkeys(FIELDS)
    assert validate({**nothing, "title": "Fix it"}, now=NOW) == validate({"title": "Fix it"}, now=NOW)


def test_title_is_the_first_line_of_the_description_that_says_something():
    assert validate({"description": "\n \n  Broken   login\r\nmore"}, now=NOW).title == "Broken login"
    assert validate({"title": "  ", "description": "x" * 600}, now=NOW).title == "x" * 500


def test_title_is_one_line():
    assert validate({"title": " Broken\n\tlogin "}, now=NOW).title == "Broken login"


def test_description_is_kept_as_it_is():
    assert validate({"description": "  a\r\n\tb\n"}, now=NOW).description == "  a\r\n\tb\n"


@pytest.mark.parametrize("empty", [{}, {"title": " "}, {"title": "", "description": "\n"}, {"title": None}])
def test_a_row_that_says_nothing_is_refused(empty):
    with pytest.raises(SubmissionError, match="needs a title, or a description"):
        validate(empty, now=NOW)


@pytest.mark.parametrize(
    ("field", "longest", "too_long"),
    [
        ("title", "t" * 500, "t" * 501),
        ("description", "d" * 100_000, "d" * 100_001),
        ("id", "i" * 200, "i" * 201),
        ("idempotency_key", "k" * 200, "k" * 201),
        ("workspace", "w" * 200, "w" * 201),
        ("labels", ["l" * 100], ["l" * 101]),
        ("labels", [str(n) for n in range(50)], [str(n) for n in range(51)]),
        ("dependencies", [str(n) for n in range(100)], [str(n) for n in range(101)]),
        ("estimated_files", 1_000_000, 1_000_001),
        ("estimated_lines", 1_000_000_000, 1_000_000_001),
        ("workspace_files", 1_000_000_000, 1_000_000_001),
        ("max_attempts", 10, 11),
    ],
)
def test_limits_hold_exactly_at_their_edge(field, longest, too_long):
    validate({"title": "Fix it", field: longest}, now=NOW)
    problem = problems_of(**{field: too_long})[field]
    assert problem.message.startswith("must be at most" if isinstance(too_long, int) else "has ")


def test_a_description_of_a_megabyte_is_refused_with_its_length():
    problem = problems_of(description="x" * 1_048_576)["description"]
    assert problem.message == "has 1,048,576 characters; at most 100,000 are allowed"
    assert len(problem.value or "") == 100


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("title", 7, "must be a text"),
        ("description", ["a"], "must be a text"),
        ("description", "a\0b", "holds a NUL character (U+0000), which PostgreSQL cannot store"),
        ("title", "a\0b", "holds a NUL character (U+0000), which PostgreSQL cannot store"),
        ("workspace", "a\0b", "holds a NUL character (U+0000), which PostgreSQL cannot store"),
        ("labels", ["a\0b"], "holds a NUL character (U+0000), which PostgreSQL cannot store"),
        ("id", "a\0b", "may hold only visible ASCII characters, without blanks"),
        ("id", "a b", "may hold only visible ASCII characters, without blanks"),
        ("id", "ü", "may hold only visible ASCII characters, without blanks"),
        ("id", "", "must not be empty"),
        ("id", True, "must be a text"),
        ("workspace", "", "must not be empty"),
        ("priority", "P5", "must be one of P0, P1, P2, P3, P4"),
        ("priority", "high", "must be one of P0, P1, P2, P3, P4"),
        ("priority", 0, "must be one of P0, P1, P2, P3, P4"),
        ("priority", ["P0"], "must be one of P0, P1, P2, P3, P4"),
        ("labels", {"a": 1}, "must be a list of texts, or one text with commas between"),
        ("labels", [None], "must be a text"),
        ("estimated_files", -1, "must be at least 0"),
        ("estimated_lines", -1, "must be at least 0"),
        ("workspace_files", -1, "must be at least 0"),
        ("estimated_files", True, "must be a whole number, not true or false"),
        ("estimated_files", 1.5, "must be a whole number"),
        ("estimated_files", "many", "must be a whole number"),
        ("estimated_files", [], "must be a whole number"),
        ("max_attempts", 0, "must be at least 1"),
        ("deadline", 1_800_000_000, "must be a text: a date and time in ISO 8601 with its time zone"),
        ("deadline", "tomorrow", "must be a date and time in ISO 8601 with its time zone"),
        ("deadline", "2026-03-02", "has no time zone"),
        ("deadline", "2026-03-02T10:00:00", "has no time zone"),
        ("deadline", "9999-12-31T23:59:59-12:00", "must lie between the years 2008 and 2199"),
        ("submitted_at", "0001-01-01T00:00:00+14:00", "must lie between the years 2008 and 2199"),
        (
            "deadline",
            "2026-03-01T12:00:00Z",
            "must lie after the task's submission, 2026-03-01T12:00:00+00:00",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_field_the_value_and_what_is_allowed(field, value, message):
    problem = problems_of(**{field: value})[field]
    assert problem.message.startswith(message)
    assert problem.value is not None


def test_every_bad_field_of_a_row_is_named():
    assert set(problems_of(priority="P9", estimated_lines=-3, deadline="2027-01-01")) == {
        "priority",
        "estimated_lines",
        "deadline",
    }


def test_a_problem_reads_as_a_sentence_and_cannot_steer_a_terminal():
    problem = problems_of(priority="\x1b[2J\n")["priority"]
    assert str(problem) == "priority: must be one of P0, P1, P2, P3, P4 (seen: \\u001b[2J\\n)"


@pytest.mark.parametrize("spelling", ["P1", "p1", " P1 "])
def test_priority_may_be_written_in_either_case(spelling):
    assert validate({"title": "Fix it", "priority": spelling}, now=NOW).priority == 1


@pytest.mark.parametrize("labels", ["bug, ui,,bug", ["bug", " ui ", "", "bug"]])
def test_labels_are_a_list_or_separated_by_commas_without_repeats(labels):
    assert validate({"title": "Fix it", "labels": labels}, now=NOW).labels == ("bug", "ui")


def test_numbers_stand_for_ids_and_texts_for_numbers():
    task = validate(
        {"title": "Fix it", "id": 17, "dependencies": [3, "4"], "estimated_files": " 5 "}, now=NOW
    )
    assert (task.id, task.dependencies, task.estimated_files) == ("17", ("3", "4"), 5)


def test_times_are_turned_into_utc():
    task = validate({"title": "Fix it", "deadline": "2026-03-02T10:00:00+02:00"}, now=NOW)
    assert task.deadline == datetime(2026, 3, 2, 8, tzinfo=UTC)
    assert task.deadline is not None
    assert task.deadline.tzinfo is UTC


def test_submission_in_the_past_is_kept_and_deadlines_are_measured_against_it():
    row = {"title": "Fix it", "submitted_at": "2026-02-01T00:00:00Z", "deadline": "2026-02-02T00:00:00Z"}
    assert validate(row, now=NOW).submitted_at == datetime(2026, 2, 1, tzinfo=UTC)


def test_submission_may_be_five_minutes_ahead_for_clocks_that_differ_and_no_more():
    in_five = NOW + timedelta(minutes=5)
    validate({"title": "Fix it", "submitted_at": in_five.isoformat()}, now=NOW)
    later = (in_five + timedelta(seconds=1)).isoformat()
    problem = problems_of(submitted_at=later)["submitted_at"]
    assert problem == Problem("submitted_at", later, "lies in the future: now is 2026-03-01T12:00:00+00:00")


def test_a_task_cannot_depend_on_itself():
    assert problems_of(id="a", dependencies=["b", "a"])["dependencies"].message == (
        "a task cannot depend on itself"
    )


def test_other_fields_are_kept_as_json_and_nothing_else_is():
    task = validate({"title": "Fix it", "gold_files": 2, "author": {"name": "Zoë"}}, now=NOW)
    assert json.loads(extra_json(task) or "") == {"gold_files": 2, "author": {"name": "Zoë"}}
    assert extra_json(validate({"title": "Fix it"}, now=NOW)) is None


def test_other_fields_may_take_64_kib_and_the_largest_is_named_when_they_take_more():
    # {"note": "…"} has twelve characters around its text
    fits = validate({"title": "Fix it", "note": "x" * (65_536 - 12)}, now=NOW)
    assert len((extra_json(fits) or "").encode()) == 65_536
    too_large = validate({"title": "Fix it", "a": 1, "note": "x" * (65_536 - 12)}, now=NOW)
    with pytest.raises(SubmissionError, match=r"note: .* take 65,544 bytes together, at most 65,536"):
        extra_json(too_large)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "a\0b", {"a\0": 1}, ["\\\0"]])
def test_other_fields_that_postgresql_cannot_store_are_refused(value):
    with pytest.raises(SubmissionError):
        extra_json(validate({"title": "Fix it", "note": value}, now=NOW))


def test_a_written_out_nul_escape_is_text_like_any_other():
    assert extra_json(validate({"title": "Fix it", "note": r"say \u0000"}, now=NOW))


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), _ANYTHING, max_size=8))
def test_any_row_is_either_a_task_or_refused_with_a_message(row):
    outcome = _validated(row)
    if isinstance(outcome, SubmissionError):
        assert all(problem.message for problem in outcome.problems)
    else:
        assert outcome.title
        assert 0 <= outcome.priority <= 4
        assert not set(outcome.model_extra or {}) & set(FIELDS)


def _validated(row: dict[str, Any]) -> TaskSubmission | SubmissionError:
    try:
        return validate(row, now=NOW)
    except SubmissionError as error:
        return error
