"""`control-panel submit` as a person or a script runs it: exit codes, output, and what stays on the disk."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cp_core.tasks import submission as limits
from cp_resources.database import Database
from cp_resources.task_files import FILE_BYTES, ROW_BYTES

COMMAND = [sys.executable, "-m", "cp_cli.main", "submit"]
GOOD = '{"id": "a", "title": "x"}\n'
BAD = '{"id": "b", "title": "x", "priority": "P9"}\n'


@pytest.fixture
def folder(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, for commands that use the test's own database."""
    monkeypatch.setenv("CP_DATABASE_URL", database_url)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*arguments: str | Path, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    given = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run([*COMMAND, *arguments], input=given, capture_output=True, timeout=60)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def as_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout)


def test_all_taken_is_exit_code_0_and_again_all_are_duplicates(folder: Path, database: Database):
    (folder / "t.jsonl").write_text(GOOD)
    done = submit("t.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("stored 1 · duplicates 0 · rejected 0 · ")
    again = submit("t.jsonl")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("stored 0 · duplicates 1 · rejected 0 · ")
    assert list(folder.iterdir()) == [folder / "t.jsonl"]
    assert database.fetch("SELECT count(*) FROM tasks") == [(1,)]


def test_some_rejected_is_exit_code_3_and_says_where_and_why(folder: Path):
    (folder / "t.jsonl").write_text(GOOD + BAD)
    done = submit("t.jsonl")
    assert done.returncode == 3
    assert done.stdout.startswith("stored 1 · duplicates 0 · rejected 1 · ")
    assert "line 2: priority: must be one of P0, P1, P2, P3, P4 (seen: P9)" in done.stderr
    assert "t.jsonl.rejects.jsonl" in done.stderr
    assert json.loads((folder / "t.jsonl.rejects.jsonl").read_text())["line"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "error: there is no file missing.jsonl"),
        (["notes.txt"], "error: notes.txt: neither JSON nor a CSV file"),
        (["empty.jsonl"], "error: empty.jsonl is empty"),
        (["good.jsonl", "--map", "prioritiy=x"], "error: --map 'prioritiy=x': 'prioritiy' is not a field"),
        (["good.jsonl", "--format", "xml"], "Invalid value for '--format'"),
        (["good.jsonl", "--preset", "jira"], "Invalid value for '--preset'"),
    ],
)
def test_what_cannot_be_used_is_exit_code_2_and_stores_nothing(
    folder: Path, database: Database, arguments: list[str], message: str
):
    (folder / "notes.txt").write_text("Dear all,\nplease mend the login.\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "good.jsonl").write_text(GOOD)
    done = submit(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert database.fetch("SELECT count(*) FROM tasks") == [(0,)]


def test_a_file_that_cannot_be_read_does_not_keep_others_from_being_taken(folder: Path, database: Database):
    (folder / "notes.txt").write_text("Dear all\n")
    (folder / "good.jsonl").write_text(GOOD)
    done = submit("notes.txt", "good.jsonl")
    assert done.returncode == 2
    assert "neither JSON nor a CSV file" in done.stderr
    assert database.fetch("SELECT task_id FROM tasks") == [("a",)]


def test_an_unreachable_database_is_said_in_a_sentence_and_touches_no_file(folder: Path, monkeypatch):
    monkeypatch.setenv("CP_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    (folder / "t.jsonl").write_text(GOOD + BAD)
    done = submit("t.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot reach the database at 127.0.0.1:1/none")
    assert list(folder.iterdir()) == [folder / "t.jsonl"]


def test_json_output_is_one_object(folder: Path):
    (folder / "t.jsonl").write_text(GOOD + BAD + '{"id": "a", "title": "y", "tittle": 1}\n')
    counts = as_json(submit("t.jsonl", "--json"))
    assert counts.pop("seconds") >= 0
    assert counts == {
        "dry_run": False,
        "stored": 1,
        "valid": 2,
        "duplicates": 1,
        "differing_duplicates": ["a"],
        "rejected": 1,
        "rejects": ["t.jsonl.rejects.jsonl"],
        "unread_fields": ["tittle"],
        "paths_that_led_nowhere": [],
    }


def test_what_may_be_a_mistake_is_said(folder: Path):
    (folder / "t.jsonl").write_text(GOOD + '{"id": "a", "title": "y", "tittle": 1}\n')
    done = submit("t.jsonl", "--map", "deadline=due.date")
    assert done.returncode == 0
    assert (
        "warning: these duplicates differ from the task stored under their id, which stays as it is: a"
        in done.stderr
    )
    assert "kept, but read by no rule: tittle (did you mean 'title'?)" in done.stderr
    assert "warning: no row has anything at due.date, which --map names" in done.stderr


def test_a_dry_run_stores_nothing_and_needs_no_database(folder: Path, monkeypatch, database: Database):
    monkeypatch.setenv("CP_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    (folder / "t.jsonl").write_text(GOOD + BAD)
    done = submit("t.jsonl", "--dry-run")
    assert done.returncode == 3
    assert done.stdout.startswith("valid 1 · duplicates 0 · rejected 1 · ")
    assert database.fetch("SELECT count(*) FROM tasks") == [(0,)]


def test_standard_input_is_sniffed_and_its_rejects_go_to_the_working_folder(folder: Path):
    done = submit("-", stdin=GOOD + BAD)
    assert done.returncode == 3
    assert (folder / "submit.rejects.jsonl").exists()
    assert submit("-", stdin='[{"title": "x"}, {"title": "x"}]').stdout.startswith("stored 2 ")
    assert submit("-", "--format", "csv", stdin="title\nx\n").stdout.startswith("stored 1 ")


def test_rejects_go_where_they_are_told(folder: Path):
    done = submit("-", "--rejects", folder / "elsewhere.jsonl", stdin=BAD)
    assert done.returncode == 3
    assert [path.name for path in folder.iterdir()] == ["elsewhere.jsonl"]
    assert submit("-", "--rejects", "/dev/null", stdin=BAD).returncode == 3
    assert [path.name for path in folder.iterdir()] == ["elsewhere.jsonl"]


def test_issues_as_gh_prints_them_become_tasks(folder: Path, database: Database):
    issues = [
        {
            "number": 12,
            "title": "Login loops",
            "body": "",
            "labels": [{"name": "bug"}, {"name": "priority: high"}],
            "url": "https://github.com/octo-org/shop/issues/12",
            "createdAt": "2026-02-03T04:05:06Z",
        }
    ]
    assert submit("-", "--preset", "github", stdin=json.dumps(issues)).returncode == 0
    assert database.fetch(
        """SELECT task_id, workspace, priority, labels, submission_day::text
           FROM tasks JOIN task_payloads ON task = id"""
    ) == [("octo-org/shop#12", "octo-org/shop", 1, ["bug", "priority: high"], "2026-02-03")]


def test_interrupted_says_what_is_stored_and_again_stores_the_rest(folder: Path, database: Database):
    title = "x" * 80
    rows = [f'{{"id": "t-{number}", "title": "{title}"}}\n' for number in range(12_000)]
    with subprocess.Popen(
        [*COMMAND, "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("".join(rows))
        process.stdin.flush()
        give_up = time.monotonic() + 30
        while database.fetch("SELECT count(*) FROM tasks") == [(0,)] and time.monotonic() < give_up:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
    assert process.returncode == 130
    assert message == (
        "interrupted: 10,000 tasks were stored, 0 were there before. Submit the same again for the rest: what "
        "is stored counts as duplicate\n"
    )
    assert submit("-", stdin="".join(rows)).stdout.startswith("stored 2,000 · duplicates 10,000 · rejected 0")


def test_a_terminal_shows_progress_and_a_pipe_does_not(folder: Path):
    (folder / "t.jsonl").write_text(
        "".join(f'{{"id": "{number}", "title": "x"}}\n' for number in range(3000))
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.run([*COMMAND, "t.jsonl"], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "t.jsonl" in shown
    assert "kB" in shown
    assert submit("t.jsonl").stderr == ""


def test_help_states_the_limits_that_hold():
    text = " ".join(submit("--help").stdout.split())
    for limit in (
        f"title {limits.TITLE_CHARACTERS} characters",
        f"description {limits.DESCRIPTION_CHARACTERS:,}",
        f"id {limits.ID_CHARACTERS}",
        f"{limits.LABELS} labels of {limits.LABEL_CHARACTERS} characters",
        f"{limits.DEPENDENCIES} dependencies",
        f"a row {ROW_BYTES // 2**20} MiB",
        f"a file {FILE_BYTES // 2**30} GiB",
    ):
        assert limit in text
