"""Asset `assignments` under every strategy: what it shows of the proof, and that its checks hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_assets import metadata_of
from worked_day import DAY, failed_checks, rows, run, submit

from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.strategies import Strategy
from cp_definitions import build_defs
from cp_resources.configuration import load_configuration
from cp_resources.settings import Settings


@pytest.mark.parametrize("strategy", Strategy)
def test_a_day_is_worked_through_and_shows_its_proof(database, simulator_url, tmp_path, strategy):
    submit(database, rows(DAY), tmp_path)
    settings = Settings(home=tmp_path, simulator_url=simulator_url)
    shipped = load_configuration(settings.config_dir)
    policies = shipped.policies.model_copy(
        update={
            "assignment": shipped.policies.assignment.model_copy(update={"strategy": strategy}),
            "fairness": FairnessPolicy(overdue_hours=1e6),  # the day lies in the past
        }
    )
    defs = build_defs(database=database, settings=settings, configuration=replace(shipped, policies=policies))
    result = run(defs, "process_queue", DAY)
    assert failed_checks(result) == set()
    shown = metadata_of(result)["assignments"]
    assert 0 <= shown["gap"] <= 1
    assert shown["bound"] > 0
    assert shown["value captured"].startswith(
        "![Value captured against the bound, 16 tasks](data:image/png;base64,"
    )
    assert shown["prices"].startswith("![What more quota would be worth](data:image/png;base64,")
    compared = shown["strategies compared"].splitlines()
    assert [line.split("|")[1].strip() for line in compared[2:]] == [one.value for one in Strategy]
    assert shown["compared on"] == "16 of 16 tasks"
    assert database.fetch(
        "SELECT count(*) FROM tasks WHERE state NOT IN ('succeeded', 'failed', 'dead')"
    ) == [(0,)]
