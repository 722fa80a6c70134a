"""The request log, and that no secret is kept anywhere: in tables, logs or the request log."""

from __future__ import annotations

import json
import logging
import stat
from collections import Counter, defaultdict
from datetime import date, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from assigned_tasks import DAY, add_assigned, configuration
from stub_provider import (
    Call,
    Reply,
    StubProvider,
    anthropic_answer,
    anthropic_error,
    evidence_block,
    openai_answer,
    openai_error,
)

from cp_core.execution.request_log import RequestLogPolicy, is_sampled
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.ledger import Ledger
from cp_resources.request_log import RequestLog, exchange, kept_by, request_log
from cp_resources.secrets import known_secrets, name_secret
from cp_resources.settings import Settings
from cp_resources.worker import DrainSummary, drain

QUICK: dict[str, Any] = {"backoff_base_seconds": 0.02, "backoff_cap_seconds": 0.05, "drain_seconds": 0.2}
TODAY = date(2026, 3, 20)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


def with_log(base: Configuration, **policy: Any) -> Configuration:
    policies = base.policies.model_copy(update={"request_log": RequestLogPolicy(**policy)})
    return Configuration(base.registry, base.scoring, policies)


def run(
    database: Database, ledger: Ledger, config: Configuration, settings: Settings, **options: Any
) -> DrainSummary:
    return drain(
        database,
        ledger,
        config,
        settings,
        DAY,
        worker_name="test",
        time_budget=timedelta(seconds=60),
        **options,
    )


def good(call: Call) -> Reply:
    text = f"Done.\n{evidence_block()}"
    return Reply(anthropic_answer(text) if call.path.endswith("/messages") else openai_answer(text))


def lines(home: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted((home / "requests").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_nothing_is_kept_unless_the_log_is_switched_on(
    database: Database, ledger: Ledger, tmp_path: Path
) -> None:
    add_assigned(database, ledger, model="mini")

    with StubProvider(good) as provider:
        run(database, ledger, configuration(), Settings(home=tmp_path, simulator_url=provider.url))

    assert not (tmp_path / "requests").exists()


def test_a_line_holds_request_and_answer_under_the_ids_that_the_headers_carry(
    database: Database, ledger: Ledger, tmp_path: Path
) -> None:
    add_assigned(database, ledger, model="mini", task_id="web-7")

    with StubProvider(good) as provider:
        run(
            database,
            ledger,
            with_log(configuration(), sample=1),
            Settings(home=tmp_path, simulator_url=provider.url),
            run_id="run-42",
        )

    [(execution,)] = database.fetch("SELECT id FROM executions")
    [line] = lines(tmp_path)
    ids = {"task": "web-7", "execution": execution, "attempt": 1, "run": "run-42", "model": "mini"}
    assert {name: line[name] for name in ids} == ids
    [call] = provider.calls
    assert call.headers["x-control-panel-run"] == "run-42"
    assert (line["method"], line["status"], line["error"]) == ("POST", 200, None)
    assert json.loads(line["request"]["text"]) == call.body
    assert json.loads(line["answer"]["text"]) == good(call).body
    assert line["request_headers"]["authorization"] == "[key]"
    [file] = (tmp_path / "requests").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_call_that_is_cut_off_is_kept_with_what_went_wrong(
    database: Database, ledger: Ledger, tmp_path: Path
) -> None:
    add_assigned(database, ledger, model="mini", max_attempts=1)
    config = with_log(configuration(timeout_seconds=0.3, **QUICK), sample=1)

    with StubProvider(lambda _: Reply(delay=30)) as provider:
        run(database, ledger, config, Settings(home=tmp_path, simulator_url=provider.url))

    [line] = lines(tmp_path)
    assert (line["status"], line["error"]) == (None, "CancelledError")
    assert line["milliseconds"] >= 300


def test_long_bodies_are_cut_and_a_secret_at_the_cut_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-secret-1")
    log = RequestLog(tmp_path, RequestLogPolicy(sample=1, max_bytes=256))

    with log.exchange("POST", "http://x/", {}, b"a" * 250 + b" planted-secret-1") as seen:
        seen.received = b"b" * 1000
    [line] = lines(tmp_path)

    assert line["request"] == {"bytes": 267, "is_cut": False, "text": "a" * 250 + " [key]"}
    assert line["answer"] == {"bytes": 1000, "is_cut": True, "text": "b" * 256}


def test_the_sample_takes_all_calls_of_a_task_or_none() -> None:
    tasks = [f"task-{number}" for number in range(4000)]

    tenth = {task for task in tasks if is_sampled(task, 0.1)}
    half = {task for task in tasks if is_sampled(task, 0.5)}

    assert 0.08 < len(tenth) / len(tasks) < 0.12
    assert tenth <= half
    assert not any(is_sampled(task, 0) for task in tasks)
    assert all(is_sampled(task, 1) for task in tasks)


def test_files_older_than_the_days_to_keep_are_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "requests"
    folder.mkdir()
    for name in ("2026-03-13.jsonl", "2026-03-14.jsonl", "2026-03-20.jsonl", "notes.txt", "mine.jsonl"):
        (folder / name).touch()

    RequestLog(tmp_path, RequestLogPolicy(sample=0, keep_days=7)).prune(TODAY)

    left = {path.name for path in folder.iterdir()}
    assert left == {"2026-03-14.jsonl", "2026-03-20.jsonl", "notes.txt", "mine.jsonl"}


def test_a_log_that_was_switched_off_still_ages(tmp_path: Path) -> None:
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "2020-01-01.jsonl").touch()

    assert request_log(tmp_path, RequestLogPolicy()) is None
    assert list((tmp_path / "requests").iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_no_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "requests").write_text("in the way")

    with (
        kept_by(RequestLog(tmp_path, RequestLogPolicy(sample=1))),
        exchange("POST", "http://x/", {}, b"") as seen,
    ):
        seen.status = 200

    assert "request not logged" in caplog.text


KEYS = {"OPENAI_TEST_KEY": "planted-openai-77aa88bb", "ANTHROPIC_TEST_KEY": "sk-ant-planted-99cc00dd"}
"""One with the shape of a key, and one that only its value betrays."""


class Echo:
    """Gives the key back wherever a provider can: in errors, headers, stop reasons, answers, broken bodies.

    A provider refuses the key when all its other calls have been made, as after that it gets none.
    """

    OTHER_CALLS = 7
    """Of each provider: three tasks get what may pass and are tried twice, one is done."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._all_made: defaultdict[str, Event] = defaultdict(Event)

    def __call__(self, call: Call) -> Reply:
        if not call.task.endswith("-0"):
            self._seen[call.path] += 1
            if self._seen[call.path] == self.OTHER_CALLS:
                self._all_made[call.path].set()
        key = call.headers.get("x-api-key") or call.headers["authorization"].removeprefix("Bearer ")
        kind = int(call.task.split("-")[1])
        is_openai = call.path.endswith("/chat/completions")
        headers = {"x-request-id": f"req {key}"}
        if kind == 0:
            said = f"Incorrect API key provided: {key}. You sent Authorization: Bearer {key}"
            error = openai_error(said, "x", key) if is_openai else anthropic_error(said, key)
            return Reply(error, 401, headers, after=self._all_made[call.path])
        if kind == 1:
            return Reply(f"<html>bad gateway, header was x-api-key: {key}</html>".encode(), 502, headers)
        if kind == 2:
            text = f"Your key is {key}\n{evidence_block()}"
            answer = openai_answer(text) if is_openai else anthropic_answer(text)
            return Reply(answer, 200, headers)
        if kind == 3:
            bad = openai_answer("x", finish="length") if is_openai else anthropic_answer("x", stop="refusal")
            return Reply({**bad, "usage": {"prompt_tokens": key, "input_tokens": key}}, 200, headers)
        return Reply({"choices": key, "content": key, key: key}, 200, headers)


def test_no_table_log_or_request_log_keeps_a_key_that_a_provider_echoes(
    database: Database,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for variable, key in KEYS.items():
        monkeypatch.setenv(variable, key)
    for number in range(5):
        for model in ("sonnet", "mini"):
            add_assigned(database, ledger, model=model, task_id=f"{model}-{number}", max_attempts=2)

    with StubProvider(Echo()) as provider, caplog.at_level(logging.DEBUG):
        base = configuration(**QUICK)
        providers = {
            name: one.model_copy(update={"base_url": provider.url + ("/v1" if name == "openai" else "")})
            for name, one in base.registry.providers.items()
        }
        registry = base.registry.model_copy(update={"providers": providers})
        config = with_log(Configuration(registry, base.scoring, base.policies), sample=1)
        summary = run(database, ledger, config, Settings(home=tmp_path), run_id="run-1")

    assert summary.attempts == len(provider.calls) == 2 * (Echo.OTHER_CALLS + 1)
    made = Counter(call.task for call in provider.calls)
    assert [made[f"mini-{kind}"] for kind in range(5)] == [1, 2, 1, 2, 2]
    assert [made[f"sonnet-{kind}"] for kind in range(5)] == [1, 2, 1, 2, 2]
    assert any(key in str(call.headers) for call in provider.calls for key in KEYS.values())
    tables = database.fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = 'cp'")
    kept = {
        table: str(database.fetch(f"SELECT t::text FROM cp.{table} t"))  # type: ignore[arg-type]
        for (table,) in tables
    }
    kept["logs"] = caplog.text
    kept["request log"] = "".join(path.read_text() for path in (tmp_path / "requests").iterdir())
    assert "Incorrect API key provided: [key]" in kept["executions"]
    assert "Your key is [key]" in kept["executions"]
    assert "bad gateway" in kept["request log"]
    assert "attempt recorded" in kept["logs"]
    for key in KEYS.values():
        assert [where for where, text in kept.items() if key in text] == []


def test_log_lines_of_any_module_carry_the_ids_and_no_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from structlog.contextvars import bound_contextvars

    from cp_resources.log import logger

    monkeypatch.setenv("SOME_API_KEY", "planted-secret-1")
    monkeypatch.setenv("SOME_DATABASE_URL", "postgresql://owner:pass%40word1@db/x")

    with bound_contextvars(task="web-7", run="run-42", execution=3):
        logger("cp_resources.any").warning(
            "failed", error=ValueError("planted-secret-1"), url="x pass@word1", other={"a": ["sk-abcd1234"]}
        )

    [record] = caplog.records
    line = record.getMessage()
    assert "task='web-7'" in line
    assert "run='run-42'" in line
    assert "execution=3" in line
    assert "planted-secret-1" not in line
    assert "pass@word1" not in line
    assert "sk-abcd1234" not in line


def test_secrets_are_known_by_the_names_of_their_variables_and_by_configuration() -> None:
    environment = {
        "OPENAI_API_KEY": "openai-secret",
        "GITHUB_TOKEN": "github-secret",
        "SECRET_KEY_BASE": "base-secret",
        "DB_URL": "postgresql://owner:pass%40word@db/x",
        "TOKENIZERS_PARALLELISM": "parallelism",
        "HOME": "/home/grace",
        "SHORT_KEY": "abc",
        "MY_CLAUDE_1": "named-in-models-yaml",
    }
    expected = {"openai-secret", "github-secret", "base-secret", "pass%40word", "pass@word"}

    assert set(known_secrets(environment)) == expected
    name_secret("MY_CLAUDE_1")
    assert set(known_secrets(environment)) == {*expected, "named-in-models-yaml"}
