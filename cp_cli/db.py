"""`control-panel db`: the revision of the database's schema, and bringing it to the newest."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True)


@app.command()
def current() -> None:
    """Print the revision of the database's schema, and the newest one that this code knows."""
    from cp_resources import connect, migrate
    from cp_resources.settings import Settings

    with connect.database(Settings(), migrate=False) as database:
        revision = migrate.current(database.url)
        newest = "" if revision == migrate.newest() else f" (newest: {migrate.newest()})"
        typer.echo(f"{database.address} is at revision {revision or 'none'}{newest}")


@app.command()
def upgrade() -> None:
    """Bring the database's schema to the newest revision. Safe to repeat, and to run twice at once."""
    from cp_resources import connect, migrate
    from cp_resources.settings import Settings

    with connect.database(Settings(), migrate=False) as database:
        before = connect.upgrade(database.url)
        typer.echo(f"{database.address}: revision {before or 'none'} -> {migrate.newest()}")
