"""`control-panel breaker`: which models are left alone because calls to them failed, and an end to that."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cp_cli.tables import plain_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cp_core.execution.breaker import Breaker
    from cp_resources.breakers import BreakerStore, Scope

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a breaker.")] = False,
) -> None:
    """Show every breaker that counted a failure; a model without one is in order.

    Model * stands for everything that the provider serves. Of the last attempts each x failed.
    """
    with _store() as store:
        breakers = store.all()
    if as_json:
        _print_json(breakers)
    elif breakers:
        _print_table(breakers)
    else:
        typer.echo("no breaker has counted a failure: every model may be called")


@app.command()
def reset(
    name: Annotated[
        str, typer.Argument(help="A model, or a provider for all of its models.", show_default=False)
    ],
    reason: Annotated[str, typer.Option(help="Why; kept in the event.", show_default=False)],
    by: Annotated[str | None, typer.Option(help="Who. Default: your login name.", show_default=False)] = None,
) -> None:
    """Close a breaker at once, such as after a new key or more credit; calls go through again."""
    from cp_cli.person import login_name

    with _store() as store:
        closed = store.reset(name, reason=reason, by=by or login_name())
    for scope in closed:
        typer.echo(f"{scope} is closed: workers call it again")
    if not closed:
        typer.echo(f"nothing of {name} was open; what had been counted is forgotten")


def _print_json(breakers: Mapping[Scope, Breaker]) -> None:
    import json
    from dataclasses import asdict

    for scope, breaker in breakers.items():
        row = {"provider": scope.provider, "model": scope.model, **asdict(breaker)}
        typer.echo(json.dumps(row, default=lambda value: value.isoformat()))


def _print_table(breakers: Mapping[Scope, Breaker]) -> None:
    from rich.console import Console

    table = plain_table(
        *("provider", "model", "state", "since", "tried from", "reason", "last attempts"),
        left=("model", "state", "since", "tried from"),
        fold=("reason", "last attempts"),
    )
    colours = {"closed": "green", "half-open": "yellow", "open": "bold red"}
    for scope, breaker in breakers.items():
        table.add_row(
            scope.provider,
            scope.model,
            f"[{colours[breaker.state]}]{breaker.state}[/]",
            breaker.since.strftime("%m-%d %H:%M") if breaker.since else "",
            breaker.retry_at.strftime("%H:%M:%S") if breaker.retry_at else "",
            breaker.reason or "",
            breaker.recent,
        )
    Console().print(table)


@contextmanager
def _store() -> Iterator[BreakerStore]:
    from cp_resources import connect
    from cp_resources.breakers import BreakerStore
    from cp_resources.configuration import load_configuration
    from cp_resources.settings import Settings

    settings = Settings()
    configuration = load_configuration(settings.config_dir)
    with connect.database(settings) as database:
        yield BreakerStore(database, configuration)
