"""Claim: a JSONL file goes into the database at 20,000 rows a second, in memory that does not grow with it.

A row has an id, a title, a description of 300 characters, a priority, labels, a workspace and sizes. Each
submission is a process of its own into an empty database; the server is a real one with fsync on. The floor
is the same transactions with rows that were read and validated before.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.report import note, report
from cp_core.tasks.submission import validate
from cp_resources import migrate
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres
from cp_resources.intake import TRANSACTION_ROWS, Intake
from cp_resources.rejects import RejectsFile
from cp_resources.task_files import open_task_file
from cp_resources.tasks import NewTask, TaskStore

SMALL, LARGE = 50_000, 400_000
REPEATS = 3
THROUGHPUT_GOAL = ">= 20000"
MEMORY_GOAL = "<= 1.2"
_WORDS = (
    "fix",
    "add",
    "remove",
    "cache",
    "index",
    "login",
    "page",
    "query",
    "token",
    "deploy",
    "test",
    "docs",
)


def main() -> None:
    """Measure every case on a database of its own."""
    with tempfile.TemporaryDirectory(prefix="control-panel-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # under root the server runs as another account
        small, large = (_write_jsonl(home / f"{rows}.jsonl", rows) for rows in (SMALL, LARGE))
        table = _write_csv(home / f"{SMALL}.csv", SMALL)
        with EmbeddedPostgres(home) as server:
            rate, small_memory = _measure(server, _submit, small, SMALL)
            report("submit", f"JSONL, {SMALL:,} rows", "throughput", rate, "rows/s", THROUGHPUT_GOAL)
            rate, large_memory = _measure(server, _submit, large, LARGE, repeats=1)
            report("submit", f"JSONL, {LARGE:,} rows", "throughput", rate, "rows/s", THROUGHPUT_GOAL)
            report("submit", f"JSONL, {LARGE:,} rows", "peak memory", large_memory / 2**20, "MiB")
            growth = large_memory / small_memory
            case = f"JSONL, {LARGE:,} against {SMALL:,} rows"
            report("submit", case, "peak memory ratio", growth, "ratio", MEMORY_GOAL)
            report(
                "submit",
                f"CSV, {SMALL:,} rows",
                "throughput",
                _measure(server, _submit, table, SMALL)[0],
                "rows/s",
            )
            floor = _measure(server, _insert_only, small, SMALL)[0]
            report("submit", f"floor: rows ready in memory, {SMALL:,}", "throughput", floor, "rows/s")


def _measure(
    server: EmbeddedPostgres,
    work: Callable[[str, Path], float],
    path: Path,
    rows: int,
    repeats: int = REPEATS,
) -> tuple[float, float]:
    """Median rows a second, and median peak memory in bytes, of processes that do `work`."""
    measured = [_in_process(server, work, path) for _ in range(repeats)]
    note(f"{path.name} {work.__name__}: {', '.join(f'{seconds:.2f} s' for seconds, _ in measured)}")
    seconds, memory = (statistics.median(column) for column in zip(*measured, strict=True))
    return rows / seconds, memory


def _in_process(
    server: EmbeddedPostgres, work: Callable[[str, Path], float], path: Path
) -> tuple[float, float]:
    name = f"bench_{uuid4().hex}"
    server.create_database(name)
    migrate.upgrade(server.url(name))
    context = multiprocessing.get_context("spawn")
    answer: Any = context.SimpleQueue()
    process = context.Process(target=_child, args=(answer, work, server.url(name), path))
    process.start()
    measured: tuple[float, float] = answer.get()
    process.join()
    return measured


def _child(answer: Any, work: Callable[[str, Path], float], url: str, path: Path) -> None:
    seconds = work(url, path)
    unit = 1 if sys.platform == "darwin" else 1024
    answer.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def _submit(url: str, path: Path) -> float:
    database = Database(url)
    begun = time.perf_counter()
    with Intake(TaskStore(database)) as intake, open_task_file(path) as file:
        intake.take(file, RejectsFile(path.with_suffix(".rejects")))
        counts = intake.finish()
    seconds = time.perf_counter() - begun
    if counts.duplicates or counts.rejected:
        raise SystemExit(f"{path}: not every row was stored: {counts}")
    database.close()
    return seconds


def _insert_only(url: str, path: Path) -> float:
    now = datetime.now(UTC)
    submissions = (validate(json.loads(line), now=now) for line in path.open())
    rows = [NewTask.of(submission, submission.id or "", None) for submission in submissions]
    database = Database(url)
    store = TaskStore(database)
    begun = time.perf_counter()
    for start in range(0, len(rows), TRANSACTION_ROWS):
        store.insert(rows[start : start + TRANSACTION_ROWS])
    seconds = time.perf_counter() - begun
    database.close()
    return seconds


def _write_jsonl(path: Path, rows: int) -> Path:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in _rows(rows))
    return path


def _write_csv(path: Path, rows: int) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        made = ({**row, "labels": ",".join(row["labels"])} for row in _rows(rows))
        first = next(made)
        writer.writerow(first)
        writer.writerow(first.values())
        writer.writerows(row.values() for row in made)
    return path


def _rows(count: int) -> Iterator[dict[str, Any]]:
    random_numbers = random.Random(7)
    for number in range(count):
        text = " ".join(random_numbers.choices(_WORDS, k=60))[:300]
        yield {
            "id": f"task-{number}",
            "title": text[:60],
            "description": text,
            "priority": f"P{number % 5}",
            "labels": random_numbers.sample(_WORDS, 2),
            "workspace": f"shop/{number % 20}",
            "estimated_files": number % 12,
            "estimated_lines": number % 900,
        }


if __name__ == "__main__":
    main()
