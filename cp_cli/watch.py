"""`control-panel watch`: how far the work is, as a table that keeps up."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cp_cli.tables import plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from cp_resources.progress import Progress

REFRESH_SECONDS = 1.0


def watch(
    day: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            metavar="YYYY-MM-DD",
            help="Submission day (UTC). Default: the days with unfinished tasks.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a look.")] = False,
) -> None:
    """Show tasks by state, attempts by model, rate, time left, cost and workers; Ctrl-C ends it.

    Every second on a terminal; plain text when the output is not one.
    """
    import time

    from rich.console import Console, Group
    from rich.live import Live

    from cp_resources import connect
    from cp_resources.progress import read_progress
    from cp_resources.settings import Settings

    chosen = day and day.date()
    console = Console()
    with connect.database(Settings()) as database:
        if as_json or once or not console.is_terminal:
            while True:
                seen = read_progress(database, chosen)
                typer.echo(_json(seen)) if as_json else console.print(Group(*_parts(seen)))
                if once:
                    return
                time.sleep(REFRESH_SECONDS)
        with Live(console=console, auto_refresh=False, transient=False) as live:
            while True:
                started = time.monotonic()
                live.update(Group(*_parts(read_progress(database, chosen))), refresh=True)
                # a large day takes a while to count: never look for more than half of the time
                time.sleep(max(REFRESH_SECONDS, time.monotonic() - started))


def _parts(seen: Progress) -> list[RenderableType]:
    days = ", ".join(map(str, seen.days[:3])) + (
        f" and {len(seen.days) - 3} more" if len(seen.days) > 3 else ""
    )
    parts: list[RenderableType] = [
        f"[bold]{days or 'no tasks'}[/]  {seen.at:%H:%M:%S} UTC",
        "  ".join(f"{state} [bold]{count:,}[/]" for state, count in seen.states.items()),
        f"{seen.ended_per_minute:,} tasks a minute, {_left(seen)}, ${seen.cost_usd:,.2f}"
        + (
            f", oldest wait {_time(seen.oldest_wait_seconds)}" if seen.oldest_wait_seconds is not None else ""
        ),
        "",
        _models(seen),
    ]
    if seen.drains:
        parts += ["", _drains(seen)]
    parts += [f"[red]{one['state']}[/]: breaker of {one['provider']}/{one['model']}" for one in seen.breakers]
    return parts


def _models(seen: Progress) -> Table:
    table = plain_table("model", "running", "succeeded", "failed", "a minute", "USD")
    for line in seen.models:
        figures = (line.running, line.succeeded, line.failed, line.per_minute)
        table.add_row(line.model, *(f"{figure:,}" for figure in figures), f"{line.cost_usd:,.2f}")
    return table


def _drains(seen: Progress) -> Table:
    table = plain_table("worker", "day", "process", "holds", "attempts", "heard of")
    for drain in seen.drains:
        ago = f"{_time(drain.beat_seconds_ago)} ago"
        table.add_row(
            drain.worker,
            str(drain.submission_day),
            f"{drain.host}:{drain.pid}",
            f"{drain.held:,}",
            f"{drain.attempts:,}",
            f"[red]{ago}: dead?[/]" if drain.is_stale else ago,
        )
    return table


def _left(seen: Progress) -> str:
    if not seen.open:
        return "all done"
    return "nothing ends" if seen.eta_seconds is None else f"about {_time(seen.eta_seconds)} left"


def _time(seconds: float) -> str:
    """The two largest units: 5 s, 2 min 30 s, 3 h 5 min, 2 d 4 h."""
    whole = round(seconds)
    for unit, size, smaller, part in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def _json(seen: Progress) -> str:
    import json
    from dataclasses import asdict

    figures = {
        **asdict(seen),
        "open": seen.open,
        "eta_seconds": seen.eta_seconds,
        "cost_usd": float(seen.cost_usd),
        "models": [{**asdict(line), "cost_usd": float(line.cost_usd)} for line in seen.models],
        "drains": [{**asdict(drain), "is_stale": drain.is_stale} for drain in seen.drains],
    }
    return json.dumps(figures, default=str)
