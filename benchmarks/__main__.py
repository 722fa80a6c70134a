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

HERE = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "__main__", "report"}


def main() -> None:
    """Run the benchmarks named on the command line, or all of them. Goals that are not met are no failure."""
    names = sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    console = Console(stderr=True)
    console.print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.platform()}")
    rows = []
    for name in names:
        console.print(f"running benchmarks.{name} ...")
        rows += _run(name)
    Console().print(_table(rows))


def _run(name: str) -> list[dict[str, Any]]:
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent, stdout=subprocess.PIPE, text=True
    )
    rows = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode != 0:
        rows.append({"benchmark": name, "case": f"did not finish: exit code {process.returncode}"})
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("benchmark", "case", "metric", title="Benchmarks", title_justify="left")
    for name in ("value", "unit", "goal", "met"):
        table.add_column(name, justify="right" if name in ("value", "goal") else "left")
    for row in rows:
        met = {True: "[green]yes", False: "[red]no", None: ""}[row.get("met")]
        value = f"{row['value']:,.6g}" if "value" in row else ""
        table.add_row(
            row["benchmark"],
            row["case"],
            row.get("metric", ""),
            value,
            row.get("unit", ""),
            row.get("goal") or "",
            met,
        )
    return table


if __name__ == "__main__":
    main()
