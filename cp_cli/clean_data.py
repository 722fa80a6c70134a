"""`control-panel clean-data`: forget the embedded database and Dagster's files, after asking."""

from __future__ import annotations

from typing import Annotated

import typer


def clean_data(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget the embedded database, Dagster's storage and the logs, of this home and of the demo's.

    The inbox stays, and so does a database that CP_DATABASE_URL names. Refuses while the platform runs.
    """
    from cp_cli.stack import is_up
    from cp_resources.clean import forget_data, forgettable
    from cp_resources.embedded_postgres import is_used
    from cp_resources.errors import UserError
    from cp_resources.settings import Settings

    settings = Settings()
    homes = [settings, settings.model_copy(update={"home": settings.home / "demo"})]
    for one in homes:
        if is_up(one.home) or is_used(one.home):
            raise UserError(
                f"the platform is up on {one.home}, or a command uses its database: stop it first"
            )
    folders = [folder for one in homes for folder in forgettable(one)]
    if not folders:
        typer.echo(f"There is nothing to forget in {settings.home}.")
        return
    typer.echo("This forgets every task, score, assignment, execution and run in:")
    for folder in folders:
        typer.echo(f"  {folder}")
    if not yes:
        typer.confirm("Forget all of it?", abort=True)
    for one in homes:
        forget_data(one)
    typer.echo("Forgotten.")
