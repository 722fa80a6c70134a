"""The harness of the benchmarks: one JSON object a line, whatever the goals come to, and a table of them."""

from __future__ import annotations

import json
import subprocess
import sys

from cp_resources.settings import PROJECT_ROOT


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60
    )


def test_a_measurement_is_one_line_with_the_agreed_keys() -> None:
    script = """
from benchmarks.report import report
report("name", "case", "throughput", 99_999.5, "rows/s", ">= 100000")
report("name", "case", "throughput", 100_000, "rows/s", ">= 100000")
report("name", "case", "seconds", 0.25, "s", "<= 1.5 x the floor", met=True)
report("name", "case", "seconds", 0.25, "s")
"""
    lines = [json.loads(line) for line in python("-c", script).stdout.splitlines()]

    assert [list(line) for line in lines] == [
        ["benchmark", "case", "metric", "value", "unit", "goal", "met"]
    ] * 4
    assert [(line["value"], line["goal"], line["met"]) for line in lines] == [
        (99_999.5, ">= 100000", False),
        (100_000, ">= 100000", True),
        (0.25, "<= 1.5 x the floor", True),
        (0.25, None, None),
    ]


def test_a_benchmark_that_does_not_finish_is_a_failure() -> None:
    process = python("-m", "benchmarks", "of_nothing")

    assert process.returncode == 1
    assert "benchmarks.of_nothing did not finish: exit code 1" in process.stderr
