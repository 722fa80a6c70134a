"""Claims: `control-panel --help` answers within half a second, and loading the code location takes at most
1.5 times as long as a bare `import dagster, dagster_dbt`.

Each is a process of its own, started again and again in turn, after one round that warms the file cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import report

ROUNDS = 7
COMMANDS = {
    "help": ["-m", "cp_cli.main", "--help"],
    "bare": ["-c", "import dagster, dagster_dbt"],
    "location": ["-c", "import cp_definitions"],
}


def main() -> None:
    """Print both figures, and what they are made of."""
    _round()
    rounds = [_round() for _ in range(ROUNDS)]
    median = {name: statistics.median(times[name] for times in rounds) for name in COMMANDS}
    report("startup", "control-panel --help", "seconds", median["help"], "s", "<= 0.5")
    report("startup", "import dagster, dagster_dbt", "seconds", median["bare"], "s")
    report("startup", "import cp_definitions", "seconds", median["location"], "s")
    report("startup", "code location load", "ratio", median["location"] / median["bare"], "x", "<= 1.5")


def _round() -> dict[str, float]:
    return {name: _seconds(arguments) for name, arguments in COMMANDS.items()}


def _seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
