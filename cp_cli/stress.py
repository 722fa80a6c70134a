"""`control-panel stress`: a load of made-up tasks on the planner, beside an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_cli.tables import plain_table

if TYPE_CHECKING:
    from cp_core.assignment.strategies import Strategy
    from cp_resources.stress_report import StressReport


def stress(
    tasks: Annotated[int, typer.Option(help="Tasks that are made up; at most 20,000.")] = 2_000,
    concurrency: Annotated[int, typer.Option(help="Planners that work at once; at most 4.")] = 2,
    strategy: Annotated[
        str | None,
        typer.Option(help="tiered, maximize_value, ... Default: the strategy of policies.yaml."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The tasks and their order follow from it.")] = 7,
    report: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Where the report goes. Default: stress.json in CP_HOME."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Earlier report. Default: what the new one replaces."),
    ] = None,
    unsafe_tasks: Annotated[
        int | None, typer.Option(min=1, help="Instead of --tasks, without its limit.")
    ] = None,
    unsafe_concurrency: Annotated[
        int | None, typer.Option(min=1, help="Instead of --concurrency, without its limit.")
    ] = None,
) -> None:
    """Put a load of made-up tasks on the planner, and report speed and soundness beside an earlier run.

    The load runs on a database of its own on the same server, which is dropped at the end.
    Exit code 1 if the ledger does not verify or a task was assigned twice.
    """
    from cp_resources import connect
    from cp_resources.champion import ConfigurationStore
    from cp_resources.configuration import load_configuration
    from cp_resources.settings import Settings
    from cp_resources.stress import MOST_CONCURRENCY, MOST_TASKS, Load, with_strategy
    from cp_resources.stress import stress as run
    from cp_resources.stress_report import write_report

    load = Load(
        tasks=_within("tasks", tasks, MOST_TASKS, unsafe_tasks),
        concurrency=_within("concurrency", concurrency, MOST_CONCURRENCY, unsafe_concurrency),
        seed=seed,
    )
    settings = Settings()
    files = load_configuration(settings.config_dir)
    with connect.database(settings) as database:
        configuration = ConfigurationStore(database).in_force(files)
    if strategy is not None:
        configuration = with_strategy(configuration, _strategy(strategy))
    path = report or settings.home / "stress.json"
    before = _earlier(path, baseline)
    with connect.database_url(settings, migrate=False) as url:
        found = run(url, configuration, load)
    page = write_report(path, found, before)
    _print(found, before)
    typer.echo(f"written to {path} and {page}")
    raise typer.Exit(0 if found.is_sound else 1)


def _within(name: str, value: int, most: int, unsafe: int | None) -> int:
    """The value, if it is safe, or the one that was asked for knowing that it may not be."""
    from cp_resources.stress import StressError

    if unsafe is not None:
        if unsafe > most:
            typer.echo(
                f"warning: {name} {unsafe:,} is above the safe limit of {most:,}: the server may slow down "
                "for everybody who uses it",
                err=True,
            )
        return unsafe
    if value > most:
        raise StressError(
            f"--{name} is {value:,}; at most {most:,} is safe beside other work. For more: --unsafe-{name} {value}"
        )
    return value


def _earlier(path: Path, baseline: Path | None) -> StressReport | None:
    """The report to compare with: the one that was asked for, or else the one that will be replaced."""
    from cp_resources.stress_report import StressReportError, read_report

    if baseline is not None:
        return read_report(baseline)
    try:
        return read_report(path) if path.exists() else None
    except StressReportError as error:
        typer.echo(f"not compared: {error}", err=True)
        return None


def _strategy(name: str) -> Strategy:
    from cp_core.assignment.strategies import Strategy
    from cp_resources.stress import StressError

    try:
        return Strategy(name)
    except ValueError as error:
        raise StressError(f"--strategy is {name!r}; allowed are {', '.join(Strategy)}") from error


def _print(found: StressReport, before: StressReport | None) -> None:
    from rich.console import Console

    from cp_resources.stress_report import differences, lines

    console = Console()
    console.print(f"Stress run of {found.made_at}")
    table = plain_table("figure", *(("before", "after", "ratio") if before else ("value",)))
    for line in lines(found, before):
        table.add_row(*(line if before else (line.figure, line.after)))
    console.print(table)
    for unlike in differences(found, before) if before else ():
        console.print(f"not alike: {unlike}")
    for difference in found.ledger_differences:
        console.print(f"[red]ledger:[/red] {difference}")
    if found.assigned_twice:
        console.print(f"[red]{found.assigned_twice} tasks were assigned twice[/red]")
