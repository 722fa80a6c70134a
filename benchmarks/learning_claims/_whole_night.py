"""The daily learning job of one day, executed in this process as Dagster does, and what it took, as JSON."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from dagster import DagsterEventType, DagsterInstance, ExecuteInProcessResult

from benchmarks.learning_claims._outcomes import in_force
from cp_definitions import build_defs
from cp_resources.champion import ConfigurationStore
from cp_resources.database import Database
from cp_resources.settings import Settings


def main() -> None:
    """Run the night of a day on a database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("day", type=date.fromisoformat)
    parser.add_argument("into", type=Path, help="file that gets it")
    arguments = parser.parse_args()
    database = Database(arguments.url)
    with tempfile.TemporaryDirectory(prefix="control-panel-bench-") as home:
        definitions = build_defs(
            database=database,
            settings=Settings(home=Path(home)),
            configuration=ConfigurationStore(database).in_force(in_force()),
        )
        job = definitions.resolve_job_def("daily_learning")
        with DagsterInstance.ephemeral() as instance:
            began, cpu = perf_counter(), process_time()
            result = job.execute_in_process(partition_key=arguments.day.isoformat(), instance=instance)
            took = {"seconds": perf_counter() - began, "python_cpu_seconds": process_time() - cpu}
    database.close()
    arguments.into.write_text(
        json.dumps({**took, **_memory(), "steps": _steps(result), "warnings": _warnings(result)})
    )


def _memory() -> dict[str, float]:
    """Most memory that this process held, and that any it started held, and their CPU time."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, started = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "memory_gb": own.ru_maxrss * unit / 1e9,
        "started_memory_gb": started.ru_maxrss * unit / 1e9,
        "started_cpu_seconds": started.ru_utime + started.ru_stime,
    }


def _steps(result: ExecuteInProcessResult) -> Mapping[str, float]:
    """Seconds that each step took, the longest first."""
    took: dict[str, float] = {}
    for event in result.all_events:
        if event.event_type is DagsterEventType.STEP_SUCCESS and event.step_key:
            data: Any = event.event_specific_data
            took[event.step_key] = data.duration_ms / 1000
    return dict(sorted(took.items(), key=lambda step: -step[1]))


def _warnings(result: ExecuteInProcessResult) -> list[str]:
    """Checks that did not pass."""
    return sorted(
        f"{each.asset_key.to_user_string()}:{each.check_name}"
        for each in result.get_asset_check_evaluations()
        if not each.passed
    )


if __name__ == "__main__":
    main()
