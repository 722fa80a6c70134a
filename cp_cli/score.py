"""`control-panel score`: what a task is worth and why, and a person's own score in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cp_cli.tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from cp_resources.database import Database
    from cp_resources.settings import Settings


def score(
    task_id: Annotated[str, typer.Argument(help="The task's id.", show_default=False)],
    override: Annotated[
        float | None,
        typer.Option(help="A score of 0 to 100 to use in place of the computed one.", show_default=False),
    ] = None,
    reason: Annotated[
        str, typer.Option(help="Why the score is overridden; others will read it.", show_default=False)
    ] = "",
    by: Annotated[
        str | None, typer.Option(help="Who overrides. Default: your login name.", show_default=False)
    ] = None,
    clear_override: Annotated[
        bool, typer.Option("--clear-override", help="Let the computed score count again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every factor as one JSON object.")] = False,
) -> None:
    """Show a task's value score and token estimate with every factor, or override the score.

    A task that has no score yet is scored first. The computed score stays stored beside an override.
    """
    _refuse_contradictions(override, reason, clear_override)

    from cp_cli.person import login_name
    from cp_resources import connect
    from cp_resources.scores import ScoreStore
    from cp_resources.settings import Settings

    settings = Settings()
    with connect.database(settings) as database:
        store = ScoreStore(database)
        if store.score(task_id) is None:
            _score_now(task_id, database, settings)
        if override is not None:
            store.override_score(task_id, override, reason, by or login_name())
        if clear_override:
            store.clear_override(task_id, by or login_name())
        stored = store.score(task_id)
    if stored is None:
        raise AssertionError(f"task {task_id} was scored and has no score")
    if as_json:
        import json

        typer.echo(json.dumps(stored, default=str))
        return
    from rich.console import Console

    console = Console()
    console.print(_factors(stored))
    console.print(_tokens(stored))
    console.print(f"scored {stored['scored_at']:%Y-%m-%d %H:%M} UTC")
    console.print(f"configuration: {stored['config_hash']}")


def _refuse_contradictions(override: float | None, reason: str, clear_override: bool) -> None:
    from cp_resources.errors import UserError

    if clear_override and override is not None:
        raise UserError("--override and --clear-override contradict each other: give one of them")
    if reason and override is None:
        raise UserError("--reason explains an override: give --override SCORE with it")


def _score_now(task_id: str, database: Database, settings: Settings) -> None:
    from cp_resources.champion import ConfigurationStore
    from cp_resources.configuration import load_configuration
    from cp_resources.scores import ScoreStore

    configuration = ConfigurationStore(database).in_force(load_configuration(settings.config_dir))
    ScoreStore(database).score_now(task_id, configuration)


def _factors(stored: dict[str, Any]) -> Table:
    from rich.markup import escape

    from cp_core.printable import printable

    size = (
        f"{_counted(stored['files'], 'file')}, {_counted(stored['lines'], 'line')} ({stored['size_source']})"
    )
    rows = [
        ("priority", stored["priority_points"], f"P{stored['priority']}"),
        ("x complexity", stored["complexity_factor"], f"{stored['complexity']}: {size}"),
        ("+ time bonus", stored["time_bonus"], stored["time_bonus_reason"]),
        ("x domain", stored["domain_factor"], f"{stored['domain']}, from {stored['domain_source']}"),
        ("x risk", stored["risk_factor"], stored["risk"]),
    ]
    title = f"{escape(stored['task_id'])} ({stored['state']})"
    table = plain_table("factor", "value", "because", fold=["because"], title=title)
    for name, value, because in rows:
        table.add_row(name, f"{value:g}", because)
    table.add_section()
    table.add_row("computed score", f"{stored['score']:.2f}", _formula(stored))
    if stored["override_score"] is not None:
        because = printable(f"{stored['override_reason']} ({stored['override_by']})")
        table.add_row("override", f"{stored['override_score']:.2f}", escape(because))
    table.add_row("value score", f"[bold]{stored['effective_score']:.2f}", "")
    return table


def _counted(number: int, of_what: str) -> str:
    return f"{number:,} {of_what}{'' if number == 1 else 's'}"


def _formula(stored: dict[str, Any]) -> str:
    first = f"{stored['priority_points']:g} x {stored['complexity_factor']:g} + {stored['time_bonus']:g}"
    formula = f"({first}) x {stored['domain_factor']:g} x {stored['risk_factor']:g}"
    return f"{formula}, at most 100" if stored["score"] >= 100 else formula


def _tokens(stored: dict[str, Any]) -> Table:

    table = plain_table("tokens", "median", "80 % between", "mean (planned)", title="Estimate")
    for kind in ("input", "output"):
        table.add_row(
            kind,
            f"{stored[f'{kind}_median']:,.0f}",
            f"{stored[f'{kind}_low']:,.0f} and {stored[f'{kind}_high']:,.0f}",
            f"{stored[f'{kind}_mean']:,.0f}",
        )
    return table
