"""Task files into a real database: what is taken, what is not, and what an interruption leaves behind."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cp_core.tasks.mapping import FieldMap
from cp_resources import intake as intake_module
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.intake import Intake, IntakeReport, IntakeStoppedError, pending_files, take_file
from cp_resources.rejects import RejectsFile
from cp_resources.task_files import UnusableFileError, open_task_file
from cp_resources.tasks import TaskStore

SWEBENCH = Path(__file__).parents[3] / "shared/data/swebench_tasks_half.jsonl.gz"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def take(database: Database | None, *paths: Path, mapping: FieldMap | None = None) -> IntakeReport:
    store = TaskStore(database) if database else None
    with Intake(store, mapping) as intake:
        rejects = [RejectsFile(path.with_name(f"{path.name}.rejects.jsonl")) for path in paths]
        for path, rejects_file in zip(paths, rejects, strict=True):
            with open_task_file(path) as file:
                intake.take(file, rejects_file)
        return intake.finish()


def counts(report: IntakeReport) -> tuple[int, int, int]:
    return report.stored, report.duplicates, report.rejected


def rejected(report: IntakeReport) -> list[dict[str, Any]]:
    return [json.loads(line) for path in report.rejects for line in path.read_text().splitlines()]


def stored_ids(database: Database) -> set[str]:
    return {task_id for (task_id,) in database.fetch("SELECT task_id FROM tasks")}


def issues_by_hand(path: Path) -> Path:
    rows = [
        {
            "instance_id": f"shop__cart-{number}",
            "repo": "shop/cart",
            "problem_statement": f"Total {number} is wrong\nSteps:\r\n```\r\nadd \u2713\r\n```\r\n",
            "gold_files": number,
        }
        for number in (1, 2, 3)
    ]
    with gzip.open(path / "issues.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path / "issues.jsonl.gz"


@pytest.mark.parametrize("source", ["by hand", *(["real"] if SWEBENCH.exists() else [])])
def test_issues_under_other_peoples_names_go_through(database: Database, tmp_path, source):
    path = SWEBENCH if source == "real" else issues_by_hand(tmp_path)
    with gzip.open(path, "rt", newline="\n") as file:
        issues = {issue["instance_id"]: issue for issue in map(json.loads, file)}
    mapping = FieldMap.parse(["id=instance_id", "description=problem_statement", "workspace=repo"])
    report = take(database, path, mapping=mapping)
    assert counts(report) == (len(issues), 0, 0)
    assert report.nowhere == ()
    rows = database.fetch(
        """SELECT task_id, title, description, workspace, (extra->>'gold_files')::int
           FROM tasks JOIN task_payloads ON task = id"""
    )
    assert len(rows) == len(issues)
    for task_id, title, description, workspace, gold_files in rows:
        issue = issues[task_id]
        assert description == issue["problem_statement"]
        assert title.split() == description.strip().splitlines()[0].split()
        assert (workspace, gold_files) == (issue["repo"], issue["gold_files"])


def test_good_rows_are_stored_and_bad_ones_can_be_mended_from_the_rejects_file(database: Database, tmp_path):
    bad = '{"id": "b", "title": "x", "priority": "P9", "estimated_lines": -3}'
    report = take(
        database, write(tmp_path / "t.jsonl", {"id": "a", "title": "x"}, bad, "{", {"id": "c", "title": "x"})
    )
    assert counts(report) == (2, 0, 2)
    assert report.rejects == (tmp_path / "t.jsonl.rejects.jsonl",)
    first, second = rejected(report)
    assert first == {
        "line": 2,
        "field": "priority",
        "value": "P9",
        "message": "must be one of P0, P1, P2, P3, P4",
        "also": [{"field": "estimated_lines", "value": "-3", "message": "must be at least 0"}],
        "row": bad,
    }
    assert (second["line"], second["field"], second["row"]) == (3, None, "{")

    mended = [entry["row"].replace("P9", "P1").replace("-3", "3") for entry in (first,)]
    assert counts(take(database, write(tmp_path / "mended.jsonl", *mended))) == (1, 0, 0)
    assert stored_ids(database) == {"a", "b", "c"}


def test_no_rejects_file_without_rejects_and_none_is_overwritten(database: Database, tmp_path):
    assert take(database, write(tmp_path / "t.jsonl", {"title": "x"})).rejects == ()
    assert not (tmp_path / "t.jsonl.rejects.jsonl").exists()
    bad = write(tmp_path / "t.jsonl", {"priority": "P1"})
    assert [take(database, bad).rejects[0].name for _ in range(3)] == [
        "t.jsonl.rejects.jsonl",
        "t.jsonl.rejects-2.jsonl",
        "t.jsonl.rejects-3.jsonl",
    ]


def test_a_long_row_is_cut_in_the_rejects_file(tmp_path):
    report = take(None, write(tmp_path / "t.jsonl", {"title": "x", "description": "y" * 1_048_576}))
    [entry] = rejected(report)
    assert entry["message"] == "has 1,048,576 characters; at most 100,000 are allowed"
    assert len(entry["row"]) == 10_001
    assert entry["row"].endswith("yyy…")


def test_rejects_go_to_the_next_place_when_the_first_cannot_be_written(tmp_path):
    with RejectsFile(tmp_path / "missing" / "a.jsonl", tmp_path / "b.jsonl") as rejects:
        rejects.write(1, [intake_module.Problem(None, None, "bad")], b"row \xff")
    assert json.loads((tmp_path / "b.jsonl").read_text())["row"] == "row \\xff"
    with (
        RejectsFile(tmp_path / "missing" / "a.jsonl") as rejects,
        pytest.raises(UserError, match="--rejects"),
    ):
        rejects.write(1, [intake_module.Problem(None, None, "bad")], b"row")


def test_submission_day_comes_with_the_row_or_is_today(database: Database, tmp_path):
    path = write(
        tmp_path / "t.jsonl",
        {"id": "past", "title": "x", "submitted_at": "2026-01-31T23:59:59-02:00"},
        {"id": "now", "title": "x"},
    )
    with Intake(TaskStore(database), clock=lambda: datetime(2026, 3, 1, 8, tzinfo=UTC)) as intake:
        with open_task_file(path) as file, RejectsFile(tmp_path / "r.jsonl") as rejects:
            intake.take(file, rejects)
        intake.finish()
    assert database.fetch("SELECT task_id, submission_day FROM tasks ORDER BY id") == [
        ("past", date(2026, 2, 1)),
        ("now", date(2026, 3, 1)),
    ]


def test_the_same_file_again_is_all_duplicates_even_without_ids(database: Database, tmp_path):
    path = write(tmp_path / "t.jsonl", {"title": "x"}, {"title": "x"}, {"title": "y", "idempotency_key": "k"})
    assert counts(take(database, path)) == (3, 0, 0)
    assert counts(take(database, path)) == (0, 3, 0)
    one_line = tmp_path / "t.json"
    one_line.write_text('[{"title": "x"}, {"title": "x"}]')  # rows, not lines, tell them apart
    assert counts(take(database, one_line)) == (2, 0, 0)


def test_duplicates_within_a_file_change_nothing_and_are_named_when_they_differ(database: Database, tmp_path):
    rows = [{"id": "a", "title": "first"}, {"id": "a", "title": "second"}, {"id": "a", "title": "first"}]
    report = take(database, write(tmp_path / "t.jsonl", *rows))
    assert counts(report) == (1, 2, 0)
    assert report.differing == ("a",)
    assert database.fetch("SELECT title FROM task_payloads") == [("first",)]


def test_dependencies_may_come_later_or_in_another_file_or_be_stored_already(database: Database, tmp_path):
    take(database, write(tmp_path / "before.jsonl", {"id": "stored", "title": "x"}))
    first = write(
        tmp_path / "1.jsonl",
        {"id": "c", "title": "x", "dependencies": ["b", "d", "stored"]},
        {"id": "b", "title": "x", "dependencies": ["a"]},
        {"id": "a", "title": "x"},
    )
    assert counts(take(database, first, write(tmp_path / "2.jsonl", {"id": "d", "title": "x"}))) == (4, 0, 0)
    order = [task_id for (task_id,) in database.fetch("SELECT task_id FROM tasks ORDER BY id")]
    assert order == ["stored", "a", "d", "b", "c"]  # each after what it depends on


def test_dependencies_that_cannot_be_are_rejected_with_what_is_wrong(database: Database, tmp_path):
    path = write(
        tmp_path / "t.jsonl",
        {"id": "self", "title": "x", "dependencies": ["self"]},
        {"id": "a", "title": "x", "dependencies": ["b"]},
        {"id": "b", "title": "x", "dependencies": ["a"]},
        {"id": "lost", "title": "x", "dependencies": ["ghost"]},
        {"id": "behind", "title": "x", "dependencies": ["lost"]},
        {"id": "lost", "title": "again", "dependencies": ["fine"]},
        {"id": "fine", "title": "x"},
        {"id": "good", "title": "x", "dependencies": ["fine"]},
        {"id": "good", "title": "x", "dependencies": ["fine"]},
    )
    report = take(database, path)
    assert counts(report) == (2, 1, 6)
    assert stored_ids(database) == {"fine", "good"}
    assert {entry["line"]: entry["message"] for entry in rejected(report)} == {
        1: "a task cannot depend on itself",
        2: "its dependencies run in a circle: a -> b -> a",
        3: "its dependencies run in a circle: a -> b -> a",
        4: "depends on 'ghost', which is no known task",
        5: "depends on 'lost', which was rejected",
        6: "repeats the id or key of 'lost', which was rejected",
    }
    assert {entry["field"] for entry in rejected(report)} == {"dependencies"}


def test_a_row_whose_key_is_taken_is_nothing_to_depend_on(database: Database, tmp_path):
    take(database, write(tmp_path / "before.jsonl", {"id": "a", "title": "x", "idempotency_key": "k"}))
    path = write(
        tmp_path / "t.jsonl",
        {"id": "b", "title": "x", "idempotency_key": "k", "dependencies": ["a"]},
        {"id": "c", "title": "x", "dependencies": ["b"]},
    )
    report = take(database, path)
    assert counts(report) == (0, 1, 1)
    assert rejected(report)[0]["message"] == "depends on 'b', which is no known task"


def test_rejects_of_rows_with_dependencies_stand_with_their_own_file(database: Database, tmp_path):
    bad = {"title": "x", "dependencies": ["ghost"]}
    report = take(database, write(tmp_path / "1.jsonl", bad), write(tmp_path / "2.jsonl", bad, bad))
    assert [len(path.read_text().splitlines()) for path in report.rejects] == [1, 2]


def test_a_csv_goes_the_same_way(database: Database, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "id,title,labels,priority,estimated_files,dependencies,owner\n"
        'a,"Two\nlines","bug, ui",p1,3,,Zoë\n'
        "b,x,,P9,,,\n"
        "c,x,,,,a,\n"
    )
    report = take(database, path)
    assert counts(report) == (2, 0, 1)
    assert (rejected(report)[0]["line"], rejected(report)[0]["row"]) == (4, "b,x,,P9,,,\n")
    assert report.unread == ("owner",)
    assert database.fetch(
        "SELECT title, labels, priority, extra FROM tasks JOIN task_payloads ON task = id"
    ) == [
        ("Two lines", ["bug", "ui"], 1, {"owner": "Zoë"}),
        ("x", [], 3, None),
    ]


def test_a_csv_without_a_field_of_a_task_is_refused(database: Database, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("hello\nworld\n")
    with pytest.raises(UnusableFileError, match=r"t\.csv: neither JSON nor a CSV file"):
        take(database, path)
    with pytest.raises(UnusableFileError, match="there is no column 'Title'"):
        take(database, path, mapping=FieldMap.parse(["title=Title"]))


def test_a_file_that_breaks_off_gives_what_came_before(database: Database, tmp_path):
    path = tmp_path / "t.json"
    path.write_text('[{"id": "a", "title": "x"},\n{"id": "b", "title": "x"')
    report = take(database, path)
    assert counts(report) == (1, 0, 1)
    assert "line 2: the list of rows has no end" in rejected(report)[0]["message"]


def test_paths_that_never_lead_anywhere_are_reported(tmp_path):
    mapping = FieldMap.parse(["id=key", "title=fields.summary", "priority=severity"])
    rows = [{"key": "A-1", "fields": {"summary": "x"}}, {"fields": {"summary": "y"}}]
    assert take(None, write(tmp_path / "t.jsonl", *rows), mapping=mapping).nowhere == ("severity",)


def test_a_dry_run_needs_no_database_and_knows_no_tasks_outside(tmp_path):
    path = write(
        tmp_path / "t.jsonl",
        {"id": "a", "title": "x", "dependencies": ["elsewhere"]},
        {"id": "b", "title": "x", "dependencies": ["c"]},
        {"id": "c", "title": "x", "dependencies": ["b"]},
    )
    assert counts(take(None, path)) == (1, 0, 2)


def test_rows_are_stored_in_transactions_of_ten_thousand(database: Database, tmp_path):
    path = write(tmp_path / "t.jsonl", *({"id": str(n), "title": "x"} for n in range(20_001)))
    assert counts(take(database, path)) == (20_001, 0, 0)
    sizes = database.fetch("SELECT count(*) FROM tasks GROUP BY xmin::text ORDER BY 1")
    assert sizes == [(1,), (10_000,), (10_000,)]


def test_a_transaction_of_large_rows_ends_earlier(database: Database, tmp_path, monkeypatch):
    monkeypatch.setattr(intake_module, "TRANSACTION_BYTES", 1000)
    path = write(tmp_path / "t.jsonl", *({"id": str(n), "title": "x" * 400} for n in range(6)))
    take(database, path)
    assert database.fetch("SELECT count(*) FROM tasks GROUP BY xmin::text") == [(3,), (3,)]


def test_a_lost_database_loses_nothing_that_was_stored_and_again_stores_the_rest(
    database: Database, tmp_path
):
    path = write(tmp_path / "t.jsonl", *({"title": "x"} for _ in range(30_000)))
    store = Cut(database, after=1)
    with (
        Intake(store) as intake,
        open_task_file(path) as file,
        pytest.raises(
            IntakeStoppedError, match=r"10,000 tasks were stored, 0 were there before\. Submit the same again"
        ),
    ):
        intake.take(file, RejectsFile(tmp_path / "r.jsonl"))
    assert intake.report().stored == 10_000
    assert counts(take(database, path)) == (20_000, 10_000, 0)


class Cut(TaskStore):
    """A store whose connection is cut by the server in the middle of a transaction."""

    def __init__(self, database: Database, *, after: int) -> None:
        super().__init__(database)
        self._server, self._left = database, after

    def insert(self, rows):
        self._left -= 1
        if self._left >= 0:
            return super().insert(rows)
        with (
            self._server.transaction() as connection,
            psycopg.connect(self._server.url, autocommit=True) as other,
        ):
            other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
            connection.execute("SELECT 1")
        raise AssertionError("the connection survived")


def test_an_interruption_waits_for_the_transaction_under_way(database: Database, tmp_path):
    path = write(tmp_path / "t.jsonl", *({"id": str(n), "title": "x"} for n in range(15_000)))

    def interrupt(file):
        if intake._rows and intake._writing:
            raise KeyboardInterrupt

    intake = Intake(TaskStore(database), on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt), intake, open_task_file(path) as file:
        intake.take(file, RejectsFile(tmp_path / "r.jsonl"))
    assert intake.report().stored == 10_000 == len(stored_ids(database))


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = {}
    for rows in (4_000, 40_000):
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            file.writelines(
                json.dumps({"title": "x", "description": "y" * 2_000}) + "\n" for _ in range(rows)
            )
        code = (
            "import resource, sys; from pathlib import Path; from cp_resources.intake import *;"
            "path = Path(sys.argv[1]); intake = Intake(None)\n"
            "with open_task_file(path) as file: intake.take(file, RejectsFile(path))\n"
            "print(intake.finish().stored, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        stored, peaks[rows] = map(int, done.stdout.split())
        assert stored == rows
    unit = 1 if sys.platform == "darwin" else 1024
    # the larger file has 72 MB more; a transaction's worth of rows is 16 MiB
    assert (peaks[40_000] - peaks[4_000]) * unit < 36 * 2**20


def test_inbox_files_are_taken_once_and_put_into_done(database: Database, inbox: Path):
    write(inbox / "tasks.jsonl", {"title": "x"}, {"id": "a", "title": "x"})
    [path] = pending_files(inbox, settled_seconds=0)
    report = take_file(path, TaskStore(database), inbox)
    assert report is not None
    assert counts(report) == (2, 0, 0)
    [done] = (inbox / "done").iterdir()
    assert done.name.endswith("-tasks.jsonl")
    assert pending_files(inbox, settled_seconds=0) == []
    assert take_file(path, TaskStore(database), inbox) is None


def test_an_inbox_file_with_a_bad_row_goes_to_rejected_with_its_rejects(database: Database, inbox: Path):
    report = take_file(write(inbox / "t.jsonl", {"id": "a", "title": "x"}, "{"), TaskStore(database), inbox)
    assert report is not None
    assert counts(report) == (1, 0, 1)
    names = sorted(path.name.partition("-t.jsonl")[2] for path in (inbox / "rejected").iterdir())
    assert names == ["", ".rejects.jsonl"]
    assert rejected(report)[0]["line"] == 2


def test_an_inbox_file_that_is_none_goes_to_rejected_with_the_reason(database: Database, inbox: Path):
    (inbox / "t.xlsx").write_bytes(b"PK\x03\x04\0\0")
    report = take_file(inbox / "t.xlsx", TaskStore(database), inbox)
    assert report is not None
    assert counts(report) == (0, 0, 1)
    explained = report.rejects[0].read_text()
    assert "neither JSON nor a CSV file" in explained
    assert explained.startswith("t.xlsx")  # as it was dropped, not as it was taken
    assert sorted(path.name.partition("-t.xlsx")[2] for path in (inbox / "rejected").iterdir()) == [
        "",
        ".error.txt",
    ]


def test_an_inbox_file_that_may_not_be_read_goes_to_rejected(database: Database, inbox: Path):
    path = write(inbox / "t.jsonl", {"title": "x"})
    path.chmod(0)
    inbox.chmod(0o777)
    with as_somebody(inbox):
        report = take_file(path, TaskStore(database), inbox)
    assert report is not None
    assert "Permission denied" in report.rejects[0].read_text()


@contextmanager
def as_somebody(folder: Path) -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    parents = [parent for parent in folder.parents if parent.stat().st_uid == 0 and len(parent.parts) > 2]
    before = [(parent, parent.stat().st_mode) for parent in parents]
    for parent in parents:
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for parent, mode in before:
            parent.chmod(mode)


def test_a_taking_that_broke_off_is_taken_up_again(database: Database, inbox: Path, monkeypatch):
    path = write(inbox / "t.jsonl", *({"title": "x"} for _ in range(15_000)), "{")
    cut = Cut(database, after=1)
    monkeypatch.setattr(intake_module, "TRANSACTION_ROWS", 5_000)
    with pytest.raises(IntakeStoppedError):
        take_file(path, cut, inbox)
    assert len(stored_ids(database)) == 5_000
    [broken_off] = pending_files(inbox)  # whenever it was written: nobody else writes to it any more
    assert broken_off.parent == inbox / "taking"
    report = take_file(broken_off, TaskStore(database), inbox)
    assert report is not None
    assert counts(report) == (10_000, 5_000, 1)
    assert len(rejected(report)) == 1
    assert pending_files(inbox) == []


def test_a_file_in_anothers_hands_is_left_alone(database: Database, inbox: Path):
    (inbox / "taking").mkdir()
    path = write(inbox / "taking" / "t.jsonl", {"title": "x"})
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert take_file(path, TaskStore(database), inbox) is None
    assert take_file(path, TaskStore(database), inbox) is not None


def test_the_same_content_dropped_twice_is_stored_once(database: Database, inbox: Path):
    store = TaskStore(database)
    for name in ("t.jsonl", "t.jsonl", "other.jsonl"):
        assert take_file(write(inbox / name, {"title": "x"}, {"title": "x"}), store, inbox) is not None
    assert len(stored_ids(database)) == 2
    assert len(list((inbox / "done").iterdir())) == 3


def test_pending_files_are_plain_settled_and_finished_oldest_first(inbox: Path):
    now = time.time()
    for name, age in [("b.jsonl", 20), ("a.csv", 60), ("ahead.json", -3600), ("fresh.jsonl", 0)]:
        write(inbox / name)
        os.utime(inbox / name, (now - age, now - age))
    for name in (".hidden.jsonl", "x.jsonl.part", "y.TMP"):
        write(inbox / name)
        os.utime(inbox / name, (now - 60, now - 60))
    (inbox / "folder").mkdir()
    (inbox / "link.jsonl").symlink_to(inbox / "a.csv")
    assert [path.name for path in pending_files(inbox)] == ["a.csv", "b.jsonl", "ahead.json"]
    assert pending_files(inbox / "missing") == []


def test_a_symbolic_link_is_refused(database: Database, inbox: Path, tmp_path: Path):
    link = inbox / "link.jsonl"
    link.symlink_to(write(tmp_path / "secret.jsonl", {"title": "x"}))
    with pytest.raises(UnusableFileError, match="is a symbolic link"):
        take_file(link, TaskStore(database), inbox)
    assert link.is_symlink()
    assert stored_ids(database) == set()


@pytest.mark.parametrize(
    "name", ["a b\n.jsonl", "ü" * 60 + ".jsonl", "$(reboot).jsonl", "x" * 240 + ".jsonl"]
)
def test_odd_names_are_taken_under_harmless_ones(database: Database, inbox: Path, name):
    assert take_file(write(inbox / name, {"id": "a", "title": "x"}), TaskStore(database), inbox) is not None
    [done] = (inbox / "done").iterdir()
    assert done.name.isascii()
    assert done.name.isprintable()
    assert done.name.endswith(".jsonl")
    assert not set(done.name) & set(" $()/")
