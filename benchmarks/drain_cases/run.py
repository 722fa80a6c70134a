"""One run of process_queue, as Dagster executes it within a process; the instance keeps its events in memory.

    python -m benchmarks.drain_cases.run DAY    (environment: CP_*)

It says `ready` when everything is imported and begins at the next line of standard input. Then it prints one JSON
object: seconds and CPU seconds of the run, and the peak of its memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from dagster import DagsterInstance

from cp_definitions import defs


def main() -> None:
    """Run the day named on the command line."""
    [day] = sys.argv[1:]
    job = defs.resolve_job_def("process_queue")
    with DagsterInstance.ephemeral() as instance:
        print("ready", flush=True)
        sys.stdin.readline()
        began, cpu = time.perf_counter(), _cpu_seconds()
        result = job.execute_in_process(partition_key=day, instance=instance)
        seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
    drained = next(
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key and event.asset_key.path == ["execution_outcomes"]
    )
    print(
        json.dumps(
            {
                "seconds": seconds,
                "drain_seconds": drained["seconds in this run"].value,
                "cpu_seconds": cpu,
                "peak_bytes": _peak_bytes(),
            }
        ),
        flush=True,
    )


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_bytes() -> int:
    """Of this process; Linux counts in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
