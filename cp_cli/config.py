"""`control-panel config`: what is in force and why, and moving the pointers by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cp_resources.champion import Promotion

app = typer.Typer(no_args_is_help=True)

_Version = Annotated[
    str,
    typer.Argument(help="champion, challenger, previous, or the beginning of a hash.", show_default=False),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept for good.", show_default=False)]
_By = Annotated[str | None, typer.Option("--by", help="Who; default: the login name.", show_default=False)]


@app.callback()
def config() -> None:
    """Show what is in force, and promote or roll back what was learned."""


@app.command()
def history(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most lines.")] = 20,
    as_json: _Json = False,
) -> None:
    """Show the pointers, and what was promoted, rolled back or refused, by whom and why; latest first."""
    from cp_resources import connect
    from cp_resources.champion import ConfigurationStore
    from cp_resources.settings import Settings

    with connect.database(Settings()) as database:
        store = ConfigurationStore(database)
        pointers, lines = store.pointers(), store.history(limit)
    if as_json:
        _print_json({"pointers": pointers, "history": [_as_json(line) for line in lines]})
        return
    for name in ("champion", "challenger", "previous"):
        typer.echo(f"{name:<10} {pointers.get(name, 'none')}")
    if "champion" not in pointers:
        typer.echo("in force: the files of CP_CONFIG_DIR alone; nothing learned was promoted yet")
    for line in lines:
        typer.echo(_in_a_line(line))


@app.command()
def show(version: _Version = "champion", as_json: _Json = False) -> None:
    """Show what was learned in a version, and what each gate found of it."""
    from cp_core.learning.differences import differences
    from cp_resources import connect
    from cp_resources.champion import ConfigurationStore
    from cp_resources.gate_results import GateResults
    from cp_resources.settings import Settings

    with connect.database(Settings()) as database:
        store = ConfigurationStore(database)
        whole = store.find(version)
        learned = store.content(whole).get("learned", {})
        verdicts = GateResults(database).latest(whole)
    if as_json:
        gates = {name: verdict.model_dump(mode="json") for name, verdict in verdicts.items()}
        _print_json({"config_hash": whole, "learned": learned, "gates": gates})
        return
    typer.echo(f"configuration {whole}")
    typer.echo("learned:" if learned else "nothing learned: the files alone")
    for leaf in differences({}, learned):
        if leaf.after not in ({}, None):
            typer.echo(f"  {leaf.key} = {_shown(leaf.after)}")
    for name, verdict in verdicts.items():
        typer.echo(f"gate {name}: {'passed' if verdict.has_passed else 'NOT passed'}: {verdict.says}")


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="A version.")] = "previous",
    after: Annotated[str, typer.Argument(help="Another.")] = "champion",
    as_json: _Json = False,
) -> None:
    """Show every key that differs between two versions: by default, what the last move of the champion changed."""
    from cp_core.learning.differences import differences
    from cp_resources import connect
    from cp_resources.champion import ConfigurationStore
    from cp_resources.settings import Settings

    with connect.database(Settings()) as database:
        store = ConfigurationStore(database)
        left, right = store.find(before), store.find(after)
        found = differences(store.content(left), store.content(right))
    if as_json:
        keys = [{"key": each.key, "before": each.before, "after": each.after} for each in found]
        _print_json({"before": left, "after": right, "differences": keys})
        return
    typer.echo(f"from {left}\nto   {right}")
    for each in found:
        typer.echo(f"  {each.key}: {_shown(each.before)} -> {_shown(each.after)}")
    if not found:
        typer.echo("  nothing differs")


@app.command()
def promote(
    version: _Version,
    reason: _Reason,
    by: _By = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote it although gates have not passed; recorded as such.")
    ] = False,
) -> None:
    """Put a version in force. Refused unless every gate has a stored pass for exactly this version."""
    from cp_cli.person import login_name
    from cp_core.learning.gates.verdict import missing
    from cp_resources import connect
    from cp_resources.champion import ConfigurationStore, PromotionError
    from cp_resources.configuration import load_configuration
    from cp_resources.gate_results import GateResults
    from cp_resources.settings import Settings

    _require(reason)
    settings = Settings()
    files = load_configuration(settings.config_dir)
    with connect.database(settings) as database:
        store = ConfigurationStore(database)
        champion = store.pointers().get("champion")
        whole = store.find(version)
        lacking = missing(GateResults(database).latest(whole), store.in_force(files).content_hash)
        if lacking and not force:
            raise PromotionError(
                f"{whole[:12]} was not promoted. Every gate must have passed for exactly this version; --force "
                "overrules that, and is recorded:\n  " + "\n  ".join(lacking)
            )
        was_moved = store.promote(
            whole,
            instead_of=champion,
            base=store.remember(files),
            by=by or login_name(),
            reason=reason,
            evidence={"forced": bool(lacking), "gates_not_passed": lacking},
        )
    typer.echo(f"{whole} {'is in force now' if was_moved else 'was in force already; nothing was changed'}")


@app.command()
def rollback(reason: _Reason, by: _By = None) -> None:
    """Put the version before the champion in force again. A second rollback undoes the first."""
    from cp_cli.person import login_name
    from cp_resources import connect
    from cp_resources.champion import ConfigurationStore
    from cp_resources.settings import Settings

    _require(reason)
    with connect.database(Settings()) as database:
        before, now = ConfigurationStore(database).roll_back(by=by or login_name(), reason=reason)
    typer.echo(f"{now} is in force again, instead of {before}")


def _require(reason: str) -> None:
    from cp_resources.errors import UserError

    if not reason.strip():
        raise UserError("--reason is empty: say why, for whoever looks at the history later")


def _in_a_line(line: Promotion) -> str:
    from cp_core.printable import printable

    forced = " (forced past gates)" if line.evidence.get("forced") else ""
    what = f"{line.action}{forced} {(line.from_hash or 'nothing')[:12]} -> {line.to_hash[:12]}"
    return printable(f"{line.promoted_at:%Y-%m-%d %H:%M:%S} UTC  {what}  by {line.by}: {line.reason}")


def _as_json(line: Promotion) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(line), "promoted_at": line.promoted_at.isoformat()}


def _print_json(content: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(content))


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
