"""Storing submissions in bulk: once each, whoever submits them and however often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cp_core.tasks.submission import SubmissionError, extra_json, validate
from cp_resources.database import Database
from cp_resources.tasks import Inserted, NewTask, TaskStore

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def task(task_id: str, **fields: Any) -> NewTask:
    submission = validate({"title": "Fix it", **fields}, now=NOW)
    return NewTask.of(submission, task_id, extra_json(submission))


def test_every_field_arrives(database: Database):
    stored = task(
        "a",
        idempotency_key="k",
        title="Title",
        description="Text with \\ and \t and ✓\n",
        priority="P1",
        labels=["bug", 'with "quotes", {braces} and \\'],
        workspace="shop",
        estimated_files=3,
        estimated_lines=0,
        workspace_files=120,
        dependencies=["b", "c"],
        deadline="2026-03-05T10:00:00+02:00",
        submitted_at="2026-02-28T23:30:00-01:00",
        max_attempts=5,
        author={"name": "Zoë"},
    )
    TaskStore(database).insert([stored])
    [row] = database.fetch(
        """SELECT task_id, idempotency_key, submitted_at, submission_day, state, priority, workspace,
               deadline, dependencies, attempts, max_attempts, title, description, labels, estimated_files,
               estimated_lines, workspace_files, extra
           FROM tasks JOIN task_payloads ON task = id"""
    )
    assert row == (
        "a",
        "k",
        datetime(2026, 3, 1, 0, 30, tzinfo=UTC),
        date(2026, 3, 1),
        "queued",
        1,
        "shop",
        datetime(2026, 3, 5, 8, tzinfo=UTC),
        ["b", "c"],
        0,
        5,
        "Title",
        "Text with \\ and \t and ✓\n",
        ["bug", 'with "quotes", {braces} and \\'],
        3,
        0,
        120,
        {"author": {"name": "Zoë"}},
    )


def test_what_is_absent_stays_null(database: Database):
    TaskStore(database).insert([task("a")])
    [row] = database.fetch(
        """SELECT idempotency_key, deadline, dependencies, labels, estimated_files, estimated_lines,
               workspace_files, extra
           FROM tasks JOIN task_payloads ON task = id"""
    )
    assert row == (None, None, None, [], None, None, None, None)


def test_a_row_seen_before_changes_nothing(database: Database):
    store = TaskStore(database)
    store.insert([task("a", title="first", idempotency_key="k")])
    again = [
        task("a", title="other id, same key"),
        task("b", title="same key", idempotency_key="k"),
        task("c", title="new"),
    ]
    assert store.insert(again) == Inserted(stored=1, duplicates=2, differing=("a",))
    assert titles(database) == {"a": "first", "c": "new"}


def test_the_first_of_rows_alike_wins_within_one_transaction(database: Database):
    rows = [
        task("a", title="first"),
        task("b", title="first", idempotency_key="k"),
        task("a", title="second"),
        task("c", title="second", idempotency_key="k"),
        task("c", title="third"),  # c was not stored by the row before, so this one is
    ]
    assert TaskStore(database).insert(rows) == Inserted(stored=3, duplicates=2, differing=("a", "c"))
    assert titles(database) == {"a": "first", "b": "first", "c": "third"}


def test_duplicates_that_say_the_same_are_not_called_different(database: Database):
    store = TaskStore(database)
    row = task("a", labels=["x"], dependencies=["b"], deadline="2026-04-01T00:00:00Z", note=1)
    store.insert([row])
    # another time of submission and other extra fields make no other task
    again = row._replace(submitted_at=datetime(2026, 1, 1, tzinfo=UTC), extra=None)
    assert store.insert([again, row]) == Inserted(0, 2, ())
    for change in ({"labels": ["y"]}, {"priority": 0}, {"deadline": None}, {"estimated_files": 1}):
        assert store.insert([row._replace(**change)]).differing == ("a",)


def test_known_ids_and_keys_are_those_stored(database: Database):
    store = TaskStore(database)
    store.insert([task("a", idempotency_key="k"), task("b")])
    assert store.known_ids({"a", "b", "c"}) == {"a", "b"}
    assert store.known_keys(["k", "l"]) == {"k"}
    assert store.known_ids([]) == set()


def test_writers_with_the_same_tasks_in_another_order_store_each_once(database: Database):
    rows = [task(f"t-{number}") for number in range(3000)]
    store = TaskStore(database)
    with ThreadPoolExecutor(4) as pool:
        orders = [rows, rows[::-1], rows[1000:] + rows[:1000], rows[::-1]]  # these do stop each other
        results = list(pool.map(store.insert, orders))
    assert sum(result.stored for result in results) == 3000
    assert sum(result.duplicates for result in results) == 9000
    assert database.fetch("SELECT count(*), (SELECT count(*) FROM task_payloads) FROM tasks") == [
        (3000, 3000)
    ]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    title=_TEXT,
    description=_TEXT,
    workspace=_TEXT,
    labels=st.lists(_TEXT, max_size=4),
    deadline=st.datetimes(timezones=st.timezones()).map(datetime.isoformat),
    key=_TEXT,
    size=st.integers(),
    extra=st.dictionaries(_TEXT, _JSON, max_size=3),
)
def test_whatever_is_accepted_can_be_stored(
    database: Database, title, description, workspace, labels, deadline, key, size, extra
):
    fields = {
        "title": title or "x",
        "description": description,
        "workspace": workspace,
        "labels": labels,
        "deadline": deadline,
        "idempotency_key": key,
        "estimated_lines": size,
        "workspace_files": size,
    }
    store = TaskStore(database)
    for some in ({"title": "x", name: value} for name, value in {**extra, **fields}.items()):
        try:
            accepted = task("t", **some)
        except SubmissionError:
            continue
        database.fetch("DELETE FROM tasks RETURNING id")
        assert store.insert([accepted]).stored == 1
        [(stored_labels, stored_title)] = database.fetch("SELECT labels, title FROM task_payloads")
        assert (stored_labels, stored_title) == (accepted.labels, accepted.title)


def titles(database: Database) -> dict[str, str]:
    return dict(database.fetch("SELECT task_id, title FROM tasks JOIN task_payloads ON task = id"))
