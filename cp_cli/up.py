"""`control-panel up`: Dagster's webserver and daemon on this machine, with a database, until Ctrl-C."""

from __future__ import annotations

import time
from typing import Annotated

import typer


def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Dagster's webserver.")] = 3000,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Also start simulated models, and send all calls to them.")
    ] = False,
    webserver: Annotated[
        bool, typer.Option("--webserver/--no-webserver", help="Whether to start Dagster's webserver.")
    ] = True,
) -> None:
    """Start Dagster's webserver and daemon on 127.0.0.1, with the embedded database or CP_DATABASE_URL's.

    Ctrl-C stops everything that was started.
    """
    from cp_cli.stack import ProcessEndedError, Stack
    from cp_resources.configuration import load_configuration
    from cp_resources.providers.endpoint import unset_keys
    from cp_resources.settings import Settings

    typer.echo("Starting ...")
    settings = Settings()
    try:
        with Stack(settings, port=port, simulate=simulate, webserver=webserver) as stack:
            if webserver:
                typer.echo(f"Dagster    {stack.webserver_url}")
            if stack.simulator_url:
                typer.echo(f"Simulator  {stack.simulator_url}")
            typer.echo(f"Database   {stack.database_address}")
            typer.echo(f"Logs       {stack.logs}")
            if not simulate and (
                unset := unset_keys(load_configuration(settings.config_dir).registry, settings)
            ):
                typer.echo(
                    f"No key in {', '.join(unset)}: runs with tasks for these providers' models will fail. Set "
                    "them, or start with --simulate."
                )
            typer.echo("Ready. Ctrl-C stops all of it.")
            try:
                while True:
                    stack.check()
                    time.sleep(0.5)
            except KeyboardInterrupt:
                typer.echo("Stopping ...")
    except ProcessEndedError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo("Stopped.")
