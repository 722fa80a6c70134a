"""`control-panel demo`: the main job once, for real, with simulated models.

An embedded PostgreSQL, Dagster's daemon and webserver and the simulator are started on a folder of the demo's
own; tasks are submitted as any user would submit them; the sensor launches the runs; the learning job follows
for each day.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_resources.errors import UserError
from cp_resources.settings import PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from cp_cli.stack import Stack
    from cp_resources.dagster_api import CheckResult, DagsterApi
    from cp_resources.database import Database

BUNDLED_TASKS = PROJECT_ROOT / "config" / "demo_tasks.jsonl"
SIMULATOR_SEED = 7
LEARNING_SECONDS = 180

_GATED = "candidate_config"
"""The asset whose checks are gates: that they refuse is no fault."""


def demo(
    tasks: Annotated[
        Path | None,
        typer.Argument(
            help="JSONL, JSON or CSV file of tasks. Default: the bundled tasks, over the last three days."
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=PATH, as `control-panel submit --map` takes it.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="As `control-panel submit --preset` takes it.")] = None,
    port: Annotated[int, typer.Option(help="Port of Dagster's webserver.")] = 3000,
    seconds: Annotated[
        int, typer.Option("--timeout", help="Give up when tasks are not final after so many seconds.")
    ] = 900,
) -> None:
    """Run the main job on bundled tasks with simulated models, and report what came of it.

    Exit code 0 only if every task reached a final state, the ledger verifies and every asset check passed; the gates
    of learning may warn, because they have too little to go by.
    """
    from rich.console import Console

    from cp_cli.stack import Stack
    from cp_resources.clean import forget_data

    began = time.monotonic()
    console = Console()
    settings = demo_settings()
    forget_data(settings)
    _say(console, "Starting PostgreSQL, Dagster and the simulated models")
    with Stack(settings, port=port, simulate=True, simulator_seed=SIMULATOR_SEED) as stack:
        file = tasks or _dated(
            BUNDLED_TASKS, settings.home / "demo_tasks.jsonl", today=datetime.now(UTC).date()
        )
        _submit(console, stack, file, mapping or [], preset)
        problems = _run(console, stack, seconds)
    _say(console, f"{time.monotonic() - began:.0f} s in all")
    again = f"CP_HOME={_relative(settings.home)} make up"
    console.print(f"See it in Dagster: [bold]{again}[/bold], then {stack.webserver_url}")
    for problem in problems:
        console.print(f"[red]not well:[/red] {problem}")
    raise typer.Exit(1 if problems else 0)


def demo_settings() -> Settings:
    """Settings under which everything is the demo's own: nothing reaches the owner's database or inbox."""
    return Settings(
        home=Settings().home / "demo",
        inbox_dir=None,
        database_url=None,
        dagster_database_url=None,
        redis_url=None,
    )


def _run(console: Console, stack: Stack, seconds: int) -> list[str]:
    """Wait for the tasks, learn from them, report; return what a person must know is not as it should be."""
    from cp_cli.report import print_report
    from cp_resources.dagster_api import DagsterApi
    from cp_resources.database import Database
    from cp_resources.ledger import Ledger
    from cp_resources.report import days_with_tasks, read_report

    database = Database(stack.environment["CP_DATABASE_URL"])
    api = DagsterApi(stack.webserver_url)
    try:
        problems = _wait_until_final(console, database, seconds)
        days = days_with_tasks(database)
        problems += _learn(console, api, days)
        checks = _checks(api)
        failed = [check for check in checks if not check.passed]
        problems += [
            f"check {check.check} of {check.asset} failed"
            for check in failed
            if check.severity == "ERROR" or check.asset != _GATED
        ]
        verified = Ledger(database).verify()
        problems += [f"ledger: {difference}" for difference in verified.differences]
        console.print()
        print_report(console, read_report(database, days), Ledger(database).accounts(), verified)
        console.print(
            f"Asset checks: {len(checks) - len(failed)} of {len(checks)} evaluations passed, in {len(api.runs())} runs."
        )
        warned = sorted({f"{check.check} of {check.asset}" for check in failed if check.asset == _GATED})
        if warned:
            console.print(f"Warned, which a few days of outcomes may well do: {', '.join(warned)}.")
    finally:
        api.close()
        database.close()
    return problems


def _dated(source: Path, target: Path, *, today: date) -> Path:
    """Write the bundled tasks with times of the last three days.

    Bundled rows say when they were submitted relative to today: `submitted_days_ago` with `submitted_time`
    (UTC), and `deadline_hours` after submission.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open(encoding="utf-8") as rows, target.open("w", encoding="utf-8") as dated:
        for line in rows:
            dated.write(json.dumps(_with_times(json.loads(line), today)) + "\n")
    return target


def _with_times(row: dict[str, object], today: date) -> dict[str, object]:
    day = today - timedelta(days=int(str(row.pop("submitted_days_ago"))))
    at = datetime.fromisoformat(f"{day}T{row.pop('submitted_time')}+00:00")
    row["submitted_at"] = at.isoformat()
    if (hours := row.pop("deadline_hours", None)) is not None:
        row["deadline"] = (at + timedelta(hours=float(str(hours)))).isoformat()
    return row


def _submit(console: Console, stack: Stack, file: Path, mapping: Iterable[str], preset: str | None) -> None:
    _say(console, f"Submitting {_relative(file)}")
    options = [option for pair in mapping for option in ("--map", pair)] + (
        ["--preset", preset] if preset else []
    )
    done = subprocess.run(
        [sys.executable, "-m", "cp_cli.main", "submit", str(file), *options],
        env=stack.environment,
        check=False,
    )
    if done.returncode not in (0, 3):
        raise UserError(f"submitting {file} failed (exit code {done.returncode}); its message stands above")


def _wait_until_final(console: Console, database: Database, seconds: int) -> list[str]:
    """Show progress until every task is final; say which are not when time is up."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    give_up = time.monotonic() + seconds
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("The sensor launches runs; tasks final", total=None)
        while True:
            total, final, open_states = _standing(database)
            progress.update(bar, total=total, completed=final)
            if final == total:
                return []
            if time.monotonic() > give_up:
                return [f"{total - final} tasks are not final after {seconds} s: {open_states}"]
            time.sleep(0.5)


def _standing(database: Database) -> tuple[int, int, str]:
    """All tasks, final tasks, and the others by state."""
    from cp_core.tasks.states import FINAL_STATES, TaskState

    rows = database.fetch("SELECT state, count(*) FROM tasks GROUP BY state ORDER BY state")
    final = sum(count for state, count in rows if TaskState(state) in FINAL_STATES)
    still = ", ".join(f"{count} {state}" for state, count in rows if TaskState(state) not in FINAL_STATES)
    return sum(count for _, count in rows), final, still


def _learn(console: Console, api: DagsterApi, days: Iterable[date]) -> list[str]:
    """Materialize the learning job for each day; return the runs that failed."""
    _say(console, "Learning from each day's outcomes")
    queue_runs = {run.run_id for run in api.runs()}
    api.wait_for(queue_runs, seconds=LEARNING_SECONDS)
    launched = {api.launch("daily_learning", day) for day in days}
    runs = api.wait_for(launched, seconds=LEARNING_SECONDS)
    return [
        f"run {run.run_id} of {run.job} for {run.partition} ended {run.status}"
        for run in runs
        if run.status != "SUCCESS"
    ]


def _checks(api: DagsterApi) -> list[CheckResult]:
    """The newest evaluation of each check of each partition."""
    newest: dict[tuple[str | None, str, str], CheckResult] = {}
    for run in reversed(api.runs()):
        for check in api.check_results(run.run_id):
            newest[run.partition, check.asset, check.check] = check
    return list(newest.values())


def _say(console: Console, text: str) -> None:
    console.print(f"[bold cyan]>[/bold cyan] {text}")


def _relative(path: Path) -> str:
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)
