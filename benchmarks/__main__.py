"""Run every benchmark of this folder, each as its own process, and print a table (`make bench`)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import note

HERE = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "__main__", "report"}
WIDTH_OF_A_FILE = 160


def main() -> None:
    """Run the benchmarks named on the command line, or all of them.

    A goal that is not met is no failure; a benchmark that does not finish is.
    """
    names = sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    note(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.platform()}")
    rows, unfinished = [], []
    for name in names:
        note(f"running benchmarks.{name} ...")
        exit_code, own = _run(name)
        rows += own
        if exit_code != 0:
            unfinished.append(f"benchmarks.{name} did not finish: exit code {exit_code}")
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH_OF_A_FILE)
    console.print(_table(rows))
    if unfinished:
        sys.exit("\n".join(unfinished))


def _run(name: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code of a benchmark, and what it reported."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    process = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    return process.returncode, [json.loads(line) for line in process.stdout.splitlines()]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("benchmark", "case", "metric", title="Benchmarks", title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("goal", justify="right")
    table.add_column("met")
    for row in rows:
        met = {True: "[green]yes", False: "[red]no", None: ""}[row["met"]]
        value, goal = f"{row['value']:,.6g}", row["goal"] or ""
        table.add_row(row["benchmark"], row["case"], row["metric"], value, row["unit"], goal, met)
    return table


if __name__ == "__main__":
    main()
