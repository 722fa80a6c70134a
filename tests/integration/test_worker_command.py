"""`control-panel worker`, and what `up` asks for before it hands runs to workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from pydantic import SecretStr

from cp_cli.dagster_home import environment, write_dagster_yaml
from cp_resources.settings import PROJECT_ROOT, Settings

REDIS = "redis://:planted-secret@127.0.0.1:6379/0"


def control_panel(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cp_cli.main", *arguments],
        cwd=PROJECT_ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_worker_needs_the_platforms_redis(tmp_path: Path) -> None:
    done = control_panel("worker", CP_HOME=str(tmp_path))

    assert done.returncode == 2
    assert "CP_REDIS_URL is not set" in done.stderr


def test_runs_are_handed_out_only_where_workers_can_reach_the_database(tmp_path: Path) -> None:
    for command in ("worker", "up"):
        done = control_panel(command, CP_HOME=str(tmp_path), CP_REDIS_URL=REDIS)

        assert done.returncode == 2
        assert "set CP_DATABASE_URL to a PostgreSQL server" in done.stderr
        assert "planted-secret" not in done.stdout + done.stderr
    assert not (tmp_path / "postgres").exists()


def test_the_instance_has_the_celery_launcher_with_redis_and_dagsters_own_without(tmp_path: Path) -> None:
    def written(settings: Settings) -> dict[str, object]:
        write_dagster_yaml(settings)
        text = (settings.dagster_home / "dagster.yaml").read_text()
        assert "planted-secret" not in text
        loaded: dict[str, object] = yaml.safe_load(text)
        return loaded

    plain = written(Settings(home=tmp_path / "plain"))
    celery = written(Settings(home=tmp_path / "celery", redis_url=SecretStr(REDIS)))

    assert "run_launcher" not in plain
    launcher = celery.pop("run_launcher")
    assert celery == plain
    assert isinstance(launcher, dict)
    assert launcher["config"]["broker"] == launcher["config"]["backend"] == {"env": "CP_REDIS_URL"}


def test_processes_are_told_the_redis_only_where_there_is_one(tmp_path: Path) -> None:
    without = environment(Settings(home=tmp_path), "postgresql://a/b", "postgresql://a/c")
    settings = Settings(home=tmp_path, redis_url=SecretStr(REDIS))

    assert "CP_REDIS_URL" not in without
    assert environment(settings, "postgresql://a/b", "postgresql://a/c")["CP_REDIS_URL"] == REDIS
