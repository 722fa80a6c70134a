"""Value scores in a real PostgreSQL: what is still to be scored, storing in bulk, overrides, and the command."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import pandas as pd
import psycopg
import pytest

from cp_cli.main import run
from cp_core.scoring.columns import TASK_COLUMNS
from cp_core.scoring.config import ScoringConfig
from cp_core.scoring.score import SCORE_COLUMNS, score_tasks
from cp_core.tasks.submission import extra_json, validate
from cp_resources import scores as scores_module
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.scores import ScoreError, ScoreStore
from cp_resources.settings import PROJECT_ROOT
from cp_resources.tasks import NewTask, TaskStore

DAY = date(2026, 3, 4)
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def config() -> ScoringConfig:
    """The configuration that ships."""
    return load_configuration(PROJECT_ROOT / "config").scoring


@pytest.fixture
def store(database: Database) -> ScoreStore:
    """The store of the test's database."""
    return ScoreStore(database)


def submit(database: Database, *task_ids: str, **fields: Any) -> None:
    """Store tasks as intake does."""
    rows = []
    for task_id in task_ids:
        submission = validate({"title": "Fix it", "submitted_at": NOON.isoformat(), **fields}, now=NOON)
        rows.append(NewTask.of(submission, task_id, extra_json(submission)))
    TaskStore(database).insert(rows)


def submit_hotfix(database: Database, task_id: str) -> None:
    """The worked example that is worth (40 x 1.0 + 15) x 1.1 x 1.3 = 78.65."""
    submit(database, task_id, priority="P0", labels=["security", "hotfix", "backend"], estimated_files=3)


def end(database: Database, task_id: str, state: str = "dead") -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET state = %s WHERE task_id = %s", (state, task_id))


def value(database: Database, task_id: str) -> float | None:
    [(found,)] = database.fetch("SELECT value_score FROM tasks WHERE task_id = %s", [task_id])
    return found


def test_unscored_tasks_of_a_day_come_as_scoring_reads_them(database: Database, store: ScoreStore) -> None:
    deadline = NOON + timedelta(hours=3)
    submit(
        database,
        "full",
        title="Title",
        description="Text ✓",
        priority="P1",
        labels=["bug", "area/ui"],
        workspace="shop",
        estimated_files=3,
        estimated_lines=0,
        workspace_files=120,
        deadline=deadline.isoformat(),
    )
    submit(database, "bare")
    submit(database, "the day before", submitted_at="2026-03-03T23:59:59Z")

    full, bare = store.unscored(DAY).to_dict("records")

    assert full == {
        "title": "Title",
        "description": "Text ✓",
        "priority": 1,
        "labels": ["bug", "area/ui"],
        "workspace": "shop",
        "estimated_files": 3,
        "estimated_lines": 0,
        "workspace_files": 120,
        "deadline": pd.Timestamp(deadline),
        "submitted_at": pd.Timestamp(NOON),
        "blocks_others": False,
    }
    assert [name for name, found in bare.items() if pd.api.types.is_scalar(found) and pd.isna(found)] == [
        "estimated_files",
        "estimated_lines",
        "workspace_files",
        "deadline",
    ]


def test_a_day_without_tasks_has_nothing_to_score(store: ScoreStore, config: ScoringConfig) -> None:
    frame = store.unscored(DAY)

    assert frame.empty
    assert tuple(frame.columns) == tuple(TASK_COLUMNS)
    store.write_scores(score_tasks(frame, config), "hash")


def test_a_task_blocks_others_while_an_open_one_of_any_day_depends_on_it(
    database: Database, store: ScoreStore
) -> None:
    submit(database, "awaited", "not-awaited", "alone")
    submit(database, "waits", dependencies=["awaited"], submitted_at="2026-03-01T00:00:00Z")
    submit(database, "ended", dependencies=["not-awaited"])
    end(database, "ended")

    found = store.unscored(DAY)

    assert found["blocks_others"].tolist() == [True, False, False, False]


def test_what_is_scored_is_not_scored_again_under_another_configuration(
    database: Database, store: ScoreStore, config: ScoringConfig
) -> None:
    submit(database, "a")
    store.write_scores(score_tasks(store.unscored(DAY), config), "old configuration")
    submit(database, "b")

    store.write_scores(score_tasks(store.unscored(DAY), config), "new configuration")

    assert store.unscored(DAY).empty
    assert [store.score(task)["config_hash"] for task in "ab"] == ["old configuration", "new configuration"]


def test_a_large_day_is_read_in_portions(database: Database, store: ScoreStore) -> None:
    submit(database, *(f"task {number}" for number in range(7)))

    first = store.unscored(DAY, limit=3)
    second = store.unscored(DAY, after=int(first.index[-1]), limit=3)
    third = store.unscored(DAY, after=int(second.index[-1]), limit=3)

    assert [len(first), len(second), len(third)] == [3, 3, 1]
    assert pd.concat([first, second, third]).index.tolist() == store.unscored(DAY).index.tolist()


def test_every_factor_is_stored_and_the_queue_carries_the_score(
    database: Database, store: ScoreStore, config: ScoringConfig
) -> None:
    submit_hotfix(database, "hotfix")
    submit(database, "other", description="See `docs/a.md`", workspace_files=80)
    scores = score_tasks(store.unscored(DAY), config)

    store.write_scores(scores, "hash")

    columns = ", ".join(SCORE_COLUMNS)
    stored = database.fetch(f"SELECT {columns}, submission_day, config_hash FROM task_scores ORDER BY task")
    assert stored == [(*row, DAY, "hash") for row in scores.itertuples(index=False, name=None)]
    assert value(database, "hotfix") == pytest.approx(78.65)
    assert value(database, "other") == scores["score"].iloc[1]


def test_a_day_is_scored_in_portions_that_are_stored_while_the_next_are_made(
    database: Database, store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "CHUNK", 2)
    submit(database, *(f"t{number}" for number in range(7)))
    store.write_scores(
        score_tasks(store.task("t3"), load_configuration(PROJECT_ROOT / "config").scoring), "earlier"
    )
    configuration = load_configuration(PROJECT_ROOT / "config")

    assert store.score_day(DAY, configuration) == 6
    assert store.score_day(DAY, configuration) == 0

    hashes = database.fetch("SELECT config_hash, submission_day FROM task_scores ORDER BY task")
    made = (configuration.content_hash, DAY)
    assert hashes == [made, made, made, ("earlier", DAY), made, made, made]


def test_scores_that_another_process_made_meanwhile_are_no_obstacle(
    database: Database, store: ScoreStore
) -> None:
    submit(database, "a", "b", "c")
    configuration = load_configuration(PROJECT_ROOT / "config")

    class Overtaken(ScoreStore):
        def unscored(self, day: date, *, after: int = 0, limit: int = 10) -> pd.DataFrame:
            found = super().unscored(day, after=after, limit=limit)
            if not after:
                store.write_scores(score_tasks(store.task("b"), configuration.scoring), "the other's")
            return found

    Overtaken(database).score_day(DAY, configuration)
    assert database.fetch("SELECT count(*) FROM task_scores") == [(3,)]


def test_a_score_that_cannot_be_stored_stores_none_of_its_portion(
    database: Database, store: ScoreStore, config: ScoringConfig
) -> None:
    submit(database, "a", "b")
    scores = score_tasks(store.unscored(DAY), config)
    scores.iloc[1, scores.columns.get_loc("score")] = 100.5

    with pytest.raises(psycopg.errors.CheckViolation):
        store.write_scores(scores, "hash")

    assert len(store.unscored(DAY)) == 2
    assert value(database, "a") is None


def test_a_task_that_is_gone_is_passed_over(
    database: Database, store: ScoreStore, config: ScoringConfig
) -> None:
    submit(database, "a", "b")
    scores = score_tasks(store.unscored(DAY), config)
    with database.transaction() as connection:
        connection.execute("DELETE FROM tasks WHERE task_id = 'a'")

    store.write_scores(scores, "hash")

    assert database.fetch("SELECT count(*) FROM task_scores") == [(1,)]


def test_writers_of_the_same_tasks_in_opposite_order_do_not_stop_each_other(
    database: Database, store: ScoreStore, config: ScoringConfig
) -> None:
    submit(database, *(f"task {number}" for number in range(300)))
    scores = score_tasks(store.unscored(DAY), config)

    with ThreadPoolExecutor(4) as pool:
        writes = [
            pool.submit(store.write_scores, scores if number % 2 else scores.iloc[::-1], f"hash {number}")
            for number in range(12)
        ]
    for write in writes:
        write.result()

    assert database.fetch("SELECT count(*) FROM task_scores") == [(300,)]


def test_an_override_counts_until_it_is_cleared_and_outlives_a_new_score(
    database: Database, store: ScoreStore, config: ScoringConfig
) -> None:
    submit_hotfix(database, "a")
    scores = score_tasks(store.task("a"), config)
    store.write_scores(scores, "hash")

    store.override_score("a", 12.5, " nobody is affected ", "ada")
    store.write_scores(scores, "newer hash")

    stored = store.score("a")
    assert stored is not None
    assert (stored["override_score"], stored["override_reason"], stored["override_by"]) == (
        12.5,
        "nobody is affected",
        "ada",
    )
    assert stored["score"] == pytest.approx(78.65)
    assert stored["effective_score"] == value(database, "a") == 12.5

    store.clear_override("a", "bob")

    assert value(database, "a") == pytest.approx(78.65)
    events = database.fetch("SELECT kind, subject, payload FROM events ORDER BY id")
    assert [(kind, subject, payload["by"]) for kind, subject, payload in events] == [
        ("score.overridden", "a", "ada"),
        ("score.override_cleared", "a", "bob"),
    ]
    assert events[0][2] == {"score": 12.5, "reason": "nobody is affected", "by": "ada"}


@pytest.mark.parametrize(
    ("task_id", "score", "reason", "message"),
    [
        ("a", 100.5, "why", "a value score is 0 to 100, not 100.5"),
        ("a", -1, "why", "not -1"),
        ("a", float("nan"), "why", "not nan"),
        ("a", 50, "  ", "an override needs a reason"),
        ("nobody", 50, "why", "no task has the id 'nobody'"),
        ("fresh", 50, "why", "task fresh has no value score yet: run `control-panel score fresh` first"),
        ("done", 50, "why", "task done has ended (succeeded)"),
    ],
)
def test_an_override_that_cannot_be_says_why_and_changes_nothing(
    database: Database,
    store: ScoreStore,
    config: ScoringConfig,
    task_id: str,
    score: float,
    reason: str,
    message: str,
) -> None:
    submit(database, "a", "done")
    store.write_scores(score_tasks(store.unscored(DAY), config), "hash")
    end(database, "done", "succeeded")
    submit(database, "fresh")

    with pytest.raises(ScoreError) as error:
        store.override_score(task_id, score, reason, "ada")

    assert message in str(error.value)
    assert database.fetch("SELECT count(override_score) FROM task_scores") == [(0,)]
    assert database.fetch("SELECT count(*) FROM events") == [(0,)]


class Printed(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Printed]:
    """Run `control-panel score ARGUMENTS` on the test's database."""
    monkeypatch.setenv("CP_DATABASE_URL", database.url)
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*arguments: str) -> Printed:
        monkeypatch.setattr(sys, "argv", ["control-panel", "score", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        out, err = capsys.readouterr()
        return Printed(int(ended.value.code or 0), out, err)

    return invoke


def test_the_command_scores_a_task_and_shows_every_factor(
    database: Database, command: Callable[..., Printed]
) -> None:
    submit_hotfix(database, "hotfix")

    printed = command("hotfix")

    assert printed.code == 0
    for text in (
        "P0",
        "moderate: 3 files, 75 lines (given)",
        "label hotfix",
        "backend, from labels",
        "(40 x 1 + 15) x 1.1 x 1.3",
        "78.65",
        "27,500",
    ):
        assert text in printed.out
    assert value(database, "hotfix") == pytest.approx(78.65)


def test_the_command_overrides_and_clears_with_the_login_name(
    database: Database, command: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "grace")
    submit_hotfix(database, "hotfix")

    overridden = json.loads(
        command("hotfix", "--override", "20", "--reason", "can [b]wait[/b]\x1b[2J", "--json").out
    )
    shown = command("hotfix").out
    cleared = json.loads(command("hotfix", "--clear-override", "--json").out)

    assert (overridden["effective_score"], overridden["override_by"]) == (20, "grace")
    assert "can [b]wait[/b]\\x1b[2J (grace)" in shown
    assert cleared["override_score"] is None
    assert cleared["effective_score"] == pytest.approx(78.65)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "error: no task has the id 'nobody'"),
        (["a", "--override", "101", "--reason", "x"], "error: a value score is 0 to 100, not 101"),
        (["a", "--override", "10"], "error: an override needs a reason"),
        (["a", "--reason", "x"], "error: --reason explains an override: give --override SCORE with it"),
        (["a", "--override", "10", "--clear-override"], "error: --override and --clear-override contradict"),
    ],
)
def test_the_command_says_what_is_wrong(
    database: Database, command: Callable[..., Printed], arguments: list[str], message: str
) -> None:
    submit(database, "a")

    printed = command(*arguments)

    assert printed.code == 2
    assert printed.err.startswith(message)
    assert printed.out == ""
