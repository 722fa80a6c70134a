"""Dagster's settings agree with the code that relies on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance

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


def test_a_day_has_one_run_at_a_time() -> None:
    limits = yaml.safe_load((CONFIG / "dagster.yaml").read_text())["concurrency"]["runs"][
        "tag_concurrency_limits"
    ]

    assert limits == [{"key": DAY_TAG, "value": {"applyLimitPerUniqueValue": True}, "limit": 1}]


def test_a_run_that_ended_frees_its_pool_slots() -> None:
    monitoring = yaml.safe_load((CONFIG / "dagster.yaml").read_text())["run_monitoring"]

    assert monitoring["enabled"]
    assert 0 < monitoring["free_slots_after_run_end_seconds"] <= 300
