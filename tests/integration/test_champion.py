"""What is in force: laid over the files, moved in one transaction, and never by two at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from typing import NamedTuple

import psycopg
import pytest
from dagster import DagsterInstance, Definitions, ResourceParam, asset, define_asset_job

from cp_cli.main import run
from cp_core.assignment.calibration import Calibration
from cp_core.learning.gates.verdict import REQUIRED, Verdict
from cp_core.learning.learned import Learned
from cp_resources.champion import NIGHTLY, ConfigurationStore, PromotionError
from cp_resources.configurable import ConfigurationResource
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.gate_results import GateResults
from cp_resources.settings import PROJECT_ROOT

FILES = load_configuration(PROJECT_ROOT / "config")


class Printed(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Printed]:
    """Run `control-panel config ARGUMENTS` on the test's database."""
    monkeypatch.setenv("CP_DATABASE_URL", database.url)

    def invoke(*arguments: str) -> Printed:
        monkeypatch.setattr(sys, "argv", ["control-panel", "config", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        out, err = capsys.readouterr()
        return Printed(int(ended.value.code or 0), out, err)

    return invoke


def learned(success: float = 0.8, **scoring: float) -> Learned:
    cells = {"claude-opus-5-5": {"backend": {"simple": success}}}
    return Learned(calibration=Calibration.model_validate({"success": cells}), scoring=scoring)


def version(store: ConfigurationStore, success: float) -> Configuration:
    made = FILES.with_learned(learned(success))
    store.remember(made)
    return made


def promote(store: ConfigurationStore, made: Configuration, day: str = "2026-03-02") -> bool:
    return store.promote(
        made.content_hash,
        instead_of=store.pointers().get("champion"),
        base=store.remember(FILES),
        by=NIGHTLY,
        reason="every gate passed",
        evidence={"day": day},
    )


def passed(store: ConfigurationStore, database: Database, made: Configuration, **failed: str) -> None:
    against = store.in_force(FILES).content_hash
    GateResults(database).write(
        made.content_hash,
        date(2026, 3, 2),
        [
            Verdict(gate=gate, has_passed=gate not in failed, against=against, says=failed.get(gate, "fine"))
            for gate in REQUIRED
        ],
    )


def test_without_a_champion_the_files_are_in_force(database):
    assert ConfigurationStore(database).in_force(FILES).content_hash == FILES.content_hash


def test_the_champion_is_laid_over_the_files(database):
    store = ConfigurationStore(database)
    made = version(store, 0.8)
    assert promote(store, made)
    in_force = store.in_force(FILES)
    assert in_force.content_hash == made.content_hash
    assert in_force.learned.calibration.success_of("claude-opus-5-5", "backend", "simple") == 0.8


def test_what_no_longer_fits_the_files_is_left_out_and_said_once(database):
    """claude-opus-5-5 is no longer configured; P0's points were 40 when 42 was learned, and a person made them 50."""
    store = ConfigurationStore(database)
    found = Learned(
        calibration=learned().calibration,
        scoring={"priority_points.P0": 42.0, "priority_points.P1": 31.0, "no.such": 1.0},
        written={"priority_points.P0": 40.0, "priority_points.P1": 30.0},
    )
    made = replace(FILES, learned=found)
    store.remember(made)
    promote(store, made)
    models = {name: model for name, model in FILES.registry.models.items() if name != "claude-opus-5-5"}
    points = {**FILES.scoring.priority_points, "P0": 50.0}
    now = replace(
        FILES,
        registry=FILES.registry.model_copy(update={"models": models}),
        scoring=FILES.scoring.model_copy(update={"priority_points": points}),
    )
    for _ in range(2):
        in_force = store.in_force(now)
        assert in_force.learned.calibration.success == {}
        assert in_force.scoring.priority_points["P0"] == 50.0
        assert in_force.scoring.priority_points["P1"] == 31.0
    [(said,)] = database.fetch("SELECT payload ->> 'left_out' FROM events WHERE kind = 'learned.left_out'")
    assert "claude-opus-5-5" in said
    assert "a person changed it from 40 to 50" in said
    assert "'no.such'" in said


def test_a_champion_that_this_release_cannot_read_leaves_the_files_in_force(database):
    store = ConfigurationStore(database)
    made = version(store, 0.8)
    promote(store, made)
    database_content = {**made.as_dict(), "learned": {"from": "another release"}}
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO config_versions (config_hash, content) VALUES ('abc', %s)",
            [json.dumps(database_content)],
        )
        connection.execute("UPDATE config_pointers SET config_hash = 'abc' WHERE name = 'champion'")
    assert store.in_force(FILES).content_hash == FILES.content_hash
    assert database.fetch("SELECT count(*) FROM events WHERE kind = 'learned.left_out'") == [(1,)]


def test_promotion_and_rollback_move_the_pointers_and_keep_the_history(database):
    store = ConfigurationStore(database)
    first, second = version(store, 0.8), version(store, 0.85)
    promote(store, first)
    assert store.pointers() == {"champion": first.content_hash, "previous": FILES.content_hash}
    store.challenge(second.content_hash)
    assert store.pointers()["challenger"] == second.content_hash
    promote(store, second)
    assert store.pointers() == {"champion": second.content_hash, "previous": first.content_hash}
    store.roll_back(by="ann", reason="too dear")
    assert store.pointers() == {"champion": first.content_hash, "previous": second.content_hash}
    lines = [(line.action, line.from_hash, line.to_hash, line.by) for line in store.history()]
    assert lines == [
        ("rollback", second.content_hash, first.content_hash, "ann"),
        ("promote", first.content_hash, second.content_hash, NIGHTLY),
        ("promote", FILES.content_hash, first.content_hash, NIGHTLY),
    ]
    with pytest.raises(psycopg.errors.RestrictViolation), database.transaction() as connection:
        connection.execute("DELETE FROM promotions")


def test_promoting_the_champion_again_writes_nothing(database):
    store = ConfigurationStore(database)
    made = version(store, 0.8)
    assert promote(store, made)
    assert not promote(store, made)
    assert len(store.history()) == 1


def test_of_two_promoters_at_once_one_wins(database):
    store = ConfigurationStore(database)
    made = [version(store, 0.7 + 0.01 * number) for number in range(4)]
    base = store.remember(FILES)

    def attempt(one: Configuration) -> bool:
        try:
            return store.promote(
                one.content_hash, instead_of=None, base=base, by="x", reason="y", evidence={}
            )
        except PromotionError:
            return False

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(attempt, made))
    assert outcomes.count(True) == 1
    winner = made[outcomes.index(True)]
    assert store.pointers() == {"champion": winner.content_hash, "previous": FILES.content_hash}
    assert len(store.history()) == 1


def test_a_version_that_is_not_stored_is_not_promoted(database):
    store = ConfigurationStore(database)
    with pytest.raises(PromotionError, match="there is no configuration"):
        promote(store, FILES.with_learned(learned(0.5)))
    assert store.pointers() == {}


def test_the_champion_before_a_night_leaves_out_what_that_night_promoted(database):
    store = ConfigurationStore(database)
    first, second = version(store, 0.8), version(store, 0.85)
    promote(store, first, "2026-03-02")
    promote(store, second, "2026-03-03")
    assert store.champion_before(date(2026, 3, 4)) == second.content_hash
    assert store.champion_before(date(2026, 3, 3)) == first.content_hash
    assert store.champion_before(date(2026, 3, 2)) == FILES.content_hash
    store.roll_back(by="ann", reason="too dear")
    assert store.champion_before(date(2026, 3, 3)) == first.content_hash


def test_a_run_in_flight_keeps_the_configuration_it_started_with(database, monkeypatch):
    monkeypatch.setenv("CP_DATABASE_URL", database.url)
    store = ConfigurationStore(database)
    seen: list[str] = []

    @asset
    def before(configuration: ResourceParam[Configuration]) -> None:
        seen.append(configuration.content_hash)
        promote(store, version(store, 0.8))

    @asset(deps=[before])
    def after(configuration: ResourceParam[Configuration]) -> None:
        seen.append(configuration.content_hash)

    definitions = Definitions(
        assets=[before, after],
        jobs=[define_asset_job("both")],
        resources={"configuration": ConfigurationResource(database=database)},
    )
    with DagsterInstance.ephemeral() as instance:
        assert definitions.resolve_job_def("both").execute_in_process(instance=instance).success
        assert seen == [FILES.content_hash, FILES.content_hash]
        job = definitions.resolve_job_def("both")
        assert job.execute_in_process(instance=instance, asset_selection=[after.key]).success
    assert seen[2] == store.pointers()["champion"]


class TestCommand:
    def test_a_version_whose_gates_have_not_all_passed_is_refused(self, database, command):
        store = ConfigurationStore(database)
        made = version(store, 0.8)
        printed = command("promote", made.content_hash[:12], "--reason", "looks good")
        assert printed.code == 2
        assert "forward_holdout: not judged" in printed.err
        passed(store, database, made, guardrails="backend would fail more often")
        printed = command("promote", made.content_hash[:12], "--reason", "looks good")
        assert printed.code == 2
        assert "guardrails: backend would fail more often" in printed.err
        assert store.pointers() == {}

    def test_a_version_that_passed_is_promoted_with_who_and_why(self, database, command):
        store = ConfigurationStore(database)
        made = version(store, 0.8)
        passed(store, database, made)
        printed = command("promote", made.content_hash[:12], "--reason", "looks good", "--by", "ann")
        assert printed.code == 0, printed.err
        assert store.pointers()["champion"] == made.content_hash
        [line] = store.history()
        assert (line.by, line.reason, line.evidence["forced"]) == ("ann", "looks good", False)

    def test_passing_against_another_champion_does_not_count(self, database, command):
        store = ConfigurationStore(database)
        first, second = version(store, 0.8), version(store, 0.85)
        passed(store, database, second)
        promote(store, first)
        printed = command("promote", second.content_hash[:12], "--reason", "looks good")
        assert printed.code == 2
        assert "which is not what is in force now" in printed.err

    def test_the_passes_of_one_version_do_not_count_for_another(self, database, command):
        store = ConfigurationStore(database)
        passed(store, database, version(store, 0.8))
        other = version(store, 0.81)
        assert command("promote", other.content_hash, "--reason", "x").code == 2

    def test_force_overrules_and_is_recorded_as_such(self, database, command):
        store = ConfigurationStore(database)
        made = version(store, 0.8)
        assert command("promote", made.content_hash, "--reason", "an emergency", "--force").code == 0
        [line] = store.history()
        assert line.evidence["forced"] is True
        assert "placebo: not judged" in line.evidence["gates_not_passed"]
        assert "forced past gates" in command("history").out

    def test_history_show_diff_and_rollback(self, database, command):
        store = ConfigurationStore(database)
        assert "nothing learned was promoted yet" in command("history").out
        assert command("rollback", "--reason", "x").code == 2
        made = version(store, 0.8)
        passed(store, database, made)
        promote(store, made)
        shown = command("show").out
        assert "calibration.success.claude-opus-5-5.backend.simple = 0.8" in shown
        assert "gate placebo: passed: fine" in shown
        assert (
            "learned.calibration.success.claude-opus-5-5.backend.simple: none -> 0.8" in command("diff").out
        )
        found = json.loads(command("diff", "champion", "champion", "--json").out)
        assert found["differences"] == []
        assert command("rollback", "--reason", "too dear").code == 0
        assert store.in_force(FILES).content_hash == FILES.content_hash
        history = json.loads(command("history", "--json").out)
        assert [line["action"] for line in history["history"]] == ["rollback", "promote"]

    def test_a_hash_that_names_nothing_is_refused_in_words(self, database, command):
        assert "at least 6 characters" in command("show", "ab").err
        assert "no configuration begins with abcdef" in command("show", "abcdef").err
        assert command("promote", "champion", "--reason", " ").code == 2
