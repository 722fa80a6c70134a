"""`control-panel models`: what was learned about models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cp_cli.tables import plain_table

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def models() -> None:
    """Show which models do a kind of task best."""


@app.command()
def rank(
    domain: Annotated[
        str | None, typer.Option(help="Such as backend. Default: all.", show_default=False)
    ] = None,
    complexity: Annotated[
        str | None, typer.Option(help="Such as moderate. Default: all.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a model.")] = False,
) -> None:
    """Rank models by how likely their work is good enough, with 80 % intervals.

    Estimates are those of the newest day that performance_metrics was made for. A model without an outcome of this
    kind of task is judged by its domain, its complexity, or as a whole; the last column says which.
    """
    from cp_core.learning.performance import ALL
    from cp_core.learning.ranking import rank_models
    from cp_core.scoring.config import Complexity, Domain
    from cp_resources import connect
    from cp_resources.errors import UserError
    from cp_resources.performance import PerformanceStore
    from cp_resources.settings import Settings

    for option, value, allowed in (("--domain", domain, Domain), ("--complexity", complexity, Complexity)):
        if value is not None and value not in {one.value for one in allowed}:
            raise UserError(
                f"{option} {value!r} is not known; allowed are {', '.join(one.value for one in allowed)}"
            )
    with connect.database(Settings()) as database:
        found = PerformanceStore(database).estimates()
    if found is None:
        raise UserError(
            "no performance was estimated yet; materialize performance_metrics, such as with "
            "`control-panel backfill daily_learning --from DAY`"
        )
    day, estimates = found
    ranking = rank_models(estimates, domain or ALL, complexity or ALL)
    if as_json:
        import json

        for row in ranking.to_dict("records"):
            typer.echo(json.dumps({"day": day.isoformat(), **row}))
    else:
        _print_table(ranking, f"{domain or 'every domain'}, {complexity or 'every complexity'}, as of {day}")


def _print_table(ranking: pd.DataFrame, title: str) -> None:
    from rich.console import Console

    table = plain_table(
        "model", "success", "80 % between", "best", "n", "judged by", left=["judged by"], title=title
    )
    for row in ranking.to_dict("records"):
        table.add_row(
            str(row["model"]),
            f"{row['success']:.1%}",
            f"{row['low']:.0%} and {row['high']:.0%}",
            f"{row['probability_best']:.0%}",
            f"{row['effective_n']:.1f}",
            str(row["based_on"]),
        )
    Console().print(table)
