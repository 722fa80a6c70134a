"""The code location as the code server loads it: what there is, and what every asset and check must have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import AssetKey, AssetSelection, Definitions

from cp_assets.marts import ManifestMissingError
from cp_definitions import build_defs, defs
from cp_resources.settings import PROJECT_ROOT

OUR_ASSETS = [
    "model_registry",
    "task_queue",
    "scored_tasks",
    "assignments",
    "execution_outcomes",
    "performance_metrics",
    "success_model",
    "experiment_results",
    "token_calibration",
    "value_calibration",
    "cost_effectiveness",
    "candidate_config",
    "calibrated_config",
    "learning_report",
]
CALIBRATIONS = {"token_calibration", "value_calibration", "cost_effectiveness"}
NIGHT = {"candidate_config", "calibrated_config", "learning_report"}
LEARNING = {"performance_metrics", "success_model", "experiment_results", *CALIBRATIONS, *NIGHT}
WINDOWED = {
    AssetKey(name) for name in {"experiment_results", "candidate_config", *CALIBRATIONS}
}  # learning looks back over days
MARTS = ["executions", "models_per_day", "queue_health_per_day", "quota_use_per_day"]
SPECS = sorted(defs.resolve_all_asset_specs(), key=lambda spec: spec.key)  # the same in every process
GRAPH = defs.resolve_asset_graph()


def key(name: str) -> AssetKey:
    return AssetKey(name.split("/"))


def test_the_code_location_can_be_executed():
    Definitions.validate_loadable(defs)


def test_every_asset_of_the_design_is_there():
    names = {spec.key.to_user_string() for spec in SPECS}
    assert set(OUR_ASSETS) <= names
    assert {f"marts/{mart}" for mart in MARTS} <= names


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key.to_user_string())
def test_an_asset_says_what_it_is(spec):
    assert spec.group_name not in (None, "default")
    assert spec.kinds
    assert spec.owners == ["team:control-panel"]
    assert spec.description
    assert spec.description.endswith(".")
    assert spec.description[0].isupper()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key.to_user_string())
def test_an_asset_is_partitioned_by_submission_day_except_for_the_registry(spec):
    if spec.key == key("model_registry"):
        assert spec.partitions_def is None
    else:
        assert spec.partitions_def.timezone == "UTC"
        assert spec.partitions_def.get_partition_keys()[0] == "2008-01-01"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key.to_user_string())
def test_an_asset_has_at_least_two_checks_that_say_what_must_hold(spec):
    checks = [GRAPH.get_check_spec(check) for check in GRAPH.get(spec.key).check_keys]
    assert len(checks) >= 2
    for check in checks:
        assert check.description, check.name


def test_the_graph_is_that_of_the_design():
    def upstream(name: str) -> set[str]:
        return {parent.to_user_string() for parent in GRAPH.get(key(name)).parent_keys}

    assert upstream("task_queue") == set()
    assert upstream("scored_tasks") == {"task_queue"}
    assert upstream("assignments") == {"scored_tasks", "model_registry"}
    assert upstream("execution_outcomes") == {"assignments"}
    assert upstream("staging/stg_executions") == {"execution_outcomes"}
    assert upstream("performance_metrics") == {"marts/executions"}
    assert upstream("success_model") == {"performance_metrics"}
    for name in CALIBRATIONS:
        assert upstream(name) == {"performance_metrics"}
    assert "performance_metrics" in upstream("candidate_config")
    assert upstream("calibrated_config") == {"candidate_config"}


def test_materializing_a_day_of_an_asset_reads_the_same_day_of_what_is_upstream():
    for spec in SPECS:
        for dependency in spec.deps:
            assert dependency.partition_mapping is None or spec.key in WINDOWED, (
                spec.key,
                dependency.asset_key,
            )


def test_process_queue_and_daily_learning_share_the_graph_between_them():
    def assets_of(job: str) -> set[str]:
        executed = defs.resolve_job_def(job).asset_layer.executable_asset_keys
        return {each.to_user_string() for each in executed}

    everything = {spec.key.to_user_string() for spec in SPECS}
    assert assets_of("process_queue") == set(OUR_ASSETS) - LEARNING
    assert assets_of("daily_learning") == everything - assets_of("process_queue")


@pytest.mark.parametrize("job", ["process_queue", "daily_learning"])
def test_a_job_runs_the_checks_of_its_assets(job):
    layer = defs.resolve_job_def(job).asset_layer
    of_its_assets = AssetSelection.checks_for_assets(*layer.executable_asset_keys)
    assert of_its_assets.resolve_checks(GRAPH) <= set(layer.asset_graph.asset_check_keys)


def test_what_runs_by_itself_is_switched_on():
    assert {sensor.name: sensor.default_status.value for sensor in defs.sensors} == {
        "new_tasks_sensor": "RUNNING",
        "task_inbox_sensor": "RUNNING",
        "deliver_notices_sensor": "RUNNING",
    }
    [schedule] = defs.schedules
    assert (schedule.name, schedule.default_status.value) == ("daily_learning_schedule", "RUNNING")


def test_a_resource_is_replaced_by_name():
    replaced = build_defs(database="a stand-in")
    assert replaced.resources["database"] == "a stand-in"
    assert replaced.resources["settings"] is not None


def test_a_missing_manifest_is_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("CP_DBT_PROJECT_DIR", str(tmp_path))
    with pytest.raises(ManifestMissingError, match=r"manifest.json does not exist: run `make setup`"):
        build_defs()


def test_loading_opens_nothing_and_loads_nothing_heavy(tmp_path):
    script = """
import json, socket, sys
def refuse(*arguments, **options):
    raise AssertionError(f"loading the code location opened a connection: {arguments}")
socket.socket.connect = refuse
import cp_definitions
cp_definitions.defs.get_repository_def()
heavy = ["matplotlib", "scipy", "sqlalchemy.orm", "alembic", "httpx", "dbt.parser.manifest", "dbt.cli.main"]
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    environment = {"CP_HOME": str(tmp_path / "home"), "CP_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}
    loaded = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        cwd=PROJECT_ROOT,
        env={**environment, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(loaded.stdout) == []
    assert "Warning" not in loaded.stderr, loaded.stderr
    assert not Path(environment["CP_HOME"]).exists()
