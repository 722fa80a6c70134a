"""deliver_notices_sensor and its job, and the command: a run only when something is due and can be sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from assigned_tasks import add_task
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, build_sensor_context
from typer.testing import CliRunner

from cp_cli.main import app
from cp_definitions import defs
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.notifiers.message import NoticeSetupError
from cp_resources.outbox import Notice, NoticeKind, Outbox
from cp_resources.settings import PROJECT_ROOT, Settings
from cp_sensors.notices import deliver_notices, deliver_notices_sensor

UNSET_WEBHOOK = "notices: {sink: webhook, webhook: {url_env: A_VARIABLE_THAT_IS_NOT_SET}}\n"
UNREACHABLE = "notices: {sink: webhook, webhook: {url: 'https://127.0.0.1:9/'}}\n"


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    shutil.copytree(PROJECT_ROOT / "config", tmp_path / "config")
    return Settings(home=tmp_path / "home", config_dir=tmp_path / "config")


def add_notices(database: Database, count: int = 1) -> None:
    tasks = [add_task(database, f"t{number}") for number in range(count)]
    with database.transaction() as connection:
        Outbox.add(connection, [Notice(task, NoticeKind.ASSIGNED) for task in tasks])


def write_policies(settings: Settings, text: str) -> None:
    (settings.config_dir / "policies.yaml").write_text(text)


def tick(database: Database, instance: DagsterInstance, settings: Settings):
    context = build_sensor_context(
        instance=instance,
        resources={"database": database, "settings": settings},
        repository_def=defs.get_repository_def(),
    )
    return deliver_notices_sensor.evaluate_tick(context)


def record_run(instance: DagsterInstance, tags, status: DagsterRunStatus) -> None:
    instance.add_run(DagsterRun(job_name=deliver_notices.name, status=status, tags=dict(tags)))


def execute(database: Database, instance: DagsterInstance, settings: Settings, **options):
    resources = {
        "database": database,
        "settings": settings,
        "configuration": load_configuration(settings.config_dir),
    }
    return deliver_notices.execute_in_process(resources=resources, instance=instance, **options)


def test_it_requests_no_run_while_nothing_is_due(database, instance, settings):
    assert tick(database, instance, settings).skip_message == "no notice is due"
    add_notices(database)
    with database.transaction() as connection:
        connection.execute("UPDATE outbox SET available_at = 'infinity'")
    assert tick(database, instance, settings).skip_message == "no notice is due"


def test_it_requests_one_run_at_a_time(database, instance, settings):
    add_notices(database, 3)
    [request] = tick(database, instance, settings).run_requests
    [same] = tick(database, instance, settings).run_requests
    assert request.run_key == same.run_key  # a tick that is repeated launches nothing twice
    record_run(instance, request.tags, DagsterRunStatus.STARTED)
    assert tick(database, instance, settings).skip_message == "a run is under way"


def test_what_a_run_left_is_taken_up_at_once_under_another_key(database, instance, settings):
    add_notices(database, 3)
    [first] = tick(database, instance, settings).run_requests
    record_run(instance, first.tags, DagsterRunStatus.SUCCESS)
    [second] = tick(database, instance, settings).run_requests
    assert second.run_key != first.run_key


def test_after_a_failed_run_it_waits(database, instance, settings):
    add_notices(database)
    [request] = tick(database, instance, settings).run_requests
    record_run(instance, request.tags, DagsterRunStatus.FAILURE)
    result = tick(database, instance, settings)
    assert result.run_requests == []
    assert "1 notices wait: the last run failed; again at" in result.skip_message


def test_what_cannot_be_sent_as_it_is_set_up_launches_nothing_and_says_why(database, instance, settings):
    add_notices(database, 2)
    write_policies(settings, UNSET_WEBHOOK)
    result = tick(database, instance, settings)
    assert result.run_requests == []
    assert result.skip_message.startswith(
        "2 notices wait: notices.webhook.url_env names the environment variable A_VARIABLE_THAT_IS_NOT_SET"
    )


def test_its_job_delivers_what_is_due(database, instance, settings):
    add_notices(database, 3)
    assert execute(database, instance, settings).success
    told = [
        json.loads(line)["task_id"] for line in (settings.home / "notices.jsonl").read_text().splitlines()
    ]
    assert told == ["t0", "t1", "t2"]
    assert tick(database, instance, settings).skip_message == "no notice is due"


def test_its_job_fails_clearly_when_the_receiver_must_not_be_reached(database, instance, settings):
    add_notices(database)
    write_policies(settings, UNREACHABLE)
    with pytest.raises(NoticeSetupError, match=r"127\.0\.0\.1 is 127\.0\.0\.1, which is not public"):
        execute(database, instance, settings)
    assert database.fetch("SELECT tries, delivered_at FROM outbox") == [(0, None)]


class TestCommand:
    @pytest.fixture(autouse=True)
    def _environment(self, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CP_DATABASE_URL", database.url)
        monkeypatch.setenv("CP_HOME", str(settings.home))
        monkeypatch.setenv("CP_CONFIG_DIR", str(settings.config_dir))

    def run(self, *words: str):
        return CliRunner().invoke(app, ["notices", *words])

    def test_it_says_that_nothing_waits(self):
        result = self.run()
        assert (result.exit_code, result.stdout) == (0, "to file: 0 waiting (0 due now), 0 failed for good\n")

    def test_it_shows_what_waits_and_what_failed_with_its_error(self, database):
        add_notices(database, 3)
        with database.transaction() as connection:
            connection.execute(
                "UPDATE outbox SET tries = 10, available_at = 'infinity', error = 'answered 500' "
                "WHERE task = (SELECT id FROM tasks WHERE task_id = 't1')"
            )
        shown = self.run("--limit", "2").stdout.splitlines()
        assert shown[0].startswith("to file: 2 waiting (2 due now), 1 failed for good; the oldest since 20")
        assert shown[1:] == [
            "  t1 assigned: 10 tries, failed for good: answered 500",
            "  t0 assigned: not tried yet",
            "  and 1 more; see --limit",
            "`control-panel notices --retry-failed --deliver` tries the failed ones again",
        ]

    def test_it_delivers_when_asked_the_failed_ones_too(self, database, settings):
        add_notices(database, 2)
        with database.transaction() as connection:
            connection.execute("UPDATE outbox SET tries = 10, available_at = 'infinity' WHERE id = 1")
        assert self.run("--deliver").stdout.startswith("delivered 1; put off 0; failed for good 0\n")
        assert self.run("--retry-failed", "--deliver").stdout.startswith("delivered 1; ")
        assert len((settings.home / "notices.jsonl").read_text().splitlines()) == 2

    def test_its_json_says_the_same(self, database):
        add_notices(database)
        printed = json.loads(self.run("--json").stdout)
        assert (printed["sink"], printed["obstacle"], printed["delivery"]) == ("file", None, None)
        assert (printed["waiting"], printed["due"], printed["failed"]) == (1, 1, 0)
        [waiting] = printed["undelivered"]
        assert (waiting["task_id"], waiting["kind"], waiting["tries"]) == ("t0", "assigned", 0)
        delivered = json.loads(self.run("--deliver", "--json").stdout)
        assert delivered["delivery"]["delivered"] == 1
        assert delivered["undelivered"] == []

    def test_it_says_what_stands_in_the_way(self, database, settings):
        add_notices(database)
        write_policies(settings, UNSET_WEBHOOK)
        shown = self.run()
        assert shown.exit_code == 0
        assert "nothing can be delivered: notices.webhook.url_env names" in shown.stderr
        assert isinstance(self.run("--deliver").exception, NoticeSetupError)
        assert database.fetch("SELECT tries FROM outbox") == [(0,)]
