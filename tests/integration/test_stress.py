"""`control-panel stress` on a real server: beside the owner's tasks, within its limits, and telling what is unsound."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from cp_cli.main import run
from cp_core.assignment.strategies import Strategy
from cp_core.policy.policies import Flags
from cp_resources import stress as stress_module
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.planner import Decided, Planner
from cp_resources.settings import PROJECT_ROOT
from cp_resources.stress import DATABASE_PREFIX, Load, stress, with_strategy
from cp_resources.stress_report import StressReport, differences, lines, read_report, write_report


class Printed(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Printed]:
    """Run `control-panel stress ARGUMENTS` on the test's server."""
    monkeypatch.setenv("CP_DATABASE_URL", database.url)
    monkeypatch.setenv("CP_HOME", str(tmp_path))

    def invoke(*arguments: str) -> Printed:
        monkeypatch.setattr(sys, "argv", ["control-panel", "stress", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        out, err = capsys.readouterr()
        return Printed(int(ended.value.code or 0), out, err)

    return invoke


@pytest.fixture(scope="module")
def configuration() -> Configuration:
    return load_configuration(PROJECT_ROOT / "config")


@pytest.fixture(scope="module")
def measured(configuration: Configuration, postgres_server: EmbeddedPostgres) -> StressReport:
    """One small run by the written policy."""
    return stress(postgres_server.url("postgres"), configuration, Load(tasks=60, concurrency=2, seed=3))


def scratch_databases(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [DATABASE_PREFIX]
        ).fetchall()
    return [name for (name,) in rows]


def test_a_run_decides_every_task_once_and_the_ledger_verifies(measured: StressReport) -> None:
    assert measured.is_sound
    assert measured.timeouts == 0
    # the batch before the planners decides a tenth of the 60 tasks; whoever is offered those finds them decided
    assert measured.decisions >= 54
    assert sum(measured.outcomes.values()) == measured.decisions
    assert measured.outcomes["assigned"] + sum(measured.reasons.values()) == measured.decisions
    assert measured.repeats >= 1


def test_production_s_cache_and_pruning_are_at_work(measured: StressReport) -> None:
    assert measured.cache_hit_rate is not None
    assert 0 < measured.cache_hit_rate < 1
    assert measured.pruned["TIER_NOT_ALLOWED"] > 0
    assert measured.considered > sum(measured.pruned.values())


def test_without_the_cache_there_is_no_hit_rate(configuration: Configuration, database: Database) -> None:
    flags = Flags(planner_cache_enabled=False)
    policies = configuration.policies.model_copy(update={"flags": flags})
    found = stress(database.url, replace(configuration, policies=policies), Load(tasks=10, concurrency=1))
    assert found.cache_hit_rate is None


def test_the_owner_s_database_stays_as_it_is_and_the_scratch_database_goes(
    command: Callable[..., Printed], database: Database, tmp_path: Path
) -> None:
    before = scratch_databases(database.url)
    printed = command("--tasks", "30", "--strategy", "maximize_value")
    assert printed.code == 0, printed.err
    assert set(scratch_databases(database.url)) <= set(before)
    for table in ("tasks", "assignments", "quota_transfers", "events"):
        assert database.fetch(f"SELECT count(*) FROM cp.{table}") == [(0,)]  # type: ignore[arg-type]
    content = json.loads((tmp_path / "stress.json").read_text())
    assert content["load"] == {"tasks": 30, "concurrency": 2, "seed": 7, "strategy": "maximize_value"}
    assert 0 <= content["batch_gap"] <= 0.05
    assert "decisions per second" in printed.out


def test_a_second_run_stands_beside_the_first(command: Callable[..., Printed], tmp_path: Path) -> None:
    assert command("--tasks", "10", "--seed", "1").code == 0
    printed = command("--tasks", "12", "--seed", "1")
    assert printed.code == 0
    assert "before" in printed.out
    assert "load.tasks was 10 and is 12" in printed.out
    page = (tmp_path / "stress.md").read_text()
    assert "| figure | before | after | ratio |" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--concurrency", "5"], "at most 4 is safe beside other work. For more: --unsafe-concurrency 5"),
        (["--tasks", "20001"], "at most 20,000 is safe beside other work. For more: --unsafe-tasks 20001"),
        (["--tasks", "0"], "tasks is 0; it must be at least 1"),
        (["--strategy", "greedy"], "--strategy is 'greedy'; allowed are tiered, maximize_value"),
        (["--baseline", "missing.json"], "missing.json cannot be read"),
    ],
)
def test_what_is_not_allowed_is_said_before_anything_runs(
    command: Callable[..., Printed], arguments: list[str], says: str, database: Database
) -> None:
    printed = command(*arguments)
    assert printed.code == 2
    assert says in printed.err


def test_limits_can_be_raised_with_a_warning(command: Callable[..., Printed], tmp_path: Path) -> None:
    printed = command("--tasks", "20", "--unsafe-concurrency", "6")
    assert printed.code == 0
    assert "warning: concurrency 6 is above the safe limit of 4" in printed.err
    assert read_report(tmp_path / "stress.json").load["concurrency"] == 6


class AssignsTwice(Planner):
    """A broken planner: each of its decisions is stored a second time."""

    def decide(self, task: object, **options: object) -> Decided:
        decided = super().decide(task, **options)  # type: ignore[arg-type]
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO cp.assignments SELECT (jsonb_populate_record(a, jsonb_build_object("
                "'id', nextval('cp.assignments_id_seq'), 'decision_id', gen_random_uuid()))).* "
                "FROM cp.assignments a JOIN cp.tasks t ON t.id = a.task "
                "WHERE t.task_id = %s AND a.outcome = 'assigned' LIMIT 1",
                [decided.task_id],
            )
        return decided


def test_a_task_assigned_twice_makes_the_run_fail(
    command: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stress_module, "Planner", AssignsTwice)
    printed = command("--tasks", "8", "--concurrency", "1")
    assert printed.code == 1
    assert "tasks were assigned twice" in printed.out


def test_a_ledger_that_does_not_verify_makes_the_run_fail(
    command: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch, measured: StressReport
) -> None:
    broken = replace(measured, ledger_differences=["budget/api: 3 more is pending than its transfers say"])
    monkeypatch.setattr(stress_module, "stress", lambda *_: broken)
    printed = command("--tasks", "8")
    assert printed.code == 1
    assert "3 more is pending" in printed.out


def test_a_report_is_read_back_as_it_was_written(measured: StressReport, tmp_path: Path) -> None:
    write_report(tmp_path / "run.json", measured, None)
    assert read_report(tmp_path / "run.json") == measured
    assert differences(measured, measured) == []


def test_figures_stand_beside_those_before_with_their_ratio(measured: StressReport) -> None:
    before = replace(measured, decisions_per_second=100.0, p99_ms=8.0, timeouts=0, cache_hit_rate=None)
    after = replace(measured, decisions_per_second=150.0, p99_ms=4.0, timeouts=2, cache_hit_rate=0.25)
    shown = {line.figure: tuple(line[1:]) for line in lines(after, before)}
    assert shown["decisions per second"] == ("100.0", "150.0", "1.50")
    assert shown["p99, ms"] == ("8.00", "4.00", "0.50")
    assert shown["timeouts"] == ("0", "2", "")
    assert shown["cache hit rate"] == ("", "25.0%", "")


def test_an_unreadable_report_that_would_be_replaced_is_passed_over(
    command: Callable[..., Printed], tmp_path: Path
) -> None:
    (tmp_path / "stress.json").write_text("{}")
    printed = command("--tasks", "5")
    assert printed.code == 0
    assert "not compared" in printed.err


def events(database: Database, kind: str) -> list[dict[str, Any]]:
    return [payload for (payload,) in database.fetch("SELECT payload FROM cp.events WHERE kind = %s", [kind])]


@pytest.mark.parametrize("profiling", [False, True])
def test_batches_and_single_decisions_emit_one_shape_with_debug_counters_only_when_wanted(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, database: Database, profiling: bool
) -> None:
    @contextmanager
    def this_database(*_: object, **__: object) -> Iterator[Database]:
        yield database

    monkeypatch.setattr(stress_module, "scratch_database", this_database)
    policies = configuration.policies.model_copy(update={"flags": Flags(debug_capacity_profiling=profiling)})
    solved = with_strategy(replace(configuration, policies=policies), Strategy.MAXIMIZE_VALUE)
    stress(database.url, solved, Load(tasks=20, concurrency=1))
    batch, *_ = events(database, "assign.summary")
    single, *_ = events(database, "assign.inline")
    assert set(batch) - {"days"} == set(single)
    assert (batch["path"], single["path"]) == ("batch", "stress")
    assert ("debug" in batch, "debug" in single) == (profiling, profiling)
    assert batch["considered"] >= 2 * sum(batch["outcomes"].values())  # each task had several plans
    assert batch["queries"] > 0
    assert single["queries"] > 0
    assert 0 <= batch["gap"] < 1
    assert single["gap"] is None
