"""`control-panel ledger`: whether every balance is what its transfers add up to."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def ledger() -> None:
    """Look after the quota ledger."""


@app.command()
def verify(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recompute every balance from the transfers: exit code 0 when all agree, 1 when something differs."""
    import json
    from dataclasses import asdict

    from cp_resources import connect
    from cp_resources.ledger import Ledger
    from cp_resources.settings import Settings

    with connect.database(Settings()) as database:
        report = Ledger(database).verify()
    if as_json:
        typer.echo(json.dumps({"balanced": report.balanced, **asdict(report)}))
    else:
        checked = f"{report.accounts} accounts recomputed from {report.transfers:,} transfers"
        typer.echo(f"{checked}: {'balanced' if report.balanced else 'NOT balanced'}")
        for difference in report.differences:
            typer.echo(f"  {difference}")
    raise typer.Exit(0 if report.balanced else 1)
