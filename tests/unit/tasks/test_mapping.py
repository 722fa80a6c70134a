"""Rows with other people's field names."""

from __future__ import annotations

import pytest

from cp_core.tasks.mapping import FieldMap, MappingError, did_you_mean, priority_of_label, value_at

ISSUE = {
    "number": 412,
    "title": "Login loops",
    "body": "Since yesterday.\n",
    "labels": [{"id": "LA_1", "name": "bug"}, {"id": "LA_2", "name": "priority: high"}, {"name": "P2"}],
    "url": "https://github.com/octo-org/shop/issues/412",
    "createdAt": "2026-02-03T04:05:06Z",
    "state": "OPEN",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a", 1),
        ("b.c", 2),
        ("b.d.e", 3),
        ("x.y", 4),  # a name that itself holds a dot
        ("tags.name", ["u", "v"]),
        ("b", {"c": 2, "d": {"e": 3}}),
        ("missing", None),
        ("a.b", None),
        ("b.missing", None),
        ("b.c.d.e", None),
    ],
)
def test_a_dotted_path_finds_its_value_or_nothing(path, value):
    document = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "x.y": 4, "tags": [{"name": "u"}, {}, {"name": "v"}]}
    assert value_at(document, path) == value


def test_mapped_values_move_and_the_rest_stays():
    mapping = FieldMap.parse(["id=instance_id", "description=problem_statement", "workspace=repo"])
    row = {"instance_id": "astropy-1", "repo": "astropy/astropy", "problem_statement": "x", "gold_files": 1}
    assert mapping.apply(row) == {
        "id": "astropy-1",
        "workspace": "astropy/astropy",
        "description": "x",
        "gold_files": 1,
    }


def test_a_path_that_leads_nowhere_leaves_the_fields_own_name():
    mapping = FieldMap.parse(["title=headline"])
    assert mapping.apply({"title": "own"}) == {"title": "own"}
    assert mapping.apply({"title": "own", "headline": "mapped"}) == {"title": "mapped"}


def test_one_field_may_feed_two():
    mapping = FieldMap.parse(["title=text", "description=text"])
    assert mapping.apply({"text": "x"}) == {"title": "x", "description": "x"}


def test_a_field_mapped_from_another_field_leaves_that_one():
    assert FieldMap.parse(["title=description"]).apply({"description": "x"}) == {
        "title": "x",
        "description": "x",
    }


def test_paths_that_lead_nowhere_are_told():
    mapping = FieldMap.parse(["id=key", "title=fields.summary"])
    assert mapping.leads_nowhere({"key": "A-1", "fields": {}}) == {"fields.summary"}


@pytest.mark.parametrize(
    ("specifications", "message"),
    [
        (["priority"], "'priority' is not a map: write field=path"),
        (["priority="], "is not a map"),
        (["prioritiy=x"], r"'prioritiy' is not a field of a task \(did you mean 'priority'\?\)"),
        (["id=a", "id=b"], "id is mapped twice, from 'a' and from 'b'"),
    ],
)
def test_a_map_that_cannot_be_is_refused(specifications, message):
    with pytest.raises(MappingError, match=message):
        FieldMap.parse(specifications)


def test_an_unknown_preset_is_refused():
    with pytest.raises(MappingError, match="there is no preset 'jira'; there is github"):
        FieldMap.parse([], preset="jira")


def test_a_mapped_path_must_be_a_column_of_a_table():
    mapping = FieldMap.parse(["title=Headline"])
    mapping.check_columns(["Headline", "other"])
    with pytest.raises(MappingError, match=r"no column 'Headline' \(did you mean 'headline'\?\)"):
        mapping.check_columns(["headline"])


def test_a_table_without_any_field_of_a_task_is_refused():
    FieldMap().check_columns(["description", "other"])
    with pytest.raises(MappingError, match="neither JSON nor a CSV file"):
        FieldMap().check_columns(["hello", "world"])


def test_github_issue_becomes_a_task():
    fields = FieldMap.parse([], preset="github").apply(ISSUE)
    assert fields == {
        "id": "octo-org/shop#412",
        "title": "Login loops",
        "description": "Since yesterday.\n",
        "labels": ["bug", "priority: high", "P2"],
        "priority": "P1",  # the more urgent of high and P2
        "workspace": "octo-org/shop",
        "submitted_at": "2026-02-03T04:05:06Z",
        "number": 412,
        "state": "OPEN",
        "url": "https://github.com/octo-org/shop/issues/412",
    }


def test_github_issue_with_little_in_it_becomes_a_task():
    fields = FieldMap.parse([], preset="github").apply({"number": 7, "title": "x", "id": "I_kwDO"})
    assert fields["id"] == "#7"
    assert fields["labels"] == []
    assert fields["priority"] is None
    assert fields["workspace"] is None


def test_a_map_overrides_the_preset():
    mapping = FieldMap.parse(["priority=severity", "id=number"], preset="github")
    fields = mapping.apply({**ISSUE, "severity": "P0"})
    assert (fields["priority"], fields["id"]) == ("P0", 412)


@pytest.mark.parametrize(
    ("label", "priority"),
    [
        ("P0", "P0"),
        ("p3", "P3"),
        ("priority/P1", "P1"),
        ("priority: high", "P1"),
        ("Priority: Critical", "P0"),
        ("prio_medium", "P2"),
        ("low priority", "P3"),
        ("priority-lowest", "P4"),
        ("P2-medium", "P2"),
        ("high", None),
        ("area/low", None),
        ("priority", None),
        ("P5", None),
        ("high priority customer", None),
        ("", None),
        (None, None),
    ],
)
def test_priority_is_read_from_labels_that_name_one(label, priority):
    assert priority_of_label(label) == priority


def test_suggestions_are_made_only_for_near_names():
    assert did_you_mean("Tittle", ["title", "labels"]) == " (did you mean 'title'?)"
    assert did_you_mean("gold_hunks", ["title", "labels"]) == ""
