"""The assets, materialized as a run does: what they write and show, and that a day can be run again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from dagster import Definitions
from worked_day import DAY, definitions, failed_checks, rows, run, submit

from cp_assets.presentation import bars, counts, histogram, table
from cp_core.learning.performance import measure_performance
from cp_resources import migrate
from cp_resources.database import Database
from cp_resources.performance import PerformanceStore
from cp_resources.simulator.options import Options
from cp_resources.simulator.server import running

DAYS = [date(2026, 3, 2), date(2026, 3, 3), date(2026, 3, 4)]

OUTCOMES = {
    "scores": """
        SELECT task_id, files, lines, complexity, complexity_factor, priority_points, time_bonus, domain,
               risk, score, input_mean, input_median, input_low, input_high, output_mean, config_hash
        FROM task_scores JOIN tasks ON tasks.id = task
    """,
    "decisions": """
        SELECT task_id, decision_id, assignments.model, funding, expected_cost_usd
        FROM assignments JOIN tasks ON tasks.id = task WHERE outcome = 'assigned'
    """,
    "attempts": """
        SELECT task_id, attempt, executions.model, funding, executions.state, executions.reason, input_tokens,
               output_tokens, quality, evidence
        FROM executions JOIN tasks ON tasks.id = task
    """,
    "tasks": "SELECT task_id, state, reason, attempts, model, value_score FROM tasks",
}
METRICS = """
    SELECT day, model, domain, complexity, attempts, tasks, succeeded, success_rate, quality_mean,
           input_tokens, output_tokens, value_delivered, input_error_ratio, output_error_ratio
    FROM performance_metrics
"""


def everything(database: Database) -> dict[str, list]:
    """What the days came to, without what depends on when it was done."""
    return {name: sorted(database.fetch(query), key=str) for name, query in OUTCOMES.items()}


def metadata_of(result) -> dict[str, dict]:
    """The metadata of each materialized asset, as plain values."""
    return {
        event.asset_key.to_user_string(): {
            name: value.value for name, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
    }


def test_running_a_finished_day_again_changes_nothing(worked, simulator_url, tmp_path):
    before = everything(worked)
    transfers = worked.fetch("SELECT count(*) FROM quota_transfers")
    result = run(definitions(worked, simulator_url, tmp_path), "process_queue", DAY)
    assert failed_checks(result) == set()
    assert everything(worked) == before
    assert worked.fetch("SELECT count(*) FROM quota_transfers") == transfers


def test_every_asset_shows_counts_distributions_and_plots(worked, simulator_url, tmp_path):
    shown = metadata_of(run(definitions(worked, simulator_url, tmp_path), "process_queue", DAY))
    assert shown["model_registry"]["dagster/row_count"] >= 10
    assert "claude-opus" in shown["model_registry"]["models"]
    assert "| claude-max/5-hour | tokens |" in shown["model_registry"]["quota"]

    assert shown["task_queue"]["dagster/row_count"] == 16
    assert "| P0 | 2 | 12.5% |" in shown["task_queue"]["by priority"]

    assert shown["scored_tasks"]["dagster/row_count"] == 16
    assert shown["scored_tasks"]["scored in this run"] == 0
    assert "| frontend | 2 |" in shown["scored_tasks"]["by domain"]

    [(attempts,)] = worked.fetch("SELECT count(*) FROM executions")
    assert shown["execution_outcomes"]["dagster/row_count"] == attempts >= 16
    assert shown["execution_outcomes"]["why this run ended"] == "drained"

    for asset, plot in [
        ("model_registry", "prices"),
        ("task_queue", "priorities"),
        ("scored_tasks", "value scores"),
        ("assignments", "tasks by model"),
        ("execution_outcomes", "successes by model"),
    ]:
        picture = shown[asset][plot]
        assert "](data:image/png;base64,iVBORw0KGgo" in picture
        assert len(picture) < 40_000  # it is stored with every materialization


def test_a_run_that_has_no_time_leaves_its_tasks_to_the_next_one(database, simulator_url, tmp_path):
    submit(database, rows(DAY, 4), tmp_path)
    defs = definitions(database, simulator_url, tmp_path)
    no_time = {"ops": {"execution_outcomes": {"config": {"time_budget_seconds": 1e-6}}}}
    first = run(defs, "process_queue", DAY, run_config=no_time)
    assert first.success
    assert metadata_of(first)["execution_outcomes"]["why this run ended"] == "time budget"
    assert database.fetch("SELECT count(*) FROM tasks WHERE state IN ('assigned', 'deferred')") == [(4,)]
    run(defs, "process_queue", DAY)
    assert database.fetch("SELECT DISTINCT state FROM tasks") == [("succeeded",)]


def test_a_task_that_is_submitted_during_a_run_is_executed_by_it(database, tmp_path):
    submit(database, rows(DAY, 8), tmp_path)

    def submit_another_once_the_first_is_done() -> None:
        while not database.fetch("SELECT FROM executions WHERE finished_at IS NOT NULL"):
            time.sleep(0.02)
        submit(database, [{**rows(DAY, 1)[0], "id": "late", "dependencies": []}], tmp_path)

    late = threading.Thread(target=submit_another_once_the_first_is_done)
    late.start()
    with running(Options(latency_ms=1500, failure_share=0)) as url:
        run(definitions(database, url, tmp_path), "process_queue", DAY)
    late.join()
    assert database.fetch("SELECT DISTINCT state FROM tasks") == [("succeeded",)]
    assert database.fetch("SELECT count(DISTINCT task), count(DISTINCT run_id) FROM assignments") == [(9, 1)]


def test_a_day_without_tasks_is_materialized_as_empty(database, simulator_url, tmp_path):
    result = run(definitions(database, simulator_url, tmp_path), "process_queue", DAY)
    assert failed_checks(result) == set()
    assert metadata_of(result)["scored_tasks"]["value scores"] == "none"
    assert metadata_of(result)["execution_outcomes"]["dagster/row_count"] == 0


@contextmanager
def simulated(database: Database, folder: Path) -> Iterator[Definitions]:
    """The code location against models that have not been asked anything yet."""
    with running(Options(latency_ms=5, failure_share=0.1)) as url:
        yield definitions(database, url, folder)


def test_a_backfill_gives_the_rows_that_running_each_day_then_would_have_given(
    database, postgres_server, empty_database_url, tmp_path
):
    """The last day's metrics are compared too; of the others it would be the same dbt and the same core."""
    later = Database(empty_database_url)
    migrate.upgrade(empty_database_url)
    with simulated(database, tmp_path) as defs:
        for day in DAYS:
            submit(database, rows(day, 8), tmp_path)
            assert failed_checks(run(defs, "process_queue", day)) == set()
        run(defs, "daily_learning", DAYS[-1])
    with simulated(later, tmp_path) as defs:
        for day in DAYS:
            submit(later, rows(day, 8), tmp_path)
        for day in [DAYS[1], DAYS[2], DAYS[0]]:
            assert failed_checks(run(defs, "process_queue", day)) == set()
        run(defs, "daily_learning", DAYS[-1])

    assert everything(later) == everything(database)
    assert len(everything(database)["tasks"]) == 24
    assert sorted(later.fetch(METRICS)) == sorted(database.fetch(METRICS))
    assert database.fetch("SELECT count(*) > 0 FROM performance_metrics") == [(True,)]
    later.close()


def test_performance_is_measured_from_the_attempts_of_the_day(worked):
    by_hand = worked.fetch(
        """
        SELECT model, count(*), count(DISTINCT task), count(*) FILTER (WHERE state = 'succeeded'),
               sum(input_tokens), sum(cost_usd), sum(effective_score) FILTER (WHERE state = 'succeeded')
        FROM executions JOIN task_scores USING (task) GROUP BY model ORDER BY model
        """
    )
    measured = worked.fetch(
        """
        SELECT model, attempts, tasks, succeeded, input_tokens, cost_usd, nullif(value_delivered, 0)
        FROM performance_metrics WHERE domain = 'all' AND complexity = 'all' ORDER BY model
        """
    )
    assert [row[:6] for row in measured] == [row[:6] for row in by_hand]
    assert [row[6] for row in measured] == pytest.approx([row[6] for row in by_hand])


def test_the_metrics_of_a_day_are_replaced_as_a_whole(worked):
    store = PerformanceStore(worked)
    before = sorted(worked.fetch(METRICS))
    measured = measure_performance(store.attempts(DAY))
    store.replace_day(DAY, measured.iloc[:1])
    assert worked.fetch("SELECT count(*) FROM performance_metrics") == [(1,)]
    store.replace_day(DAY, measured)
    assert sorted(worked.fetch(METRICS)) == before
    store.replace_day(date(2026, 3, 3), measured.iloc[:0])
    assert sorted(worked.fetch(METRICS)) == before


class TestPresentation:
    def test_a_table_escapes_what_would_break_it(self):
        shown = table(["name", "value"], [("a|b", None), ("c\nd", float("nan"))]).value
        assert shown.splitlines() == ["| name | value |", "| --- | --- |", "| a\\|b |  |", "| c d |  |"]

    def test_a_table_shows_what_others_wrote_as_they_wrote_it(self):
        """A workspace may be called anything: it must not fetch a picture into the UI, or be HTML there."""
        shown = table(["workspace"], [("![x](https://example.org/x.png)",), ("<b>`a`\\|\r",)]).value
        assert shown.splitlines()[2:] == [
            r"| !\[x](https://example.org/x.png) |",
            r"| \<b>\`a\`\\\| |",
        ]

    def test_numbers_are_grouped_and_rounded(self):
        row = (1234567, 0.12345678, 12345.678, Decimal("0E-9"), Decimal("200000000.000000000"))
        assert "| 1,234,567 | 0.1235 | 12,346 | 0 | 200,000,000 |" in table(["n"], [row]).value

    def test_times_are_in_utc_to_the_minute(self):
        noon_in_berlin = datetime(2026, 3, 2, 12, 0, 59, tzinfo=ZoneInfo("Europe/Berlin"))
        assert "| 2026-03-02 11:00 UTC |" in table(["t"], [(noon_in_berlin,)]).value

    def test_counts_come_with_their_share_and_without_zeros(self):
        shown = counts("state", {"queued": 3, "dead": 0, "failed": 1}).value
        assert "| queued | 3 | 75.0% |" in shown
        assert "dead" not in shown

    def test_nothing_to_show_is_said_in_words(self):
        assert table(["a"], []).value == "none"
        assert histogram({}, title="t", axis="a", width=5, upto=100).value == "none"
        assert bars({}, title="t", axis="a").value == "none"
