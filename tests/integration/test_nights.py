"""Nights of learning through Dagster: a model that is worse than believed is found out, once, and can be put back."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from busy_days import add_day, busiest_model
from dagster import AssetKey, Definitions, ExecuteInProcessResult
from worked_day import DAY, run

from cp_core.learning.gates.verdict import REQUIRED
from cp_core.learning.learned import Learned
from cp_definitions import build_defs
from cp_resources.champion import ConfigurationStore
from cp_resources.configuration import load_configuration
from cp_resources.database import Database
from cp_resources.gate_results import GateResults
from cp_resources.learning_report import LearningReports, Section, as_html, as_markdown
from cp_resources.promotion import settle_night
from cp_resources.settings import PROJECT_ROOT, Settings

FILES = load_configuration(PROJECT_ROOT / "config")
NIGHT = [AssetKey("candidate_config"), AssetKey("calibrated_config"), AssetKey("learning_report")]


@pytest.fixture
def busy_days(worked: Database) -> list[date]:
    """Six days like the worked one, many times over; the busiest model has good work in a quarter of tasks."""
    days = [DAY + timedelta(days=number) for number in range(1, 7)]
    for number, day in enumerate(days):
        add_day(worked, day, first=1_000_000 * (number + 1))
    return days


def night(database: Database, day: date, folder) -> ExecuteInProcessResult:
    return run(definitions(database, folder), "daily_learning", day, asset_selection=NIGHT)


def definitions(database: Database, folder) -> Definitions:
    in_force = ConfigurationStore(database).in_force(FILES)
    return build_defs(database=database, settings=Settings(home=folder), configuration=in_force)


def promotions(database: Database) -> list[tuple]:
    return database.fetch("SELECT to_hash FROM promotions WHERE action = 'promote' ORDER BY id")


def test_what_outcomes_prove_is_in_force_after_some_nights_and_only_once(worked, busy_days, tmp_path):
    for day in busy_days:
        assert night(worked, day, tmp_path).success
    store = ConfigurationStore(worked)
    promoted = promotions(worked)
    assert promoted, [line.reason for line in store.history()]
    in_force = store.in_force(FILES)
    model = busiest_model(worked)
    cells = in_force.learned.calibration.success[model]
    assert cells
    lowest = min(p for by_complexity in cells.values() for p in by_complexity.values())
    assert lowest < FILES.registry.models[model].capability["backend"]

    version = promoted[-1][0]
    passed = GateResults(worked).latest(version)
    assert set(passed) == set(REQUIRED)
    assert all(verdict.has_passed for verdict in passed.values())

    page, markdown = LearningReports(worked).read(busy_days[-1])
    assert "Is the chance of success right?" in markdown
    assert page.count("data:image/png;base64,") >= 2
    assert "http" not in page

    before = worked.fetch("SELECT day, config_hash FROM config_candidates ORDER BY day")
    night(worked, busy_days[-1], tmp_path)
    assert worked.fetch("SELECT day, config_hash FROM config_candidates ORDER BY day") == before
    assert promotions(worked) == promoted


def test_a_night_whose_results_are_not_stored_for_its_very_version_promotes_nothing(
    worked, busy_days, tmp_path
):
    for day in busy_days[:3]:
        run(definitions(worked, tmp_path), "daily_learning", day, asset_selection=NIGHT[:1])
    [(version,)] = worked.fetch("SELECT config_hash FROM config_candidates ORDER BY day DESC LIMIT 1")
    worked.fetch("UPDATE config_candidates SET config_hash = %s RETURNING day", [an_unjudged_version(worked)])
    settled = settle_night(worked, FILES, busy_days[2])
    assert not settled.was_promoted
    assert "not judged" in settled.says
    assert ConfigurationStore(worked).pointers().get("champion") is None
    assert version != settled.candidate


def an_unjudged_version(database: Database) -> str:
    """A stored version that no gate has seen."""
    return ConfigurationStore(database).remember(
        FILES.with_learned(Learned(scoring={"priority_points.P0": 41.0}))
    )


def test_a_night_without_outcomes_changes_nothing(database, tmp_path):
    result = run(definitions(database, tmp_path), "daily_learning", DAY, asset_selection=NIGHT)
    assert result.success
    assert promotions(database) == []
    assert database.fetch("SELECT count(*) FROM gate_results") == [(0,)]


def test_what_others_wrote_is_only_text_in_a_report():
    sections = [Section("<b>x", "a | <script>alert(1)</script>", ["n"], [("<img src=x>",)])]
    page = as_html("t", sections)
    assert "<script" not in page
    assert "<img" not in page
    assert "\\<script\\>" in as_markdown("t", sections)
