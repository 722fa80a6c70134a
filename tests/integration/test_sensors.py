"""When runs start: what new_tasks_sensor decides by, and the sensors and the schedule in Dagster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from threading import Timer
from zoneinfo import ZoneInfo

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    build_schedule_context,
    build_sensor_context,
)
from hypothesis import given
from hypothesis import strategies as st

from cp_definitions import defs
from cp_resources.database import Database
from cp_resources.settings import Settings
from cp_sensors import inbox
from cp_sensors.batches import (
    LONGEST_BACKOFF,
    MANY_FAILURES,
    MAX_LAUNCHES,
    PAUSE_WITHOUT_PROGRESS,
    DayWork,
    Decision,
    EndedRun,
    decide,
    read_cursor,
    write_cursor,
)
from cp_sensors.inbox import FILE_TAG, take_inbox, task_inbox_sensor
from cp_sensors.new_tasks import BATCH_TAG, new_tasks_sensor
from cp_sensors.schedules import build_daily_learning_schedule, last_whole_day

DAY = date(2026, 3, 2)
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
WORK = DayWork(DAY, 7, "as first seen")


def seconds_ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def succeeded(batch: str | None, seconds: float = 0) -> EndedRun:
    return EndedRun(batch, succeeded=True, ended_at=seconds_ago(seconds))


def failed(batch: str | None, seconds: float = 0) -> EndedRun:
    return EndedRun(batch, succeeded=False, ended_at=seconds_ago(seconds))


def decide_on(*runs: EndedRun, work: DayWork = WORK, under_way=(), cursor=None) -> Decision:
    return decide([work], under_way=under_way, ended={DAY: runs}, cursor=cursor or {}, now=NOW)


class TestDecision:
    def test_nothing_is_launched_when_nothing_waits(self):
        decision = decide([], under_way=(), ended={}, cursor={}, now=NOW)
        assert (decision.launches, decision.waiting, decision.cursor) == ([], [], {})

    def test_a_day_with_work_gets_its_first_run_at_once(self):
        [launch] = decide_on().launches
        assert (launch.day, launch.batch, launch.attempt) == (DAY, WORK.batch, 1)

    def test_a_day_has_one_run_at_a_time(self):
        decision = decide_on(under_way={DAY})
        assert decision.launches == []
        assert decision.waiting == ["2026-03-02: a run is under way"]

    def test_a_run_of_one_day_does_not_hold_back_another(self):
        other = DayWork(date(2026, 3, 1), 1, "x")
        decision = decide([WORK, other], under_way={DAY}, ended={}, cursor={}, now=NOW)
        assert [launch.day for launch in decision.launches] == [other.day]

    def test_the_cursor_stays_while_no_run_has_succeeded(self):
        assert decide_on().cursor == {}
        assert decide_on(under_way={DAY}).cursor == {}
        assert decide_on(failed("b1")).cursor == {}

    def test_the_cursor_moves_to_the_batch_whose_run_succeeded(self):
        assert decide_on(succeeded("b1")).cursor == {DAY: "b1"}
        assert decide_on(failed("b2"), succeeded("b1")).cursor == {DAY: "b1"}

    def test_the_cursor_outlives_its_run_records_and_leaves_with_the_days_work(self):
        assert decide_on(cursor={DAY: "b1", date(2026, 1, 1): "old"}).cursor == {DAY: "b1"}

    def test_work_that_changed_under_a_success_is_taken_up_at_once(self):
        [launch] = decide_on(succeeded("an earlier batch")).launches
        assert (launch.batch, launch.attempt) == (WORK.batch, 1)

    def test_work_that_a_success_left_untouched_is_taken_up_after_a_pause(self):
        pause = PAUSE_WITHOUT_PROGRESS.total_seconds()
        early = decide_on(succeeded(WORK.batch, pause - 1))
        assert early.launches == []
        assert "left its 7 tasks as they were; again at 12:00:01 UTC" in early.waiting[0]
        [launch] = decide_on(succeeded(WORK.batch, pause)).launches
        assert launch.attempt == 2

    def test_a_failed_run_is_repeated_under_the_next_attempt_number_after_a_backoff(self):
        assert decide_on(failed(WORK.batch, 29)).launches == []
        [launch] = decide_on(failed(WORK.batch, 30)).launches
        assert launch.attempt == 2
        assert launch.run_key == f"2026-03-02:{WORK.batch}:2"

    def test_each_further_failure_doubles_the_wait(self):
        twice = (failed("other", 59), failed(WORK.batch, 200))
        assert decide_on(*twice).launches == []
        assert len(decide_on(failed("other", 60), failed(WORK.batch, 200)).launches) == 1

    def test_a_batch_that_keeps_failing_asks_for_a_person(self):
        decision = decide_on(*(failed(WORK.batch, 100 + i) for i in range(MANY_FAILURES)))
        assert decision.launches == []
        assert "3 runs or more for the same 7 tasks failed in a row" in decision.waiting[0]
        assert "a person should see the last one's error; again at 12:00:20 UTC" in decision.waiting[0]

    def test_a_batch_that_keeps_failing_is_tried_for_ever_at_the_longest_backoff(self):
        longest = LONGEST_BACKOFF.total_seconds()
        runs = [EndedRun(WORK.batch, False, seconds_ago(longest + i), attempt=70 - i) for i in range(20)]
        [launch] = decide_on(*runs).launches
        assert launch.attempt == 71  # though only the last 20 runs are looked at
        assert decide_on(failed(WORK.batch, longest - 1), *runs).launches == []

    def test_new_work_on_a_failing_day_is_tried_again(self):
        runs = [failed("the batch of before", 10_000 + i) for i in range(MANY_FAILURES)]
        assert len(decide_on(*runs).launches) == 1

    def test_a_success_by_hand_clears_the_failures(self):
        runs = [succeeded(None, 100), *[failed(WORK.batch, 10_000 + i) for i in range(MANY_FAILURES)]]
        [launch] = decide_on(*runs).launches
        assert launch.attempt == MANY_FAILURES + 1

    def test_a_tick_requests_a_bounded_number_of_runs(self):
        work = [DayWork(DAY - timedelta(days=i), 1, "x") for i in range(MAX_LAUNCHES + 3)]
        decision = decide(work, under_way=(), ended={}, cursor={}, now=NOW)
        assert [launch.day for launch in decision.launches] == [each.day for each in work[:MAX_LAUNCHES]]
        assert len(decision.waiting) == 3

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 5_000)), max_size=8))
    def test_a_launch_never_repeats_the_run_key_of_an_ended_run(self, history):
        runs = [EndedRun(f"b{b}" if b else WORK.batch, ok, seconds_ago(age)) for ok, b, age in history]
        ended_keys = {f"{DAY}:{WORK.batch}:{n + 1}" for n in range(sum(r.batch == WORK.batch for r in runs))}
        assert not {launch.run_key for launch in decide_on(*runs).launches} & ended_keys

    def test_a_batch_is_known_by_its_day_its_size_and_its_mark(self):
        assert WORK.batch == DayWork(DAY, 7, "as first seen").batch
        others = [DayWork(DAY, 8, WORK.mark), DayWork(DAY, 7, "y"), DayWork(date(2026, 3, 3), 7, WORK.mark)]
        assert WORK.batch not in {other.batch for other in others}

    def test_the_cursor_reads_back_as_it_was_written(self):
        assert read_cursor(write_cursor({DAY: "b1"})) == {DAY: "b1"}
        assert read_cursor(None) == {}


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def add_task(database: Database, task_id: str, submitted_at: str = "2026-03-02T08:00Z", **columns) -> None:
    columns = {"task_id": task_id, "submitted_at": submitted_at, "priority": 2, "workspace": "w", **columns}
    with database.transaction() as connection:
        connection.execute(
            f"INSERT INTO tasks ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})",
            list(columns.values()),
        )


@pytest.fixture(autouse=True)
def no_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there when an evaluation begins is all there will be."""
    monkeypatch.setattr("cp_sensors.new_tasks.WATCH_SECONDS", 0.0)


def tick(database: Database, instance: DagsterInstance, cursor: str | None = None):
    """One evaluation of new_tasks_sensor, as the code server makes it."""
    context = build_sensor_context(
        instance=instance,
        cursor=cursor,
        resources={"database": database},
        repository_def=defs.get_repository_def(),
    )
    return new_tasks_sensor.evaluate_tick(context)


def record_run(
    instance: DagsterInstance, tags, status: DagsterRunStatus, job="process_queue", **fields
) -> None:
    """What is left of a run that was requested with `tags`, without executing it."""
    instance.add_run(DagsterRun(job_name=job, status=status, tags=dict(tags), **fields))


class TestNewTasksSensor:
    def test_it_requests_no_run_when_no_task_waits(self, database, instance):
        result = tick(database, instance)
        assert result.run_requests == []
        assert result.skip_message == "no task is waiting"

    def test_it_requests_one_run_for_each_day_with_work(self, database, instance):
        for task, day in [("a", "2026-03-02"), ("b", "2026-03-02"), ("c", "2026-03-01"), ("d", "2026-02-27")]:
            add_task(database, task, f"{day}T23:59:59Z")
        requests = tick(database, instance).run_requests
        assert {request.partition_key for request in requests} == {"2026-03-02", "2026-03-01", "2026-02-27"}
        for request in requests:
            assert request.tags["cp/day"] == request.tags["dagster/partition"] == request.partition_key
            assert request.run_key == f"{request.partition_key}:{request.tags[BATCH_TAG]}:1"

    def test_a_task_that_comes_while_it_watches_gets_its_run_at_once(
        self, database, instance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cp_sensors.new_tasks.WATCH_SECONDS", 60.0)
        coming = Timer(0.3, add_task, [database, "t-1"])
        coming.start()

        began = time.monotonic()
        requests = tick(database, instance).run_requests

        assert [request.partition_key for request in requests] == ["2026-03-02"]
        assert time.monotonic() - began < 60
        coming.join()

    @pytest.mark.parametrize(
        "columns",
        [
            {"state": "succeeded"},
            {"state": "dead", "reason": "ATTEMPTS_EXHAUSTED"},
            {"state": "queued", "available_at": "2999-01-01"},
            {"state": "deferred", "reason": "QUOTA_EXHAUSTED", "available_at": "2999-01-01"},
            {"state": "deferred", "reason": "DEPENDENCY_PENDING", "dependencies": ["never submitted"]},
            {"submitted_at": "2199-01-01"},
        ],
        ids=lambda columns: " ".join(str(value) for value in columns.values()),
    )
    def test_a_task_that_cannot_move_now_is_no_work(self, database, instance, columns):
        add_task(database, "a", **columns)
        assert tick(database, instance).run_requests == []

    @pytest.mark.parametrize(
        ("also_needed", "ended"),
        [("succeeded", "succeeded"), ("queued", "failed"), ("queued", "dead"), ("succeeded", "cancelled")],
    )
    def test_a_task_that_waits_for_others_is_work_once_they_have_decided_its_fate(
        self, database, instance, also_needed, ended
    ):
        add_task(database, "needed")
        add_task(database, "also needed", state=also_needed, available_at="2999-01-01")
        add_task(
            database,
            "waiting",
            "2026-03-01T08:00Z",
            state="deferred",
            reason="DEPENDENCY_PENDING",
            dependencies=["needed", "also needed"],
        )
        assert [r.partition_key for r in tick(database, instance).run_requests] == ["2026-03-02"]
        with database.transaction() as connection:
            connection.execute("UPDATE tasks SET state = %s WHERE task_id = 'needed'", [ended])
        assert [r.partition_key for r in tick(database, instance).run_requests] == ["2026-03-01"]

    @pytest.mark.parametrize(
        "status", [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    )
    def test_it_requests_no_run_for_a_day_whose_run_is_not_over(self, database, instance, status):
        add_task(database, "a")
        [request] = tick(database, instance).run_requests
        record_run(instance, request.tags, status)
        result = tick(database, instance)
        assert result.run_requests == []
        assert result.skip_message == "2026-03-02: a run is under way"

    def test_a_backfill_of_queue_assets_counts_as_the_days_run(self, database, instance):
        add_task(database, "a")
        tags = {"dagster/partition": "2026-03-02"}
        started = DagsterRunStatus.STARTED
        record_run(instance, tags, started, "__ASSET_JOB", asset_selection={AssetKey("performance_metrics")})
        record_run(instance, tags, started, "daily_learning")
        assert len(tick(database, instance).run_requests) == 1
        record_run(instance, tags, started, "__ASSET_JOB", asset_selection={AssetKey("assignments")})
        assert tick(database, instance).run_requests == []

    def test_its_cursor_moves_only_when_the_run_has_succeeded(self, database, instance):
        add_task(database, "a")
        first = tick(database, instance)
        assert read_cursor(first.cursor) == {}
        [request] = first.run_requests
        record_run(instance, request.tags, DagsterRunStatus.SUCCESS)
        after = tick(database, instance, first.cursor)
        assert read_cursor(after.cursor) == {DAY: request.tags[BATCH_TAG]}
        assert "left its 1 tasks as they were" in after.skip_message

    def test_it_is_armed_again_when_a_run_left_work(self, database, instance):
        add_task(database, "a")
        add_task(database, "b")
        [first] = tick(database, instance).run_requests
        record_run(instance, first.tags, DagsterRunStatus.SUCCESS)
        with database.transaction() as connection:
            connection.execute("UPDATE tasks SET state = 'succeeded' WHERE task_id = 'a'")
        [second] = tick(database, instance).run_requests
        assert second.tags[BATCH_TAG] != first.tags[BATCH_TAG]

    def test_a_failed_run_waits_and_then_a_person_is_asked(self, database, instance):
        add_task(database, "a")
        [request] = tick(database, instance).run_requests
        record_run(instance, request.tags, DagsterRunStatus.FAILURE)
        assert "the last run failed; again at" in tick(database, instance).skip_message
        for _ in range(MANY_FAILURES - 1):
            record_run(instance, request.tags, DagsterRunStatus.FAILURE)
        assert "a person should see the last one's error" in tick(database, instance).skip_message


def inbox_tick(folder: Path, instance: DagsterInstance):
    context = build_sensor_context(
        instance=instance,
        resources={"settings": Settings(inbox_dir=folder)},
        repository_def=defs.get_repository_def(),
    )
    return task_inbox_sensor.evaluate_tick(context)


def drop(folder: Path, name: str, text: str = "{}\n") -> Path:
    """A file that was written a minute ago."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    a_minute_ago = time.time() - 60
    os.utime(path, (a_minute_ago, a_minute_ago))
    return path


class TestTaskInboxSensor:
    def test_it_skips_while_the_inbox_is_empty_or_missing(self, tmp_path, instance):
        result = inbox_tick(tmp_path / "inbox", instance)
        assert result.run_requests == []
        assert "no file waits in" in result.skip_message

    def test_it_requests_a_run_for_each_file(self, tmp_path, instance):
        paths = {str(drop(tmp_path, name)) for name in ["a.jsonl", "b.csv"]}
        requests = inbox_tick(tmp_path, instance).run_requests
        assert {r.run_config["ops"]["take_inbox_file"]["config"]["path"] for r in requests} == paths

    def test_it_takes_up_a_bounded_number_of_files_at_a_tick(self, tmp_path, instance):
        for number in range(inbox.MAX_LAUNCHES + 1):
            drop(tmp_path, f"{number}.jsonl")
        assert len(inbox_tick(tmp_path, instance).run_requests) == inbox.MAX_LAUNCHES

    def test_a_file_that_is_being_taken_is_left_alone(self, tmp_path, instance):
        drop(tmp_path, "a.jsonl")
        [request] = inbox_tick(tmp_path, instance).run_requests
        record_run(instance, request.tags, DagsterRunStatus.STARTED, "take_inbox")
        drop(tmp_path / "taking", "20260302T080000-x-b.jsonl")
        result = inbox_tick(tmp_path, instance)
        assert result.run_requests == []
        assert "a.jsonl: is being taken" in result.skip_message

    def test_a_file_whose_taking_broke_off_is_taken_up_again(self, tmp_path, instance):
        path = drop(tmp_path / "taking", "20260302T080000-x-b.jsonl")
        [first] = inbox_tick(tmp_path, instance).run_requests
        record_run(instance, first.tags, DagsterRunStatus.FAILURE, "take_inbox")
        [second] = inbox_tick(tmp_path, instance).run_requests
        assert second.run_config["ops"]["take_inbox_file"]["config"]["path"] == str(path)
        assert second.run_key != first.run_key

    def test_a_file_whose_runs_keep_failing_waits_for_a_person(self, tmp_path, instance):
        drop(tmp_path, "a.jsonl")
        [request] = inbox_tick(tmp_path, instance).run_requests
        for _ in range(inbox.MAX_ATTEMPTS):
            record_run(instance, request.tags, DagsterRunStatus.FAILURE, "take_inbox")
        assert "a.jsonl: 3 runs failed; this needs a person" in inbox_tick(tmp_path, instance).skip_message

    def test_a_file_of_the_same_name_that_comes_later_is_another_file(self, tmp_path, instance):
        drop(tmp_path, "a.jsonl")
        [first] = inbox_tick(tmp_path, instance).run_requests
        record_run(instance, first.tags, DagsterRunStatus.SUCCESS, "take_inbox")
        drop(tmp_path, "a.jsonl", "{}\n{}\n")
        [second] = inbox_tick(tmp_path, instance).run_requests
        assert second.tags[FILE_TAG] != first.tags[FILE_TAG]

    def test_its_job_stores_the_file_and_refuses_one_from_elsewhere(self, tmp_path, database, instance):
        settings = Settings(inbox_dir=tmp_path / "inbox")
        row = '{"id": "a", "title": "Fix it", "description": "It is broken.", "priority": "P1"}\n'
        path = drop(settings.inbox, "a.jsonl", row)
        drop(tmp_path, "elsewhere.jsonl", row)

        def take(path: Path):
            return take_inbox.execute_in_process(
                run_config={"ops": {"take_inbox_file": {"config": {"path": str(path)}}}},
                resources={"database": database, "settings": settings},
                instance=instance,
                raise_on_error=False,
            )

        assert take(path).success
        assert database.fetch("SELECT task_id FROM tasks") == [("a",)]
        assert [done.name[-7:] for done in (settings.inbox / "done").iterdir()] == ["a.jsonl"]
        assert not take(tmp_path / "elsewhere.jsonl").success
        assert (tmp_path / "elsewhere.jsonl").exists()


class TestDailyLearningSchedule:
    @pytest.mark.parametrize(
        ("zone", "day"),
        [
            ("UTC", date(2026, 3, 1)),  # 02:00 UTC on the 2nd
            ("America/Los_Angeles", date(2026, 3, 1)),  # 10:00 UTC on the 2nd
            ("Asia/Tokyo", date(2026, 2, 28)),  # 17:00 UTC on the 1st, which is not over
        ],
    )
    def test_it_runs_at_two_in_its_time_zone_for_the_last_day_that_is_over(self, zone, day):
        two_o_clock = datetime(2026, 3, 2, 2, tzinfo=ZoneInfo(zone))
        schedule = build_daily_learning_schedule(zone)
        context = build_schedule_context(
            scheduled_execution_time=two_o_clock, repository_def=defs.get_repository_def()
        )
        [request] = schedule.evaluate_tick(context).run_requests
        assert request.partition_key == request.run_key == day.isoformat()
        assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", zone)

    def test_the_last_whole_day_is_counted_in_utc(self):
        assert last_whole_day(datetime(2026, 3, 2, 0, 0, tzinfo=UTC)) == date(2026, 3, 1)
        assert last_whole_day(datetime(2026, 3, 1, 23, 59, tzinfo=UTC)) == date(2026, 2, 28)
