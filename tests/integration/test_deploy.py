"""What deploy/ says agrees with config/, and holds no secret. There is no cluster here to try it on."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import Any

import pytest
import yaml

from cp_resources.settings import PROJECT_ROOT

DEPLOY = PROJECT_ROOT / "deploy"
DOCUMENTS = sorted(path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*.yaml"))


def read(path: str) -> Any:
    return yaml.safe_load((PROJECT_ROOT / path).read_text())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_passwords_and_keys_come_from_outside(name: str) -> None:
    text = (DEPLOY / name).read_text()

    assert isinstance(yaml.safe_load(text), dict)
    for value in re.findall(r"(?m)^\s*\w*(?:PASSWORD|KEY|AUTH): (\S+)", text):
        assert value.startswith("${"), f"{name} holds {value!r} itself"
    for credentials in re.findall(r"://([^@\n/]+)@", text):
        assert "${" in credentials, f"{name} holds credentials in an address"


def test_on_kubernetes_the_limits_are_those_of_one_machine() -> None:
    ours = read("config/dagster.yaml")
    daemon = read("deploy/helm/values.yaml")["dagsterDaemon"]
    coordinator = daemon["runCoordinator"]["config"]["queuedRunCoordinator"]
    monitoring = daemon["runMonitoring"]

    assert coordinator["tagConcurrencyLimits"] == ours["concurrency"]["runs"]["tag_concurrency_limits"]
    assert coordinator["maxConcurrentRuns"] == ours["concurrency"]["runs"]["max_concurrent_runs"]
    assert monitoring["enabled"]
    assert {
        "poll_interval_seconds": monitoring["pollIntervalSeconds"],
        "start_timeout_seconds": monitoring["startTimeoutSeconds"],
        "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
    }.items() <= ours["run_monitoring"].items()
    assert daemon["runRetries"] == {"enabled": True, "maxRetries": ours["run_retries"]["max_retries"]}


def test_on_kubernetes_celery_is_set_up_as_on_machines_of_ones_own() -> None:
    custom = read("deploy/helm/values-celery.yaml")["runLauncher"]["config"]["customRunLauncher"]

    assert custom == read("config/dagster-celery.yaml")["run_launcher"]


def test_a_worker_of_the_cluster_gives_its_runs_their_time_budget_to_end() -> None:
    pod = read("deploy/helm/celery-worker.yaml")["spec"]["template"]["spec"]

    assert pod["terminationGracePeriodSeconds"] > 600
    assert pod["securityContext"]["runAsNonRoot"]


def test_the_image_installs_only_what_is_pinned_and_hashed_and_does_not_run_as_root() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    installs = [line for line in lines if "pip install" in line]

    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]


def test_the_image_is_made_of_files_that_exist_and_of_settings_that_do_not_contradict_each_other() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [
        line.split()[1] for line in text.splitlines() if line.startswith("COPY ") and "--from" not in line
    ]
    parts = re.findall(r"config/\S+\.yaml", text)

    assert copied == ["requirements/celery.txt", "."]
    assert all((PROJECT_ROOT / path).exists() for path in [*copied, *parts, "dbt_project/profiles.yml"])
    assert parts == ["config/dagster.yaml", "config/dagster-celery.yaml"]
    machine, celery = (read(path) for path in parts)
    assert machine.keys().isdisjoint(celery), "the image's dagster.yaml would say a thing twice"


def test_every_role_starts_a_program_that_the_image_has() -> None:
    services = read("deploy/compose.yaml")["services"]
    ours = [one["command"] for one in services.values() if one.get("image", "").startswith("control-panel")]
    jobs = [read(f"deploy/helm/{name}.yaml") for name in ("migrate", "celery-worker")]
    ours += [
        one["command"]
        for job in jobs
        for one in job["spec"]["template"]["spec"]["containers"]
        if "command" in one
    ]
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    ours += [yaml.safe_load(line.partition("CMD ")[2]) for line in lines if "CMD [" in line]
    programs = {script.name for script in entry_points(group="console_scripts")}

    assert (
        {words[0] for words in ours} == {"control-panel", "dagster-webserver", "dagster-daemon"} <= programs
    )
    commands = [words[1] for words in ours if words[0] == "control-panel"]
    assert set(commands) == {"db", "worker"}
