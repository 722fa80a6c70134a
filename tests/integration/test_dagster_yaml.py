"""Dagster's settings agree with the code that relies on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance

from cp_resources.database import Database
from cp_resources.settings import PROJECT_ROOT
from cp_sensors.jobs import DAY_TAG

CONFIG = PROJECT_ROOT / "config"


def test_dagster_accepts_the_file(monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path) -> None:
    monkeypatch.setenv("CP_DAGSTER_DATABASE_URL", database_url)
    shutil.copy(CONFIG / "dagster.yaml", tmp_path)
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
        assert not instance.telemetry_enabled


def test_dagsters_storage_keeps_its_connections_and_replaces_those_that_the_server_closed(
    monkeypatch: pytest.MonkeyPatch, database: Database, empty_database_url: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("CP_DAGSTER_DATABASE_URL", empty_database_url)
    shutil.copy(CONFIG / "dagster.yaml", tmp_path)
    name = empty_database_url.rpartition("/")[2].partition("?")[0]

    def connections() -> set[int]:
        rows = database.fetch("SELECT pid FROM pg_stat_activity WHERE datname = %s", [name])
        return {pid for (pid,) in rows}

    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_runs_count() == 0
        kept = connections()
        assert len(kept) == 1
        for _ in range(5):
            instance.get_runs_count()
            instance.all_instigator_state()
        assert connections() == kept

        database.fetch("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [list(kept)])
        assert instance.get_runs_count() == 0
        assert connections().isdisjoint(kept)


def test_a_day_has_one_run_at_a_time() -> None:
    limits = yaml.safe_load((CONFIG / "dagster.yaml").read_text())["concurrency"]["runs"][
        "tag_concurrency_limits"
    ]

    assert limits == [{"key": DAY_TAG, "value": {"applyLimitPerUniqueValue": True}, "limit": 1}]


def test_a_run_that_ended_frees_its_pool_slots() -> None:
    monitoring = yaml.safe_load((CONFIG / "dagster.yaml").read_text())["run_monitoring"]

    assert monitoring["enabled"]
    assert 0 < monitoring["free_slots_after_run_end_seconds"] <= 300
