"""The doctor's checks, each made to fail, and the command."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest
from assigned_tasks import DAY, add_assigned, configuration
from stub_provider import Call, Reply, StubProvider, anthropic_answer, openai_answer, openai_error

from cp_cli.main import run as run_command
from cp_cli.stack import webserver_url_of
from cp_core.execution.policy import ExecutionPolicy
from cp_resources import health
from cp_resources.database import Database
from cp_resources.executions import ExecutionStore
from cp_resources.health import Finding, Status, UnfitError
from cp_resources.ledger import Ledger
from cp_resources.settings import PROJECT_ROOT, Settings
from cp_resources.worker import drain

REGISTRY = configuration().registry
KEYS = {"OPENAI_TEST_KEY": "planted-openai-77aa88bb", "ANTHROPIC_TEST_KEY": "sk-ant-planted-99cc00dd"}


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(REGISTRY)
    return opened


def assert_says_what_to_do(finding: Finding, status: Status, found: str) -> None:
    assert finding.status is status, finding
    assert found in finding.found
    assert finding.todo


def test_a_mistake_in_the_configuration_fails_with_file_and_line(tmp_path: Path) -> None:
    assert health.configuration(Settings())[0].status is Status.OK
    for name in ("models.yaml", "scoring.yaml", "policies.yaml"):
        shutil.copy(PROJECT_ROOT / "config" / name, tmp_path)
    (tmp_path / "policies.yaml").write_text("exekution: {}\n")

    finding, loaded = health.configuration(Settings(config_dir=tmp_path))

    assert loaded is None
    assert_says_what_to_do(finding, Status.FAIL, "did you mean 'execution'?")


def test_a_simulator_is_told_and_one_that_does_not_answer_fails() -> None:
    assert health.simulator(Settings()).status is Status.OK
    with answering({}) as url:
        assert_says_what_to_do(
            health.simulator(Settings(simulator_url=url)), Status.WARN, "every call goes to"
        )
    assert_says_what_to_do(
        health.simulator(Settings(simulator_url="http://127.0.0.1:1")), Status.FAIL, "does not answer"
    )


def test_missing_and_broken_keys_are_told_by_the_name_of_their_variable() -> None:
    some = health.provider_keys(REGISTRY, Settings(), {"OPENAI_TEST_KEY": KEYS["OPENAI_TEST_KEY"]})
    broken = health.provider_keys(REGISTRY, Settings(), {**KEYS, "OPENAI_TEST_KEY": "pla nted\n"})
    none = health.provider_keys(REGISTRY, Settings(), {"OPENAI_TEST_KEY": " "})

    assert [finding.status for finding in some] == [Status.WARN, Status.OK]
    assert_says_what_to_do(some[0], Status.WARN, "ANTHROPIC_TEST_KEY is not set")
    assert_says_what_to_do(broken[1], Status.FAIL, "OPENAI_TEST_KEY holds a blank")
    assert_says_what_to_do(none[0], Status.FAIL, "no provider has a key")
    assert not any(key in str([*some, *broken]) for key in [*KEYS.values(), "pla nted"])
    [simulated] = health.provider_keys(REGISTRY, Settings(simulator_url="http://127.0.0.1:1"), {})
    assert simulated.status is Status.OK


def test_a_missing_or_stale_manifest(tmp_path: Path) -> None:
    settings = Settings(dbt_project_dir=tmp_path)
    assert_says_what_to_do(health.manifest(settings), Status.FAIL, "does not exist")

    model, parsed = tmp_path / "models" / "a.sql", tmp_path / "target" / "manifest.json"
    for path in (model, parsed):
        path.parent.mkdir()
        path.touch()
    os.utime(parsed, (1000, 1000))
    assert_says_what_to_do(health.manifest(settings), Status.WARN, "older than a.sql")

    os.utime(model, (1000, 1000))
    assert health.manifest(settings).status is Status.OK


def test_an_inbox_that_cannot_be_written(tmp_path: Path) -> None:
    assert health.inbox(Settings(home=tmp_path / "not" / "yet")).status is Status.OK
    (tmp_path / "inbox").write_text("a file is in the way")

    assert_says_what_to_do(health.inbox(Settings(home=tmp_path)), Status.FAIL, "cannot be written")


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)

    assert health.disk(settings, 6_000_000_000).status is Status.OK
    assert_says_what_to_do(health.disk(settings, 4_000_000_000), Status.WARN, "4.0 GB free")
    assert_says_what_to_do(health.disk(settings, 500_000_000), Status.FAIL, "0.5 GB free")
    assert "GB free" in health.disk(settings).found


def test_a_database_at_another_revision(database: Database) -> None:
    assert health.revision(database).status is Status.OK
    with database.transaction() as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    assert_says_what_to_do(health.revision(database), Status.FAIL, "is at revision 0001")
    with database.transaction() as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "bring the code up to date" in health.revision(database).todo
    assert [finding.check for finding in health.of_database(database, None, Settings())] == ["database"]


@pytest.mark.parametrize(
    ("seconds", "status"), [(0, Status.OK), (-10, Status.WARN), (10, Status.WARN), (-90, Status.FAIL)]
)
def test_clocks_that_differ(database: Database, seconds: float, status: Status) -> None:
    assert health.clock_skew(database, lambda: time.time() + seconds).status is status


def test_a_ledger_that_does_not_balance(database: Database, ledger: Ledger) -> None:
    assert health.ledger(database).status is Status.OK
    with database.transaction() as connection:
        connection.execute(
            "UPDATE quota_accounts SET debits_posted = debits_posted + 1 WHERE account = 'budget/api'"
        )

    assert_says_what_to_do(health.ledger(database), Status.FAIL, "budget/api")


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT txid_current()"])
def test_a_transaction_that_is_left_open(database: Database, statement: str) -> None:
    assert health.old_transactions(database, 0.5).status is Status.OK
    with psycopg.connect(database.url, application_name="a-notebook") as connection:
        connection.execute(statement)  # type: ignore[arg-type]
        time.sleep(0.2)

        finding = health.old_transactions(database, 0.1, 1000)

    assert_says_what_to_do(finding, Status.WARN, "a transaction is open and idle")
    assert "a-notebook" in finding.found


def test_leases_that_ran_out_unnoticed(database: Database, ledger: Ledger) -> None:
    add_assigned(database, ledger, 2)
    ExecutionStore(database, ledger, configuration()).claim(DAY, "gone", 10, {"sonnet": 10})
    assert health.expired_leases(database).status is Status.OK
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET lease_expires_at = now() - interval '2 minutes'")

    assert_says_what_to_do(health.expired_leases(database), Status.WARN, "2 tasks of 1 days")


def test_tasks_assigned_to_a_model_that_cannot_be_called(
    database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_TEST_KEY", KEYS["OPENAI_TEST_KEY"])
    monkeypatch.delenv("ANTHROPIC_TEST_KEY", raising=False)
    add_assigned(database, ledger, model="mini")
    assert health.reachable_models(database, REGISTRY, Settings()).status is Status.OK
    add_assigned(database, ledger, model="sonnet")

    finding = health.reachable_models(database, REGISTRY, Settings())

    assert_says_what_to_do(finding, Status.FAIL, "tasks are assigned to models whose provider has no API key")


def daemon_health(**healthy: bool) -> dict[str, Any]:
    statuses = [{"daemonType": name, "required": True, "healthy": beats} for name, beats in healthy.items()]
    idle = {"daemonType": "MONITORING", "required": False, "healthy": None}
    return {"data": {"instance": {"daemonHealth": {"allDaemonStatuses": [*statuses, idle]}}}}


class answering:  # noqa: N801 (used as a function)
    """A server on loopback that answers every request with one JSON value."""

    def __init__(self, answer: Any, status: int = 200) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_daemons_that_do_not_beat() -> None:
    with answering(daemon_health(SENSOR=True, SCHEDULER=True)) as url:
        assert health.daemons(url, is_up=True).status is Status.OK
    with answering(daemon_health(SENSOR=False, SCHEDULER=True)) as url:
        assert_says_what_to_do(health.daemons(url, is_up=True), Status.FAIL, "do not beat: SENSOR")
    with answering({}, status=500) as url:
        assert_says_what_to_do(health.daemons(url, is_up=True), Status.FAIL, "does not answer")
    assert_says_what_to_do(health.daemons(None, is_up=True), Status.WARN, "without a webserver")
    assert health.daemons(None, is_up=False).status is Status.OK


def test_the_address_of_the_webserver_is_the_one_that_up_wrote_down(tmp_path: Path) -> None:
    assert webserver_url_of(tmp_path) is None
    (tmp_path / "up.lock").write_text("process 7, without a webserver\n")
    assert webserver_url_of(tmp_path) is None
    (tmp_path / "up.lock").write_text("process 7, http://127.0.0.1:3456\n")
    assert webserver_url_of(tmp_path) == "http://127.0.0.1:3456"


def pinged(call: Call) -> Reply:
    if call.path.endswith("/messages"):
        return Reply(anthropic_answer("ok", stop="max_tokens", fresh=1000, output=1))
    return Reply(openai_answer("ok", finish="length", prompt=1000, completion=1))


def test_one_token_of_each_provider_s_cheapest_model_and_what_it_cost() -> None:
    with StubProvider(pinged) as provider:
        findings = health.online(REGISTRY, Settings(simulator_url=provider.url), ExecutionPolicy())

    assert [(finding.check, finding.status) for finding in findings] == [
        ("call of anthropic", Status.OK),
        ("call of openai", Status.OK),
    ]
    assert sorted(call.body["model"] for call in provider.calls) == ["nano-1", "sonnet-1"]
    assert all(1 in call.body.values() for call in provider.calls)
    assert findings[0].found.endswith("for 0.003015 USD")  # 1000 x 3 + 15, per million
    assert findings[1].found.endswith("for 0.0001004 USD")  # 1000 x 0.1 + 0.4, per million


@pytest.mark.parametrize(
    ("reply", "found", "todo"),
    [
        (Reply(openai_error("Incorrect key simulated", "x"), 401), "AUTH_FAILED", "make a new one"),
        (Reply(openai_error("x", "insufficient_quota"), 429), "PROVIDER_QUOTA", "no credit left"),
        (Reply(openai_error("no such model", "x"), 404), "INVALID_REQUEST", "see api_name"),
        (Reply(b"cut off", cut_after=3), "CONNECTION", "no connection"),
    ],
)
def test_a_provider_that_refuses_fails_with_what_to_do(reply: Reply, found: str, todo: str) -> None:
    def refuse(call: Call) -> Reply:
        return reply if call.path.endswith("/completions") else pinged(call)

    with StubProvider(refuse) as provider:
        [well, broken] = health.online(REGISTRY, Settings(simulator_url=provider.url), ExecutionPolicy())

    assert well.status is Status.OK
    assert_says_what_to_do(broken, Status.FAIL, found)
    assert todo in broken.todo
    assert "simulated" not in broken.found


def test_a_model_that_thinks_longer_than_a_token_was_reached_all_the_same() -> None:
    said = "Could not finish the message because max_tokens or model output limit was reached."

    with StubProvider(lambda call: Reply(openai_error(said, "invalid_request_error"), 400)) as provider:
        findings = health.online(REGISTRY, Settings(simulator_url=provider.url), ExecutionPolicy())

    assert findings[1].status is Status.OK
    assert "was reached" in findings[1].found


def test_a_check_that_cannot_be_made_is_a_failure_and_the_next_ones_are_made(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("ALTER TABLE quota_transfers RENAME TO gone")

    findings = {
        finding.check: finding for finding in health.of_database(database, configuration(), Settings())
    }

    assert_says_what_to_do(findings["ledger"], Status.FAIL, "cannot be checked")
    assert findings["assigned tasks"].status is Status.OK


def test_a_worker_does_not_start_on_tables_of_another_version(database: Database, ledger: Ledger) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")

    with pytest.raises(UnfitError, match="run `control-panel db upgrade`"):
        drain(
            database,
            ledger,
            configuration(),
            Settings(simulator_url="http://127.0.0.1:1"),
            DAY,
            worker_name="test",
            time_budget=timedelta(seconds=10),
        )


def test_a_worker_tells_what_is_not_well_and_works_all_the_same(
    database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health, "DISK_WARN_BYTES", 10**18)

    drain(
        database,
        ledger,
        configuration(),
        Settings(simulator_url="http://127.0.0.1:1"),
        DAY,
        worker_name="test",
        time_budget=timedelta(seconds=10),
    )

    assert "check='disk'" in caplog.text
    assert "should be free" in caplog.text


@pytest.fixture
def command(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    monkeypatch.setenv("CP_DATABASE_URL", database_url)
    monkeypatch.setenv("CP_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["control-panel", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command()
        return int(ended.value.code or 0), capsys.readouterr().out

    return invoke


def test_the_command_ends_well_when_nothing_fails_and_shows_no_key(
    command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "planted-openai-77aa88bb")
    monkeypatch.setattr(health, "manifest", lambda _: health.ok("dbt manifest", "there"))

    code, out = command("--json")
    told = json.loads(out)
    shown_code, shown = command()

    assert (code, shown_code) == (0, 0)
    assert told["healthy"] is True
    assert {check["check"] for check in told["checks"]} >= {
        "configuration",
        "simulator",
        "key of openai",
        "dbt manifest",
        "inbox",
        "disk",
        "Dagster",
        "database",
        "clock",
        "transactions",
        "leases",
        "ledger",
        "assigned tasks",
    }
    assert "-> set ANTHROPIC_API_KEY" in shown
    assert "planted-openai" not in out + shown


def test_the_command_fails_without_a_database_and_makes_the_other_checks(
    command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        port = taken.getsockname()[1]
        monkeypatch.setenv("CP_DATABASE_URL", f"postgresql://someone:hidden-password@127.0.0.1:{port}/x")

        code, out = command("--json")

    checks = {check["check"]: check for check in json.loads(out)["checks"]}
    assert code == 1
    assert checks["database"]["status"] == "fail"
    assert "cannot reach the database" in checks["database"]["found"]
    assert checks["disk"]["status"] in {"ok", "warn"}
    assert "hidden-password" not in out


def test_a_finding_is_plain_json() -> None:
    assert json.loads(json.dumps(asdict(health.warn("a", "b", "c")))) == {
        "check": "a",
        "status": "warn",
        "found": "b",
        "todo": "c",
    }
