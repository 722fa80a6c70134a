"""Evidence that arrives later, in a real PostgreSQL: history, quality, verdict, and what a repeat does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from assigned_tasks import DAY, add_task, assign, configuration
from worked_day import DAY as WORKED_DAY
from worked_day import definitions
from worked_day import run as run_job

from cp_cli.main import run as run_command
from cp_core.execution.evidence import Source
from cp_core.execution.feedback import Report
from cp_core.execution.outcome import AttemptResult, judge
from cp_core.tasks.reasons import Reason
from cp_resources.database import Database
from cp_resources.executions import ExecutionStore, Finished
from cp_resources.feedback import FeedbackError, FeedbackStore
from cp_resources.ledger import Ledger

GOOD = '```evidence\n{"tests_passed": 5, "tests_failed": 0, "bugs_introduced": 0, "revisions_needed": 0}\n```'
BAD = "Done, trust me."


def report(**said: Any) -> Report:
    return Report(source=said.pop("source", Source.CI), **said)


def store(database: Database) -> FeedbackStore:
    return FeedbackStore(database, 6.0)


def attempt(database: Database, task_id: str, answer: str | None, *, max_attempts: int = 1) -> None:
    """One attempt at a new or known task; without an answer it timed out."""
    ledger, config = Ledger(database), configuration()
    ledger.open_accounts(config.registry)
    known = database.fetch("SELECT id FROM tasks WHERE task_id = %s", [task_id])
    task = known[0][0] if known else add_task(database, task_id, max_attempts=max_attempts)
    assign(database, ledger, task)
    executions = ExecutionStore(database, ledger, config)
    [claimed] = executions.claim(DAY, "worker", 1, {"sonnet": 1})
    result = AttemptResult(Reason.INVALID_REQUEST)
    if answer is not None:
        verdict = judge(answer, 6.0)
        result = AttemptResult(verdict.reason, quality=verdict.quality, evidence=verdict.evidence)
    executions.complete("worker", [Finished(claimed, result)])


def task_of(database: Database, task_id: str) -> tuple[str, str | None]:
    [row] = database.fetch("SELECT state, reason FROM tasks WHERE task_id = %s", [task_id])
    return row[0], row[1]


def attempts_of(database: Database, task_id: str) -> list[tuple[Any, ...]]:
    return database.fetch(
        """SELECT e.state, e.reason, e.quality FROM executions e JOIN tasks t ON t.id = e.task
           WHERE t.task_id = %s ORDER BY e.attempt""",
        [task_id],
    )


def test_every_report_stays_with_who_made_it_and_what_it_changed(database: Database) -> None:
    attempt(database, "web-1", GOOD)

    store(database).record("web-1", report(tests_passed=9, tests_failed=1), by="build-7")
    rescored = store(database).record(
        "web-1", report(source=Source.PERSON, review_score=7, review_note="fine"), by="grace"
    )

    assert (rescored.quality_before, rescored.quality_after) == (pytest.approx(8.1), 7.0)
    assert database.fetch(
        """SELECT source, reported_by, report, quality_before, quality_after, state_before, state_after
           FROM evidence ORDER BY id"""
    ) == [
        (
            "ci",
            "build-7",
            {"source": "ci", "tests_passed": 9, "tests_failed": 1},
            10.0,
            pytest.approx(8.1),
            "succeeded",
            "succeeded",
        ),
        (
            "person",
            "grace",
            {"source": "person", "review_score": 7, "review_note": "fine"},
            pytest.approx(8.1),
            7.0,
            "succeeded",
            "succeeded",
        ),
    ]
    [(evidence,)] = database.fetch("SELECT evidence FROM executions")
    assert evidence["sources"] == {
        "tests": "ci",
        "bugs": "worker-reported",
        "revisions": "worker-reported",
        "review": "person",
        "schema": "worker-reported",
    }
    assert [
        row[0]
        for row in database.fetch(
            "SELECT payload ->> 'by' FROM events WHERE kind = 'quality.rescored' "
            "AND subject = 'web-1' ORDER BY id"
        )
    ] == ["build-7", "grace"]


def test_a_success_that_turns_out_bad_is_a_failure_and_back(database: Database) -> None:
    attempt(database, "web-1", GOOD)

    store(database).record("web-1", report(tests_passed=3, tests_failed=1), by="ci")
    assert task_of(database, "web-1") == ("failed", "LOW_QUALITY")
    assert attempts_of(database, "web-1") == [("failed", "LOW_QUALITY", 5.625)]

    store(database).record("web-1", report(tests_passed=4, tests_failed=0), by="ci")
    assert task_of(database, "web-1") == ("succeeded", None)
    assert attempts_of(database, "web-1") == [("succeeded", None, 10.0)]


def test_work_whose_own_evidence_could_not_be_read_is_saved_by_ci(database: Database) -> None:
    attempt(database, "web-1", BAD)
    assert task_of(database, "web-1") == ("failed", "LOW_QUALITY")

    store(database).record("web-1", report(tests_passed=12, tests_failed=0), by="ci")

    assert task_of(database, "web-1") == ("succeeded", None)


def test_a_task_that_went_on_to_another_attempt_stays_where_that_brought_it(database: Database) -> None:
    attempt(database, "web-1", BAD, max_attempts=2)
    attempt(database, "web-1", GOOD)

    store(database).record("web-1", report(tests_passed=12, tests_failed=0), by="ci", attempt=1)

    assert task_of(database, "web-1") == ("succeeded", None)
    assert attempts_of(database, "web-1") == [("failed", "LOW_QUALITY", 10.0), ("succeeded", None, 10.0)]


def test_evidence_on_a_task_that_is_queued_again_moves_nothing(database: Database) -> None:
    attempt(database, "web-1", BAD, max_attempts=2)

    rescored = store(database).record("web-1", report(tests_passed=12, tests_failed=0), by="ci")

    assert rescored.quality_after == 10.0
    assert task_of(database, "web-1") == ("queued", "LOW_QUALITY")


def test_a_report_sent_again_changes_nothing(database: Database) -> None:
    attempt(database, "web-1", GOOD)
    said = report(tests_passed=3, tests_failed=1)

    first = store(database).record("web-1", said, by="ci", key="run-1")
    store(database).record("web-1", report(tests_passed=4, tests_failed=0), by="ci", key="run-2")
    again = store(database).record("web-1", said, by="ci", key="run-1")

    assert (first.is_new, again.is_new) == (True, False)
    assert (again.quality_before, again.quality_after) == (10.0, 5.625)
    assert attempts_of(database, "web-1") == [("succeeded", None, 10.0)]
    assert database.fetch("SELECT count(*) FROM evidence") == [(2,)]
    assert database.fetch("SELECT count(*) FROM events WHERE kind = 'quality.rescored'") == [(2,)]


def test_one_report_sent_by_many_at_once_is_recorded_once(database: Database) -> None:
    attempt(database, "web-1", GOOD)
    said = report(tests_passed=3, tests_failed=1)

    with ThreadPoolExecutor(6) as pool:
        sent = [pool.submit(store(database).record, "web-1", said, by="ci", key="run-1") for _ in range(12)]
        assert sum(each.result().is_new for each in sent) == 1

    assert database.fetch("SELECT count(*) FROM evidence") == [(1,)]


def test_a_key_that_stands_for_other_evidence_is_refused(database: Database) -> None:
    attempt(database, "web-1", GOOD)
    store(database).record("web-1", report(tests_passed=3, tests_failed=1), by="ci", key="run-1")

    with pytest.raises(FeedbackError, match="key 'run-1' stands for other evidence on task web-1"):
        store(database).record("web-1", report(tests_passed=4, tests_failed=0), by="ci", key="run-1")


def test_evidence_needs_work_to_judge(database: Database) -> None:
    attempt(database, "refused", None)
    add_task(database, "new")

    with pytest.raises(FeedbackError, match="no task has the id 'web-9'"):
        store(database).record("web-9", report(bugs_introduced=1), by="ci")
    with pytest.raises(
        FeedbackError, match=r"no attempt with work to judge; its attempts: 1 \(INVALID_REQUEST\)"
    ):
        store(database).record("refused", report(bugs_introduced=1), by="ci")
    with pytest.raises(FeedbackError, match="its attempts: none yet"):
        store(database).record("new", report(bugs_introduced=1), by="ci")
    attempt(database, "web-1", GOOD)
    with pytest.raises(FeedbackError, match="no attempt 2 with work to judge"):
        store(database).record("web-1", report(bugs_introduced=1), by="ci", attempt=2)


def test_history_cannot_be_changed(database: Database) -> None:
    attempt(database, "web-1", GOOD)
    store(database).record("web-1", report(bugs_introduced=1), by="ci")

    for statement in ("UPDATE evidence SET source = 'person'", "DELETE FROM evidence", "TRUNCATE evidence"):
        with pytest.raises(psycopg.errors.RestrictViolation), database.transaction() as connection:
            connection.execute(statement)


def test_a_secret_in_a_note_is_not_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-secret-1")
    attempt(database, "web-1", GOOD)

    store(database).record(
        "web-1",
        report(review_score=5, review_note="logs planted-secret-1 and sk-ant-abcdef1234"),
        by="ci planted-secret-1",
    )

    [(note, by)] = database.fetch("SELECT report ->> 'review_note', reported_by FROM evidence")
    assert (note, by) == ("logs [key] and [key]", "ci [key]")


def test_metrics_follow_when_the_day_is_measured_again(
    worked: Database, simulator_url: str, tmp_path: Any
) -> None:
    [(task_id, model)] = worked.fetch(
        """SELECT task_id, e.model FROM tasks t JOIN executions e ON e.task = t.id AND e.state = 'succeeded'
           WHERE t.submission_day = %s ORDER BY t.id LIMIT 1""",
        [WORKED_DAY],
    )

    def measured() -> tuple[Any, ...]:
        [row] = worked.fetch(
            """SELECT attempts, succeeded, quality_mean, value_delivered FROM performance_metrics
               WHERE day = %s AND model = %s AND domain = 'all'""",
            [WORKED_DAY, model],
        )
        return row

    before = measured()
    rescored = store(worked).record(task_id, report(tests_passed=0, tests_failed=9), by="ci")
    assert run_job(definitions(worked, simulator_url, tmp_path), "daily_learning", WORKED_DAY).success
    after = measured()

    assert after[0] == before[0]
    assert after[1] == before[1] - 1
    [(quality,)] = worked.fetch(
        "SELECT avg(quality) FROM executions WHERE submission_day = %s AND model = %s", [WORKED_DAY, model]
    )
    assert after[2] == pytest.approx(quality)
    assert after[2] < before[2]
    assert rescored.quality_before > rescored.quality_after == 0.0
    assert after[3] < before[3]


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("CP_DATABASE_URL", database_url)

    def invoke(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["control-panel", "feedback", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return invoke


def test_the_command_takes_what_ci_found(database: Database, command: Any) -> None:
    attempt(database, "web-1", GOOD)

    code, out, _ = command(
        "web-1", "--tests-passed", "3", "--tests-failed", "1", "--by", "build", "--id", "r1"
    )
    assert code == 0
    assert "quality 10.00 -> 5.62" in out
    assert "the task was succeeded and is now failed" in out
    assert f"control-panel backfill daily_learning --from {DAY}" in out

    _, out, _ = command("web-1", "--tests-passed", "3", "--tests-failed", "1", "--id", "r1")
    assert "recorded before; nothing changed" in out

    _, out, _ = command("web-1", "--review-score", "9", "--source", "person", "--by", "grace", "--json")
    assert json.loads(out)["evidence"]["sources"]["review"] == "person"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["web-1"], "error: nothing is reported"),
        (["web-1", "--tests-passed", "3"], "error: tests passed and tests failed belong together"),
        (
            ["web-1", "--review-score", "11"],
            "error: --review-score: Input should be less than or equal to 10",
        ),
        (["nobody", "--bugs-introduced", "1"], "error: no task has the id 'nobody'"),
    ],
)
def test_the_command_says_what_is_wrong(
    database: Database, command: Any, arguments: list[str], message: str
) -> None:
    code, out, err = command(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith(message)
