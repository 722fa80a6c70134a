"""`control-panel breaker`, and the breakers that `control-panel watch` shows, on a real database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime

import pytest

from cp_core.tasks.reasons import Reason
from cp_resources.breakers import BreakerStore, Ended
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.settings import PROJECT_ROOT

FAILING, TRIED, FINE = "gpt-6-luna", "mistral-large-4", "claude-haiku-5-5"
NO_CREDIT = "claude-opus-5-5"
ControlPanel = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def control_panel(database_url: str) -> ControlPanel:
    """Runs the command where there is no terminal, in a window of 120 characters."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cp_cli.main", *words],
            env={**os.environ, "CP_DATABASE_URL": database_url, "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def store(database: Database) -> BreakerStore:
    return BreakerStore(database, load_configuration(PROJECT_ROOT / "config"))


def now(database: Database) -> datetime:
    [(moment,)] = database.fetch("SELECT clock_timestamp()")
    return moment


def let_fail(database: Database, store: BreakerStore) -> None:
    """One model has failed 12 times, another has no credit left, a third is tried again, a fourth has failed once."""
    began = now(database)
    store.learn([Ended(FAILING, Reason.SERVER_ERROR, began)] * 12)
    store.learn([Ended(NO_CREDIT, Reason.PROVIDER_QUOTA, began)])
    store.learn([Ended(TRIED, Reason.TIMEOUT, began)] * 12)
    store.learn([Ended(FINE, Reason.TIMEOUT, began)])
    with database.transaction() as connection:
        connection.execute("UPDATE breakers SET retry_at = clock_timestamp() WHERE model = %s", [TRIED])
        store.permits(connection, [TRIED])  # a worker claims


def states(database: Database) -> dict[str, str]:
    return dict(database.fetch("SELECT model, state FROM breakers"))


def test_the_list_says_what_is_left_alone_since_when_until_when_and_why(
    database: Database, store: BreakerStore, control_panel: ControlPanel
) -> None:
    let_fail(database, store)

    listed = control_panel("breaker", "list")

    assert listed.returncode == 0, listed.stderr
    rows = {line.split()[1]: line.split() for line in listed.stdout.splitlines()[1:]}
    assert rows.keys() == {FAILING, NO_CREDIT, TRIED, FINE}
    assert rows[FAILING][:3] == ["openai", FAILING, "open"]
    assert rows[FAILING][-1] == "SERVER_ERROR"
    assert "PROVIDER_QUOTA" in rows[NO_CREDIT]
    assert rows[TRIED][2] == "half-open"
    assert (rows[FINE][2], rows[FINE][-1]) == ("closed", "x")
    [(retry_at,)] = database.fetch("SELECT retry_at FROM breakers WHERE model = %s", [FAILING])
    assert f"{retry_at:%H:%M:%S}" in rows[FAILING]


def test_the_list_as_json_has_an_object_a_breaker(
    database: Database, store: BreakerStore, control_panel: ControlPanel
) -> None:
    let_fail(database, store)

    rows = {
        row["model"]: row
        for row in map(json.loads, control_panel("breaker", "list", "--json").stdout.splitlines())
    }

    assert {model: row["state"] for model, row in rows.items()} == states(database)
    assert rows[FAILING]["provider"] == "openai"
    assert rows[NO_CREDIT]["reason"] == "PROVIDER_QUOTA"
    waits = datetime.fromisoformat(rows[NO_CREDIT]["retry_at"]) - datetime.fromisoformat(
        rows[NO_CREDIT]["since"]
    )
    assert waits.total_seconds() == pytest.approx(3600, abs=1)  # barred_seconds


def test_without_a_failure_every_model_may_be_called(control_panel: ControlPanel) -> None:
    assert "every model may be called" in control_panel("breaker", "list").stdout


@pytest.mark.parametrize(
    ("name", "closed"),
    [(FAILING, {FAILING}), ("anthropic", {NO_CREDIT}), (FINE, set())],
    ids=["a model", "a provider", "one that is closed"],
)
def test_a_reset_closes_what_was_open_and_says_who_wanted_it_and_why(
    database: Database, store: BreakerStore, control_panel: ControlPanel, name: str, closed: set[str]
) -> None:
    let_fail(database, store)
    before = states(database)

    said = control_panel("breaker", "reset", name, "--reason", "topped up", "--by", "ana")

    assert said.returncode == 0, said.stderr
    assert said.stdout.count("is closed: workers call it again") == len(closed)
    assert states(database) == before | dict.fromkeys(closed, "closed")
    with database.transaction() as connection:
        assert closed.isdisjoint(store.unavailable(connection))
    events = database.fetch(
        "SELECT subject, payload ->> 'because', payload ->> 'by' FROM events WHERE kind = 'breaker.closed'"
    )
    assert {(subject.rpartition("/")[2], because, by) for subject, because, by in events} == {
        (model, "topped up", "ana") for model in closed
    }
    if not closed:
        assert "nothing of" in said.stdout


def test_a_name_that_is_no_model_is_refused_with_those_there_are(
    database: Database, store: BreakerStore, control_panel: ControlPanel
) -> None:
    let_fail(database, store)
    before = states(database)

    said = control_panel("breaker", "reset", "gpt-4", "--reason", "why not")

    assert said.returncode == 2
    assert "'gpt-4'" in said.stderr
    assert FAILING in said.stderr
    assert states(database) == before


def test_a_reset_needs_a_reason(control_panel: ControlPanel) -> None:
    assert control_panel("breaker", "reset", FAILING).returncode == 2


def test_watch_shows_what_is_left_alone_and_nothing_else(
    database: Database, store: BreakerStore, control_panel: ControlPanel
) -> None:
    let_fail(database, store)

    text = control_panel("watch", "--once")
    seen = json.loads(control_panel("watch", "--once", "--json").stdout)

    assert text.returncode == 0, text.stderr
    lines = [line for line in text.stdout.splitlines() if "breaker of" in line]
    assert lines == [
        f"open: breaker of anthropic/{NO_CREDIT}",
        f"half-open: breaker of mistral/{TRIED}",
        f"open: breaker of openai/{FAILING}",
    ]
    assert seen["breakers"] == [
        {"provider": "anthropic", "model": NO_CREDIT, "state": "open"},
        {"provider": "mistral", "model": TRIED, "state": "half-open"},
        {"provider": "openai", "model": FAILING, "state": "open"},
    ]
    control_panel("breaker", "reset", FAILING, "--reason", "mended")
    assert f"openai/{FAILING}" not in control_panel("watch", "--once").stdout
